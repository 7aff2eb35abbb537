"""Forward noising processes."""

from jaxdiff.processes import agreement
from jaxdiff.processes.gaussian import edm
from jaxdiff.processes.gaussian import from_alpha_sigma
from jaxdiff.processes.gaussian import GaussianProcess
from jaxdiff.processes.gaussian import rectified_flow
from jaxdiff.processes.gaussian import resshift
from jaxdiff.processes.gaussian import sub_vp
from jaxdiff.processes.gaussian import ve
from jaxdiff.processes.gaussian import vp_cosine
from jaxdiff.processes.gaussian import vp_discrete
from jaxdiff.processes.gaussian import vp_linear
from jaxdiff.processes.gaussian import vp_linear_covering
from jaxdiff.processes.gaussian import zero_terminal_snr
from jaxdiff.processes.noise import check_normal
from jaxdiff.processes.noise import describe
from jaxdiff.processes.noise import is_normal
from jaxdiff.processes.noise import Normal
from jaxdiff.processes.path import path_noise
from jaxdiff.processes.pfgmpp import pfgmpp
from jaxdiff.processes.pfgmpp import StudentT

__all__ = [
  "GaussianProcess",
  "Normal",
  "StudentT",
  "agreement",
  "check_normal",
  "describe",
  "edm",
  "from_alpha_sigma",
  "is_normal",
  "path_noise",
  "pfgmpp",
  "rectified_flow",
  "resshift",
  "sub_vp",
  "ve",
  "vp_cosine",
  "vp_discrete",
  "vp_linear",
  "vp_linear_covering",
  "zero_terminal_snr",
]

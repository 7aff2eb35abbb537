"""Forward noising processes."""

from jaxdiff.processes.gaussian import edm
from jaxdiff.processes.gaussian import from_alpha_sigma
from jaxdiff.processes.gaussian import GaussianProcess
from jaxdiff.processes.gaussian import rectified_flow
from jaxdiff.processes.gaussian import sub_vp
from jaxdiff.processes.gaussian import ve
from jaxdiff.processes.gaussian import vp_cosine
from jaxdiff.processes.gaussian import vp_discrete
from jaxdiff.processes.gaussian import vp_linear
from jaxdiff.processes.gaussian import vp_linear_covering

__all__ = [
  "GaussianProcess",
  "edm",
  "from_alpha_sigma",
  "rectified_flow",
  "sub_vp",
  "ve",
  "vp_cosine",
  "vp_discrete",
  "vp_linear",
  "vp_linear_covering",
]

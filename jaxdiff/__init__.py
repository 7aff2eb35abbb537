"""jaxdiff: diffusion solvers and samplers as data, in JAX.

  process   how data turns into noise           jaxdiff.processes
  grid      the times the network is asked at   jaxdiff.grids
  solver    (process, grid) -> Tableau          jaxdiff.solvers
  model     model(x, t) -> (x0, eps)            jaxdiff.denoisers, .oracles
  sample    key, model, tableau, x -> samples   jaxdiff.sampling
  choose    key, model, ... -> tableau, report  jaxdiff.choosing

Importing it touches no device and loads no plotting, data or checkpoint
library.
"""

import importlib

from jaxdiff import choosing
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau
from jaxdiff.choosing import choose
from jaxdiff.choosing import width
from jaxdiff.denoisers import Denoiser
from jaxdiff.denoisers import from_function
from jaxdiff.denoisers import from_linen
from jaxdiff.denoisers import from_nnx
from jaxdiff.denoisers import with_label
from jaxdiff.guidance import cfg
from jaxdiff.oracles import exact
from jaxdiff.predictions import Prediction
from jaxdiff.processes import edm
from jaxdiff.processes import from_alpha_sigma
from jaxdiff.processes import GaussianProcess
from jaxdiff.processes import pfgmpp
from jaxdiff.processes import rectified_flow
from jaxdiff.processes import sub_vp
from jaxdiff.processes import ve
from jaxdiff.processes import vp_cosine
from jaxdiff.processes import vp_linear
from jaxdiff.sampling import run
from jaxdiff.sampling import sample
from jaxdiff.solvers import angular_adams
from jaxdiff.solvers import ddim
from jaxdiff.solvers import ddpm
from jaxdiff.solvers import default
from jaxdiff.solvers import deis
from jaxdiff.solvers import dpm_solver
from jaxdiff.solvers import dpmpp_2m
from jaxdiff.solvers import dpmpp_3m
from jaxdiff.solvers import encoder
from jaxdiff.solvers import euler
from jaxdiff.solvers import heun
from jaxdiff.solvers import heun_churn
from jaxdiff.solvers import ipndm
from jaxdiff.solvers import midpoint
from jaxdiff.solvers import rk4
from jaxdiff.solvers import solver
from jaxdiff.solvers import unipc
from jaxdiff.tableau import Tableau

_ON_DEMAND = (
  "checkpoints",
  "data",
  "densities",
  "diagnostics",
  "distillation",
  "interpolants",
  "jobs",
  "learning",
  "likelihood",
  "losses",
  "metrics",
  "models",
  "networks",
  "parallel",
  "phase_space",
  "quantization",
  "samplers",
  "search",
  "training",
  "weights",
  "zoo",
)


def __getattr__(name: str):
  """Loads the rooms that sampling alone does not need when first asked."""
  if name in _ON_DEMAND:
    return importlib.import_module(f"jaxdiff.{name}")
  raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")


__version__ = "0.1.0"
__all__ = [
  "Denoiser",
  "GaussianProcess",
  "Prediction",
  "Tableau",
  "angular_adams",
  "cfg",
  "choose",
  "choosing",
  "ddim",
  "ddpm",
  "default",
  "deis",
  "denoisers",
  "dpm_solver",
  "dpmpp_2m",
  "dpmpp_3m",
  "edm",
  "encoder",
  "euler",
  "exact",
  "from_alpha_sigma",
  "from_function",
  "from_linen",
  "from_nnx",
  "grids",
  "guidance",
  "heun",
  "heun_churn",
  "ipndm",
  "midpoint",
  "oracles",
  "pfgmpp",
  "predictions",
  "processes",
  "rectified_flow",
  "rk4",
  "run",
  "sample",
  "sampling",
  "solver",
  "solvers",
  "sub_vp",
  "tableau",
  "unipc",
  "ve",
  "vp_cosine",
  "vp_linear",
  "width",
  "with_label",
]

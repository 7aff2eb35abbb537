"""Stochastic interpolants: bridges between two densities, one or both of data.

| file         | what it holds                                               |
|--------------|-------------------------------------------------------------|
| `bridge`     | `interpolant`, `one_sided`: x_t = I(t, x0, x1) + gamma(t) z |
| `model`      | `Fields`: velocity and denoiser of a network; conversions   |
| `loss`       | `regression`; `errors` and the bound on KL that they give   |
| `transport`  | tables of the ODE and of the SDE of any diffusion           |
| `likelihood` | `log_likelihood` along the SDE's paths                      |
| `oracle`     | exact fields of Gaussian mixtures; Schroedinger bridges     |

Reference: Albergo, Boffi, Vanden-Eijnden (2023),
https://arxiv.org/abs/2303.08797.
"""

from jaxdiff.interpolants.bridge import Interpolant
from jaxdiff.interpolants.bridge import interpolant
from jaxdiff.interpolants.bridge import one_sided
from jaxdiff.interpolants.bridge import one_sided_process
from jaxdiff.interpolants.likelihood import log_likelihood
from jaxdiff.interpolants.loss import best_diffusion
from jaxdiff.interpolants.loss import Errors
from jaxdiff.interpolants.loss import errors
from jaxdiff.interpolants.loss import kl_bound
from jaxdiff.interpolants.loss import regression
from jaxdiff.interpolants.loss import schroedinger
from jaxdiff.interpolants.model import as_denoiser
from jaxdiff.interpolants.model import AsDenoiser
from jaxdiff.interpolants.model import Fields
from jaxdiff.interpolants.model import from_function
from jaxdiff.interpolants.model import score
from jaxdiff.interpolants.model import velocity
from jaxdiff.interpolants.oracle import exact_fields
from jaxdiff.interpolants.oracle import ExactFields
from jaxdiff.interpolants.oracle import schroedinger_gaussian
from jaxdiff.interpolants.oracle import SchroedingerGaussian
from jaxdiff.interpolants.transport import transport

__all__ = [
  "AsDenoiser",
  "Errors",
  "ExactFields",
  "Fields",
  "Interpolant",
  "SchroedingerGaussian",
  "as_denoiser",
  "best_diffusion",
  "errors",
  "exact_fields",
  "from_function",
  "interpolant",
  "kl_bound",
  "log_likelihood",
  "one_sided",
  "one_sided_process",
  "regression",
  "schroedinger",
  "schroedinger_gaussian",
  "score",
  "transport",
  "velocity",
]

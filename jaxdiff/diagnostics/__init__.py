"""Diagnostics of learned fields: equations, gauge, flow, dimension."""

from jaxdiff.diagnostics import conservativity
from jaxdiff.diagnostics import convention
from jaxdiff.diagnostics import diffusion_time
from jaxdiff.diagnostics import fokker_planck
from jaxdiff.diagnostics import gauge
from jaxdiff.diagnostics import intrinsic_dimension
from jaxdiff.diagnostics import wasserstein_flow

__all__ = [
  "conservativity",
  "convention",
  "diffusion_time",
  "fokker_planck",
  "gauge",
  "intrinsic_dimension",
  "wasserstein_flow",
]

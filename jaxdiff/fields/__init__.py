"""Models of what is no plain denoiser: interpolants, phase space, densities."""

from jaxdiff.fields.divergence import with_divergence
from jaxdiff.fields.divergence import WithDivergence
from jaxdiff.fields.interpolant import as_denoiser
from jaxdiff.fields.interpolant import AsDenoiser
from jaxdiff.fields.interpolant import Fields
from jaxdiff.fields.interpolant import from_function
from jaxdiff.fields.interpolant import score
from jaxdiff.fields.interpolant import velocity
from jaxdiff.fields.phase_space import phase_field
from jaxdiff.fields.phase_space import PhaseField

__all__ = [
  "AsDenoiser",
  "Fields",
  "PhaseField",
  "WithDivergence",
  "as_denoiser",
  "from_function",
  "phase_field",
  "score",
  "velocity",
  "with_divergence",
]

"""What can be measured of a model."""

from jaxdiff.diagnostics import model_statistics

__all__ = ["model_statistics"]
"""What a learned field is: its equations, its gauge, its flow."""

from jaxdiff.diagnostics import conservativity
from jaxdiff.diagnostics import wasserstein_flow

__all__ = ["conservativity", "wasserstein_flow"]
"""What a learned field is: its equations, its gauge, its times."""

# from jaxdiff.diagnostics import conservativity
# from jaxdiff.diagnostics import diffusion_time
from jaxdiff.diagnostics import fokker_planck

# from jaxdiff.diagnostics import gauge
# from jaxdiff.diagnostics import intrinsic_dimension

__all__ = [
  "auxiliary",
  "conservativity",
  "diffusion_time",
  "fokker_planck",
  "gauge",
  "intrinsic_dimension",
]

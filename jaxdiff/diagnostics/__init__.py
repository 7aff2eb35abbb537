"""What can be measured of a model."""

from jaxdiff.diagnostics import model_statistics

__all__ = ["model_statistics"]
"""What a learned field is: its equations, its gauge, its flow."""

from jaxdiff.diagnostics import conservativity
from jaxdiff.diagnostics import wasserstein_flow

__all__ = ["conservativity", "wasserstein_flow"]

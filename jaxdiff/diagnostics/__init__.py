"""What can be measured of a model."""

from jaxdiff.diagnostics import model_statistics

__all__ = ["model_statistics"]

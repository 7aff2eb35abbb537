"""Distances between sets of samples."""

from jaxdiff.metrics.assignment import wasserstein_2
from jaxdiff.metrics.frechet import frechet
from jaxdiff.metrics.memorization import memorization_ratio
from jaxdiff.metrics.memorization import nearest_distance
from jaxdiff.metrics.random_features import random_feature_frechet
from jaxdiff.metrics.sliced import sliced_wasserstein

__all__ = [
  "frechet",
  "memorization_ratio",
  "nearest_distance",
  "random_feature_frechet",
  "sliced_wasserstein",
  "wasserstein_2",
]

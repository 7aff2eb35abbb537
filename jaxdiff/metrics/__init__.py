"""Distances between sets of samples."""

from jaxdiff.metrics.frechet import frechet
from jaxdiff.metrics.random_features import random_feature_frechet
from jaxdiff.metrics.sliced import sliced_wasserstein

__all__ = ["frechet", "random_feature_frechet", "sliced_wasserstein"]

"""Distances between sets of samples."""

from jaxdiff.metrics.sliced import sliced_wasserstein

__all__ = ["sliced_wasserstein"]

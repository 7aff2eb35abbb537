"""Losses: loss(key, params, batch) -> (scalar, metrics)."""

from jaxdiff.losses import augment
from jaxdiff.losses import times
from jaxdiff.losses import uncertainty
from jaxdiff.losses.denoising import denoising
from jaxdiff.losses.denoising import dropped_labels
from jaxdiff.losses.denoising import error
from jaxdiff.losses.denoising import WEIGHTINGS
from jaxdiff.losses.fokker_planck import fokker_planck
from jaxdiff.losses.fokker_planck import potential_residual
from jaxdiff.losses.fokker_planck import score_residual
from jaxdiff.losses.implicit_score import implicit_score
from jaxdiff.losses.noise_classifier import noise_classifier

__all__ = [
  "WEIGHTINGS",
  "augment",
  "denoising",
  "dropped_labels",
  "error",
  "fokker_planck",
  "implicit_score",
  "noise_classifier",
  "potential_residual",
  "score_residual",
  "times",
  "uncertainty",
]

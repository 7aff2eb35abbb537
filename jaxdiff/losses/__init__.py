"""Losses: loss(key, params, batch) -> (scalar, metrics)."""

from jaxdiff.losses import augment
from jaxdiff.losses import times
from jaxdiff.losses import uncertainty
from jaxdiff.losses.denoising import denoising
from jaxdiff.losses.denoising import dropped_labels
from jaxdiff.losses.denoising import error
from jaxdiff.losses.denoising import WEIGHTINGS
from jaxdiff.losses.fokker_planck import fokker_planck
from jaxdiff.losses.hybrid import hybrid
from jaxdiff.losses.implicit_score import implicit_score
from jaxdiff.losses.interpolant import best_diffusion
from jaxdiff.losses.interpolant import Errors
from jaxdiff.losses.interpolant import errors
from jaxdiff.losses.interpolant import interpolant
from jaxdiff.losses.interpolant import kl_bound
from jaxdiff.losses.interpolant import schroedinger
from jaxdiff.losses.noise_classifier import noise_classifier

__all__ = [
  "Errors",
  "WEIGHTINGS",
  "augment",
  "best_diffusion",
  "denoising",
  "dropped_labels",
  "error",
  "errors",
  "fokker_planck",
  "hybrid",
  "implicit_score",
  "interpolant",
  "kl_bound",
  "noise_classifier",
  "schroedinger",
  "times",
  "uncertainty",
]

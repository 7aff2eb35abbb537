"""Losses: loss(key, params, batch) -> (scalar, metrics)."""

from jaxdiff.losses import times
from jaxdiff.losses.denoising import denoising
from jaxdiff.losses.denoising import error
from jaxdiff.losses.denoising import WEIGHTINGS

__all__ = ["WEIGHTINGS", "denoising", "error", "times"]

"""Distributions whose denoiser is known exactly, and laws without sampling."""

from jaxdiff.oracles.empirical import Empirical
from jaxdiff.oracles.fixtures import digits_empirical
from jaxdiff.oracles.fixtures import digits_mixture
from jaxdiff.oracles.fixtures import g2
from jaxdiff.oracles.fixtures import g16
from jaxdiff.oracles.fixtures import grid25
from jaxdiff.oracles.fixtures import heavy_tails
from jaxdiff.oracles.fixtures import nearly_flat
from jaxdiff.oracles.fixtures import random_mixture
from jaxdiff.oracles.laws import propagate
from jaxdiff.oracles.laws import propagate_affine
from jaxdiff.oracles.low_rank import fit
from jaxdiff.oracles.low_rank import from_moments
from jaxdiff.oracles.low_rank import LowRankGaussian
from jaxdiff.oracles.mixture import flow_map
from jaxdiff.oracles.mixture import gaussian
from jaxdiff.oracles.mixture import GaussianMixture
from jaxdiff.oracles.mixture import mixture
from jaxdiff.oracles.models import Exact
from jaxdiff.oracles.models import exact
from jaxdiff.oracles.score_ladder import score_ladder
from jaxdiff.oracles.score_ladder import unexplained

__all__ = [
  "Empirical",
  "Exact",
  "GaussianMixture",
  "digits_empirical",
  "digits_mixture",
  "exact",
  "LowRankGaussian",
  "fit",
  "flow_map",
  "from_moments",
  "g16",
  "g2",
  "gaussian",
  "grid25",
  "heavy_tails",
  "nearly_flat",
  "random_mixture",
  "mixture",
  "propagate",
  "propagate_affine",
  "score_ladder",
  "unexplained",
]

"""Distributions whose denoiser is known exactly, and laws without sampling."""

from jaxdiff.oracles.empirical import Empirical
from jaxdiff.oracles.fixtures import digits_empirical
from jaxdiff.oracles.fixtures import digits_mixture
from jaxdiff.oracles.fixtures import g2
from jaxdiff.oracles.fixtures import g16
from jaxdiff.oracles.fixtures import grid25
from jaxdiff.oracles.fixtures import heavy_tails
from jaxdiff.oracles.fixtures import low_rank
from jaxdiff.oracles.laws import propagate
from jaxdiff.oracles.mixture import flow_map
from jaxdiff.oracles.mixture import gaussian
from jaxdiff.oracles.mixture import GaussianMixture
from jaxdiff.oracles.mixture import mixture
from jaxdiff.oracles.models import Exact
from jaxdiff.oracles.models import exact

__all__ = [
  "Empirical",
  "Exact",
  "GaussianMixture",
  "digits_empirical",
  "digits_mixture",
  "exact",
  "flow_map",
  "g16",
  "g2",
  "gaussian",
  "grid25",
  "heavy_tails",
  "low_rank",
  "mixture",
  "propagate",
]

"""Distances between sets of samples, in features of any kind.

Every one takes features f[n, ...] and f[m, ...] of two sets. `features` makes
them from images, `statistics` streams and keeps their moments, `bootstrap` and
`jackknife` give intervals.
"""

from jaxdiff.metrics import features
from jaxdiff.metrics import statistics
from jaxdiff.metrics.assignment import wasserstein_2
from jaxdiff.metrics.bootstrap import bootstrap
from jaxdiff.metrics.bootstrap import Interval
from jaxdiff.metrics.bootstrap import jackknife
from jaxdiff.metrics.density_coverage import density_coverage
from jaxdiff.metrics.energy import energy_distance
from jaxdiff.metrics.frechet import frechet
from jaxdiff.metrics.frechet import frechet_of_samples
from jaxdiff.metrics.inception_score import inception_score
from jaxdiff.metrics.inception_score import inception_score_splits
from jaxdiff.metrics.kernel import kid
from jaxdiff.metrics.kernel import median_bandwidth
from jaxdiff.metrics.kernel import mmd
from jaxdiff.metrics.kernel import polynomial
from jaxdiff.metrics.kernel import rbf
from jaxdiff.metrics.memorization import memorization_ratio
from jaxdiff.metrics.memorization import nearest_distance
from jaxdiff.metrics.modes import mode_coverage
from jaxdiff.metrics.precision_recall import precision_recall
from jaxdiff.metrics.precision_recall import realism
from jaxdiff.metrics.random_features import random_feature_frechet
from jaxdiff.metrics.sliced import sliced_wasserstein

__all__ = [
  "Interval",
  "bootstrap",
  "density_coverage",
  "energy_distance",
  "features",
  "frechet",
  "frechet_of_samples",
  "inception_score",
  "inception_score_splits",
  "jackknife",
  "kid",
  "median_bandwidth",
  "memorization_ratio",
  "mmd",
  "mode_coverage",
  "nearest_distance",
  "polynomial",
  "precision_recall",
  "random_feature_frechet",
  "rbf",
  "realism",
  "sliced_wasserstein",
  "statistics",
  "wasserstein_2",
]

r"""Confidence intervals: the bootstrap for means, the jackknife for the rest.

The bootstrap draws the samples again with replacement, which is to give each a
weight w_i, multinomial with mean 1. It serves what is a function of weighted
means: scores, shares, histograms. Such a function has a bias of c / n, and its
resamples have it a second time: their percentiles are shifted back by it. It
does not serve distances between two sets, for a copy of a sample is its nearest
neighbour, at distance 0, and makes a covariance of lower rank.

The jackknife copies nothing. It leaves out one of g groups at a time, and from
the g values T_(j) has

  error^2 = (g - 1) / g sum_j (T_(j) - mean T_())^2,
  bias = (g - 1) (mean T_() - T),

summed over both sets, which vary independently. The interval is T -+ t error,
with Student's t of Welch's degrees of freedom.

Both intervals are for what the same measurement gives on average over fresh
samples of the same sizes. The bias of the sizes is in it, as it is in published
numbers, and is reported beside; `corrected` takes it out, which is sound where
samples outnumber dimensions by far.

References: Efron and Tibshirani (1993), chapters 11 and 13; Shao and Tu (1995),
section 2.3 (groups); for FID's bias Chong and Forsyth (2020),
https://arxiv.org/abs/1911.07023.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxdiff import checks
from jaxdiff.types import Array
from jaxdiff.types import PyTree


class Interval(NamedTuple):
  """A measured value with its uncertainty; all of the value's shape.

  Attributes:
    value: as measured.
    low: lower end of the interval.
    high: upper end.
    error: standard error of the value.
    bias: bias of the value, where it was estimated, else 0.
  """

  value: PyTree
  low: Array
  high: Array
  error: Any
  bias: Any = 0.0

  @property
  def corrected(self) -> Any:
    """The value without its estimated bias."""
    return self.value - self.bias


@checks.door
def bootstrap(
  statistic: Callable[..., Any],
  *sizes: int,
  replicas: int = 1000,
  level: float = 0.95,
  seed: int = 0,
) -> Interval:
  """Returns the recentred percentile interval of a function of weights.

  Args:
    statistic: function of the weights f64[replicas, n], one array for each set,
      whose rows add up to n -> f[replicas, ...]. Weights of one are the sample
      itself; the mean of values v f[n] is `lambda w: w @ v / n`.
    *sizes: number of samples in each set.
    replicas: number of resamples.
    level: probability that the interval should hold.
    seed: seed of the resamples.

  Raises:
    ValueError: for an empty set, or a level outside (0, 1).
  """
  _check(level, min(sizes, default=0), 1, "samples")
  rng = np.random.default_rng(seed)
  at = 50.0 * np.array([1.0 - level, 1.0 + level])
  values = np.asarray(statistic(*(np.ones((1, n)) for n in sizes)))[0]
  drawn = []
  # In chunks, so that weights of many samples need not be held at once.
  for part in np.array_split(np.arange(replicas), 1 + replicas // 100):
    weights = [
      rng.multinomial(n, np.full(n, 1.0 / n), len(part)).astype(np.float64)
      for n in sizes
    ]
    drawn.append(np.asarray(statistic(*weights)))
  drawn = np.concatenate(drawn)
  bias = drawn.mean(0) - values
  low, high = np.percentile(drawn, at, axis=0) - bias
  return Interval(values, low, high, drawn.std(0, ddof=1), bias)


@checks.door
def jackknife(
  statistic: Callable[..., Any],
  *sets: Any,
  summary: Callable[[np.ndarray], Any] = lambda x: x,
  groups: int = 20,
  level: float = 0.95,
  seed: int = 0,
) -> Interval:
  """Returns the interval of any smooth function of independent sets.

  Args:
    statistic: function of one summary for each set -> a number, or f[...] for
      several statistics at once.
    *sets: f[n, ...] each.
    summary: function of a set, or of one without a group, computed once for
      every such set; by default the set itself.
    groups: how many; each costs a call for each set.
    level: probability that the interval should hold.
    seed: seed of the groups.

  Raises:
    ValueError: for a set smaller than the number of groups, or a level outside
      (0, 1).
  """
  sets = [np.asarray(x) for x in sets]
  _check(
    level, min(len(x) for x in sets), max(groups, 2), "samples, one a group"
  )
  rng = np.random.default_rng(seed)
  whole = [summary(x) for x in sets]
  value = np.asarray(statistic(*whole), np.float64)
  variances, bias = [], 0.0
  for i, x in enumerate(sets):
    left = []
    for part in np.array_split(rng.permutation(len(x)), groups):
      rest = summary(np.delete(x, part, axis=0))
      left.append(np.asarray(statistic(*whole[:i], rest, *whole[i + 1 :])))
    left = np.stack(left)
    bias = bias + (groups - 1) * (left.mean(0) - value)
    variances.append((groups - 1) * left.var(0))
  total = sum(variances)
  with np.errstate(invalid="ignore"):  # 0 / 0 where nothing varies
    freedom = (groups - 1) * total**2 / sum(v**2 for v in variances)
  freedom = np.where(total > 0, freedom, 1.0)
  half = stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(total)
  return Interval(value, value - half, value + half, np.sqrt(total), bias)


def normal(value: float, error: float, level: float = 0.95) -> Interval:
  """Returns the interval of a normal law with a known standard error."""
  half = stats.norm.ppf(0.5 + level / 2) * error
  return Interval(value, value - half, value + half, error)


def _check(level: float, size: int, least: int, what: str) -> None:
  if not 0 < level < 1:
    raise ValueError(f"level: expected a probability in (0, 1), got {level}")
  if size < least:
    raise ValueError(
      f"an interval needs at least {least} {what}, in every set; the smallest"
      f" has {size}"
    )

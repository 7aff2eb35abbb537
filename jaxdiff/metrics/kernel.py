r"""MMD: the squared distance between the means of two laws in a kernel's space.

  MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),

estimated without bias by leaving out the pairs of a sample with itself, so that
it can be slightly negative for equal laws. KID is this for Inception features
and the kernel (x . y / d + 1)^3, in the paper averaged over subsets.

Float64 on the host, and in blocks: differences of means of kernel values near 1
are of order 1e-4, which float32 does not hold.

The standard error is the jackknife's, left-out samples one by one: all of its
values follow from the row sums of the kernel matrices, at no cost. Where both
laws are equal the first-order term vanishes, and it errs on the wide side.
References: Gretton et al. (2012), https://jmlr.org/papers/v13/gretton12a.html,
equation 3; Binkowski et al. (2018), https://arxiv.org/abs/1801.01401.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial import distance

from jaxdiff import checks
from jaxdiff.metrics import samples
from jaxdiff.metrics.bootstrap import Interval
from jaxdiff.metrics.bootstrap import normal
from jaxdiff.types import ArrayLike

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
_BLOCK = 1024


@checks.door
def polynomial(x: np.ndarray, y: np.ndarray, degree: int = 3) -> np.ndarray:
  """Returns (x . y / d + 1)^degree, f64[n, m]: KID's kernel."""
  return (x @ y.T / x.shape[1] + 1.0) ** degree


@checks.door
def rbf(bandwidth: float) -> Kernel:
  """Returns the Gaussian kernel exp(-|x - y|^2 / (2 bandwidth^2)).

  Raises:
    ValueError: unless the bandwidth is positive.
  """
  if not bandwidth > 0:
    raise ValueError(f"bandwidth: expected a positive number, got {bandwidth}")
  return lambda x, y: np.exp(-squared_distances(x, y) / (2 * bandwidth**2))


@checks.door
def median_bandwidth(y: ArrayLike, most: int = 2000) -> float:
  """Returns the median distance within a set, the usual bandwidth of `rbf`.

  Args:
    y: f[m, ...], the reference: so that it does not depend on the samples.
    most: number of samples that are looked at.
  """
  y = samples.matrix(y, "y", least=2)[:most]
  return float(np.median(distance.pdist(y)))


@checks.door
def mmd(
  x: ArrayLike,
  y: ArrayLike,
  kernel: Kernel = polynomial,
  *,
  biased: bool = False,
  level: float = 0.95,
) -> Interval:
  """Returns the squared MMD with its interval; O(n^2 d), in blocks.

  Args:
    x: f[n, ...], samples, n >= 3.
    y: f[m, ...], reference.
    kernel: function of f64[n, d] and f64[m, d] -> f64[n, m].
    biased: count pairs of a sample with itself too, which makes it >= 0.
    level: confidence of the interval.

  Raises:
    ValueError: for fewer samples, other shapes or NaN.
  """
  x, y = samples.pair(x, y, least=3)
  n, m = len(x), len(y)
  xx, diagonal_x = _row_sums(kernel, x, x)
  yy, diagonal_y = _row_sums(kernel, y, y)
  xy, yx = _cross_sums(kernel, x, y)
  value = _combine(xx.sum(), n, yy.sum(), m, xy.sum())
  # Without x_i: its row, and its column, are missing.
  without_x = _combine(xx.sum() - 2 * xx, n - 1, yy.sum(), m, xy.sum() - xy)
  without_y = _combine(xx.sum(), n, yy.sum() - 2 * yy, m - 1, yx.sum() - yx)
  error = np.sqrt((n - 1) * without_x.var() + (m - 1) * without_y.var())
  if biased:
    value = (
      (xx.sum() + diagonal_x) / n**2
      + (yy.sum() + diagonal_y) / m**2
      - 2 * xy.sum() / (n * m)
    )
  return normal(float(value), float(error), level)


@checks.door
def kid(
  x: ArrayLike,
  y: ArrayLike,
  *,
  subsets: int = 100,
  size: int = 1000,
  seed: int = 0,
) -> tuple[float, float]:
  """Returns the mean and standard deviation of KID over random subsets.

  As in the paper and in torch-fidelity, for comparison with published numbers.
  The deviation is that of a subset, not the error of the mean: `mmd` uses every
  pair and has an interval.

  Args:
    x: f[n, ...], features of samples.
    y: f[m, ...], features of the reference.
    subsets: how many, each drawn without replacement from both sets.
    size: size of a subset.
    seed: seed of the subsets.

  Raises:
    ValueError: for sets smaller than a subset, other shapes or NaN.
  """
  x, y = samples.pair(x, y)
  if min(len(x), len(y)) < size:
    raise ValueError(
      f"KID over subsets of {size} needs as many samples on either side, got"
      f" {len(x)} and {len(y)}; give size={min(len(x), len(y))} or fewer, or"
      " use metrics.mmd, which takes all of them"
    )
  rng = np.random.default_rng(seed)
  values = []
  for _ in range(subsets):
    a = x[rng.choice(len(x), size, replace=False)]
    b = y[rng.choice(len(y), size, replace=False)]
    off = [(k := polynomial(v, v)).sum() - np.trace(k) for v in (a, b)]
    values.append(_combine(off[0], size, off[1], size, polynomial(a, b).sum()))
  return float(np.mean(values)), float(np.std(values))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns |x_i - y_j|^2, f64[n, m], by one matrix product.

  Where nearly all of it cancels, by differences: good to six digits anywhere.
  """
  centre = y.mean(0)
  xx = np.sum((x - centre) ** 2, 1)[:, None]
  yy = np.sum((y - centre) ** 2, 1)
  square = xx + yy - 2.0 * (x - centre) @ (y - centre).T
  off = (x.shape[1] + 16) * 2.0**-53 * (np.sqrt(xx) + np.sqrt(yy)) ** 2
  i, j = np.nonzero(square < 1e6 * off)
  for part in np.array_split(np.arange(len(i)), len(i) // _BLOCK + 1):
    apart = x[i[part]] - y[j[part]]
    square[i[part], j[part]] = np.sum(apart**2, axis=1)
  return square


def _combine(
  xx: ArrayLike, n: int, yy: ArrayLike, m: int, xy: ArrayLike
) -> Any:
  """Returns the unbiased estimate from sums over pairs."""
  return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2.0 * xy / (n * m)


def _row_sums(
  kernel: Kernel, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, float]:
  """Returns the row sums of k off its diagonal, and the diagonal's sum."""
  sums, diagonal = [], 0.0
  for i in range(0, len(x), _BLOCK):
    k = kernel(x[i : i + _BLOCK], y)
    own = np.diagonal(k, offset=i)
    sums.append(k.sum(1) - own)
    diagonal += own.sum()
  return np.concatenate(sums), diagonal


def _cross_sums(
  kernel: Kernel, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the row sums f64[n] and the column sums f64[m] of k(x, y)."""
  rows, columns = [], np.zeros(len(y))
  for i in range(0, len(x), _BLOCK):
    k = kernel(x[i : i + _BLOCK], y)
    rows.append(k.sum(1))
    columns += k.sum(0)
  return np.concatenate(rows), columns

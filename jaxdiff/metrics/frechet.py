r"""The Frechet distance between two Gaussians, the squared W_2 between them.

  d = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}).

The last trace is the sum of the singular values of C_a^{1/2} C_b^{1/2}: no root
is taken of a rounded product, and rank-deficient covariances are exact too. Of
samples X and Y, about their means and divided by sqrt(n - 1), it is the sum of
the singular values of X Y^T: then no covariance is formed at all.
Reference: Dowson and Landau (1982), https://doi.org/10.1016/0047-259X(82)90077-X.
"""

import warnings

import numpy as np

from jaxdiff import checks
from jaxdiff.metrics import samples
from jaxdiff.types import ArrayLike


@checks.door
def frechet(
  mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike
) -> float:
  """Returns the Frechet distance, in squared units of the data; on the host.

  Args:
    mean_a: f[d].
    cov_a: f[d, d], symmetric and positive semi-definite.
    mean_b: f[d].
    cov_b: f[d, d].

  Raises:
    ValueError: for shapes that do not fit, a value that is not finite, or a
      covariance that is not symmetric or has a negative eigenvalue.
  """
  mean_a, cov_a, mean_b, cov_b = (
    np.asarray(v, np.float64) for v in (mean_a, cov_a, mean_b, cov_b)
  )
  d = mean_a.size
  shapes = [v.shape for v in (mean_a, cov_a, mean_b, cov_b)]
  if shapes != [(d,), (d, d), (d,), (d, d)]:
    raise ValueError(
      "frechet takes mean [d], covariance [d, d] twice, got shapes"
      f" {', '.join(map(str, shapes))}"
    )
  roots = [root(cov_a, "cov_a"), root(cov_b, "cov_b")]
  common = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
  offset = mean_a - mean_b
  value = offset @ offset + np.trace(cov_a) + np.trace(cov_b) - 2.0 * common
  return max(float(value), 0.0)  # of equal laws rounding may leave -1e-16


@checks.door
def frechet_of_samples(x: ArrayLike, y: ArrayLike) -> float:
  """Returns the Frechet distance between the Gaussians fitted to two sets.

  Finite samples bias it upward, by about c / n: compare at equal sizes, and
  with the floor, the value of two sets of data. With n <= d samples the
  covariances are singular and the bias is as large as the distance itself: a
  warning says how large (`expected_bias`).

  Args:
    x: f[n, ...], n >= 2.
    y: f[m, ...], of the same trailing shape.

  Raises:
    ValueError: for fewer samples, other shapes or NaN.
  """
  x, y = samples.pair(x, y, least=2)
  a, b = factor(x), factor(y)
  warn_of_bias(a, b, len(x), len(y))
  return between(a, b)


def factor(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean f[d] and R f[min(n, d), d], where R^T R is the covariance.

  Args:
    x: f64[n, d].
  """
  mean = x.mean(0)
  x = (x - mean) / np.sqrt(len(x) - 1)
  return mean, x if len(x) <= x.shape[1] else np.linalg.qr(x, mode="r")


def between(
  a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> float:
  """Returns the Frechet distance between two pairs of `factor`."""
  offset = a[0] - b[0]
  common = np.linalg.svd(a[1] @ b[1].T, compute_uv=False).sum()
  spread = np.sum(a[1] ** 2) + np.sum(b[1] ** 2)
  return max(float(offset @ offset + spread - 2.0 * common), 0.0)


def expected_bias(
  a: tuple[np.ndarray, np.ndarray],
  b: tuple[np.ndarray, np.ndarray],
  n: int,
  m: int,
) -> float:
  r"""Returns the distance to be expected of n and m draws of one Gaussian.

  Of the covariance C that two pairs of `factor` have together, in which theirs
  count n - 1 and m - 1. The means are tr(C) (1 / n + 1 / m) apart, squared; the
  sample covariances are Wishart, drawn once as T R with R^T R = C and T of
  normals (Bartlett's triangle where there are more samples than dimensions).
  Where n + m is itself below the dimensions, C misses some, and it is a lower
  bound. Of n, m far above d it falls as 1 / n.
  """
  pooled = np.concatenate([np.sqrt(n - 1) * a[1], np.sqrt(m - 1) * b[1]])
  pooled = pooled / np.sqrt(n + m - 2)
  if len(pooled) > pooled.shape[1]:
    pooled = np.linalg.qr(pooled, mode="r")
  rng = np.random.default_rng(0)
  k = len(pooled)

  def draw(size):
    free = size - 1
    if free <= k:
      t = rng.standard_normal((free, k))
    else:
      t = np.triu(rng.standard_normal((k, k)), 1)
      t += np.diag(np.sqrt(rng.chisquare(free - np.arange(k))))
    return np.zeros(pooled.shape[1]), t @ pooled / np.sqrt(free)

  apart = np.sum(pooled**2) * (1.0 / n + 1.0 / m)
  return float(apart + between(draw(n), draw(m)))


def warn_of_bias(
  a: tuple[np.ndarray, np.ndarray],
  b: tuple[np.ndarray, np.ndarray],
  n: int,
  m: int,
) -> None:
  """Warns of the bias where a set is not larger than its dimensions."""
  dims = a[0].size
  if 1 < min(n, m) <= dims:
    warnings.warn(
      f"a Frechet distance of {n} and {m} samples in {dims} dimensions: the"
      " covariance of so few is singular, and two sets of these sizes of one"
      f" and the same Gaussian would be {expected_bias(a, b, n, m):.4g} apart"
      f" or more. Take more than {dims} samples, fewer features, or compare"
      " with the distance of two sets of data of these sizes",
      stacklevel=3,
    )


def root(cov: np.ndarray, name: str = "cov") -> np.ndarray:
  """Returns the symmetric square root of a covariance f64[d, d].

  Raises:
    ValueError: for one that is not finite, not symmetric or not positive.
  """
  if not np.isfinite(cov).all():
    raise ValueError(f"{name} holds NaN or infinity; look at the samples")
  largest = abs(cov).max(initial=0.0)
  skew = abs(cov - cov.T).max(initial=0.0)
  if skew > 1e-8 * largest:
    raise ValueError(f"{name} is not symmetric: off by {skew:.3g}")
  values, axes = np.linalg.eigh(cov)
  if values[0] < -1e-8 * largest:
    raise ValueError(
      f"{name} is no covariance: it has the eigenvalue {values[0]:.3g} < 0"
    )
  return (axes * np.sqrt(np.maximum(values, 0.0))) @ axes.T

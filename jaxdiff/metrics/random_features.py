r"""A Frechet distance in random features: sensitive to more than two moments.

  phi(x) = tanh(W^T z + b),   z = (x - m) / s,   W ~ N(0, 1/d),  b ~ N(0, 1),

with the mean m [d] and the one standard deviation s of the reference data, so
that units and dimension play no role; then `frechet` between the Gaussians
fitted to phi(x) and phi(y). It is the FID with a random network of one layer in
the place of Inception: the same for everybody, without any file. Numbers are
comparable only for one seed, one number of features and one number of samples.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.metrics.frechet import between
from jaxdiff.metrics.frechet import factor
from jaxdiff.metrics.frechet import warn_of_bias
from jaxdiff.types import ArrayLike


@checks.door
def random_feature_frechet(
  x: ArrayLike, y: ArrayLike, *, features: int = 96, seed: int = 0
) -> float:
  """Returns the Frechet distance of random tanh features; float64, on the host.

  Finite samples bias it upward; compare with the floor, the value of two sets
  of data, at equal sizes.

  Args:
    x: f[n, ...], samples.
    y: f[m, ...], the reference data, which fixes the units.
    features: number of features.
    seed: seed of the features.

  Raises:
    ValueError: if the samples have different shapes, are fewer than two, or
      are not finite, or if the reference data are all one point.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.shape[1:] != y.shape[1:] or x.ndim < 2:
    raise ValueError(
      "random_feature_frechet compares samples [n, ...] and [m, ...] of one"
      f" shape, got {x.shape} and {y.shape}"
    )
  if min(len(x), len(y)) < 2:
    raise ValueError(
      "a covariance needs at least two samples on either side, got"
      f" {len(x)} and {len(y)}"
    )
  for name, v in (("x", x), ("y", y)):
    bad = ~np.isfinite(v.reshape(len(v), -1)).all(1)
    if bad.any():
      raise ValueError(
        f"{bad.sum()} of {len(v)} samples of {name} are not finite, the first"
        f" of them is number {int(bad.argmax())}"
      )
  x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
  mean, d = y.mean(0), y.shape[1]
  scale = np.sqrt(np.mean((y - mean) ** 2))
  if scale == 0:
    raise ValueError("all points of the reference y are equal: no scale")
  rng = np.random.default_rng(seed)
  weights = rng.standard_normal((d, features)) / np.sqrt(d)
  bias = rng.standard_normal(features)
  a, b = (factor(np.tanh((v - mean) / scale @ weights + bias)) for v in (x, y))
  warn_of_bias(a, b, len(x), len(y))
  return between(a, b)

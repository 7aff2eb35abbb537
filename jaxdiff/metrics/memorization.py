"""Memorization: distances of samples to the training set."""

import numpy as np

from jaxdiff import checks
from jaxdiff.metrics import neighbors
from jaxdiff.types import ArrayLike


@checks.door
def nearest_distance(
  x: ArrayLike, data: ArrayLike, block: int = 512
) -> np.ndarray:
  """Returns each sample's Euclidean distance to the nearest point, f64[n].

  Args:
    x: f[n, ...], samples.
    data: f[M, ...].
    block: samples that are compared at a time, which bounds the memory.

  Raises:
    ValueError: if x and data have different shapes.
  """
  x, data = np.asarray(x, np.float64), np.asarray(data, np.float64)
  if x.shape[1:] != data.shape[1:]:
    raise ValueError(
      f"samples of shape {x.shape[1:]} cannot be compared with data of shape"
      f" {data.shape[1:]}"
    )
  x, data = x.reshape(len(x), -1), data.reshape(len(data), -1)
  return neighbors.nearest(x, data, block=block)[0][:, 0]


@checks.door
def memorization_ratio(
  x: ArrayLike, data: ArrayLike, fresh: ArrayLike
) -> float:
  """Returns the median distance of x to the data over that of fresh data.

  0 means that samples are training points, 1 that they are as far from them as
  unseen data are; below 1 they hang on to what they have seen.

  Args:
    x: f[n, ...], samples.
    data: f[M, ...], the training set.
    fresh: f[m, ...], unseen data.
  """
  return float(
    np.median(nearest_distance(x, data))
    / np.median(nearest_distance(fresh, data))
  )

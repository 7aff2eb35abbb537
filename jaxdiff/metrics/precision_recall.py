r"""Precision and recall of samples, by nearest neighbours in feature space.

The support of a law is estimated by the union of balls about its samples, each
as large as the distance to the k-th nearest other one. Precision is the share
of samples in the support of the data: how good they look; recall is the share
of data in the support of the samples: how much of the data they reach.
Reference: Kynkaanniemi et al. (2019), https://arxiv.org/abs/1904.06991,
equations 1 and 2; `realism` is equation 3.
"""

from typing import NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff.metrics import neighbors
from jaxdiff.metrics import samples
from jaxdiff.types import ArrayLike


class PrecisionRecall(NamedTuple):
  """Both in [0, 1], higher is better."""

  precision: float
  recall: float


@checks.door
def precision_recall(
  x: ArrayLike, y: ArrayLike, *, k: int = 3
) -> PrecisionRecall:
  """Returns precision and recall.

  Both depend on the numbers of samples, which should be equal and be given with
  them; one outlier of the data has a large ball, and raises precision.

  Args:
    x: f[n, ...], features of samples, n > k.
    y: f[m, ...], features of data.
    k: which neighbour sets the radius of a ball.

  Raises:
    ValueError: for too few samples, other shapes or NaN.
  """
  x, y = _checked(x, y, k)
  return PrecisionRecall(
    precision=float(np.mean(neighbors.balls(x, y, neighbors.radii(y, k)) > 0)),
    recall=float(np.mean(neighbors.balls(y, x, neighbors.radii(x, k)) > 0)),
  )


@checks.door
def realism(x: ArrayLike, y: ArrayLike, *, k: int = 3) -> np.ndarray:
  """Returns how deep each sample lies in the support of the data, f32[n].

  The largest ratio of a ball's radius to the distance from its centre, over the
  half of the balls that are smaller than the median: above 1 inside.

  Args:
    x: f[n, ...], features of samples.
    y: f[m, ...], features of data.
    k: as in `precision_recall`.

  Raises:
    ValueError: for too few samples, other shapes or NaN.
  """
  x, y = _checked(x, y, k, least=1)
  radius = neighbors.radii(y, k)
  chosen = radius <= np.median(radius)
  return neighbors.largest_ratio(x, y[chosen], radius[chosen])


def _checked(
  x: ArrayLike, y: ArrayLike, k: int, least: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  if k < 1:
    raise ValueError(f"k: expected a neighbour 1, 2, ..., got {k}")
  samples.matrix(y, "y", least=k + 1)
  samples.matrix(x, "x", least=least or k + 1)
  return samples.pair(x, y)

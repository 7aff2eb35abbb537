"""The exact Wasserstein-2 distance between two sets of equally many samples.

W_2^2 = min over permutations p of mean_i |x_i - y_{p(i)}|^2, an assignment
problem, solved on the host in O(n^3): seconds at n = 2000.
"""

import numpy as np
from scipy import optimize
from scipy.spatial import distance

from jaxdiff import checks
from jaxdiff.types import ArrayLike

_MOST = 4000


@checks.door
def wasserstein_2(x: ArrayLike, y: ArrayLike) -> float:
  """Returns W_2 in the units of the data.

  It is biased upward: two sets of n draws of one law are n^{-1/d} apart for d
  > 2. Compare with that floor, at equal sizes.

  Args:
    x: f[n, ...].
    y: f[n, ...], of the same shape.

  Raises:
    ValueError: for different shapes, or more than 4000 samples.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.shape != y.shape:
    raise ValueError(
      "the exact distance pairs equally many samples of one shape, got"
      f" {x.shape} and {y.shape}; cut both to one size, or use"
      " metrics.sliced_wasserstein"
    )
  if len(x) > _MOST:
    raise ValueError(
      f"an assignment of {len(x)} samples takes too long (O(n^3)), the most is"
      f" {_MOST}; use fewer, or metrics.sliced_wasserstein"
    )
  cost = distance.cdist(
    x.reshape(len(x), -1), y.reshape(len(y), -1), "sqeuclidean"
  )
  rows, columns = optimize.linear_sum_assignment(cost)
  return float(np.sqrt(cost[rows, columns].mean()))

r"""The energy distance between two sets of samples.

  D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|,

an MMD with the kernel -|x - y|: zero for equal laws alone, with no bandwidth to
choose. In one dimension its root is scipy.stats.energy_distance. Reference:
Szekely and Rizzo (2013), https://doi.org/10.1016/j.jspi.2013.03.018.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.metrics import kernel
from jaxdiff.metrics.bootstrap import Interval
from jaxdiff.types import ArrayLike


@checks.door
def energy_distance(
  x: ArrayLike, y: ArrayLike, *, biased: bool = False, level: float = 0.95
) -> Interval:
  """Returns D^2, in units of the data, with its interval; O(n^2 d).

  Args:
    x: f[n, ...], n >= 3.
    y: f[m, ...], of the same trailing shape.
    biased: count pairs of a sample with itself too, as SciPy does: then D^2 is
      never negative, and biased upward.
    level: confidence of the interval.

  Raises:
    ValueError: for fewer samples, other shapes or NaN.
  """
  return kernel.mmd(x, y, _negative_distance, biased=biased, level=level)


def _negative_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return -np.sqrt(kernel.squared_distances(x, y))

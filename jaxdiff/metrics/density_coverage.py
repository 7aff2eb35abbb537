r"""Density and coverage of samples, by nearest neighbours in feature space.

With balls about the data as in `precision_recall`: density counts in how many
of them a sample lies, divided by k, so that one outlier of the data does not
count for everything; coverage is the share of balls that hold a sample. If both
laws are equal, then whatever they are

  E density = 1,   E coverage = 1 - prod_{i=1}^k (m - i) / (n + m - i),

about 1 - 2^{-k} for n = m. Reference: Naeem et al. (2020),
https://arxiv.org/abs/2002.09797, equations 3 and 4, lemmas 1 and 2.
"""

from typing import NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff.metrics import neighbors
from jaxdiff.metrics import samples
from jaxdiff.types import ArrayLike


class DensityCoverage(NamedTuple):
  """Density, which may exceed 1, and coverage in [0, 1]; higher is better."""

  density: float
  coverage: float


@checks.door
def density_coverage(
  x: ArrayLike, y: ArrayLike, *, k: int = 5
) -> DensityCoverage:
  """Returns density and coverage.

  Args:
    x: f[n, ...], features of samples.
    y: f[m, ...], features of data, m > k.
    k: which neighbour sets the radius of a ball.

  Raises:
    ValueError: for too few samples, other shapes or NaN.
  """
  if k < 1:
    raise ValueError(f"k: expected a neighbour 1, 2, ..., got {k}")
  samples.matrix(y, "y", least=k + 1)
  x, y = samples.pair(x, y)
  radius = neighbors.radii(y, k)
  closest = neighbors.nearest(y, x)[0][:, 0]
  return DensityCoverage(
    density=float(np.mean(neighbors.balls(x, y, radius)) / k),
    coverage=float(np.mean(closest <= radius)),
  )

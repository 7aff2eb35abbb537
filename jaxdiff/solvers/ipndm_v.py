r"""iPNDM-v: iPNDM with the weights of the steps that are really taken.

  x' = (alpha' / alpha) x + alpha' (rho' - rho) sum_j b_j eps_{i-j}

where b are the Adams-Bashforth weights of variable steps in rho = sigma /
alpha. Unlike `ipndm`, whose weights assume equal steps, it has order 4 from an
exact history on any grid. It is the same table as rhoAB-DEIS (`deis`,
variant="rho_ab") and k-diffusion's `lms`.

With steps h, h_1, h_2, h_3 (the newest first), r = h_1 / h_2, r' = h_2 / h_3
and c = h_1 (h_1 + h_2) / (h_2 (h_2 + h_3)) the orders 3 and 4 add to order 2

  q (1, -1 - r, r, 0) + p (1, -1 - r - c, r + c (1 + r'), -c r'),
  q = (1 - h / (3 (h + h_1))) s / 2,    s = h (h + h_1) / (h_1 (h_1 + h_2)),
  p = (1/2 - h / (6 (h + h_1)) - (1 - h / (2 (h + h_1))) h / (6 k)) k s
      / (h_1 + h_2 + h_3),              k = h + h_1 + h_2.

The public code has (1 - h / (3 (h + h_1)) s) / 2 for q, a plus for the second
minus of p, and r for r' in the last weight: order 3 is right for equal steps
only, order 4 for none. `published=True` reproduces it. Order 4 is then of third
order on geometric noise levels and of second on others, and yet, as `ipndm`,
errs less than the right weights where ten graded steps are all there is.

Reference: Zhou et al. (2024), https://arxiv.org/abs/2312.00094, and its code,
https://github.com/zju-pi/diff-sampler.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.deis import deis
from jaxdiff.tableau import Tableau


@solver
def ipndm_v(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | None = None,
  published: bool = False,
) -> Tableau:
  """Returns the table of iPNDM-v on `grid`, f64[n + 1]: n calls, K = order.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: 1..4; None is 4, or what fewer steps allow.
    published: whether to reproduce the coefficients of the public code.

  Raises:
    ValueError: for an order outside of 1..4, or one that exceeds the steps.
  """
  order = checks.order(order, len(grid) - 1, 4, "ipndm_v")
  table = deis.build(process, grid, order=order, variant="rho_ab")
  if published:
    rho = process.noise_level(grid)
    steps = np.diff(rho)
    for i in range(2, len(steps) if order > 2 else 0):
      past = steps[max(0, i - order + 1) : i + 1][::-1]
      weights = process.alpha(grid[i + 1]) * steps[i] * _published(*past)
      table.history[i, :, : len(weights)] = weights
  return table


def _published(h, h1, h2, h3=None):
  """Returns the public code's weights b of three or four outputs."""
  r, s = h1 / h2, h * (h + h1) / (h1 * (h1 + h2))
  b = np.asarray([1.0 + h / (2.0 * h1), -h / (2.0 * h1), 0.0, 0.0])
  b += 0.5 * (1.0 - h / (3.0 * (h + h1)) * s) * np.asarray([1, -1 - r, r, 0])
  if h3 is None:
    return b[:3]
  c, older = h1 * (h1 + h2) / (h2 * (h2 + h3)), h2 / h3
  k = h + h1 + h2
  p = 0.5 * (1.0 - h / (3.0 * (h + h1)))
  p += (1.0 - h / (2.0 * (h + h1))) * h / (6.0 * k)
  p *= k * s / (h1 + h2 + h3)
  return b + p * np.asarray([1, -1 - r - c, r + c * (1 + older), -c * r])

r"""iPNDM-v: iPNDM with the weights of the steps that are really taken.

  x' = (alpha' / alpha) x + alpha' (rho' - rho) sum_j b_j eps_{i-j}

where b are the Adams-Bashforth weights of variable steps in rho = sigma /
alpha. Unlike `ipndm`, whose weights assume equal steps, it has order 4 from an
exact history on any grid. It is the same table as rhoAB-DEIS (`deis`,
variant="rho_ab") and k-diffusion's `lms`.

With steps h, h_1, h_2 (the newest first) order 3 adds to order 2

  q (eps_i - (1 + r) eps_{i-1} + r eps_{i-2}),   r = h_1 / h_2,
  q = (1 - h / (3 (h + h_1))) s / 2,   s = h (h + h_1) / (h_1 (h_1 + h_2)).

The public code has q = (1 - h / (3 (h + h_1)) s) / 2, which agrees for equal
steps only, in orders 3 and 4 alike; `published=True` reproduces it.

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
  if published and order > 2:
    rho = process.noise_level(grid)
    step = np.diff(rho)
    h, h1, h2 = step[2:], step[1:-1], step[:-2]
    r, s = h1 / h2, h * (h + h1) / (h1 * (h1 + h2))
    excess = 0.5 * (1.0 - s)  # of the published q over the right one
    shape = np.stack([np.ones_like(r), -1.0 - r, r], axis=-1)
    gain = process.alpha(grid[3:]) * h
    table.history[2:, :, :3] += ((gain * excess)[:, None] * shape)[:, None, :]
  return table

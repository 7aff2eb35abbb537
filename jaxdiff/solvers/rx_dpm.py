r"""RX-DPM: DDIM extrapolated over groups of steps, one call per step.

k steps of DDIM lead from x to x_fine; one step over all of them, with the first
of their answers, to x_coarse. The error of one step grows with the square of
its length in rho = sigma / alpha, so that over a group of steps h_1, ..., h_k

  x' = (x_fine - S x_coarse) / (1 - S),     S = sum_m (h_m / sum h)^2,

takes its leading part away: second order, for any steps. Steps that fill no
group stay DDIM's, and so do those that touch sigma = 0 or alpha = 0, which are
not extrapolated.

In the table y = a: what the group began with is found from the last sample and
the answers since. Reference: Choi et al. (2025),
https://arxiv.org/abs/2504.01855, section 4, RX-Euler and RX-DDIM.
"""

import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver(least=dict(group=2))
def rx_dpm(
  process: GaussianProcess, grid: np.ndarray, *, group: int = 2
) -> Tableau:
  """Returns the table of RX-DDIM on `grid`, f64[n + 1]: n calls, K = group.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    group: k, how many steps are extrapolated together, at least 2.
  """
  alpha = process.alpha(grid)
  h = np.diff(process.noise_level(grid))
  n = len(h)
  history = np.zeros((n, group))
  history[:, 0] = h
  for last in range(group - 1, n, group):
    inside = h[last - group + 1 : last + 1]
    share = np.sum((inside / inside.sum()) ** 2)
    # x_fine - x_coarse is all of the steps less a step with the first answer
    apart = inside.copy()
    apart[0] -= inside.sum()
    history[last] += share / (1.0 - share) * apart[::-1]
  return tables.multistep(
    t=grid[:-1],
    output="eps",
    carry=alpha[1:] / alpha[:-1],
    history=alpha[1:, None] * history,
  )

r"""BDIA: DDIM that corrects the step before, one call a step, inverted exactly.

The step from x_i by DDIM, and gamma times the error that the step before made,
seen from x_i: what lies between x_{i-1} and the place where a step of DDIM from
x_i back to t_{i-1} ends, with the same answer eps_i,

  x_{i+1} = D_i(t_{i+1}) + gamma (x_{i-1} - D_i(t_{i-1})),
  D_i(t) = alpha(t) / alpha_i x_i
           + (sigma(t) - sigma_i alpha(t) / alpha_i) eps_i.

So x_{i-1} follows from x_i and x_{i+1}. gamma = 0 is DDIM, which forgets
x_{i-1}; gamma = 1 on equal steps in sigma / alpha is the leapfrog of second
order, else the method is of first order. The first step is DDIM's.

`exact_inversion` makes the pair of tables that undo each other. Reference:
Zhang et al. (2023), https://arxiv.org/abs/2307.10829, equation 16.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.two_states import leapfrog
from jaxdiff.tableau import Tableau


@solver(least=dict(gamma=0))
def bdia(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  gamma: float = 0.5,
  pair: bool = False,
) -> Tableau:
  """Returns the table of BDIA-DDIM on `grid`, f64[n + 1]: n calls, K = 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    gamma: how much of the step before is taken back, from 0 (DDIM) to 1.
    pair: whether the table ends at its last two samples, y = x_{n-1} and a =
      x_n, which determine all others (`exact_inversion`).

  Raises:
    ValueError: for a gamma outside of [0, 1].
  """
  if gamma > 1:
    raise ValueError(
      "gamma is the share of the step before that is taken back, from 0 (DDIM)"
      f" to 1; got gamma={gamma}"
    )
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  ahead, behind = alpha[2:] / alpha[1:-1], alpha[:-2] / alpha[1:-1]
  weight = sigma[2:] - sigma[1:-1] * ahead
  weight -= gamma * (sigma[:-2] - sigma[1:-1] * behind)
  past = np.full(len(weight), gamma)
  return leapfrog(process, grid, ahead - gamma * behind, past, weight, pair)

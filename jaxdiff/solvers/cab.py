r"""CAB: Adams-Bashforth with a correction by what the last answer missed.

With rho = sigma / alpha and steps h_i = rho_{i+1} - rho_i,

  x' / alpha' = x / alpha + AB_order(eps_i, eps_{i-1}, ...)
                + theta h_i (eps_i - (1 + q) eps_{i-1} + q eps_{i-2}),

q = h_{i-1} / h_{i-2}: the difference of the new answer to the line through the
two before. It is of the size of h^3, so the order is 2, whatever theta and the
order of the Adams-Bashforth part; theta = 0 is that part alone. The first step
is DDIM's, the second is of order 2 and not corrected (for flows the authors'
code takes that one in t, with the weights of equal steps).

Reference: Roy and Nair (2026), https://arxiv.org/abs/2605.16736; theta = 0.9 as
in the authors' code.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver
def cab(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int = 2,
  theta: float = 0.9,
) -> Tableau:
  """Returns the table of CAB on `grid`, f64[n + 1]: n calls, K = 3.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: of the Adams-Bashforth part, 2 or 3.
    theta: weight of the correction.

  Raises:
    ValueError: for another order.
  """
  checks.one_of(order, (2, 3), "cab's order")
  n = len(grid) - 1
  alpha, h = process.alpha(grid), np.diff(process.noise_level(grid))
  history = np.zeros((n, 3))
  for i in range(n):
    nodes = grid[i - np.arange(min(order, i + 1))]
    step = (grid[i], grid[i + 1])
    weights = forms.weights("eps", process, nodes, step, "own")
    history[i, : len(weights)] = weights
    if i > 1:
      q = h[i - 1] / h[i - 2]
      history[i] += theta * alpha[i + 1] * h[i] * np.asarray([1, -1 - q, q])
  return tables.multistep(
    t=grid[:-1],
    output="eps",
    carry=alpha[1:] / alpha[:-1],
    history=history,
  )

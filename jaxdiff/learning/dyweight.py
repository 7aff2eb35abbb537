r"""DyWeight: every weight of every past slope, and the times told, learned.

theta is the strictly lower triangle of W, row by row, then log(r_{i+1} /
rho_{i+1}) of the level that each step reaches, in place of the diagonal that
leads there, then the logarithms of s_1, ..., s_{n-1}. It begins at the weights
of iPNDM, as the authors' does. In W itself a descent is lost at once: a sum
that is a tenth too large leads a long step in log(rho) to the level 0.

Reference: Zhao et al. (2026), https://arxiv.org/abs/2603.11607.
"""

from collections.abc import Callable

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff import solvers
from jaxdiff.learning.hosted import hosted
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import adams_bashforth
from jaxdiff.solvers.building import inner_steps
from jaxdiff.tableau import Tableau


@checks.door(least=dict(order=1))
def dyweight(
  process: GaussianProcess, grid: np.ndarray, *, order: int = 3
) -> tuple[np.ndarray, Callable[[jax.Array], Tableau]]:
  """Returns (theta, build): iPNDM on `grid`, and theta -> Tableau.

  Args:
    process: the forward process.
    grid: f64[n + 1]; its levels are where steps are meant to end.
    order: of the Adams-Bashforth weights to begin with, 1 to 4.

  Raises:
    ValueError: for a grid without a step to learn, or another order.
  """
  checks.process(process, "dyweight(process, grid)")
  checks.one_of(order, (1, 2, 3, 4), "order")
  n = inner_steps(process, np.asarray(grid, np.float64))
  if n < 1:
    raise ValueError(
      f"a grid of {len(grid)} times leaves no step between alpha = 0 and sigma"
      " = 0 to learn; take more steps"
    )
  times = np.asarray(grid, np.float64)
  rho = process.noise_level(times[process.alpha(times) > 0])
  rho = rho[rho > 0]
  below = np.tril_indices(n, -1)
  begin = np.zeros((n, n))
  for i in range(n):
    used = adams_bashforth(min(order, i + 1))
    begin[i, i - np.arange(len(used))] = used

  def table_of(theta: np.ndarray) -> Tableau:
    free, levels, scales = np.split(theta, [len(below[0]), len(below[0]) + n])
    weights = np.zeros((n, n))
    weights[below] = free
    # a level is reached and told at most e times too high or too low
    reached = np.append(rho[0], rho[1:] * np.exp(np.tanh(levels)))
    sums = np.diff(reached) / (rho[1:] - reached[:-1])
    weights += np.diag(sums - weights.sum(1))
    scales = np.exp(np.tanh(np.append(0.0, scales)))
    return solvers.dyweight(process, grid, weights=weights, scales=scales)

  theta = np.append(begin[below], np.zeros(2 * n - 1))
  return theta, hosted(table_of, theta)

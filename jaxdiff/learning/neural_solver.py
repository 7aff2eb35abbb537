r"""NeuralSolver: coefficients and grid of a multistep method, learned.

theta is the strictly lower triangle of C, row by row, then the logits of the
grid's steps (`ld3`), of which both ends stay. It begins at Euler's method on
the grid, as the authors' does on equal steps.

Reference: Wang et al. (2025), https://arxiv.org/abs/2505.21114, section 5.
"""

from collections.abc import Callable

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff import solvers
from jaxdiff.learning.hosted import hosted
from jaxdiff.learning.ld3 import learned_grid
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau


@checks.door
def neural_solver(
  process: GaussianProcess, grid: np.ndarray, *, output: str = "flow"
) -> tuple[np.ndarray, Callable[[jax.Array], Tableau]]:
  """Returns (theta, build): Euler's method on `grid`, and theta -> Tableau.

  Args:
    process: the forward process.
    grid: f64[n + 1], where to start; its ends are kept.
    output: the form of the ODE, as of `solvers.neural_solver`.

  Raises:
    ValueError: for a malformed grid or another output.
  """
  checks.process(process, "neural_solver(process, grid)")
  grid = checks.falling_grid(grid, process.t_min, process.t_max, process.t_zero)
  build = lambda times, c: solvers.neural_solver(
    process, times, coefficients=c, output=output
  )
  # what a step out of alpha = 0 or into sigma = 0 has no coefficients of
  n = len(grid) - 1 - int(process.sigma(grid[-1]) == 0)
  n -= int(output == "eps" and process.alpha(grid[0]) == 0)
  below = np.tril_indices(n, -1)

  def table_of(theta: np.ndarray) -> Tableau:
    c = np.zeros((n, n))
    c[below] = theta[: len(below[0])]
    times = learned_grid(theta[len(below[0]) :], grid[0], grid[-1])
    return build(times, c)

  steps = -np.diff(grid)
  theta = np.append(np.zeros(len(below[0])), np.log(steps / steps.sum()))
  return theta, hosted(table_of, theta)

r"""DC-Solver: the ratio of every step's compensation, learned.

theta is q_i - 1 of the steps that have three answers; zero is UniPC.

Reference: Zhao et al. (2024), https://arxiv.org/abs/2409.03755, section 3.2. A
departure: they fit one step after the other to a reference path, by 40 steps
of AdamW each; here all are fitted to where the path ends.
"""

from collections.abc import Callable

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff import solvers
from jaxdiff.learning.hosted import hosted
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import inner_steps
from jaxdiff.tableau import Tableau


@checks.door
def dc_solver(
  process: GaussianProcess, grid: np.ndarray, *, order: int | None = None
) -> tuple[np.ndarray, Callable[[jax.Array], Tableau]]:
  """Returns (theta, build): UniPC on `grid`, and theta -> Tableau.

  Args:
    process: the forward process.
    grid: f64[n + 1], kept as it is.
    order: of UniPC; None is 3, or what fewer steps allow.

  Raises:
    ValueError: for a grid of fewer than three steps that can be learned.
  """
  checks.process(process, "dc_solver(process, grid)")
  n = inner_steps(process, np.asarray(grid, np.float64))
  if n < 3:
    raise ValueError(
      "a step is compensated by three answers, so the third is the first to"
      f" learn of; this grid has {n} between alpha = 0 and sigma = 0"
    )

  def table_of(theta: np.ndarray) -> Tableau:
    ratios = np.append(np.ones(2), 1.0 + theta)
    return solvers.dc_solver(process, grid, ratios=ratios, order=order)

  theta = np.zeros(n - 2)
  return theta, hosted(table_of, theta)

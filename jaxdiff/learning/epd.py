r"""EPD: the places inside every step, their weights and told times, learned.

theta is, for each step, J logits of the places, J weights and J logarithms of
the scales of the times.

Reference: Zhu et al. (2025), https://arxiv.org/abs/2507.14797, section 3. A
departure: weights are free, where theirs are a softmax times a scale of each
direction, which is bounded near one.
"""

from collections.abc import Callable

import jax
import numpy as np
from scipy import special

from jaxdiff import checks
from jaxdiff import solvers
from jaxdiff.learning.hosted import hosted
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import inner_steps
from jaxdiff.tableau import Tableau


@checks.door(least=dict(points=1))
def epd(
  process: GaussianProcess, grid: np.ndarray, *, points: int = 2
) -> tuple[np.ndarray, Callable[[jax.Array], Tableau]]:
  """Returns (theta, build): EPD on `grid`, and theta -> Tableau.

  Args:
    process: the forward process.
    grid: f64[n + 1], kept as it is.
    points: J, places inside each step.

  Raises:
    ValueError: for a grid without a step to learn.
  """
  checks.process(process, "epd(process, grid)")
  n = inner_steps(process, np.asarray(grid, np.float64))
  if n < 1:
    raise ValueError(
      f"a grid of {len(grid)} times leaves no step between alpha = 0 and sigma"
      " = 0 to learn; take more steps"
    )
  even = np.arange(1, points + 1) / (points + 1)
  begin = np.stack([special.logit(even), np.full(points, 1 / points), 0 * even])
  theta = np.tile(begin, (n, 1, 1)).ravel()

  def table_of(theta: np.ndarray) -> Tableau:
    places, weights, scales = np.moveaxis(theta.reshape(n, 3, points), 1, 0)
    return solvers.epd(
      process,
      grid,
      points=points,
      places=special.expit(places),
      weights=weights,
      scales=np.exp(np.tanh(scales)),  # at most e times too high or too low
    )

  return theta, hosted(table_of, theta)

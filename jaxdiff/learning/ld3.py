r"""LD3: the grid of any solver, learned by gradient descent.

The n steps are the softmax of n numbers, so that times fall whatever is
learned and both ends stay:

  t_i = t_0 - (t_0 - t_n) sum_{j < i} softmax(theta)_j.

With `decoupled=True` the network may also be told another noise level than the
state's, log(alpha / sigma) + shift_i, which mends the state's own error; the
first call is never shifted.

Reference: Tong et al. (2025), https://arxiv.org/abs/2405.15506, section 3.
They parametrise the steps in the solver's own time likewise; their teacher may
start within a ball around the student's noise, which is left out here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxdiff import checks
from jaxdiff.learning import clipping
from jaxdiff.learning.hosted import hosted
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau


@checks.door
def ld3(
  solver: Callable[..., Tableau],
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  decoupled: bool = False,
) -> tuple[np.ndarray, Callable[[jax.Array], Tableau]]:
  """Returns (theta, build): the grid to start from, and theta -> Tableau.

  Args:
    solver: (process, grid) -> Tableau, deterministic.
    process: the forward process.
    grid: f64[n + 1], where to start; its ends are kept.
    decoupled: whether the times told to the network are learned as well.
  """
  checks.process(process, "ld3(solver, process, grid)")
  grid = checks.falling_grid(grid, process.t_min, process.t_max, process.t_zero)
  steps = -np.diff(grid)
  build = hosted(
    lambda v: solver(process, learned_grid(v, grid[0], grid[-1])),
    np.log(steps),
  )
  theta = np.log(steps / steps.sum())
  if not decoupled:
    return theta, build
  calls = solver(process, grid).nfe

  def shifted(theta: jax.Array) -> Tableau:
    table = build(theta[: len(steps)])
    later = clipping.shift(process, table.t[1:], theta[len(steps) :])
    return table._replace(t=jnp.append(table.t[:1], later))

  return np.append(theta, np.zeros(calls - 1)), shifted


def learned_grid(theta: np.ndarray, first: float, last: float) -> np.ndarray:
  """Returns the falling grid f64[n + 1] of the logits of its n steps."""
  theta = np.asarray(theta, np.float64)
  theta = np.maximum(theta - theta.max(), -18.0)  # no step may vanish
  shares = special.softmax(theta)
  inner = first - (first - last) * np.cumsum(shares[:-1])
  return np.concatenate([[first], inner, [last]])

r"""Annealed Langevin dynamics with fixed step sizes, as a table.

At each level of the grid, from noise to data, `per_level` unadjusted moves

  x <- x + h s(x, t) + sqrt(2 h) z,   s = -eps / sigma,   h = step sigma(t)^2,

which are linear in eps: with one rule for h the whole sampler is a table. The
stationary law of a level is stable for step < 2; step = 2 eps_0 of Song and
Ermon (2019), https://arxiv.org/abs/1907.05600, Algorithm 1, whose alpha_i is
eps_0 sigma_i^2 / sigma_L^2 in units of their last level. Where alpha varies, x
is rescaled by alpha' / alpha between levels. A last level of sigma = 0 is one
call that returns x0 (Jolicoeur-Martineau et al. 2021 advise to end so).

A grid of one repeated level does not fall: to stay at one noise level, use
`samplers.langevin` with `ModelScore`.
"""

import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import denoise
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True, ends_at_zero_sigma=True)
def annealed_langevin(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  step: float = 0.1,
  per_level: int = 5,
) -> Tableau:
  """Returns the table: per_level calls at every time of the grid, K = 1.

  Args:
    process: the forward process.
    grid: f64[n + 1], the levels; a last one of sigma = 0 is a single call.
    step: h / sigma^2, in (0, 2).
    per_level: number of moves at each level.

  Raises:
    ValueError: for a step outside (0, 2), which diverges, fewer than one move,
      or a grid that starts from alpha = 0.
  """
  if not 0.0 < step < 2.0:
    raise ValueError(
      f"step is h / sigma^2 and must lie in (0, 2), got {step}: from 2 on the"
      " chain diverges even on pure noise; 0.02 to 0.5 are usual"
    )
  if per_level < 1:
    raise ValueError(f"per_level must be at least 1, got {per_level}")
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  if alpha[0] == 0:
    raise ValueError(
      "annealed Langevin dynamics rescales x by alpha' / alpha between levels,"
      " but alpha = 0 at the first; start the grid below it"
    )
  levels = len(grid) - int(sigma[-1] == 0)
  t = np.repeat(grid[:levels], per_level)
  s = process.sigma(t)
  carry = np.ones(len(t))
  carry[per_level - 1 : -1 : per_level] = alpha[1:levels] / alpha[: levels - 1]
  moves = tables.multistep(
    t=t,
    output="eps",
    carry=carry,
    history=(-carry * step * s)[:, None],
    noise=carry * np.sqrt(2.0 * step) * s,
  )
  if levels == len(grid):
    return moves
  # x0 is asked where the moves ended: the call itself is the step into 0
  return tables.concat(moves, denoise(process, grid[-2], grid[-1]))

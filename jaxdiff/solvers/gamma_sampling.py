r"""Gamma sampling: long jumps toward the end of a grid, and fresh noise.

For students whose call at t answers for a whole jump. With nu = sigma / alpha,
the step from t to t' jumps further, to nu_j^2 = max((1 - gamma^2) nu'^2,
nu_end^2), and noises up again:

  x_j = (alpha_j nu_j / sigma) x + alpha_j (1 - alpha nu_j / sigma) x0
  x'  = (alpha' / alpha_j) x_j + alpha' sqrt(nu'^2 - nu_j^2) z

gamma = 1 is the multistep sampler of consistency models (Song et al. (2023),
https://arxiv.org/abs/2303.01469, algorithm 1), whose fresh noise is of variance
nu'^2 - nu_end^2, since what it is added to is not free of noise; on a grid that
ends without noise it is alpha' x0 + sigma' z, as DMD2 and Presto sample. gamma
= 0 is DDIM. Reference: Kim et al. (2024), https://arxiv.org/abs/2310.02279,
algorithm 3, written for any process.

jump = "time" goes to the time (1 - gamma) t' instead, nowhere below the end of
the grid: strategic stochastic sampling of TCD (Zheng et al. (2024),
https://arxiv.org/abs/2402.19159, algorithm 4, with eta for gamma and rounded to
whole steps).
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True, ends_at_zero_sigma=True)
def gamma_sampling(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  gamma: float = 1.0,
  jump: str = "variance",
) -> Tableau:
  """Returns the table of gamma sampling on `grid`, f64[n + 1]: n calls, K = 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    gamma: share of the noise that is renewed, in [0, 1].
    jump: what the share is of, "variance" or "time".

  Raises:
    ValueError: if gamma is outside of [0, 1], or for another jump.
  """
  to = _jump(process, grid, gamma, jump)
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  level = sigma[1:] / alpha[1:]
  # of two equal numbers, however they were rounded, nothing is left
  fresh = np.sqrt(np.maximum(level**2 - to**2, 0.0))
  fresh = np.where(np.isclose(to, level, rtol=1e-12, atol=0), 0.0, fresh)
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=alpha[1:] * to / sigma[:-1],
    history=(alpha[1:] * (1.0 - alpha[:-1] * to / sigma[:-1]))[:, None],
    noise=alpha[1:] * fresh,
  )


@checks.door(host=True)
def jump_times(
  process: GaussianProcess,
  grid: np.ndarray,
  gamma: float = 1.0,
  jump: str = "variance",
) -> np.ndarray:
  """Returns where each call of `gamma_sampling` jumps to, f64[n].

  Raises:
    ValueError: if gamma is outside of [0, 1], or for another jump.
  """
  grid = np.asarray(grid, np.float64)
  to = _jump(process, grid, gamma, jump)
  level = process.sigma(grid[1:]) / process.alpha(grid[1:])
  times = np.array(grid[1:])
  inside = (to > to[-1]) & (to < level)
  times[inside] = process.time_at(to[inside])
  times[to <= to[-1]] = grid[-1]
  return times


def _jump(process, grid, gamma, jump):
  """Returns sigma / alpha at the ends of the jumps, f64[n]."""
  if not 0 <= gamma <= 1:
    raise ValueError(
      "gamma runs from 0 (deterministic jumps from time to time) to 1 (every"
      f" jump to the end, and fresh noise), got gamma={gamma}"
    )
  checks.one_of(jump, ("variance", "time"), "jump")
  level = process.sigma(grid[1:]) / process.alpha(grid[1:])
  if jump == "time":
    t = np.maximum((1.0 - gamma) * grid[1:], grid[-1])
    return process.sigma(t) / process.alpha(t)
  return np.maximum(np.sqrt((1.0 - gamma) * (1.0 + gamma)) * level, level[-1])

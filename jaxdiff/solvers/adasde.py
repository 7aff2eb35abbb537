r"""AdaSDE: EPD with fresh noise before every step, of a chosen amount.

Before a step from rho = sigma / alpha the noise level is raised to rho_hat = (1
+ gamma) rho,

  x_hat / alpha_hat = x / alpha + sqrt(rho_hat^2 - rho^2) z,

and the step of `epd` leads from there to the level where it was to end. gamma =
0 is EPD, gamma = churn / n with one place is what `heun_churn` does to Heun's
method. For a process whose alpha varies the first step draws no noise, since
nothing precedes it to rescale; no level is raised above the process's.

Reference: Wang et al. (2025), https://arxiv.org/abs/2510.23285; gamma of a step
is the mean of `gamma_s` of the authors' code by its weights.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import parameters
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.epd import checked
from jaxdiff.solvers.epd import steps
from jaxdiff.tableau import Tableau


@solver(least=dict(points=1))
def adasde(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  gammas: np.ndarray | None = None,
  points: int = 1,
  places: np.ndarray | None = None,
  weights: np.ndarray | None = None,
  scales: np.ndarray | None = None,
) -> Tableau:
  """Returns the table of AdaSDE on `grid`: n (J + 1) calls, K = J.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    gammas: f64[n], at least 0; None is 0.
    points: J, places inside each step.
    places: r, f64[n, J], as of `epd`, between the raised level and the end.
    weights: w, f64[n, J], as of `epd`.
    scales: s, f64[n, J], as of `epd`.

  Raises:
    ValueError: for another shape, a negative gamma, and as `epd`.
  """
  n = len(grid) - 1
  gamma = parameters(gammas, 0.0, (n,), "gammas")
  if (gamma < 0).any():
    raise ValueError(
      "gammas say by how much fresh noise raises the level before a step, at"
      f" least 0; got {gamma.min():.6g}"
    )
  level = process.noise_level(grid[:1]) * (1.0 + gamma[0])
  high = process.noise_level(np.asarray([process.t_max]))
  raised = process.time_at(np.minimum(level, high))
  if process.alpha(raised) != process.alpha(grid[0]):
    gamma[0] = 0.0
  chosen = checked(n, points, places, weights, scales)
  return steps(process, grid, *chosen, gamma)

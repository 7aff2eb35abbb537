r"""AMED: two calls per step at a learned time with a learned step length.

A step of DPM-Solver-2 (in eps) from lambda to lambda + h, h = lambda' - lambda:

  s:   lambda_s = lambda + r h,   x_s = DDIM(x, s)
  x' = (alpha' / alpha) x - sigma' expm1(h) c eps(x_s, s).

r = 1/2 and c = 1 is DPM-Solver-2; here every step learns its own r in (0, 1)
and c > 0. By the mean value theorem some r and c make the step exact for one
sample, and nearly for all if their paths lie nearly in a plane.

Reference: Zhou et al. (2024), https://arxiv.org/abs/2312.00094, section 3.2. A
departure: there a small network finds r and c for each sample from features of
the denoiser; here they are numbers of the table, the same for all samples, and
cost nothing to apply.
"""

from collections.abc import Callable

import jax
import numpy as np
from scipy import special

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.learning.hosted import hosted
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import inner_steps
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau
from jaxdiff.types import ArrayLike


@solver
def two_call_steps(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  middle: ArrayLike = 0.5,
  length: ArrayLike = 1.0,
) -> Tableau:
  """Returns the table of steps with given middles and lengths: 2n calls.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    middle: r, f64[n] or a scalar in (0, 1).
    length: c, f64[n] or a scalar.

  Raises:
    ValueError: for a middle outside of (0, 1).
  """
  n = len(grid) - 1
  middle, length = np.broadcast_to(middle, n), np.broadcast_to(length, n)
  if not ((middle > 0) & (middle < 1)).all():
    raise ValueError(
      f"a step's middle lies inside it, 0 < r < 1; got middle={middle}"
    )
  alpha, sigma, lam = coefficients(process, grid)
  between = process.log_snr_inverse(lam[:-1] + middle * np.diff(lam))
  alpha_s, sigma_s, _ = coefficients(process, between)
  h = np.diff(lam)
  rows = []
  for i in range(n):
    to_s = (alpha_s[i] / alpha[i], -sigma_s[i] * np.expm1(middle[i] * h[i]))
    whole = (
      alpha[i + 1] / alpha[i],
      -sigma[i + 1] * np.expm1(h[i]) * length[i],
    )
    rows.append(
      tables.row(grid[i], "eps", y=(0.0, to_s[0], to_s[1]), a=(0.0, 1.0))
    )
    rows.append(tables.row(between[i], "eps", y=(0.0, *whole)))
  return tables.concat(*rows)


@checks.door
def amed(
  process: GaussianProcess, grid: np.ndarray
) -> tuple[np.ndarray, Callable[[jax.Array], Tableau]]:
  """Returns (theta, build): DPM-Solver-2 on `grid`, and theta -> Tableau.

  Args:
    process: the forward process.
    grid: f64[n + 1], kept as it is; steps that touch alpha = 0 or sigma = 0
      have nothing to learn.
  """
  checks.process(process, "amed(process, grid)")
  n = inner_steps(process, np.asarray(grid, np.float64))
  if n < 1:
    raise ValueError(
      f"a grid of {len(grid)} times leaves no step between alpha = 0 and sigma"
      " = 0 to learn; take more steps"
    )
  theta = np.zeros(2 * n)

  def table_of(theta: np.ndarray) -> Tableau:
    # bounded, so that every step of a descent is a table: 0.02 < r < 0.98 and
    # 1/7 < c < 7
    middle = special.expit(4.0 * np.tanh(theta[:n] / 4.0))
    length = np.exp(2.0 * np.tanh(theta[n:] / 2.0))
    return two_call_steps(process, grid, middle=middle, length=length)

  return theta, hosted(table_of, theta)

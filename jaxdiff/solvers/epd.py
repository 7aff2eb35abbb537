r"""EPD: several places inside a step, asked side by side, their slopes weighed.

With v = x / alpha and rho = sigma / alpha a step asks once at its beginning and
then at J places, each found by that first slope alone,

  m_j = rho^(1 - r_j) rho'^(r_j),   v_j = v + (m_j - rho) d,
  d_j = (v_j - x0(v_j, s_j m_j)) / m_j,
  v'  = v + (rho' - rho) sum_j w_j d_j.

The network is told s_j m_j. w is the product of weights that sum to one and of
scales of the direction in the paper. One place at r = 1/2 is DPM-Solver-2; J
places of equal weights, evenly spread in log(rho), are of second order too.

The J calls do not depend on each other: `samplers.side_by_side` makes them in
one batch, the rows of a table one after the other, J + 1 calls a step both.

`learning.epd` learns r, w and s. Reference: Zhu et al. (2025),
https://arxiv.org/abs/2507.14797, section 3.
"""

import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import parameters
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau
from jaxdiff.types import ArrayLike


@solver(least=dict(points=1))
def epd(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  points: int = 2,
  places: np.ndarray | None = None,
  weights: np.ndarray | None = None,
  scales: np.ndarray | None = None,
) -> Tableau:
  """Returns the table of EPD on `grid`: n (J + 1) calls, K = J.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    points: J, places inside each step.
    places: r, f64[n, J], from 0 to 1; None is 1 / (J + 1), ..., J / (J + 1).
    weights: w, f64[n, J]; None is 1 / J.
    scales: s, f64[n, J], above 0; None is 1.

  Raises:
    ValueError: for another shape, a place outside of its step, or a scale that
      is not above 0.
  """
  chosen = checked(len(grid) - 1, points, places, weights, scales)
  return steps(process, grid, *chosen, np.zeros(len(grid) - 1))


def checked(
  n: int, points: int, places: ArrayLike, weights: ArrayLike, scales: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns r, w and s of n steps, f64[n, J] each; refuses what is none."""
  shape = (n, points)
  even = np.arange(1, points + 1) / (points + 1)
  r = parameters(places, even, shape, "places")
  w = parameters(weights, 1.0 / points, shape, "weights")
  s = parameters(scales, 1.0, shape, "scales")
  if not ((r >= 0) & (r <= 1)).all() or not (s > 0).all():
    raise ValueError(
      "places are shares of their step, from 0 to 1, and scales multiply a"
      f" noise level, above 0; got places from {r.min():.6g} to {r.max():.6g}"
      f" and scales from {s.min():.6g}"
    )
  return r, w, s


def steps(
  process: GaussianProcess,
  grid: np.ndarray,
  r: np.ndarray,
  w: np.ndarray,
  s: np.ndarray,
  gamma: np.ndarray,
) -> Tableau:
  """Returns the rows of all steps, each from (1 + gamma) times its level.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    r: places, f64[n, J].
    w: weights, f64[n, J].
    s: scales, f64[n, J].
    gamma: f64[n], what fresh noise adds to the level before a step.
  """
  n, points = r.shape
  rho, alpha = process.noise_level(grid), process.alpha(grid)
  ends = process.noise_level(np.asarray([process.t_min, process.t_max]))
  start = np.where(gamma > 0, np.minimum((1.0 + gamma) * rho[:-1], ends[1]), 0)
  raised = start > rho[:-1]
  begin = grid[:-1].copy()
  begin[raised] = process.time_at(start[raised])
  start = np.where(raised, start, rho[:-1])
  own = process.alpha(begin)
  fresh = own * np.sqrt(np.maximum(start**2 - rho[:-1] ** 2, 0.0))
  ahead = np.append(own[1:] / alpha[1:-1], 1.0)  # of the place asked next
  rows = []
  for i in range(n):
    at = start[i] ** (1.0 - r[i]) * rho[i + 1] ** r[i]
    told = np.clip(s[i] * at, *ends)
    t = process.time_at(told)
    scale = process.alpha(t)
    # each place by a = x and by the first slope, then the oldest answer
    y = np.zeros((points, 2 + points))
    y[:, 1] = scale / own[i]
    y[np.arange(points), 2 + np.arange(points)] = scale * (at - start[i])
    first = np.append(y[0, 1], [0.0, *y[0, 2:]])  # where y = a = x
    noise = (fresh[i], 0.0, 0.0)
    rows.append(tables.row(begin[i], "eps", first, (1.0, 0.0), noise))
    share = told / at  # of eps in d_j
    for j in range(points - 1):
      rows.append(tables.row(t[j], (0.0, share[j]), y[j + 1], a=(0.0, 1.0)))
    step = alpha[i + 1] * (rho[i + 1] - start[i]) * w[i, ::-1]
    end = np.asarray([0.0, alpha[i + 1] / own[i], *step])
    rows.append(tables.row(t[-1], (0.0, share[-1]), ahead[i] * end, end))
  return tables.concat(*rows)

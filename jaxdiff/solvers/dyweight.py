r"""DyWeight: every past slope weighed freely, the noise level moved along.

With v = x / alpha, rho = sigma / alpha and the level r_i at which v_i is taken
to be, r_0 = rho_0,

  v_{i+1} = v_i + (rho_{i+1} - r_i) sum_{j<=i} W_ij d_j,
  r_{i+1} = r_i + (rho_{i+1} - r_i) sum_{j<=i} W_ij,
  d_i     = (v_i - x0(v_i, s_i r_i)) / r_i.

The weights of a step need not sum to one: the level goes as far as they do. The
network is told s_i times it, and the difference to its x0 is divided by the
level itself. W = 1, s = 1 is DDIM, the weights of Adams-Bashforth are `ipndm`.
Levels are held above that of the grid's end, told ones inside the process; the
first is told as it is, since a table begins with the noise of its first call.

`learning.dyweight` learns W and s. Reference: Zhao et al. (2026),
https://arxiv.org/abs/2603.11607; W is `hybrid_weights` and s `t_scale` of the
authors' code.
"""

import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import parameters
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.neural_solver import newest_first
from jaxdiff.tableau import Tableau


@solver
def dyweight(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  weights: np.ndarray | None = None,
  scales: np.ndarray | None = None,
) -> Tableau:
  """Returns the table of given weights on `grid`: n calls, K = n.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    weights: W, f64[n, n], of which the lower triangle counts; None is 1.
    scales: s, f64[n], above 0, of which the first is not used; None is 1.

  Raises:
    ValueError: for another shape, or a scale that is not above 0.
  """
  n = len(grid) - 1
  w = np.tril(parameters(weights, np.eye(n), (n, n), "weights"))
  s = parameters(scales, 1.0, (n,), "scales")
  if not (s > 0).all():
    raise ValueError(
      "scales multiply the noise level that the network is told, so they are"
      f" above 0; got {s.min():.6g}"
    )
  rho = process.noise_level(grid)
  level, gain, reached = np.empty(n), np.empty(n), rho[0]
  for i in range(n):
    level[i] = max(reached, rho[-1])
    gain[i] = rho[i + 1] - level[i]
    reached = level[i] + gain[i] * w[i].sum()
  ends = process.noise_level(np.asarray([process.t_min, grid[0]]))
  told = np.clip(np.append(1.0, s[1:]) * level, *ends)
  t = process.time_at(told)
  t = np.where(told == rho[:-1], grid[:-1], t)  # as they were given
  scale = process.alpha(np.append(t, grid[-1]))
  history = scale[1:, None] * newest_first(gain[:, None] * w)
  return tables.multistep(
    t=t,
    output=np.stack([np.zeros(n), told / level], axis=-1),  # d = told / r eps
    carry=scale[1:] / scale[:-1],
    history=history[:, :1] if weights is None else history,
  )

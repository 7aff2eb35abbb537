r"""GITS: the best grid of n steps of a ladder, by dynamic programming.

Trajectories of the ODE bend in much the same way from whatever noise they
start, so one cost matrix, taken from a few of them, tells where steps are
needed. In v = x / alpha and s = sigma / alpha, with v(s_i) the teacher's,

  c_ij = E || v_i + (s_j - s_i) eps_i - v_j ||,   i < j,

is the error of one first-order step from i to j. The grid 0 = i_0 < ... < i_n =
N of the least sum_m gamma^m c_{i_m, i_{m+1}} follows from

  V_j^1 = c_jN,   V_j^k = min_{i > j} c_ji + gamma V_i^{k-1}.

gamma > 1 asks more of the late steps, whose errors nothing forgets. The grid is
a grid like any other: every solver takes it. Reference: Chen et al. (2024),
https://arxiv.org/abs/2405.11326, section 3.3; gamma = 1.15 in their code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.predictions import ask
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike


class Ladder(NamedTuple):
  """What one teacher trajectory knows: enough for grids of any n.

  Attributes:
    times: f64[N + 1], falling.
    costs: f64[N + 1, N + 1], c_ij in units of the data per root dimension;
      inf for i >= j.
  """

  times: np.ndarray
  costs: np.ndarray


@checks.door
def ladder(
  key: jax.Array,
  model: sampling.Model,
  process: GaussianProcess,
  x: ArrayLike,
  *,
  times: ArrayLike | None = None,
  steps: int = 4,
) -> Ladder:
  """Returns the costs of all steps between `times`, from one trajectory.

  Args:
    key: PRNG key, unused by models without randomness of their own.
    model: the model.
    process: its forward process, with alpha > 0 at times[0].
    x: f[batch, ...], noises at times[0]; 64 of them will do.
    times: f64[N + 1], falling; 60 steps of the Karras grid by default.
    steps: steps of RK4 between two of the times.

  Raises:
    ValueError: for times that a solver cannot walk, or alpha = 0 at the first.
  """
  times = grids.karras(process, 60) if times is None else times
  times = checks.falling_grid(
    times, process.t_min, process.t_max, process.t_zero
  )
  level = process.noise_level(times)
  if not np.isfinite(level).all():
    raise ValueError(
      f"alpha({times[0]:.4g}) = 0: a step from there has no scaled noise"
      " level; begin the ladder later (start=)"
    )
  pieces = [
    np.linspace(a, b, steps, endpoint=False) for a, b in zip(times, times[1:])
  ]
  fine = np.append(np.concatenate(pieces), times[-1])
  _, path = sampling.sample(
    key,
    model,
    solvers.rk4(process, fine),
    x,
    collect=sampling.every(4 * steps),
  )
  path = jnp.concatenate([jnp.asarray(x)[None], path])
  costs = _costs(model, process, path, times)
  return Ladder(times, np.where(np.tri(len(times), dtype=bool), np.inf, costs))


@checks.door
def choose(costs: ArrayLike, n: int, gamma: float = 1.15) -> np.ndarray:
  """Returns the indices 0 = i_0 < ... < i_n = N of the best path, i64[n + 1].

  Args:
    costs: f64[N + 1, N + 1], c_ij.
    n: number of steps.
    gamma: weight of a step relative to the one before it.

  Raises:
    ValueError: if n is not within 1..N.
  """
  costs = np.where(np.tri(len(costs), dtype=bool), np.inf, costs)
  last = len(costs) - 1
  if not 1 <= n <= last:
    raise ValueError(
      f"a ladder of {last} steps holds grids of 1..{last} steps, not of {n}"
    )
  value, follow = costs[:, last], []
  for _ in range(n - 1):
    through = costs + gamma * value[None, :]
    follow.append(through.argmin(1))
    value = through.min(1)
  path = [0]
  for best in reversed(follow):
    path.append(int(best[path[-1]]))
  return np.asarray([*path, last])


@checks.door
def grid(ladder: Ladder, n: int, gamma: float = 1.15) -> np.ndarray:
  """Returns the times of the best path of n steps, f64[n + 1]."""
  return ladder.times[choose(ladder.costs, n, gamma)]


def _costs(model, process, path, times):
  """Returns c_ij for all pairs, f64[N + 1, N + 1]."""
  alpha = jnp.asarray(process.alpha(times), path.dtype)
  level = jnp.asarray(process.noise_level(times), path.dtype)
  scaled = path / alpha.reshape((-1,) + (1,) * (path.ndim - 1))
  spread = tuple(range(2, path.ndim))  # the coordinates

  def row(i, t):
    eps = ask(model, path[i], t).eps
    step = (level - level[i]).reshape((-1,) + (1,) * (path.ndim - 1))
    error = scaled[i] + step * eps - scaled
    return jnp.mean(jnp.sqrt(jnp.mean(jnp.square(error), axis=spread)), axis=1)

  at = (jnp.arange(len(times)), jnp.asarray(times, path.dtype))
  return np.asarray(jax.lax.map(lambda pair: row(*pair), at), np.float64)

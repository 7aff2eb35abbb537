r"""Noise as a path: the draws of a stochastic table, from one Brownian path.

A table draws anew at every row, so that another number of steps is another
sample. Here the draws of any grid are increments of one path for each sample:
as the steps grow in number, the sample converges, and a coarse one can be
refined.

The noise that a step of the reverse SDE adds is an Ito integral with a weight.
For the SDE of strength eta (1: the usual one; Huang et al. (2021),
https://arxiv.org/abs/2106.02808) the exact solution for a fixed x0 from lambda
to lambda' = lambda + h, lambda = log(alpha / sigma), adds

  sigma' sqrt(1 - e^{-2 eta h}) z,

as `ddim(eta=1)`, `dpmpp_2m_sde` and `sa_solver` do. With u = x e^{eta lambda} /
sigma that is u' = u + (W(s') - W(s)) at the clock s = e^{2 eta lambda}: the
increments of a Brownian motion W. Its values span many orders of magnitude, so
not W but U(lambda) = e^{-eta lambda} W(e^{2 eta lambda}) is drawn, a stationary
process of Ornstein and Uhlenbeck of unit variance:

  z = (U(lambda') - e^{-eta h} U(lambda)) / sqrt(1 - e^{-2 eta h}).

U is drawn at its two ends and then halfway, again and again, towards the place
that is asked for, each time from a key of that node: nothing is stored, and the
path depends on the key and the sample's index alone. The virtual Brownian tree
is of Li et al. (2020), https://arxiv.org/abs/2001.01328; between two points U
is normal with

  mean (r1 (1 - r2^2) U_a + r2 (1 - r1^2) U_b) / (1 - r1^2 r2^2),
  variance (1 - r1^2) (1 - r2^2) / (1 - r1^2 r2^2),   r = e^{-eta distance}.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import tree
from jaxdiff.processes.gaussian import GaussianProcess
from jaxdiff.processes.noise import check_normal
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike

_WIDEST = 16.0  # |lambda|: beyond it e^{2 lambda} is 0 or infinite to float32


@checks.door(least=dict(depth=1), above=dict(eta=0))
def path_noise(
  key: jax.Array,
  process: GaussianProcess,
  times: ArrayLike,
  shape: Sequence[int],
  *,
  eta: float = 1.0,
  depth: int = 22,
  index: ArrayLike | None = None,
  dtype: DTypeLike = jnp.float32,
) -> jax.Array:
  """Returns the draws of the steps between times, f[n, batch, ...].

  Give them to `sampling.sample(..., noise=...)` with a table of one call a step
  on the grid `times` (`ddim(eta=1.0)`, `dpmpp_2m_sde`, `dpmpp_3m_sde`,
  `sa_solver`, `ddpm`): another grid of the same key, process, eta and depth
  follows the same path. Single draws are standard normal and independent of
  each other, so the law of the samples is what it was.

  Args:
    key: PRNG key of the path.
    process: the forward process, whose t_max and t_min are the path's ends.
    times: f64[n + 1], falling, within these ends; a last time without noise
      counts as t_min.
    shape: (batch, ...) of the samples.
    eta: strength of the SDE, that of the solver: its variance in units of the
      usual reverse SDE's.
    depth: how often the range of lambda is halved; places nearer to each other
      than its 2^depth-th part are the same.
    index: i32[batch], indices of the samples; 0, 1, ... by default.
    dtype: of the draws.

  Raises:
    ValueError: for times that do not fall or leave the process, fewer than two
      of them, and a process whose noise is not normal.

  Example:
    >>> import jax
    >>> import jaxdiff as jd
    >>> process, key = jd.edm(), jax.random.key(0)
    >>> grid = jd.grids.karras(process, 8)
    >>> z = jd.processes.path_noise(key, process, grid, (16, 2))
    >>> model = jd.exact(jd.oracles.g2(), process)
    >>> x = process.prior(key, (16, 2))
    >>> table = jd.ddim(process, grid, eta=1.0)
    >>> jd.sample(key, model, table, x, noise=z).shape
    (16, 2)
  """
  check_normal(process, "path_noise")
  low, high = _ends(process)
  lam = _places(process, times, low, high)
  h = np.diff(lam)  # 0 for a last step into sigma = 0, which adds no noise
  like = jax.ShapeDtypeStruct(tuple(shape), dtype)
  draw = lambda key: tree.normal(key, like, index)
  spread = np.exp(-eta * (high - low))
  first = draw(jax.random.fold_in(key, 0))
  last = spread * first
  last += np.sqrt(1.0 - spread**2) * draw(jax.random.fold_in(key, 1))
  nodes, sides = _walk(lam, low, high, depth)
  half = (high - low) * 0.5 ** np.arange(1, depth + 1)
  r = np.exp(-eta * half)
  mean, deviation = r / (1 + r**2), np.sqrt((1 - r**2) / (1 + r**2))
  inner = jax.random.fold_in(key, 2)

  def halved(ends, step):
    a, b = ends
    node, side, mean, deviation = step
    middle = mean * (a + b)
    middle += deviation * draw(jax.random.fold_in(inner, node))
    return (jnp.where(side, middle, a), jnp.where(side, b, middle)), None

  def value(_, at):
    nodes, sides, weights = at
    steps = (
      nodes,
      sides,
      jnp.asarray(mean, dtype),
      jnp.asarray(deviation, dtype),
    )
    (a, b), _ = control.scan(halved, (first, last), steps)
    return (), weights[0] * a + weights[1] * b

  weights = jnp.asarray(_between(lam, low, high, depth, eta), dtype)
  _, u = control.scan(value, (), (nodes, sides, weights))
  lead = (-1,) + (1,) * len(shape)
  keep = jnp.asarray(np.exp(-eta * h).reshape(lead), dtype)
  scale = np.sqrt(np.where(h > 0, -np.expm1(-2.0 * eta * h), 1.0))
  return (u[1:] - keep * u[:-1]) / jnp.asarray(scale.reshape(lead), dtype)


def _ends(process):
  """Returns the range of lambda of the whole path."""
  ends = process.log_snr(np.asarray([process.t_max, process.t_min], np.float64))
  return np.clip(ends, -_WIDEST, _WIDEST)


def _places(process, times, low, high):
  """Returns lambda at the times, within the range."""
  times = np.asarray(times, np.float64)
  if times.ndim != 1 or len(times) < 2 or not (np.diff(times) < 0).all():
    raise ValueError(
      "path_noise takes times that fall from noise to data, f64[n + 1], as"
      f" grids.karras(process, n) makes them; got {checks.given(times)}"
    )
  if times[0] > process.t_max * (1 + 1e-9):
    raise ValueError(
      f"the first time, {times[0]:.6g}, is beyond the path's, t_max ="
      f" {process.t_max:.6g}; give the process a wider range of times"
    )
  with np.errstate(divide="ignore"):
    return np.clip(process.log_snr(times), low, high)


def _walk(lam, low, high, depth):
  """Returns (nodes u32[n, depth], sides b[n, depth]) on the way to places."""
  a, b = np.full_like(lam, low), np.full_like(lam, high)
  node, nodes, sides = np.ones(len(lam), np.uint32), [], []
  for _ in range(depth):
    middle = 0.5 * (a + b)
    side = lam > middle
    nodes.append(node)
    sides.append(side)
    a, b = np.where(side, middle, a), np.where(side, b, middle)
    node = 2 * node + side.astype(np.uint32)
  return np.stack(nodes, -1), np.stack(sides, -1)


def _between(lam, low, high, depth, eta):
  """Returns the weights of both ends of the last interval, f64[n, 2]."""
  length = (high - low) * 0.5**depth
  part = np.clip((lam - low) / length, 0, 2**depth)
  first = np.minimum(np.ceil(part) - 1, 2**depth - 1).clip(0)
  r1 = np.exp(-eta * (part - first) * length)
  r2 = np.exp(-eta * (first + 1 - part) * length)
  whole = -np.expm1(-2.0 * eta * length)
  one = lambda near, far: near * (1.0 - far**2) / whole
  return np.stack([one(r1, r2), one(r2, r1)], axis=-1)

r"""Averages of parameters over updates, and post-hoc averages.

An average after update k = 1, 2, ... is avg <- d_k avg + (1 - d_k) params:

| profile         | d_k                                                       |
|-----------------|-----------------------------------------------------------|
| `exponential`   | decay; with warm-up min(decay, k / (9 + k))               |
| `power`         | (1 - 1 / k)^{gamma + 1}: the weight of update tau is      |
|                 | p(tau; k) = (gamma + 1) tau^gamma / k^{gamma + 1}         |

The width of a power profile grows with the training: its standard deviation is
sigma_rel k with sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), and it
forgets the start. Near d_k = 1 float32 holds no digits of 1 - d_k, and 16 bits
none of what an update adds: the profiles here are made of 1 - d_k itself, and
averages are kept in float32 or wider, whatever the parameters' dtype. From
snapshots of two such averages any other can be put
together when training is over (post-hoc EMA): their weights x minimise

  int (sum_i x_i p_i(tau) - p(tau))^2 dtau,   sum_i x_i = 1,

with int p_a(.; s) p_b(.; t) = (a + 1)(b + 1) min(s, t)^{a + b + 1}
                               / ((a + b + 1) s^{a + 1} t^{b + 1}).

Reference: Karras et al. (2024), "Analyzing and improving the training dynamics
of diffusion models", https://arxiv.org/abs/2312.02696, section 3 and appendix C
(they scale the solution to the sum 1, here the sum is a constraint).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import tree
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

Profile = Callable[[jax.Array], jax.Array]  # f32[] k = 1, 2, ... -> d_k


@dataclasses.dataclass(frozen=True)
class Shares:
  """A profile by what the new parameters get; called it is one like any other.

  Attributes:
    rest: f32[] k = 1, 2, ... -> 1 - d_k, computed without cancellation.
  """

  rest: Profile

  def __call__(self, k: jax.Array) -> jax.Array:
    return 1.0 - self.rest(k)


_WIDEST = 1.0 / math.sqrt(12.0)  # gamma = 0, the mean of all updates


def exponential(decay: float = 0.999, warmup: bool = True) -> Profile:
  """Returns the profile of a fixed decay per update.

  Args:
    decay: in [0, 1); 0.999 averages over about 1000 updates, 0 copies.
    warmup: let the decay grow to it, which forgets the initial parameters.

  Raises:
    ValueError: if decay is outside [0, 1).
  """
  if not 0.0 <= decay < 1.0:
    raise ValueError(
      f"ema is a decay per update in [0, 1), got {decay}; 0.999 averages over"
      " about 1000 updates"
    )
  rest = 1.0 - decay
  if not warmup:
    return Shares(lambda k: jnp.full_like(k, rest))
  return Shares(lambda k: jnp.maximum(rest, 9.0 / (9.0 + k)))


def power(sigma_rel: float) -> Profile:
  """Returns the power-function profile of width sigma_rel times the updates.

  Args:
    sigma_rel: in (0, 0.288]; 0.05 and 0.1 are usual for snapshots.

  Raises:
    ValueError: if sigma_rel is outside (0, 0.288].
  """
  gamma = exponent(sigma_rel)
  return Shares(lambda k: -jnp.expm1((gamma + 1.0) * jnp.log1p(-1.0 / k)))


def exponent(sigma_rel: float) -> float:
  """Returns gamma, the exponent of the profile of width sigma_rel.

  Raises:
    ValueError: if sigma_rel is outside (0, 0.288].
  """
  if not 0.0 < sigma_rel <= _WIDEST:
    raise ValueError(
      "sigma_rel is the width of an average as a share of all updates, in (0,"
      f" {_WIDEST:.3f}] (the plain mean), got {sigma_rel}; 0.05 to 0.1 is usual"
    )
  # (g + 2)^2 (g + 3) = (g + 1) / sigma_rel^2, whose largest root is real
  c = sigma_rel**-2
  roots = np.roots([1.0, 7.0, 16.0 - c, 12.0 - c])
  return float(max(roots.real.max(), 0.0))


def average(profile: Profile, k: jax.Array, old: PyTree, new: PyTree) -> PyTree:
  """Returns the average after update number k = 1, 2, ... (f32[]).

  It is in float32 or wider; whatever is not of a floating dtype is the new one.
  """
  shares = isinstance(profile, Shares)
  rest = profile.rest(k) if shares else 1.0 - profile(k)

  def one(a, p):
    if not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
      return p
    a, p = _wide(a), _wide(p)
    return jnp.where(rest == 1.0, p, a + (rest * (p - a)).astype(a.dtype))

  return jax.tree.map(one, old, new)


def start(params: PyTree) -> PyTree:
  """Returns the average before the first update: params, in float32 or wider.

  Leaves may be arrays or ShapeDtypeStructs.
  """

  def one(p):
    if not isinstance(p, jax.ShapeDtypeStruct):
      return _wide(p)
    floats = jnp.issubdtype(p.dtype, jnp.inexact)
    dtype = tree.compute_dtype(p.dtype) if floats else p.dtype
    return jax.ShapeDtypeStruct(p.shape, dtype, sharding=p.sharding)

  return jax.tree.map(one, params)


def parameters(average: PyTree, like: PyTree) -> PyTree:
  """Returns an average as parameters: in the dtypes of `like`."""
  return jax.tree.map(
    lambda a, p: jnp.asarray(a, jnp.result_type(p)), average, like
  )


def _wide(p: ArrayLike) -> jax.Array:
  p = jnp.asarray(p)
  if not jnp.issubdtype(p.dtype, jnp.inexact):
    return p
  return p.astype(tree.compute_dtype(p.dtype))


def weights(
  stored: Sequence[tuple[float, int]], sigma_rel: float, step: int
) -> np.ndarray:
  """Returns the weights of snapshots in a profile of another width, f64[n].

  Args:
    stored: (sigma_rel, step) of every snapshot.
    sigma_rel: width of the average wanted.
    step: number of updates at which it is wanted.

  Raises:
    ValueError: for no snapshots, a sigma_rel outside (0, 0.288], or a step
      later than every snapshot.
  """
  if not stored or step > max(s for _, s in stored):
    last = max((s for _, s in stored), default=None)
    raise ValueError(
      f"an average at step {step} needs snapshots up to it; the last is at"
      f" {last}"
    )
  gammas = np.array([exponent(s) for s, _ in stored])
  times = np.array([float(t) for _, t in stored])
  inner = lambda a, s, b, t: (
    (a + 1)
    * (b + 1)
    / (a + b + 1)
    / np.maximum(s, t)
    * (np.minimum(s, t) / np.maximum(s, t)) ** np.where(s < t, b, a)
  )
  gram = inner(gammas[:, None], times[:, None], gammas, times)
  aim = inner(gammas, times, exponent(sigma_rel), float(step))
  n = len(stored)
  # the constraint with its multiplier, at the scale of the products
  scale = gram.max()
  system = np.block([[gram / scale, np.ones((n, 1))], [np.ones((1, n)), 0.0]])
  solution = np.linalg.lstsq(system, np.append(aim / scale, 1.0), rcond=1e-13)
  return solution[0][:n]

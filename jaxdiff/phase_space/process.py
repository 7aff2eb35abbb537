r"""Critically damped Langevin diffusion: noise enters through a velocity.

Data x is joined by a velocity v of mass M, and only v is driven,

  dx = v / M beta dt,   dv = -(x + Gamma v / M) beta dt + sqrt(2 Gamma beta) dW,

with Gamma^2 = 4 M, the critical damping. In w = v / sqrt(M) and the clock u =
beta t / sqrt(M) nothing is left to choose,

  dx = w du,   dw = -(x + 2 w) du + 2 dW,

whose stationary law is N(0, 1) for x and w, and whose transition is normal:

  mean e^{-u} [[1 + u, u], [-u, 1 - u]] (x, w),   covariance Q(u),
  Q_xx = e^{-2u} (2u)^3 phi_3(2u),   Q_xw = 2 u^2 e^{-2u},
  Q_ww = 1 - e^{-2u} (1 - 2u + 2u^2).

The velocity starts from N(0, gamma M) and is integrated out ("hybrid"): given
x0 the state is normal with covariance L L^T = Q + gamma g g^T, g the column of
w in the mean, and with (x, w) = mean + L (eps_x, eps_w) the score in v is

  d log p(x, v | x0) / dv = -eps_w / (L_ww sqrt(M)),

so that only eps_w is learned. It has no 1 / sigma singularity: L_ww tends to
sqrt(gamma) as t -> 0.

Reference: Dockhorn, Vahdat and Kreis (2022), https://arxiv.org/abs/2112.07068.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import numerics
from jaxdiff import tree
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree


class Phase(NamedTuple):
  """A point of phase space; trees of [batch, ...]."""

  x: PyTree
  v: Array


class Kernel(NamedTuple):
  """The law of (x, w) given x0, w = v / sqrt(M): scalars or [batch].

  Attributes:
    mean_x: weight of x0 in the mean of x.
    mean_w: weight of x0 in the mean of w.
    l_xx: Cholesky factor of the covariance.
    l_wx: likewise.
    l_ww: likewise.
  """

  mean_x: Array
  mean_w: Array
  l_xx: Array
  l_wx: Array
  l_ww: Array


@dataclasses.dataclass(frozen=True)
class CriticallyDamped:
  """The process; hashable, no arrays. Functions of t take numpy and traced t.

  Attributes:
    beta: speed of the clock.
    mass: M; the paper's is 1 / 4.
    gamma: variance of the first velocity in units of M.
    t_min: smallest time the network is asked at.
    t_max: time of the prior.
  """

  beta: float = 4.0
  mass: float = 0.25
  gamma: float = 0.04
  t_min: float = 1e-3
  t_max: float = 1.0

  def __post_init__(self):
    for name in ("beta", "mass"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
    if not self.gamma >= 0:
      raise ValueError(
        "gamma is the variance of the first velocity in units of the mass, at"
        f" least 0; got {self.gamma}"
      )
    if not 0 <= self.t_min < self.t_max:
      raise ValueError(
        "a process needs 0 <= t_min < t_max (t_max is the noisy end), got"
        f" t_min={self.t_min}, t_max={self.t_max}"
      )

  def clock(self, t: ArrayLike) -> Array:
    """Returns u = beta t / sqrt(M)."""
    return self.beta / math.sqrt(self.mass) * numerics.as_float(t)

  def kernel(self, t: ArrayLike) -> Kernel:
    """Returns the law of the state given x0 alone."""
    u = self.clock(t)
    xp = numerics.namespace(u)
    decay = xp.exp(-u)
    q_xx, q_xw, q_ww = transition_covariance(u)
    from_x, from_w = decay * u, decay * (1.0 - u)  # the column of w
    s_xx = q_xx + self.gamma * from_x**2
    s_xw = q_xw + self.gamma * from_x * from_w
    s_ww = q_ww + self.gamma * from_w**2
    l_xx = xp.sqrt(s_xx)
    l_wx = numerics.safe_divide(s_xw, l_xx)
    l_ww = xp.sqrt(xp.maximum(s_ww - l_wx**2, 0.0))
    return Kernel(decay * (1.0 + u), -decay * u, l_xx, l_wx, l_ww)

  def perturb(
    self,
    key: jax.Array,
    x0: ArrayLike,
    t: ArrayLike,
    index: ArrayLike | None = None,
  ) -> tuple[Phase, Any]:
    """Returns (state, eps_w) at time t.

    Args:
      key: PRNG key; each sample folds its index into it.
      x0: clean data, a tree of [batch, ...].
      t: scalar or [batch].
      index: i32[batch], the samples' indices; 0, 1, ... by default.
    """
    x0 = jax.tree.map(jnp.asarray, x0)
    eps = tree.normal(key, Phase(x0, x0), index)
    dtype = tree.compute_dtype(jax.tree.leaves(x0)[0].dtype)
    k = self.kernel(jnp.asarray(t, dtype))

    def position(x, e):
      on = lambda c: tree.expand(c, x)
      return (on(k.mean_x) * x + on(k.l_xx) * e).astype(x.dtype)

    def velocity(x, e, f):
      on = lambda c: tree.expand(c, x)
      w = on(k.mean_w) * x + on(k.l_wx) * e + on(k.l_ww) * f
      return (math.sqrt(self.mass) * w).astype(x.dtype)

    x = jax.tree.map(position, x0, eps.x)
    return Phase(x, jax.tree.map(velocity, x0, eps.x, eps.v)), eps.v

  def prior(
    self,
    key: jax.Array,
    shape: tuple[int, ...],
    index: ArrayLike | None = None,
    dtype: DTypeLike = jnp.float32,
  ) -> Phase:
    """Returns where sampling begins: x ~ N(0, 1), v ~ N(0, M), [*shape]."""
    like = jax.ShapeDtypeStruct(shape, tree.compute_dtype(dtype))
    z = tree.normal(key, Phase(like, like), index)
    return Phase(z.x.astype(dtype), (math.sqrt(self.mass) * z.v).astype(dtype))


def transition_covariance(u: ArrayLike) -> tuple[Array, Array, Array]:
  """Returns (Q_xx, Q_xw, Q_ww) after the clock time u, exact for small u."""
  xp = numerics.namespace(u)
  decay = xp.exp(-2.0 * u)
  q_xx = decay * (2.0 * u) ** 3 * numerics.phi(3, 2.0 * u)
  q_ww = -xp.expm1(-2.0 * u) + decay * 2.0 * u * (1.0 - u)
  return q_xx, 2.0 * u**2 * decay, q_ww

r"""The exact model of phase space for Gaussian mixtures: eps_w given (x, v).

In the eigenbasis of component k every coordinate of variance c has with its
velocity the covariance C = c e e^T + L L^T, e = (mean_x, mean_w), and

  eps_w = L_ww sum_k p_k [C_k^{-1} (x - mean_x mu_k, w - mean_w mu_k)]_w.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.oracles.mixture import GaussianMixture
from jaxdiff.phase_space.process import CriticallyDamped
from jaxdiff.phase_space.process import Phase

_einsum = functools.partial(jnp.einsum, precision="highest")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExactPhase:
  """The exact model of a mixture in phase space; a pytree.

  Attributes:
    mixture: law of the data.
    process: the forward process.
  """

  mixture: GaussianMixture
  process: CriticallyDamped = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, state: Phase, t: jax.Array) -> jax.Array:
    """Returns eps_w like x [batch, d] at t, scalar or [batch]."""
    log, pull, k = self._joint(state, t)
    p = jax.nn.softmax(log, axis=1)
    return tree.expand(k.l_ww, state.x) * _einsum("bk,bkd->bd", p, pull)

  def log_prob(self, state: Phase, t: jax.Array) -> jax.Array:
    """Returns log p_t(x, v), f[batch]."""
    log = self._joint(state, t)[0]
    size = state.x.shape[1]
    return jax.nn.logsumexp(log, 1) - 0.5 * size * math.log(self.process.mass)

  def _joint(self, state, t):
    """Returns log joint [b, K], [C^{-1} offset]_w [b, K, d], the kernel."""
    x = state.x
    dtype = tree.compute_dtype(x.dtype)
    w = state.v / math.sqrt(self.process.mass)
    k = self.process.kernel(jnp.asarray(t, dtype))
    on = lambda c: jnp.asarray(c, dtype).reshape(-1, 1, 1)
    means = jnp.asarray(self.mixture.means, dtype)
    variances = jnp.asarray(self.mixture.variances, dtype)
    to_axes = lambda z: z
    from_axes = lambda z: z
    if self.mixture.axes is not None:
      axes = jnp.asarray(self.mixture.axes, dtype)
      to_axes = lambda z: _einsum("kde,bkd->bke", axes, z)
      from_axes = lambda z: _einsum("kde,bke->bkd", axes, z)
    dx = to_axes(x[:, None] - on(k.mean_x) * means)
    dw = to_axes(w[:, None] - on(k.mean_w) * means)
    c_xx = on(k.mean_x) ** 2 * variances + on(k.l_xx) ** 2
    c_xw = on(k.mean_x * k.mean_w) * variances + on(k.l_xx * k.l_wx)
    c_ww = on(k.mean_w) ** 2 * variances + on(k.l_wx**2 + k.l_ww**2)
    det = c_xx * c_ww - c_xw**2
    pull_x = (c_ww * dx - c_xw * dw) / det
    pull_w = (c_xx * dw - c_xw * dx) / det
    log = -0.5 * jnp.sum(
      dx * pull_x + dw * pull_w + jnp.log(det) + 2.0 * jnp.log(2.0 * jnp.pi),
      axis=-1,
    )
    weights = jnp.asarray(self.mixture.log_weights, dtype)
    return weights + log, from_axes(pull_w), k


@checks.door
def exact_phase(
  mixture: GaussianMixture, process: CriticallyDamped
) -> ExactPhase:
  """Returns the exact model of a mixture under critically damped Langevin."""
  return ExactPhase(mixture, process=process)

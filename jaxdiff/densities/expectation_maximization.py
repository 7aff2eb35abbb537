r"""Gaussian mixtures fitted by expectation and maximization.

  r_ik ~ w_k N(x_i; m_k, C_k),   n_k = sum_i r_ik,   w_k = n_k / n,
  m_k = sum_i r_ik x_i / n_k,
  C_k = sum_i r_ik (x_i - m_k)(x_i - m_k)^T / n_k + reg I,

from centres drawn as k-means++ draws them (each with probability proportional
to the squared distance to the nearest one before); of several starts, run
side by side, the likeliest is kept. Reference: Dempster, Laird and Rubin
(1977); Arthur and Vassilvitskii (2007).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import oracles

_dot = functools.partial(jnp.einsum, precision="highest")


@checks.door
def fit_mixture(
  key: jax.Array,
  x: jax.Array,
  components: int,
  *,
  steps: int = 100,
  starts: int = 4,
  regularization: float = 1e-4,
) -> oracles.GaussianMixture:
  """Returns a mixture with full covariances fitted to x, f[n, d].

  Args:
    key: PRNG key of the starts.
    x: the points.
    components: number of Gaussians.
    steps: steps of expectation and maximization.
    starts: how often to begin anew.
    regularization: added to every covariance, in units of x squared.

  Raises:
    ValueError: for fewer points than ten times the numbers in the covariances.
  """
  n, d = x.shape
  if components < 1:
    raise ValueError(f"a mixture has at least one component, got {components}")
  needed = 10 * components * d * (d + 1) // 2
  if n < needed:
    raise ValueError(
      f"{components} covariances in {d} dimensions want at least {needed}"
      f" points (ten for each of their numbers), got {n}; fit fewer components"
      " or a single Gaussian"
    )
  fits, likelihood = jax.vmap(
    lambda k: _fit(k, x, components, steps, regularization)
  )(jax.random.split(key, starts))
  weights, means, covariances = jax.tree.map(
    lambda v: np.asarray(v[np.argmax(likelihood)], np.float64), fits
  )
  covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
  return oracles.mixture(means, covariances, np.maximum(weights, 1e-12))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fit(key, x, components, steps, regularization):
  """Returns ((weights, means, covariances), mean log-likelihood)."""
  n, d = x.shape
  eye = regularization * jnp.eye(d, dtype=x.dtype)
  centred = x - x.mean(0)
  whole = _dot("nd,ne->de", centred, centred) / n + eye

  def maximize(r):
    count = jnp.sum(r, axis=0) + 1e-6
    means = _dot("nk,nd->kd", r, x) / count[:, None]
    offset = x[:, None] - means
    covariances = _dot("nk,nkd,nke->kde", r, offset, offset)
    return count / n, means, covariances / count[:, None, None] + eye

  def step(fit, _):
    log_joint = _log_joint(fit, x)
    return maximize(jax.nn.softmax(log_joint, axis=1)), None

  centres = _plus_plus(key, x, components)
  start = (
    jnp.full(components, 1.0 / components, x.dtype),
    centres,
    jnp.broadcast_to(whole / components, (components, d, d)),
  )
  fit, _ = control.scan(step, start, None, length=steps)
  return fit, jnp.mean(jax.nn.logsumexp(_log_joint(fit, x), axis=1))


def _log_joint(fit, x):
  """Returns log w_k N(x_i; m_k, C_k), f[n, K]."""
  weights, means, covariances = fit
  root = jnp.linalg.cholesky(covariances)
  offset = jnp.swapaxes(x[None] - means[:, None], 1, 2)  # [K, d, n]
  z = jax.scipy.linalg.solve_triangular(root, offset, lower=True)
  log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), axis=1)
  constant = jnp.log(weights) - log_det - 0.5 * x.shape[1] * jnp.log(2 * jnp.pi)
  return (constant[:, None] - 0.5 * jnp.sum(z**2, axis=1)).T


def _plus_plus(key, x, components):
  """Returns centres f[K, d], spread as k-means++ spreads them."""
  first = x[jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(x))]
  centres = jnp.broadcast_to(first, (components, x.shape[1]))

  def add(k, centres):
    near = jnp.min(jnp.sum((x[:, None] - centres) ** 2, axis=-1), axis=1)
    pick = jax.random.categorical(
      jax.random.fold_in(key, k), jnp.log(near + 1e-30)
    )
    return centres.at[k].set(x[pick])

  return control.fori_loop(1, components, add, centres)

r"""Gaussian mixtures with full covariances: exact denoiser, score and flow.

If data is sum_k w_k N(mu_k, Sigma_k), then x = alpha x0 + sigma eps is the
mixture of N(alpha mu_k, C_k), C_k = alpha^2 Sigma_k + sigma^2 I, and with the
responsibilities p_k(x)

  x0(x)  = sum_k p_k (mu_k + alpha Sigma_k C_k^{-1} (x - alpha mu_k)),
  eps(x) = sigma sum_k p_k C_k^{-1} (x - alpha mu_k) = -sigma score(x).

Covariances are held by their eigenvalues and eigenvectors, so that any (alpha,
sigma) costs two matrix products for each component.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff import tree
from jaxdiff.predictions import Prediction
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike

# float32 is float32: accelerators round matrix products to fewer bits, and an
# error of x is divided by sigma^2 here
_einsum = functools.partial(jnp.einsum, precision="highest")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
  """A mixture of K Gaussians in d dimensions; a pytree of arrays.

  Attributes:
    log_weights: f[K], normalized.
    means: f[K, d].
    variances: f[K, d], eigenvalues of the covariances.
    axes: f[K, d, d], eigenvectors as columns; None for axis-aligned ones.
  """

  log_weights: Array
  means: Array
  variances: Array
  axes: Array = None

  @property
  def num_classes(self) -> int:
    """K: each component is a class, and K stands for all of them."""
    return self.means.shape[0]

  def predict(
    self,
    x: ArrayLike,
    alpha: ArrayLike,
    sigma: ArrayLike,
    label: ArrayLike | None = None,
  ) -> Prediction:
    """Returns the exact (x0, eps) at x, f[batch, ...] of d values a sample.

    Args:
      x: noisy samples.
      alpha: scalar or [batch].
      sigma: scalar or [batch].
      label: i32[batch]: condition on being of this component; K and above
        leave a sample unconditional.
    """
    flat, alpha, sigma = _flatten(x, alpha, sigma)
    p, z, scale = self._posterior(flat, alpha, sigma, label)
    whitened = z / scale
    toward = jnp.asarray(self.means, flat.dtype) + self._rotate(
      alpha[:, None] * jnp.asarray(self.variances, flat.dtype) * whitened
    )
    x0 = _einsum("bk,bkd->bd", p, toward)
    eps = sigma * _einsum("bk,bkd->bd", p, self._rotate(whitened))
    return Prediction(x0.reshape(x.shape), eps.reshape(x.shape))

  def log_prob(
    self, x: ArrayLike, alpha: ArrayLike = 1.0, sigma: ArrayLike = 0.0
  ) -> Array:
    """Returns log p_t(x), f[batch]; of the data itself by default."""
    flat, alpha, sigma = _flatten(x, alpha, sigma)
    return jax.nn.logsumexp(self._log_joint(flat, alpha, sigma)[0], axis=1)

  def score(
    self, x: ArrayLike, alpha: ArrayLike = 1.0, sigma: ArrayLike = 0.0
  ) -> Array:
    """Returns the gradient of log p_t at x, shaped like x."""
    flat, alpha, sigma = _flatten(x, alpha, sigma)
    p, z, scale = self._posterior(flat, alpha, sigma, None)
    score = -_einsum("bk,bkd->bd", p, self._rotate(z / scale))
    return score.reshape(x.shape)

  def sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Returns n draws, (x f[n, d], component i32[n])."""
    pick, draw = jax.random.split(key)
    label = jax.random.categorical(pick, self.log_weights, shape=(n,))
    means, variances = jnp.asarray(self.means), jnp.asarray(self.variances)
    like = jax.ShapeDtypeStruct((n, means.shape[1]), means.dtype)
    z = jnp.sqrt(variances)[label] * tree.normal(draw, like)
    if self.axes is not None:
      z = _einsum("bde,be->bd", jnp.asarray(self.axes)[label], z)
    return means[label] + z, label

  def posterior_sample(
    self,
    key: jax.Array,
    x: ArrayLike,
    alpha: ArrayLike,
    sigma: ArrayLike,
    *,
    factorised: bool = False,
  ) -> jax.Array:
    """Returns a draw of the clean x0 given x = alpha x0 + sigma eps, like x.

    The posterior is a mixture again: of component k with probability p_k(x), of
    its mean above and the eigenvalues Sigma_k sigma^2 C_k^{-1}.

    Args:
      key: PRNG key.
      x: noisy samples, f[batch, ...].
      alpha: scalar or [batch].
      sigma: scalar or [batch].
      factorised: draw every value by itself from its marginal posterior: right
        one by one, independent given x.
    """
    flat, alpha, sigma = _flatten(x, alpha, sigma)
    p, z, scale = self._posterior(flat, alpha, sigma, None)
    alpha, sigma = alpha[:, None], sigma[:, None]
    variances = jnp.asarray(self.variances, flat.dtype)
    mean = jnp.asarray(self.means, flat.dtype) + self._rotate(
      alpha * variances * z / scale
    )
    variance = variances * sigma**2 / scale
    pick, draw = jax.random.split(key)
    noise = tree.normal(draw, flat)
    if not factorised:
      k = jax.random.categorical(pick, jnp.log(p))[:, None, None]
      of = lambda v: jnp.take_along_axis(v, k, axis=1)[:, 0]
      spread = jnp.sqrt(of(variance)) * noise
      if self.axes is not None:
        axes = jnp.asarray(self.axes, flat.dtype)[k[:, 0, 0]]
        spread = _einsum("bde,be->bd", axes, spread)
      return (of(mean) + spread).reshape(x.shape)
    if self.axes is not None:
      square = jnp.square(jnp.asarray(self.axes, flat.dtype))
      variance = _einsum("kde,bke->bkd", square, variance)
    k = jax.random.categorical(pick, jnp.log(p)[:, None], shape=flat.shape)
    of = lambda v: jnp.take_along_axis(v, k[:, None], axis=1)[:, 0]
    return (of(mean) + jnp.sqrt(of(variance)) * noise).reshape(x.shape)

  def moments(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean f64[d] and covariance f64[d, d] of the data."""
    w = np.exp(np.asarray(self.log_weights, np.float64))
    means = np.asarray(self.means, np.float64)
    variances = np.asarray(self.variances, np.float64)
    axes = (
      np.broadcast_to(np.eye(means.shape[1]), (*means.shape, means.shape[1]))
      if self.axes is None
      else np.asarray(self.axes, np.float64)
    )
    mean = w @ means
    within = np.einsum("k,kde,ke,kfe->df", w, axes, variances, axes)
    offset = means - mean
    return mean, within + np.einsum("k,kd,ke->de", w, offset, offset)

  def _rotate(self, z):
    """Eigencoordinates f[b, K, d] to data coordinates."""
    if self.axes is None:
      return z
    return _einsum("kde,bke->bkd", jnp.asarray(self.axes, z.dtype), z)

  def _log_joint(self, x, alpha, sigma):
    """Returns log w_k N(x; k), [b, K], and the parts of C_k^{-1}(x - mean)."""
    means = jnp.asarray(self.means, x.dtype)
    offset = x[:, None, :] - alpha[:, None] * means
    z = (
      offset
      if self.axes is None
      else _einsum("kde,bkd->bke", jnp.asarray(self.axes, x.dtype), offset)
    )
    scale = alpha[:, None] ** 2 * jnp.asarray(self.variances, x.dtype)
    scale = scale + sigma[:, None] ** 2
    # a point mass without noise: a variance too small to be seen, not 0 / 0
    scale = jnp.maximum(scale, jnp.finfo(x.dtype).tiny ** 0.5)
    log_density = -0.5 * jnp.sum(
      z**2 / scale + jnp.log(2 * jnp.pi * scale), axis=-1
    )
    return jnp.asarray(self.log_weights, x.dtype) + log_density, z, scale

  def _posterior(self, x, alpha, sigma, label):
    log_joint, z, scale = self._log_joint(x, alpha, sigma)
    p = jax.nn.softmax(log_joint, axis=1)
    if label is not None:
      label = jnp.broadcast_to(label, p.shape[:1])
      chosen = jax.nn.one_hot(label, p.shape[1], dtype=p.dtype)
      free = (label < 0) | (label >= p.shape[1])
      p = jnp.where(free[:, None], p, chosen)
    return p, z, scale


@checks.door
def mixture(
  means: ArrayLike, covariances: ArrayLike, weights: ArrayLike | None = None
) -> GaussianMixture:
  """Returns a mixture, eigendecomposed in float64.

  Args:
    means: [K, d].
    covariances: [K, d, d] full, [K, d] variances, or [K] isotropic variances.
    weights: [K], normalized here; equal by default.

  Raises:
    ValueError: for mismatched shapes, a weight that is not positive, or a
      covariance that is not symmetric or has a negative eigenvalue (the
      component is named).
  """
  means = np.asarray(means, np.float64)
  covariances = np.asarray(covariances, np.float64)
  if means.ndim != 2:
    raise ValueError(f"means must be [K, d], got shape {means.shape}")
  k, d = means.shape
  if not np.isfinite(means).all():
    raise ValueError("means must be finite, but they hold NaN or infinity")
  weights = np.ones(k) if weights is None else np.asarray(weights, np.float64)
  if weights.shape != (k,) or not (weights > 0).all():
    raise ValueError(
      f"weights must be [{k}], one positive number for each component, got"
      f" {weights}"
    )
  axes = None
  if covariances.shape == (k,):
    variances = np.broadcast_to(covariances[:, None], (k, d)).copy()
  elif covariances.shape == (k, d):
    variances = covariances
  elif covariances.shape == (k, d, d):
    skew = abs(covariances - covariances.transpose(0, 2, 1)).max((1, 2))
    if (skew > 1e-6 * abs(covariances).max()).any():
      raise ValueError(
        f"the covariance of component {int(skew.argmax())} is not symmetric"
      )
    variances, axes = np.linalg.eigh(covariances)
    rounding = 1e-12 * abs(variances).max()
    variances = np.where(abs(variances) < rounding, 0.0, variances)
  else:
    raise ValueError(
      f"covariances must be [K, d, d], [K, d] or [K] with K={k}, d={d}, got"
      f" shape {covariances.shape}"
    )
  if (variances < 0).any():
    bad = int(np.argwhere(variances < 0)[0, 0])
    raise ValueError(
      f"the covariance of component {bad} has the negative eigenvalue"
      f" {variances[bad].min():.3g}"
    )
  return GaussianMixture(
    np.log(weights / weights.sum()), means, variances, axes
  )


@checks.door
def gaussian(mean: ArrayLike, covariance: ArrayLike) -> GaussianMixture:
  """Returns a single Gaussian, mean [d], covariance [d, d], [d] or a scalar."""
  mean = np.asarray(mean, np.float64)
  covariance = np.asarray(covariance, np.float64)
  if covariance.ndim == 0:
    covariance = np.broadcast_to(covariance, mean.shape)
  return mixture(mean[None], covariance[None])


@checks.door
def flow_map(
  single: GaussianMixture, x: ArrayLike, start: tuple, end: tuple
) -> Array:
  r"""Returns where the probability-flow ODE of one Gaussian takes x.

  x_t = alpha_t mu + (C_t C_s^{-1})^{1/2} (x_s - alpha_s mu), by eigenvalue.

  Args:
    single: a mixture of one component.
    x: f[batch, ...] at the start.
    start: (alpha, sigma) there.
    end: (alpha, sigma) at the end.

  Raises:
    ValueError: for more than one component, whose flow has no closed form.
  """
  if np.shape(single.means)[0] != 1:
    raise ValueError(
      "the flow map has a closed form for one Gaussian only, this mixture"
      f" has {np.shape(single.means)[0]}; solve its ODE on a fine grid"
    )
  xp = numerics.namespace(x)
  flat = x.reshape(x.shape[0], -1)
  offset = flat - start[0] * single.means[0]
  ratio = xp.sqrt(
    (end[0] ** 2 * single.variances[0] + end[1] ** 2)
    / (start[0] ** 2 * single.variances[0] + start[1] ** 2)
  )
  if single.axes is None:
    moved = ratio * offset
  else:
    with jax.default_matmul_precision("highest"):
      moved = ((offset @ single.axes[0]) * ratio) @ single.axes[0].T
  return (end[0] * single.means[0] + moved).reshape(x.shape).astype(x.dtype)


def _flatten(x, alpha, sigma):
  dtype = tree.compute_dtype(x.dtype)
  flat = x.reshape(x.shape[0], -1).astype(dtype)
  column = lambda v: jnp.broadcast_to(
    jnp.asarray(v, dtype).reshape(-1, 1), (x.shape[0], 1)
  )
  return flat, column(alpha), column(sigma)

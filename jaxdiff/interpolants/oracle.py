r"""Interpolants between Gaussian mixtures: velocity and score in closed form.

With independent ends x0 ~ sum_i w_i N(mu_i, S_i), x1 ~ sum_j w_j N(nu_j, T_j),
component (i, j) of x_t = alpha x0 + beta x1 + gamma z has

  mean alpha mu_i + beta nu_j,
  covariance C = alpha^2 S_i + beta^2 T_j + gamma^2 I,

and with d = C^{-1} (x - mean) and the responsibilities p_ij(x)

  E[x0] = mu_i + alpha S_i d,   E[x1] = nu_j + beta T_j d,   E[z] = gamma d,
  v = sum p (alpha' E[x0] + beta' E[x1]),   eta = gamma sum p d,   s = -sum p d.

`SchroedingerGaussian` is the bridge of least control cost between two Gaussians
for the reference process sqrt(2 eps) W: the linear interpolant with gamma^2 = 2
eps t (1 - t) whose ends are coupled by

  E[x0 x1^T] = (S0^{1/2} D S0^{-1/2} - 2 eps I) / 2,
  D = (4 S0^{1/2} S1 S0^{1/2} + 4 eps^2 I)^{1/2}.

(Janati et al. 2020, https://arxiv.org/abs/2006.02572; Bunne et al. 2023,
https://arxiv.org/abs/2202.05722.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.interpolants.bridge import Interpolant
from jaxdiff.oracles.mixture import GaussianMixture
from jaxdiff.predictions import Prediction
from jaxdiff.types import Array

_einsum = functools.partial(jnp.einsum, precision="highest")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExactFields:
  """The exact model (v, eta) of an interpolant; a pytree of pairs (i, j).

  Attributes:
    log_weights: f[P], normalized.
    means0: f[P, d].
    covariances0: f[P, d, d].
    means1: f[P, d].
    covariances1: f[P, d, d].
    interpolant: the bridge.
  """

  log_weights: Array
  means0: Array
  covariances0: Array
  means1: Array
  covariances1: Array
  interpolant: Interpolant = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, x: jax.Array, t: jax.Array) -> Prediction:
    """Returns (v, eta) for x [batch, d] and t, scalar or [batch]."""
    return self._fields(x, t)[0]

  def velocity(self, x: jax.Array, t: jax.Array) -> jax.Array:
    """Returns b = v - gamma gamma' s, finite at both ends."""
    (v, _), s = self._fields(x, t)
    t = jnp.asarray(t, x.dtype)
    return v - tree.expand(self.interpolant.gamma_gamma_dot(t), x) * s

  def score(self, x: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the gradient of log rho_t at x, without a division by gamma."""
    return self._fields(x, t)[1]

  def log_prob(self, x: jax.Array, t: jax.Array) -> jax.Array:
    """Returns log rho_t(x), f[batch]."""
    return _per_time(lambda x, t: self._joint(x, t)[0], x, t)

  def sample(
    self, key: jax.Array, t: float, n: int
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns n draws (x_t, x0, x1), f[n, d] each."""
    keys = jax.random.split(key, 4)
    pick = jax.random.categorical(keys[0], self.log_weights, shape=(n,))
    shape = (n, np.shape(self.means0)[1])
    dtype = jnp.result_type(float)

    def draw(key, means, covariances):
      means = jnp.asarray(means, dtype)
      root = jnp.linalg.cholesky(jnp.asarray(covariances, dtype))
      z = tree.normal(key, jax.ShapeDtypeStruct(shape, dtype))
      return means[pick] + _einsum("bde,be->bd", root[pick], z)

    x0 = draw(keys[1], self.means0, self.covariances0)
    x1 = draw(keys[2], self.means1, self.covariances1)
    z = tree.normal(keys[3], x1)
    return self.interpolant.interpolate(jnp.asarray(t), x0, x1, z), x0, x1

  def _joint(self, x, t):
    """Returns log rho, responsibilities f[b, P], d f[b, P, d] at one t."""
    part = lambda leaf: jnp.asarray(leaf, x.dtype)
    alpha, beta = self.interpolant.alpha(t), self.interpolant.beta(t)
    gamma = self.interpolant.gamma(t)
    mean = alpha * part(self.means0) + beta * part(self.means1)
    size = x.shape[1]
    covariance = (
      alpha**2 * part(self.covariances0)
      + beta**2 * part(self.covariances1)
      + gamma**2 * jnp.eye(size, dtype=x.dtype)
    )
    offset = x[:, None] - mean
    d = _einsum("kde,bke->bkd", jnp.linalg.inv(covariance), offset)
    log_det = jnp.linalg.slogdet(covariance)[1] + size * jnp.log(2.0 * jnp.pi)
    log = part(self.log_weights) - 0.5 * (jnp.sum(offset * d, -1) + log_det)
    return jax.nn.logsumexp(log, axis=1), jax.nn.softmax(log, axis=1), d

  def _fields(self, x, t):
    def at(x, t):
      part = lambda leaf: jnp.asarray(leaf, x.dtype)
      bridge = self.interpolant
      _, p, d = self._joint(x, t)
      toward = lambda cov: _einsum("kde,bke->bkd", part(cov), d)
      x0 = part(self.means0) + bridge.alpha(t) * toward(self.covariances0)
      x1 = part(self.means1) + bridge.beta(t) * toward(self.covariances1)
      alpha_dot, beta_dot = bridge.path_rates(t)
      mean = lambda values: _einsum("bk,bkd->bd", p, values)
      toward_z = mean(d)
      v = mean(alpha_dot * x0 + beta_dot * x1)
      return Prediction(v, bridge.gamma(t) * toward_z), -toward_z

    return _per_time(at, x, t)


@checks.door
def exact_fields(
  interpolant: Interpolant, first: GaussianMixture | None, last: GaussianMixture
) -> ExactFields:
  """Returns the exact model between two mixtures with independent ends.

  Args:
    interpolant: the bridge.
    first: law of x0; None for a one-sided interpolant or a mirror.
    last: law of x1.

  Raises:
    ValueError: if `first` is missing, not needed, or of another dimension.
  """
  if interpolant.needs_x0 != (first is not None):
    raise ValueError(
      "this interpolant goes from x0 to x1: give the mixtures of both"
      if first is None
      else "this interpolant has no x0 of its own: give first=None"
    )
  weights1, means1, covariances1 = _parts(last)
  if first is None:  # its weight is 0 at all times
    weights0, means0 = np.ones(1), np.zeros((1, means1.shape[1]))
    covariances0 = np.eye(means1.shape[1])[None]
  else:
    weights0, means0, covariances0 = _parts(first)
  if means0.shape[1] != means1.shape[1]:
    raise ValueError(
      f"the mixtures have {means0.shape[1]} and {means1.shape[1]} dimensions"
    )
  i, j = (
    k.ravel() for k in np.indices((len(weights0), len(weights1)), np.int64)
  )
  return ExactFields(
    np.log(weights0[i] * weights1[j]),
    means0[i],
    covariances0[i],
    means1[j],
    covariances1[j],
    interpolant=interpolant,
  )


@dataclasses.dataclass(frozen=True)
class SchroedingerGaussian:
  """The Schroedinger bridge between two Gaussians, on the host in float64.

  Attributes:
    mean0: f64[d].
    mean1: f64[d].
    covariance0: f64[d, d].
    covariance1: f64[d, d].
    coupling: f64[d, d], covariance of x0 with x1 under the bridge.
    diffusion: eps of the reference process sqrt(2 eps) W.
  """

  mean0: np.ndarray
  mean1: np.ndarray
  covariance0: np.ndarray
  covariance1: np.ndarray
  coupling: np.ndarray
  diffusion: float

  def moments(self, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean f64[d] and covariance f64[d, d] of x_t."""
    r, c = 1.0 - t, self.coupling
    covariance = (
      r**2 * self.covariance0
      + t**2 * self.covariance1
      + r * t * (c + c.T + 2.0 * self.diffusion * np.eye(len(self.mean0)))
    )
    return r * self.mean0 + t * self.mean1, covariance

  def drift(self, x: np.ndarray, t: float) -> np.ndarray:
    """Returns u = E[x1 - x | x_t = x] / (1 - t), f64[batch, d], for t < 1."""
    mean, covariance = self.moments(t)
    cross = (1.0 - t) * self.coupling.T + t * self.covariance1
    gain = np.linalg.solve(covariance, cross.T).T
    toward = self.mean1 + (x - mean) @ gain.T
    return (toward - x) / (1.0 - t)


@checks.door
def schroedinger_gaussian(
  first: GaussianMixture, last: GaussianMixture, diffusion: float
) -> SchroedingerGaussian:
  """Returns the bridge between two single Gaussians.

  Raises:
    ValueError: for more than one component, or eps that is not positive.
  """
  if len(first.means) != 1 or len(last.means) != 1:
    raise ValueError("the bridge has a closed form between single Gaussians")
  if not diffusion > 0:
    raise ValueError(f"diffusion is eps > 0, got {diffusion}")
  (mean0, s0), (mean1, s1) = first.moments(), last.moments()
  root, inverse = _power(s0, 0.5), _power(s0, -0.5)
  eye = np.eye(len(mean0))
  d = _power(4.0 * root @ s1 @ root + 4.0 * diffusion**2 * eye, 0.5)
  coupling = 0.5 * (root @ d @ inverse - 2.0 * diffusion * eye)
  return SchroedingerGaussian(mean0, mean1, s0, s1, coupling, diffusion)


def _parts(mixture):
  means = np.asarray(mixture.means, np.float64)
  variances = np.asarray(mixture.variances, np.float64)
  if mixture.axes is None:
    covariances = variances[:, None] * np.eye(means.shape[1])
  else:
    axes = np.asarray(mixture.axes, np.float64)
    covariances = np.einsum("kde,ke,kfe->kdf", axes, variances, axes)
  return np.exp(np.asarray(mixture.log_weights)), means, covariances


def _power(matrix, exponent):
  values, axes = np.linalg.eigh(matrix)
  return (axes * values**exponent) @ axes.T


def _per_time(f, x, t):
  """Returns f(x, t) for t a scalar, or one time for each sample."""
  t = jnp.asarray(t, x.dtype)
  if t.ndim == 0:
    return f(x, t)
  one = jax.vmap(lambda x, t: f(x[None], t))(x, t)
  return jax.tree.map(lambda leaf: leaf[:, 0], one)

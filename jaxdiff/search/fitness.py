r"""Fitness of candidates: samples f[batch, ...] -> scalar, in JAX.

Fitnesses are pytrees, so their targets travel into the compiled search as
arguments. `Rmse` compares sample by sample with what a teacher made of the same
noises; `Frechet` compares laws, and knows nothing of the noises.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rmse:
  """Root mean square over samples and coordinates of x - target, f[b, ...]."""

  target: Array

  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x - jnp.asarray(self.target, x.dtype))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Median:
  """Median over samples of the root mean square over coordinates.

  A few samples near a ridge of the density switch modes and rule the rmse.
  """

  target: Array

  def __call__(self, x: jax.Array) -> jax.Array:
    square = jnp.square(x - jnp.asarray(self.target, x.dtype))
    return jnp.sqrt(jnp.median(jnp.mean(square.reshape(len(x), -1), axis=1)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frechet:
  """Frechet distance to a reference in random tanh features.

  The formula of `metrics.random_feature_frechet`, in JAX, with the statistics
  of the reference taken once; make one with `frechet_to`.

  Attributes:
    center: f[d], mean of the reference.
    unit: its one standard deviation.
    weights: f[d, features].
    bias: f[features].
    mean: f[features], of the reference's features.
    root: f[features, features], root of their covariance.
  """

  center: Array
  unit: Array
  weights: Array
  bias: Array
  mean: Array
  root: Array

  def __call__(self, x: jax.Array) -> jax.Array:
    cast = lambda v: jnp.asarray(v, x.dtype)
    z = (x.reshape(len(x), -1) - cast(self.center)) / cast(self.unit)
    phi = jnp.tanh(z @ cast(self.weights) + cast(self.bias))
    mean = phi.mean(0)
    # C = R^T R by QR: roots of eigenvalues of a rounded product would leave
    # 1e-3 of error in float32, the singular values here 1e-7
    factor = jnp.linalg.qr((phi - mean) / jnp.sqrt(len(x) - 1.0), mode="r")
    root = cast(self.root)
    common = jnp.sum(jnp.linalg.svd(root @ factor.T, compute_uv=False))
    offset = mean - cast(self.mean)
    traces = jnp.sum(jnp.square(factor)) + jnp.sum(jnp.square(root))
    return offset @ offset + traces - 2.0 * common


@checks.door
def frechet_to(
  reference: ArrayLike, *, features: int = 32, seed: int = 0
) -> Frechet:
  """Returns the Frechet fitness to samples of the true distribution.

  Args:
    reference: f[n, ...], at least two samples for each feature.
    features: number of random features.
    seed: seed of the features. Report in those of another seed.

  Raises:
    ValueError: if the reference has too few samples for a covariance.
  """
  y = np.asarray(reference, np.float64).reshape(len(reference), -1)
  if len(y) < 2 * features:
    raise ValueError(
      f"the covariance of {features} features is singular, or nearly so, with"
      f" {len(y)} reference samples; give at least {2 * features} of them, or"
      " take fewer features"
    )
  center, d = y.mean(0), y.shape[1]
  unit = np.sqrt(np.mean((y - center) ** 2))
  rng = np.random.default_rng(seed)
  weights = rng.standard_normal((d, features)) / np.sqrt(d)
  bias = rng.standard_normal(features)
  phi = np.tanh((y - center) / unit @ weights + bias)
  values, axes = np.linalg.eigh(np.cov(phi, rowvar=False))
  root = (axes * np.sqrt(np.maximum(values, 0.0))) @ axes.T
  return Frechet(center, unit, weights, bias, phi.mean(0), root)

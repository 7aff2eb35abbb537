r"""RealNVP: a density by affine couplings, exactly sampled and evaluated.

A coupling leaves half of the coordinates as they are and moves the others by
y_b = x_b exp(s(x_a)) + m(x_a), with log-determinant sum s; the halves change
from layer to layer. Data are first whitened by their mean and covariance, so
that zero couplings (how training begins) are the fitted Gaussian. Reference:
Dinh et al. (2017), https://arxiv.org/abs/1605.08803.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import densities
from jaxdiff import tree
from jaxdiff.networks import invertible
from jaxdiff.types import Array
from jaxdiff.types import PyTree


class Couplings(nn.Module):
  """Affine couplings from data to noise, or back.

  Attributes:
    layers: number of couplings.
    width: width of the networks in them.
  """

  layers: int = 6
  width: int = 64

  @nn.compact
  def __call__(
    self, x: jax.Array, inverse: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Returns (y f[n, d], log |det dy/dx| f[n]) for x f[n, d]."""
    d = x.shape[1]
    total = jnp.zeros(len(x), x.dtype)
    order = range(self.layers)
    for i in reversed(order) if inverse else order:
      kept = (np.arange(d) % 2 == i % 2).astype(np.float32)
      h = x * kept
      for j in range(2):
        h = nn.silu(nn.Dense(self.width, name=f"layer{i}_{j}")(h))
      out = nn.Dense(
        2 * d, kernel_init=nn.initializers.zeros, name=f"layer{i}_out"
      )(h)
      s, m = jnp.split(out, 2, axis=1)
      moved = 1 - kept
      x, log_det = invertible.affine(x, s * moved, m * moved, inverse)
      total = total + log_det
    return x, total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RealNVP:
  """A fitted density of f[n, d]; a pytree.

  Attributes:
    params: parameters of the couplings.
    mean: f[d] of the data.
    root: f[d, d], lower triangular, root root^T is the data's covariance.
    network: the couplings.
  """

  params: PyTree
  mean: Array
  root: Any
  network: Couplings = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def log_prob(self, x: jax.Array) -> jax.Array:
    """Returns log p(x), f[n]."""
    white = jax.scipy.linalg.solve_triangular(
      self.root, (x - self.mean).T, lower=True
    ).T
    z, log_det = self.network.apply({"params": self.params}, white)
    log_root = jnp.sum(jnp.log(jnp.diagonal(self.root)))
    base = -0.5 * jnp.sum(z**2, axis=1) - 0.5 * x.shape[1] * math.log(
      2 * math.pi
    )
    return base + log_det - log_root

  def sample(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Returns (x f[n, d], the noise that it was made of)."""
    z = tree.normal(key, jax.ShapeDtypeStruct((n, len(self.mean)), jnp.float32))
    white, _ = self.network.apply({"params": self.params}, z, inverse=True)
    return self.mean + white @ self.root.T, z


def fit_realnvp(
  key: jax.Array,
  x: jax.Array,
  *,
  layers: int = 6,
  width: int = 64,
  steps: int = 2000,
  batch_size: int = 256,
  learning_rate: float = 1e-3,
  regularization: float = 1e-4,
) -> RealNVP:
  """Returns a RealNVP fitted to x, f[n, d], by maximum likelihood.

  Args:
    key: PRNG key.
    x: the points, of at least two dimensions.
    layers: number of couplings.
    width: width of the networks in them.
    steps: steps of Adam with a cosine schedule.
    batch_size: points a step.
    learning_rate: its peak.
    regularization: added to the covariance that whitens, in units of x squared.

  Raises:
    ValueError: for points of one dimension, of which no half can be kept.
  """
  n, d = x.shape
  if d < 2:
    raise ValueError(
      "couplings move one half of the coordinates by the other and need two"
      f" dimensions, got d = {d}; fit a mixture, family='gmm'"
    )
  wide = np.asarray(x, np.float64)
  centred = wide - wide.mean(axis=0)
  covariance = centred.T @ centred / n + regularization * np.eye(d)
  network = Couplings(layers, width)
  params = jax.jit(network.init)(jax.random.fold_in(key, steps), x[:1])
  start = RealNVP(
    params["params"],
    jnp.mean(x, axis=0),
    jnp.asarray(np.linalg.cholesky(covariance), x.dtype),
    network=network,
  )
  log_prob = lambda p, x: dataclasses.replace(start, params=p).log_prob(x)
  params = densities.maximum_likelihood(
    key,
    log_prob,
    start.params,
    x,
    steps=steps,
    batch_size=batch_size,
    learning_rate=learning_rate,
  )
  return dataclasses.replace(start, params=params)

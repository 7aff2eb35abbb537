r"""Learned loss weighting by the uncertainty of each noise level.

With a learned u(c) of the noise level, c = log(sigma / alpha) / 4,

  loss = E e^{-u} l(c) + u,

whose minimum over u is u(c) = log E[l | c]: every noise level then has the
gradient of log E[l], whatever its size. u is linear in Fourier features of c
and starts at 0, where the loss is l + 0. It is thrown away after training.

Reference: Karras et al. (2024), https://arxiv.org/abs/2312.02696, section 2.4
(eq. 14); Kendall, Gal and Cipolla (2018).
"""

import jax
import jax.numpy as jnp

from jaxdiff.networks import embeddings


def init(features: int = 128) -> dict[str, jax.Array]:
  """Returns u = 0: the initial `loss_params` of a state.

  Args:
    features: number of Fourier features, even.
  """
  return dict(kernel=jnp.zeros(features), bias=jnp.zeros(()))


def log_loss(params: dict[str, jax.Array], c: jax.Array) -> jax.Array:
  """Returns u(c), f32[n], the learned logarithm of the loss at c f32[n]."""
  features = embeddings.fourier(c, params["kernel"].shape[0])
  return features @ params["kernel"] + params["bias"]

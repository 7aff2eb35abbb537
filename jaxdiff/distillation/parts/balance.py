r"""Adaptive loss weights: every term has the gradient norm of the first.

With g the gradients in the weights of a network's last layer alone,

  a_k = |g_first| / |g_k|,   clipped to the term's bounds, without gradients.

Reference: Esser et al. (2021), https://arxiv.org/abs/2012.09841, eq. 7, there
with 1e-6 added below; a term without a gradient gets its upper bound here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def balance(
  terms: Callable[[Any], Mapping[str, jax.Array]],
  params: Mapping[str, Any],
  last: str,
  first: str,
  bounds: Mapping[str, tuple[float, float]],
) -> dict[str, jax.Array]:
  """Returns the weights of the terms that have bounds, f[] each.

  One pass forward, and one short pass back for each term.

  Args:
    terms: terms(params) -> {name: f[]}.
    params: parameters of the network, by layer.
    last: name of the layer whose gradients are compared.
    first: name of the term that the others are measured by.
    bounds: (low, high) of each of the others.
  """
  fixed = jax.lax.stop_gradient(params)

  def stacked(layer):
    values = terms({**fixed, last: layer})
    return jnp.stack([values[k] for k in (first, *bounds)])

  slopes = jax.tree.leaves(jax.jacrev(stacked)(fixed[last]))
  square = sum(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in slopes)
  norm = jnp.sqrt(square)
  own = jnp.maximum(norm[1:], jnp.finfo(norm.dtype).tiny)
  weights = norm[0] / own
  return {
    k: jnp.clip(a, *bounds[k]) for k, a in zip(bounds, weights, strict=True)
  }

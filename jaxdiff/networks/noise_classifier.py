"""Noise classifier: a perceptron that predicts the noise level."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class NoiseClassifier(nn.Module):
  """Logits over noise levels, from x scaled to unit size and its logarithm.

  The scale of x spans the whole range of the noise; divided out, the rest of
  the network sees numbers of order one at every level.

  Attributes:
    classes: number of levels.
    features: widths of the hidden layers.
  """

  classes: int
  features: tuple[int, ...] = (256, 256)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits f[batch, classes] for x f[batch, ...]."""
    h = x.reshape(x.shape[0], -1)
    size = jnp.sqrt(jnp.mean(h**2, axis=1, keepdims=True) + 1e-12)
    h = jnp.concatenate([h / size, jnp.log(size)], axis=1)
    for width in self.features:
      h = nn.silu(nn.Dense(width)(h))
    return nn.Dense(self.classes)(h)

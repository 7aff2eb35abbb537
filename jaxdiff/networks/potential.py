"""A scalar network: the potential whose gradient is a conservative field."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import embeddings


class Potential(nn.Module):
  """A perceptron with one output a sample, smooth in x and in the time.

  Softplus of sharpness `beta`, log(1 + e^{beta h}) / beta, has the second
  derivatives that a Fokker-Planck residual needs; relu is its limit of large
  beta and has none. `denoisers.from_potential` makes a model of it.

  Attributes:
    features: widths of the hidden layers.
    beta: sharpness of the softplus.
    embedding: width of the embedding of the time; 0 gives the network the time
      condition as it is, beside x.
  """

  features: tuple[int, ...] = (80, 80, 80)
  beta: float = 10.0
  embedding: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
    """Returns f[batch] for x [batch, ...] and the time condition c f[batch]."""
    flat = x.reshape(x.shape[0], -1)
    told = (
      embeddings.Condition(self.embedding, name="condition")(c)
      if self.embedding
      else c[:, None]
    )
    h = jnp.concatenate([flat, told.astype(flat.dtype)], axis=-1)
    for width in self.features:
      h = nn.softplus(self.beta * nn.Dense(width)(h)) / self.beta
    return nn.Dense(1, name="out")(h)[:, 0]

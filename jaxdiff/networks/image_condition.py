"""Networks conditioned on a second image, for restoration and inpainting."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.types import ArrayLike


class Beside(nn.Module):
  """Any network of images, with the image that is its label beside its input.

  Both are its channels; of its answer those are kept that x has. In a config it
  is "beside" with the options {"network": {"name": "unet", ...}, "label_dim":
  3}.

  Attributes:
    network: the network, without classes of its own.
    label_dim: channels of the label.
  """

  network: nn.Module
  label_dim: int = 1

  @nn.compact
  def __call__(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns an array like x for c f[batch]; label None is an image of zeros.

    Args:
      x: [batch, height, width, channels].
      c: f[batch], the time condition.
      label: f[batch, height, width, label_dim].

    Raises:
      ValueError: for a label of another shape.
    """
    shape = (*x.shape[:-1], self.label_dim)
    label = jnp.zeros(shape, x.dtype) if label is None else jnp.asarray(label)
    if label.shape != shape:
      raise ValueError(
        f"the image beside an input of shape {x.shape} must be f{list(shape)},"
        f" got shape {label.shape}; bring a small image to the size of the"
        " large one first (data.upsample), and set label_dim to its channels"
      )
    both = jnp.concatenate([x, label.astype(x.dtype)], axis=-1)
    return self.network(both, c)[..., : x.shape[-1]]

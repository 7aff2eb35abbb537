"""Images as smaller images of patches, and back; no parameters."""

import jax


def split(x: jax.Array, side: int) -> jax.Array:
  """Returns the patches of x as channels.

  Args:
    x: [batch, height, width, channels], sides multiples of `side`.
    side: side of a patch, in pixels.

  Returns:
    [batch, height / side, width / side, side * side * channels]; the channels
    of a patch run over its rows, then its columns, then the channels of x.
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h // side, side, w // side, side, c)
  return x.swapaxes(2, 3).reshape(b, h // side, w // side, side * side * c)


def join(x: jax.Array, side: int) -> jax.Array:
  """Returns the image whose patches are the channels of x; undoes `split`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, side, side, c // side**2).swapaxes(2, 3)
  return x.reshape(b, h * side, w * side, c // side**2)

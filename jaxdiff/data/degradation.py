"""Degradations for image restoration: blur, downsampling and noise.

Pure functions of images f[batch, height, width, channels], jittable.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import tree


@checks.door
def blur(x: jax.Array, std: float) -> jax.Array:
  """Returns x under a Gaussian blur; borders are mirrored.

  Args:
    x: f[batch, height, width, channels].
    std: standard deviation of the kernel in pixels, which reaches three of it;
      0 is no blur.

  Raises:
    ValueError: for a negative std, or a kernel that reaches beyond the image.
  """
  if std < 0:
    raise ValueError(f"std of a blur is at least 0, got {std}")
  if std == 0:
    return x
  reach = math.ceil(3 * std)
  if reach >= min(x.shape[1:3]):
    raise ValueError(
      f"a blur of std {std} reaches {reach} pixels, more than images of"
      f" {x.shape[1]}x{x.shape[2]} have to mirror; lower std"
    )
  taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std) ** 2)
  taps = (taps / taps.sum()).tolist()
  for axis in (1, 2):
    widths = [(0, 0)] * 4
    widths[axis] = (reach, reach)
    padded, n = jnp.pad(x, widths, mode="reflect"), x.shape[axis]
    x = sum(
      w * jax.lax.slice_in_dim(padded, k, k + n, 1, axis)
      for k, w in enumerate(taps)
    )
  return x


@checks.door(least=dict(factor=1))
def downsample(x: jax.Array, factor: int) -> jax.Array:
  """Returns the means of factor x factor pixels.

  Raises:
    ValueError: if a side is no multiple of the factor.
  """
  n, height, width, channels = x.shape
  if factor < 1 or height % factor or width % factor:
    raise ValueError(
      f"images of {height}x{width} cannot be made {factor} times smaller by"
      " means of pixels; the factor must divide both sides: crop them first"
    )
  shape = (n, height // factor, factor, width // factor, factor, channels)
  return jnp.mean(x.reshape(shape), axis=(2, 4))


@checks.door
def upsample(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Returns x enlarged to `size` (height, width) by bicubic interpolation.

  Raises:
    ValueError: unless both sides grow by one whole factor.
  """
  small = x.shape[1:3]
  if size[0] % small[0] or size[0] * small[1] != size[1] * small[0]:
    raise ValueError(
      f"images of {small[0]}x{small[1]} become ones of {size[0]}x{size[1]} by"
      " no whole factor; crop one of them first"
    )
  return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "cubic")


@checks.door
def degrade(
  key: jax.Array,
  x: jax.Array,
  *,
  factor: int = 1,
  blur_std: float = 0.0,
  noise: float = 0.0,
  index: jax.Array | None = None,
) -> jax.Array:
  """Returns blurred, smaller and noisy images, in this order.

  Args:
    key: PRNG key of the noise.
    x: f[batch, height, width, channels].
    factor: how many times smaller.
    blur_std: standard deviation of the blur, in pixels of x.
    noise: standard deviation, in units of x.
    index: i32[batch], the samples' numbers, which name their noise.
  """
  small = downsample(blur(x, blur_std), factor)
  return small + noise * tree.normal(key, small, index)

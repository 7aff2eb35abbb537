r"""Half and twice the resolution of images, through a short filter.

With the filter f of even length L, sum f = 1, and zeros outside the image, the
two are transposes of each other up to a factor (four, in two dimensions):

  halve:   y[i] = sum_k f[k] x[2 i - p + k],        p = L / 2 - 1
  double:  y[2 i - p + k] += 2 f[k] x[i]

for rows, then for columns. (1, 1) is the mean of 2x2 pixels and their
repetition; (1, 3, 3, 1) is the smoother one of Zhang (2019),
https://arxiv.org/abs/1904.11486, that StyleGAN2 and NCSN++ use. Both are
written as sums of shifted images, which fuse with what stands around them;
depthwise convolutions of such small filters do not.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def halve(x: jax.Array, taps: Sequence[float] = (1, 1)) -> jax.Array:
  """Returns [batch, height / 2, width / 2, channels] of x.

  Args:
    x: [batch, height, width, channels], height and width even.
    taps: taps of the filter, up to a factor.

  Raises:
    ValueError: if a side is odd, or the filter's length.
  """
  f = _weights(taps)
  if x.shape[1] % 2 or x.shape[2] % 2:
    raise ValueError(
      f"images of {x.shape[1]}x{x.shape[2]} pixels cannot be halved; use sides"
      " that are multiples of 2^(levels - 1), or fewer levels"
    )
  for axis in (1, 2):
    pad = len(f) // 2 - 1
    padded, n = _pad(x, pad, axis), x.shape[axis]
    x = sum(
      w * jax.lax.slice_in_dim(padded, k, k + n - 1, 2, axis)
      for k, w in enumerate(f)
    )
  return x


def double(x: jax.Array, taps: Sequence[float] = (1, 1)) -> jax.Array:
  """Returns [batch, 2 height, 2 width, channels] of x; see `halve`."""
  f = _weights(taps)
  pad = len(f) // 2 - 1
  for axis in (1, 2):
    n, room = x.shape[axis], len(f) // 2
    padded = _pad(x, room, axis)
    phases = []
    for r in (0, 1):  # of the output's pixel 2 j + r
      parts = []
      for k in range((r + pad) % 2, len(f), 2):
        first = room + (r + pad - k) // 2
        part = jax.lax.slice_in_dim(padded, first, first + n, 1, axis)
        parts.append(2 * f[k] * part)
      phases.append(sum(parts))
    shape = (*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    x = jnp.stack(phases, axis + 1).reshape(shape)
  return x


def blur(x: jax.Array, taps: Sequence[float], pad: int) -> jax.Array:
  """Returns the filtered image: x padded by `pad`, less the filter's length."""
  f = _weights(taps)
  for axis in (1, 2):
    padded = _pad(x, pad, axis)
    n = padded.shape[axis] - len(f) + 1
    x = sum(
      w * jax.lax.slice_in_dim(padded, k, k + n, 1, axis)
      for k, w in enumerate(f)
    )
  return x


def _weights(taps: Sequence[float]) -> list[float]:
  """Returns the taps with sum 1, as numbers that keep the dtype of arrays."""
  f = np.asarray(taps, np.float64)
  if f.ndim != 1 or not len(f) or len(f) % 2 or f.sum() == 0:
    raise ValueError(
      "a resampling filter is an even number of taps whose sum is not 0, like"
      f" (1, 1) or (1, 3, 3, 1); got {taps}"
    )
  return (f / f.sum()).tolist()


def _pad(x: jax.Array, size: int, axis: int) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = (size, size)
  return jnp.pad(x, widths)

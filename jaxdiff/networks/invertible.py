r"""Invertible network of images: Haar wavelets with learned couplings.

Every level splits an image by the orthonormal Haar transform into its low band
and three bands of details, at half the resolution,

  a = (p + q + r + s) / 2,   (p + q - r - s) / 2,  (p - q + r - s) / 2,
                             (p - q - r + s) / 2    of pixels [p q; r s],

mixes their channels `couplings` times by an invertible matrix W and an affine
coupling, in which half of the channels move the others,

  h <- W h,   h_b <- h_b exp(s(h_a)) + m(h_a),

and hands the low band on to the next level. Nothing is lost, and log |det| is
the sum of height x width x log |det W| and of all s. W begins as the identity
and s, m as zero: an untrained network is the wavelet transform. Trained by
maximum likelihood under a standard normal law, its details are whitened by what
surrounds them.

The parts are those of RealNVP (Dinh et al. 2017) and Glow (Kingma and Dhariwal
2018, https://arxiv.org/abs/1807.03039).
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

_LIMIT = 2.0  # of |s|: no single coupling stretches by more than e^2


class Bands(NamedTuple):
  """An image, in other coordinates.

  Attributes:
    low: f[batch, height / 2^L, width / 2^L, channels].
    details: one f[batch, height / 2^l, width / 2^l, 3 channels] for each level
      l = 1..L, the finest first.
  """

  low: jax.Array
  details: tuple[jax.Array, ...]


def affine(
  x: jax.Array, s: jax.Array, m: jax.Array, inverse: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Returns (x exp(s) + m, log |det| f[batch]), or the inverse of that map.

  s is bounded first, smoothly, to [-2, 2].
  """
  s = _LIMIT * jnp.tanh(s / _LIMIT)
  total = jnp.sum(s.reshape(len(s), -1), axis=1)
  if inverse:
    return (x - m) * jnp.exp(-s), -total
  return x * jnp.exp(s) + m, total


def haar(x: jax.Array) -> jax.Array:
  """Returns f[batch, height / 2, width / 2, 4 channels] of an image.

  The low band, then the details across rows, across columns and diagonal, each
  with the channels of x; the map is orthogonal.

  Raises:
    ValueError: if a side is odd.
  """
  if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
    raise ValueError(
      "the Haar transform takes images [batch, height, width, channels] with"
      f" even sides, got shape {x.shape}; crop or pad them, by 2^levels for"
      " several levels"
    )
  p, q = x[:, ::2, ::2], x[:, ::2, 1::2]
  r, s = x[:, 1::2, ::2], x[:, 1::2, 1::2]
  bands = (p + q + r + s, p + q - r - s, p - q + r - s, p - q - r + s)
  return 0.5 * jnp.concatenate(bands, axis=-1)


def unhaar(bands: jax.Array) -> jax.Array:
  """Returns the image of `haar`'s bands, [batch, 2 height, 2 width, c / 4]."""
  a, b, c, d = jnp.split(0.5 * bands, 4, axis=-1)
  top = jnp.stack([a + b + c + d, a + b - c - d], axis=3)
  bottom = jnp.stack([a - b + c - d, a - b - c + d], axis=3)
  n, height, width, _, channels = top.shape
  both = jnp.stack([top, bottom], axis=2)  # [n, h, 2, w, 2, c]
  return both.reshape(n, 2 * height, 2 * width, channels)


class Invertible(nn.Module):
  """The network of the module docstring.

  Attributes:
    levels: how often the resolution is halved.
    couplings: couplings of every level.
    width: width of the hidden layer in each of them.
  """

  levels: int = 2
  couplings: int = 4
  width: int = 32

  @nn.compact
  def __call__(
    self, x: jax.Array | Bands, inverse: bool = False
  ) -> tuple[Bands | jax.Array, jax.Array]:
    """Returns (bands, log |det d bands / d x| f[batch]) of images.

    With `inverse` it returns (images, log |det d x / d bands|) of bands.

    Args:
      x: f[batch, height, width, channels], or their bands.
      inverse: whether to go back.

    Raises:
      ValueError: if the sides are no multiples of 2^levels.
    """
    return self._backward(x) if inverse else self._forward(x)

  def _forward(self, x):
    factor = 2**self.levels
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
      raise ValueError(
        f"an invertible network of {self.levels} levels takes images [batch,"
        f" height, width, channels] whose sides are multiples of {factor}, got"
        f" shape {x.shape}; crop or pad them, or take fewer levels"
      )
    total, details = jnp.zeros(len(x), x.dtype), []
    for level in range(self.levels):
      h = haar(x)
      for i in range(self.couplings):
        h, log_det = self._step(h, level, i, inverse=False)
        total = total + log_det
      x, rest = jnp.split(h, [x.shape[-1]], axis=-1)
      details.append(rest)
    return Bands(x, tuple(details)), total

  def _backward(self, bands):
    x = bands.low
    total = jnp.zeros(len(x), x.dtype)
    for level in reversed(range(self.levels)):
      h = jnp.concatenate([x, bands.details[level]], axis=-1)
      for i in reversed(range(self.couplings)):
        h, log_det = self._step(h, level, i, inverse=True)
        total = total + log_det
      x = unhaar(h)
    return x, total

  def _step(self, h, level, i, inverse):
    """Returns (h, log |det|) of one mixing and one coupling, or back."""
    channels, name = h.shape[-1], f"level{level}_{i}"
    mix = self.param(
      f"{name}_mix", lambda _: jnp.eye(channels, dtype=jnp.float32)
    ).astype(h.dtype)
    sites = h.shape[1] * h.shape[2]
    log_mix = sites * jnp.linalg.slogdet(mix)[1]
    if inverse:
      h, log_det = self._couple(h, i, name, inverse)
      return h @ jnp.linalg.inv(mix).T, log_det - log_mix
    h, log_det = self._couple(h @ mix.T, i, name, inverse)
    return h, log_det + log_mix

  def _couple(self, h, i, name, inverse):
    """Moves every second channel by the others; they change places with i."""
    kept, moved = h[..., i % 2 :: 2], h[..., 1 - i % 2 :: 2]
    hidden = nn.silu(nn.Conv(self.width, (3, 3), name=f"{name}_in")(kept))
    out = nn.Conv(
      2 * moved.shape[-1],
      (3, 3),
      kernel_init=nn.initializers.zeros,
      name=f"{name}_out",
    )(hidden)
    moved, log_det = affine(moved, *jnp.split(out, 2, axis=-1), inverse)
    pair = (kept, moved) if i % 2 == 0 else (moved, kept)
    return jnp.stack(pair, axis=-1).reshape(h.shape), log_det


def normal_log_prob(bands: Bands, log_det: jax.Array) -> jax.Array:
  """Returns log p of images whose bands are standard normal, f[batch]."""
  square = sum(
    jnp.sum(jnp.square(b).reshape(len(b), -1), axis=1)
    for b in (bands.low, *bands.details)
  )
  size = sum(math.prod(b.shape[1:]) for b in (bands.low, *bands.details))
  return log_det - 0.5 * (square + size * math.log(2.0 * math.pi))

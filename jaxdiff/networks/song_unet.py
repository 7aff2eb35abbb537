r"""DDPM++, NCSN++ and DDPM: the U-Nets of Song et al. 2021 and Ho et al. 2020.

Blocks (`residual.Residual`) go down through the levels and up again; every
block on the way up also takes the output of its mirror image on the way down,
one more per level than there are blocks. The three differ in

| network | time       | levels are joined by       | beside the blocks       |
|---------|------------|----------------------------|-------------------------|
| DDPM    | positional | convolutions, stride 2     | sums are not rescaled   |
| DDPM++  | positional | blocks of their own        |                         |
| NCSN++  | Fourier    | blocks, filter (1, 3, 3, 1)| an image pyramid enters |

A pyramid is the input itself, halved level by level: with encoder "skip" it
enters through a 1x1 convolution; with "residual" every level blurs and halves
the sum of the level above by a 3x3 convolution, and is averaged with the
block's output. Decoder "skip" adds up images of all levels.

References: Song et al. (2021), https://arxiv.org/abs/2011.13456, appendix H;
Ho et al. (2020), https://arxiv.org/abs/2006.11239, appendix B; defaults of
CIFAR-10 as Karras et al. (2022), https://arxiv.org/abs/2206.00364, table 7.
Departure: the pyramid of "residual" is blurred before its convolution, which
then computes every second pixel alone; the two commute.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import conditioning
from jaxdiff.networks import resampling
from jaxdiff.networks import residual
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike

_HALF = math.sqrt(0.5)
_xavier = lambda scale: nn.initializers.variance_scaling(
  scale, "fan_avg", "uniform"
)
_KERNEL, _LAST, _QKV = _xavier(1.0), _xavier(1e-10), _xavier(0.2)
_CHOICES = {
  "embedding": ("positional", "fourier"),
  "encoder": ("standard", "skip", "residual"),
  "decoder": ("standard", "skip"),
  "joint": ("block", "conv"),
}


class SongUNet(nn.Module):
  """A U-Net for images [batch, height, width, channels].

  Attributes:
    channels: width of the first layer.
    multipliers: width of every level as a multiple of `channels`; each level
      beyond the first halves the resolution.
    blocks: residual blocks per level on the way down; one more on the way up.
    attention: heights in pixels at which there is self-attention: after every
      block on the way down, the last one on the way up. The middle has it.
    embedding: embedding of the time, "positional" or "fourier" (random
      frequencies).
    embedding_width: width of the embedding as a multiple of `channels`.
    time_width: width of the features of the time as a multiple of `channels`.
    time_scale: factor on c; 999 for c = t in 0..1 where steps are 0..999.
    encoder: "standard", "skip" or "residual".
    decoder: "standard" or "skip".
    joint: what joins the levels, "block" or "conv".
    taps: taps of the filter that halves and doubles the resolution.
    rescale: sums are multiplied by sqrt(1 / 2).
    dropout: probability that an activation inside a block is dropped.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    label_dim: length of a vector condition, 0 for none.
    augment_dim: length of the augmentation labels, 0 for none.
    remat: computes the blocks' insides again on the way back.
    dtype: dtype of the computation (parameters are float32); None is that of x.
  """

  channels: int = 128
  multipliers: tuple[int, ...] = (2, 2, 2)
  blocks: int = 4
  attention: tuple[int, ...] = (16,)
  embedding: str = "positional"
  embedding_width: int = 4
  time_width: int = 1
  time_scale: float = 1.0
  encoder: str = "standard"
  decoder: str = "standard"
  joint: str = "block"
  taps: tuple[float, ...] = (1, 1)
  rescale: bool = True
  dropout: float = 0.13
  num_classes: int = 0
  label_dim: int = 0
  augment_dim: int = 0
  remat: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    c: jax.Array,
    label: ArrayLike | None = None,
    *,
    augment: ArrayLike | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns an array like x.

    Args:
      x: [batch, height, width, channels].
      c: f[batch], the time condition.
      label: i32[batch], f[batch, d] or None; see `conditioning.label_vector`.
      augment: f[batch, augment_dim], augmentation labels; None are zeros.
      deterministic: no dropout; else rngs={"dropout": key} is needed.

    Raises:
      ValueError: for an unknown choice, or inputs of wrong shapes.
    """
    self._check(x)
    dtype = self.dtype or x.dtype
    emb = self._embedding(c, label, augment, dtype)
    block = functools.partial(self._block, emb, deterministic, dtype)
    conv = lambda width, name, **options: residual.conv(
      width, dtype, _KERNEL, name, **options
    )
    h = conv(self.channels, "enc0_conv")(x.astype(dtype))
    h, skips = self._down(h, x.astype(dtype), block, conv)
    return self._up(h, skips, block, conv, x.shape[-1])

  def _check(self, x):
    for name, known in _CHOICES.items():
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name} = {getattr(self, name)!r} must be one of {', '.join(known)}"
        )
    conditioning.check_images(x, len(self.multipliers))

  def _block(
    self,
    emb,
    deterministic,
    dtype,
    h,
    width,
    name,
    attention=False,
    resample="",
  ):
    """Returns h after a residual block of that name."""
    style = residual.Style(
      modulate=False,
      gain=_HALF if self.rescale else 1.0,
      epsilon=1e-6,
      project=True,
      kernel=_KERNEL,
      last=_LAST,
      qkv=_QKV,
    )
    cls = nn.remat(residual.Residual) if self.remat else residual.Residual
    return cls(
      width,
      style,
      resample,
      tuple(self.taps),
      int(attention),
      self.dropout,
      deterministic,
      dtype,
      name=name,
    )(h, emb)

  def _down(self, h, pyramid, block, conv):
    """Returns (h, skips) at the lowest level; `pyramid` is the image."""
    skips, dtype = [h], pyramid.dtype
    for level, multiplier in enumerate(self.multipliers):
      if level and self.joint == "conv":
        h = conv(
          h.shape[-1],
          f"enc{level}_down",
          strides=2,
          padding=((0, 1), (0, 1)),
        )(h)
      elif level:
        h = block(h, h.shape[-1], f"enc{level}_down", resample="down")
      if level:
        h, pyramid = self._enter(h, pyramid, level, dtype)
        skips.append(h)
      for i in range(self.blocks):
        width = self.channels * multiplier
        attention = h.shape[1] in self.attention
        h = block(h, width, f"enc{level}_block{i}", attention)
        skips.append(h)
    return h, skips

  def _up(self, h, skips, block, conv, channels):
    """Returns the image that the way up ends with."""
    out, lowest = None, len(self.multipliers) - 1
    for level in range(lowest, -1, -1):
      if level == lowest:
        h = block(h, h.shape[-1], f"dec{level}_in0", attention=True)
        h = block(h, h.shape[-1], f"dec{level}_in1")
      elif self.joint == "conv":
        h = conv(h.shape[-1], f"dec{level}_up")(resampling.double(h))
      else:
        h = block(h, h.shape[-1], f"dec{level}_up", resample="up")
      for i in range(self.blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        width = self.channels * self.multipliers[level]
        attention = i == self.blocks and h.shape[1] in self.attention
        h = block(h, width, f"dec{level}_block{i}", attention)
      if self.decoder == "skip" or not level:
        out = self._image(h, out, level, channels)
    return out

  def _image(self, h, below, level, channels):
    """Returns the image of a level, with that of the level below."""
    dtype = h.dtype
    image = nn.silu(residual.norm(h, 1e-6, dtype, f"dec{level}_aux_norm"))
    image = residual.conv(channels, dtype, _LAST, f"dec{level}_aux_conv")(image)
    if below is not None:
      image = image + resampling.double(below, self.taps)
    return image

  def _embedding(self, c, label, augment, dtype):
    """Returns the embedding of all that is no image, [batch, e]."""
    batch, width = c.shape[0], self.channels * self.time_width
    c = self.time_scale * c
    if self.embedding == "positional":
      cos_sin = conditioning.positional(c, width, endpoint=True)
      cos, sin = jnp.split(cos_sin, 2, axis=-1)
    else:
      init = nn.initializers.normal(16.0)
      angle = conditioning.turns(c, self.param("freqs", init, (width // 2,)))
      cos, sin = jnp.cos(angle), jnp.sin(angle)
    emb = jnp.concatenate([sin, cos], axis=-1).astype(dtype)
    dense = lambda width, name, bias=True: nn.Dense(
      width, bias, dtype=dtype, kernel_init=_KERNEL, name=name
    )
    vector = conditioning.label_vector(
      label, batch, self.num_classes, self.label_dim
    )
    if vector is not None:
      vector = vector * math.sqrt(vector.shape[1])
      emb = emb + dense(width, "map_label")(vector)
    vector = conditioning.augment_vector(augment, batch, self.augment_dim)
    if vector is not None:
      emb = emb + dense(width, "map_augment", bias=False)(vector)
    full = self.channels * self.embedding_width
    emb = nn.silu(dense(full, "map_layer0")(emb))
    return nn.silu(dense(full, "map_layer1")(emb))

  def _enter(self, h, pyramid, level, dtype):
    """Returns (h, pyramid) where the pyramid has entered a level."""
    if self.encoder == "skip":
      pyramid = resampling.halve(pyramid, self.taps)
      name = f"enc{level}_aux_skip"
      h = h + residual.dense(h.shape[-1], dtype, _KERNEL, name)(pyramid)
    elif self.encoder == "residual":
      blurred = resampling.blur(pyramid, self.taps, pad=len(self.taps) // 2)
      pyramid = residual.conv(
        h.shape[-1],
        dtype,
        _KERNEL,
        f"enc{level}_aux_residual",
        strides=2,
        padding="VALID",
      )(blurred)
      h = pyramid = (h + pyramid) * (_HALF if self.rescale else 1.0)
    return h, pyramid


def ddpmpp(num_classes: int = 0, **options: Any) -> SongUNet:
  """Returns DDPM++ as EDM trains it on CIFAR-10 (its "vp" architecture)."""
  defaults = dict(augment_dim=9)
  return SongUNet(num_classes=num_classes, **(defaults | options))


def ncsnpp(num_classes: int = 0, **options: Any) -> SongUNet:
  """Returns NCSN++ as EDM trains it on CIFAR-10 (its "ve" architecture)."""
  defaults = dict(
    embedding="fourier",
    time_width=2,
    encoder="residual",
    taps=(1, 3, 3, 1),
    augment_dim=9,
  )
  return SongUNet(num_classes=num_classes, **(defaults | options))


def ddpm(num_classes: int = 0, **options: Any) -> SongUNet:
  """Returns the U-Net of Ho et al. (2020) for CIFAR-10, as Song et al. do it.

  On the way up attention follows the last block of a level alone; the original
  has it after every one.
  """
  defaults = dict(
    multipliers=(1, 2, 2, 2),
    blocks=2,
    joint="conv",
    rescale=False,
    dropout=0.1,
  )
  return SongUNet(num_classes=num_classes, **(defaults | options))

r"""The U-Net of diffusers' UNet2DModel, which is that of DDPM and its kin.

A residual block is, with GroupNorm gn and the embedding e of time and label,

  h = conv(silu(gn(x)));  h = conv(silu(gn(h + W silu(e))))       "shift"
  h = conv(silu(gn(x)));  h = conv(silu(gn(h) (1 + a) + b))       "scale_shift"
  out = x + h                      x through a 1x1 convolution if widths differ

with (a, b) = W silu(e). Every level has `blocks` of them on the way down and
one more on the way up, which also take what the way down left: each of its
blocks, and its change of resolution. That is a convolution of stride 2 and one
after a repetition ("conv"), or a residual block around a mean and a repetition
("resnet").

References: Ho et al. (2020), https://arxiv.org/abs/2006.11239, appendix B;
Dhariwal and Nichol (2021), https://arxiv.org/abs/2105.05233 ("scale_shift",
"resnet").
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import stacking
from jaxdiff.networks import time_and_label
from jaxdiff.networks import transformer
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree

_START = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class _Layers(NamedTuple):
  """What the blocks of a network are made with.

  Attributes:
    norm: makes a group norm.
    residual: makes a `_Block`, rematerialized if asked for.
    attend: makes an `_Attention`, likewise.
    emb: [batch, e], the embedding that every block is told.
    dtype: dtype of the computation.
  """

  norm: Callable[..., nn.Module]
  residual: Callable[..., nn.Module]
  attend: Callable[..., nn.Module]
  emb: jax.Array
  dtype: DTypeLike


class UNet2D(nn.Module):
  """A U-Net for images [batch, height, width, channels].

  Attributes:
    channels: width of every level; each beyond the first halves the image.
    attention: for every level, whether its blocks are followed by attention.
    blocks: residual blocks per level on the way down.
    head: width of an attention head; 0 is one head for all channels.
    groups: groups of the group norms; divides all of `channels`.
    epsilon: epsilon of the group norms.
    modulation: how the embedding enters, "shift" or "scale_shift".
    resample: how the resolution changes, "conv" or "resnet".
    pad_after: whether "conv" pads rows and columns after the image alone (as in
      TensorFlow), not on both sides.
    middle_attention: whether there is attention in the middle.
    middle_norm: whether that attention normalises its input.
    embedding: width of the embedding; 0 is four times the first width.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    frequencies: angular frequencies of the first and the last time feature;
      see `dit.DiT`.
    dropout: rate, before the second convolution of a block.
    remat: whether blocks are computed again for the gradient, to save memory.
    dtype: dtype of the computation (parameters are float32); None is that of x.
  """

  channels: tuple[int, ...] = (128, 256, 256, 256)
  attention: tuple[bool, ...] = (False, True, False, False)
  blocks: int = 2
  head: int = 0
  groups: int = 32
  epsilon: float = 1e-6
  modulation: str = "shift"
  resample: str = "conv"
  pad_after: bool = False
  middle_attention: bool = True
  middle_norm: bool = True
  embedding: int = 0
  num_classes: int = 0
  frequencies: tuple[float, float] = (0.5, 16.0)
  dropout: float = 0.0
  remat: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    c: jax.Array,
    label: ArrayLike | None = None,
    *,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns an array like x.

    Args:
      x: [batch, height, width, channels], sides multiples of 2^(levels - 1).
      c: f[batch], the time condition.
      label: i32[batch]; None is the null label.
      deterministic: whether dropout is off; otherwise a key "dropout" is used.

    Raises:
      ValueError: for x, c, labels or attributes that do not fit.
    """
    self._check(x)
    dtype = self.dtype or x.dtype
    emb = time_and_label.TimeAndLabel(
      self.embedding or 4 * self.channels[0],
      self.num_classes,
      frequencies=self.frequencies,
      features=self.channels[0],
      dtype=dtype,
      name="condition",
    )(c, label)
    emb = nn.silu(emb)
    make = self._layers(emb, deterministic, dtype)
    h, skips = self._down(_conv(self.channels[0], dtype, "in")(x), make)
    h = make.residual(self.channels[-1], name="middle0")(h, emb)
    if self.middle_attention:
      inner = make.norm if self.middle_norm else None
      h = make.attend(norm=inner, name="middle_attention")(h)
    h = make.residual(self.channels[-1], name="middle1")(h, emb)
    h = nn.silu(make.norm(name="out_norm")(self._up(h, skips, make)))
    return _conv(x.shape[-1], dtype, "out", nn.initializers.zeros)(h)

  def _layers(self, emb, deterministic, dtype):
    """Returns what the blocks of all levels are made with."""
    norm = functools.partial(
      nn.GroupNorm, self.groups, epsilon=self.epsilon, dtype=dtype
    )
    plain = functools.partial(
      _Block,
      modulation=self.modulation,
      norm=norm,
      dropout=self.dropout,
      deterministic=deterministic,
      dtype=dtype,
    )
    attend = functools.partial(_Attention, head=self.head, dtype=dtype)
    return _Layers(
      norm,
      stacking.rematerialized(plain, self.remat),
      stacking.rematerialized(attend, self.remat),
      emb,
      dtype,
    )

  def _down(self, h, make):
    """Returns (h, skips) at the lowest level."""
    skips, last = [h], len(self.channels) - 1
    for level in range(len(self.channels)):
      for i in range(self.blocks):
        h = self._at(h, make, level, f"down{level}_{i}")
        skips.append(h)
      if level != last:
        h = self._resized(h, make, level, "down")
        skips.append(h)
    return h, skips

  def _up(self, h, skips, make):
    """Returns h at the highest level; takes what the way down left."""
    for level in reversed(range(len(self.channels))):
      for i in range(self.blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self._at(h, make, level, f"up{level}_{i}")
      if level:
        h = self._resized(h, make, level, "up")
    return h

  def _at(self, h, make, level, name):
    """Returns h after a block of a level, and the attention that follows."""
    h = make.residual(self.channels[level], name=name)(h, make.emb)
    if self.attention[level]:
      h = make.attend(norm=make.norm, name=f"{name}_attention")(h)
    return h

  def _resized(self, h, make, level, kind):
    """Returns h at half ("down") or twice ("up") the resolution."""
    name, width = f"{kind}{level}", self.channels[level]
    if self.resample == "resnet":
      return make.residual(width, resize=kind, name=name)(h, make.emb)
    if kind == "up":
      return _conv(width, make.dtype, name)(_repeat(h))
    pad = ((0, 1), (0, 1)) if self.pad_after else 1
    return nn.Conv(width, (3, 3), 2, pad, dtype=make.dtype, name=name)(h)

  def _check(self, x: jax.Array) -> None:
    levels = len(self.channels)
    transformer.check_images(x, 2 ** (levels - 1), "UNet2D", "channels")
    if len(self.attention) != levels:
      raise ValueError(
        "attention needs one entry for every level, got"
        f" attention={self.attention} for channels={self.channels}"
      )
    wrong = [
      n for n in self.channels if n % self.groups or n % (self.head or 1)
    ]
    if wrong:
      raise ValueError(
        f"every width must be a multiple of groups={self.groups} and of"
        f" head={self.head}, got channels={self.channels}"
      )
    choices = (
      ("modulation", self.modulation, ("shift", "scale_shift")),
      ("resample", self.resample, ("conv", "resnet")),
    )
    for name, value, allowed in choices:
      if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


class _Block(nn.Module):
  """The residual block of the module docstring; emb has passed its silu."""

  width: int
  modulation: str
  norm: Any
  dropout: float
  deterministic: bool
  dtype: DTypeLike
  resize: str = ""

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    h = nn.silu(self.norm(name="norm_in")(x))
    if self.resize:
      resize = _repeat if self.resize == "up" else _mean
      x, h = resize(x), resize(h)
    h = _conv(self.width, self.dtype, "conv_in")(h)
    scaled = self.modulation == "scale_shift"
    affine = nn.Dense(
      (1 + scaled) * self.width, dtype=self.dtype, name="modulate"
    )(emb)[:, None, None]
    norm = self.norm(name="norm_out")
    if scaled:
      scale, shift = jnp.split(affine, 2, axis=-1)
      h = norm(h) * (1.0 + scale) + shift
    else:
      h = norm(h + affine)
    h = nn.silu(h)
    h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
    h = _conv(self.width, self.dtype, "conv_out")(h)
    if x.shape[-1] != self.width:
      x = nn.Dense(self.width, dtype=self.dtype, name="skip")(x)
    return x + h


class _Attention(nn.Module):
  """x + attention over its pixels."""

  head: int
  norm: Any
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    heads = width // (self.head or width)
    h = x if self.norm is None else self.norm(name="norm")(x)
    h = h.reshape(len(x), -1, width)
    h = transformer.Attention(heads, dtype=self.dtype, name="attention")(h)
    return x + h.reshape(x.shape)


def _conv(
  width: int,
  dtype: DTypeLike,
  name: str,
  init: PyTree = _START,
) -> nn.Conv:
  return nn.Conv(width, (3, 3), dtype=dtype, kernel_init=init, name=name)


def _mean(x: jax.Array) -> jax.Array:
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _repeat(x: jax.Array) -> jax.Array:
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)

r"""A U-Net of EDM blocks: Dhariwal and Nichol 2021, Karras et al. 2022.

A residual block is

  h = conv(silu(norm(x)))
  h = conv_0(silu(norm(h) (1 + scale) + shift))   scale, shift of time and label
  out = (x + h) / sqrt(2)                         x through a 1x1 conv if needed

conv_0 starts at zero, so that a fresh network is nearly linear, and 1 / sqrt(2)
keeps the variance of the sum. Blocks at the chosen resolutions are followed by
self-attention, out = (x + attend(norm(x))) / sqrt(2). Every block on the way up
also takes the output of its mirror image on the way down. With `patch` > 1 the
image is first cut into patches, which are the channels of a smaller image: the
cheapest way to afford a larger picture.

Departures, all for speed at small sizes: levels are joined by a 2x2 mean and a
repetition without parameters, not by blocks of their own; as many blocks on the
way up as on the way down, not one more per level; no dropout, for a model is a
deterministic function of (params, x, c).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import embeddings
from jaxdiff.networks import patches
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike

_HALF = math.sqrt(0.5)


class UNet(nn.Module):
  """A U-Net for images [batch, height, width, channels].

  Attributes:
    channels: width at the full resolution.
    multipliers: width of every level as a multiple of `channels`; each level
      beyond the first halves the resolution.
    blocks: residual blocks per level, on the way down and on the way up.
    attention: heights (in pixels, after patching) at which blocks are followed
      by self-attention.
    head: width of an attention head.
    embedding: width of the embedding as a multiple of `channels`.
    patch: side of the patches that become channels; 1 for none.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    dtype: dtype of the computation (parameters are float32); None is that of x.
  """

  channels: int = 64
  multipliers: tuple[int, ...] = (1, 2, 2)
  blocks: int = 2
  attention: tuple[int, ...] = (8,)
  head: int = 64
  embedding: int = 4
  patch: int = 1
  num_classes: int = 0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns an array like x for c f[batch], label i32[batch] or None.

    Raises:
      ValueError: if x is not a batch of images, or its sides cannot be halved
        as often as there are levels.
    """
    self._check(x)
    dtype = self.dtype or x.dtype
    emb = embeddings.Condition(
      self.embedding * self.channels,
      self.num_classes,
      dtype,
      name="condition",
    )(c, label)

    def block(h, level, name):
      width = self.channels * self.multipliers[level]
      h = _Block(width, dtype, name=name)(h, emb)
      if h.shape[1] in self.attention:
        h = _Attention(self.head, dtype, name=f"{name}_attention")(h)
      return h

    levels = range(len(self.multipliers))
    h = _conv(self.channels, dtype, name="in")(patches.split(x, self.patch))
    skips = []
    for level in levels:
      h = _down(h) if level else h
      for i in range(self.blocks):
        h = block(h, level, f"down{level}_{i}")
        skips.append(h)
    h = block(h, levels[-1], "middle")
    for level in reversed(levels):
      for i in range(self.blocks):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = block(h, level, f"up{level}_{i}")
      h = _up(h) if level else h
    h = nn.silu(_norm(h.shape[-1], dtype, name="out_norm")(h))
    out = x.shape[-1] * self.patch**2
    h = _conv(out, dtype, zero=True, name="out")(h)
    return patches.join(h, self.patch)

  def _check(self, x: jax.Array) -> None:
    if x.ndim != 4:
      raise ValueError(
        "the U-Net takes images [batch, height, width, channels], got shape"
        f" {x.shape}; add a channel dimension (x[..., None]) to grey images,"
        " or use an MLP for points"
      )
    factor = self.patch * 2 ** (len(self.multipliers) - 1)
    if x.shape[1] % factor or x.shape[2] % factor:
      raise ValueError(
        f"a U-Net with patch={self.patch} and {len(self.multipliers)} levels"
        f" takes images whose sides are multiples of {factor}, got"
        f" {x.shape[1]}x{x.shape[2]}; pad the images or shorten `multipliers`"
      )


class _Block(nn.Module):
  """The residual block of the module docstring."""

  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    h = nn.silu(_norm(x.shape[-1], self.dtype, name="norm_in")(x))
    h = _conv(self.width, self.dtype, name="conv_in")(h)
    affine = nn.Dense(2 * self.width, dtype=self.dtype, name="modulate")(emb)
    scale, shift = jnp.split(affine[:, None, None, :], 2, axis=-1)
    h = _norm(self.width, self.dtype, name="norm_out")(h)
    h = nn.silu(h * (1.0 + scale) + shift)
    h = _conv(self.width, self.dtype, zero=True, name="conv_out")(h)
    if x.shape[-1] != self.width:
      x = nn.Dense(self.width, dtype=self.dtype, name="skip")(x)
    return (x + h) * _HALF


class _Attention(nn.Module):
  """Self-attention over pixels; the softmax runs in float32 or wider."""

  head: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    heads = max(1, channels // self.head)
    h = _norm(channels, self.dtype, name="norm")(x)
    qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(h)
    qkv = qkv.reshape(batch, height * width, 3, heads, channels // heads)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
    weights = nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1)
    h = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
    h = h.reshape(x.shape)
    h = nn.Dense(
      channels,
      dtype=self.dtype,
      kernel_init=nn.initializers.zeros,
      name="out",
    )(h)
    return (x + h) * _HALF


def _conv(
  width: int, dtype: DTypeLike, zero: bool = False, *, name: str
) -> nn.Conv:
  init = (
    nn.initializers.zeros
    if zero
    else nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
  )
  return nn.Conv(width, (3, 3), dtype=dtype, kernel_init=init, name=name)


def _norm(channels: int, dtype: DTypeLike, *, name: str) -> nn.GroupNorm:
  """Returns a GroupNorm of groups of at least four channels, 32 at most."""
  sizes = range(1, min(32, channels // 4) + 1)
  groups = max((g for g in sizes if not channels % g), default=1)
  return nn.GroupNorm(groups, dtype=dtype, name=name)


def _down(x: jax.Array) -> jax.Array:
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _up(x: jax.Array) -> jax.Array:
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)

r"""EDM2: the magnitude-preserving U-Net of Karras et al. 2024.

Every layer keeps the expected magnitude of its input. A weight w of fan-in N
enters as w / |w| with |.| taken over each output's N inputs; there are no
biases and no group norms. With n(x) = x / rms(x) over channels,

  block (down)  x = n(skip(halve(x)))     skip a 1x1 layer if widths differ
  block         h = conv_0(mp_silu(x))
                h = conv_1(dropout(mp_silu(h (1 + g linear(emb)))))
  block (up)    x = skip(x)
  block         x = mp_sum(x, h, 0.3),  x = mp_sum(x, attend(x), 0.3)

  mp_silu(x) = silu(x) / 0.596                          (equation 81)
  mp_sum(a, b, t) = (a (1 - t) + b t) / sqrt((1 - t)^2 + t^2)      (88)
  mp_cat: the same for concatenation, by the numbers of channels  (103)

Queries, keys and values are normalized over the channels of a head; a channel
of ones beside the image stands for biases. The scalar gains g and that of the
output start at zero. Weights must be normalized after every update too
("forced weight normalization", section 2.3): `normalize` does that to a whole
tree of parameters, and training that leaves it out slows down as weights grow.

Reference: Karras et al. (2024), https://arxiv.org/abs/2312.02696; figure 21
and appendix B. The defaults are EDM2-S for ImageNet-64.
"""

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
from jaxdiff.types import PyTree

_EPSILON = 1e-4  # of every normalization
_NORMAL = nn.initializers.normal(1.0)


class EDM2(nn.Module):
  """A U-Net for images [batch, height, width, channels].

  Attributes:
    channels: width that the multipliers multiply.
    multipliers: width of every level as a multiple of `channels`; each level
      beyond the first halves the resolution.
    blocks: blocks per level on the way down; one more on the way up.
    attention: heights in pixels at which blocks have self-attention; the
      middle always has it.
    head: channels of an attention head.
    time_width: number of Fourier features of the time as a multiple of
      `channels`; 0 is the first multiplier.
    embedding_width: width of the embedding, likewise; 0 is the largest
      multiplier.
    label_balance: weight t of the label in its sum with the time.
    concat_balance: weight t of the skip connections in concatenations.
    residual_balance: weight t of the residual branch.
    attention_balance: weight t of the attention.
    taps: taps of the filter that halves and doubles the resolution.
    clip: bound on the activations that leave a block, 0 for none.
    dropout: probability that an activation inside a block is dropped.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    label_dim: length of a vector condition, 0 for none.
    remat: computes the blocks' insides again on the way back.
    dtype: dtype of the computation (parameters are float32); None is that of x.
  """

  channels: int = 192
  multipliers: tuple[int, ...] = (1, 2, 3, 4)
  blocks: int = 3
  attention: tuple[int, ...] = (16, 8)
  head: int = 64
  time_width: int = 0
  embedding_width: int = 0
  label_balance: float = 0.5
  concat_balance: float = 0.5
  residual_balance: float = 0.3
  attention_balance: float = 0.3
  taps: tuple[float, ...] = (1, 1)
  clip: float = 256.0
  dropout: float = 0.0
  num_classes: int = 0
  label_dim: int = 0
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
      c: f[batch], the time condition, log(sigma) / 4.
      label: i32[batch], f[batch, d] or None; see `conditioning.label_vector`.
      augment: refused; this network has no augmentation labels.
      deterministic: no dropout; else rngs={"dropout": key} is needed.

    Raises:
      ValueError: for inputs of wrong shapes, and for augmentation labels.
    """
    conditioning.check_images(x, len(self.multipliers))
    conditioning.augment_vector(augment, x.shape[0], 0)
    dtype = self.dtype or x.dtype
    emb = self._embedding(c, label, dtype)
    cls = nn.remat(_Block) if self.remat else _Block

    def block(h, width, name, attention=False, resample=""):
      return cls(
        width,
        decoder=name.startswith("dec"),
        resample=resample,
        taps=tuple(self.taps),
        heads=max(1, width // self.head) if attention else 0,
        residual_balance=self.residual_balance,
        attention_balance=self.attention_balance,
        clip=self.clip,
        dropout=self.dropout,
        deterministic=deterministic,
        name=name,
      )(h, emb)

    widths = [self.channels * m for m in self.multipliers]
    levels = range(len(widths))
    h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1).astype(dtype)
    h = MPDense(widths[0], 3, name="enc0_conv")(h)
    skips = [h]
    for level in levels:
      if level:
        h = block(h, h.shape[-1], f"enc{level}_down", resample="down")
        skips.append(h)
      attention = h.shape[1] in self.attention
      for i in range(self.blocks):
        h = block(h, widths[level], f"enc{level}_block{i}", attention)
        skips.append(h)
    for level in reversed(levels):
      if level == levels[-1]:
        h = block(h, h.shape[-1], f"dec{level}_in0", attention=True)
        h = block(h, h.shape[-1], f"dec{level}_in1")
      else:
        h = block(h, h.shape[-1], f"dec{level}_up", resample="up")
      attention = h.shape[1] in self.attention
      for i in range(self.blocks + 1):
        h = mp_cat(h, skips.pop(), self.concat_balance)
        h = block(h, widths[level], f"dec{level}_block{i}", attention)
    gain = self.param("out_gain", nn.initializers.zeros, ())
    return MPDense(x.shape[-1], 3, name="out_conv")(h, gain)

  @staticmethod
  def project(params: PyTree) -> Any:
    """Returns what training keeps of the parameters: see `normalize`."""
    return normalize(params)

  def _embedding(self, c, label, dtype):
    """Returns the embedding of time and label, [batch, e]."""
    first, largest = self.multipliers[0], max(self.multipliers)
    width = self.channels * (self.embedding_width or largest)
    features = (self.channels * (self.time_width or first),)
    freqs = self.param("freqs", _NORMAL, features)
    phases = self.param("phases", nn.initializers.uniform(1.0), features)
    emb = fourier(c, freqs, phases).astype(dtype)
    emb = MPDense(width, name="emb_noise")(emb)
    vector = conditioning.label_vector(
      label, c.shape[0], self.num_classes, self.label_dim
    )
    if vector is not None:
      vector = (vector * math.sqrt(vector.shape[1])).astype(dtype)
      other = MPDense(width, name="emb_label")(vector)
      emb = mp_sum(emb, other, self.label_balance)
    return mp_silu(emb)


class MPDense(nn.Module):
  """A layer without bias whose weight has unit magnitude (equation 47).

  Attributes:
    features: channels of its output.
    size: side of a convolution's kernel; 1 is a matrix.
  """

  features: int
  size: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, gain: ArrayLike = 1.0) -> jax.Array:
    """Returns gain times the layer's output, in the dtype of x."""
    window = (self.size,) * 2 if self.size > 1 else ()
    shape = (*window, x.shape[-1], self.features)
    weight = self.param("weight", _NORMAL, shape)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    scale = gain / math.sqrt(math.prod(shape[:-1]))
    w = (_unit(weight.astype(wide)) * scale).astype(x.dtype)
    if self.size == 1:
      return x @ w
    return jax.lax.conv_general_dilated(
      x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


class _Block(nn.Module):
  """The block of the module docstring."""

  width: int
  decoder: bool
  resample: str
  taps: tuple[float, ...]
  heads: int
  residual_balance: float
  attention_balance: float
  clip: float
  dropout: float
  deterministic: bool

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    if self.resample == "down":
      x = resampling.halve(x, self.taps)
    elif self.resample == "up":
      x = resampling.double(x, self.taps)
    changed = x.shape[-1] != self.width
    if not self.decoder:
      if changed:
        x = MPDense(self.width, name="conv_skip")(x)
      x = pixel_norm(x)
    h = MPDense(self.width, 3, name="conv_res0")(mp_silu(x))
    gain = self.param("emb_gain", nn.initializers.zeros, ())
    scale = 1.0 + MPDense(self.width, name="emb_linear")(emb, gain)
    h = mp_silu(h * scale[:, None, None, :])
    h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
    h = MPDense(self.width, 3, name="conv_res1")(h)
    if self.decoder and changed:
      x = MPDense(self.width, name="conv_skip")(x)
    x = mp_sum(x, h, self.residual_balance)
    if self.heads:
      h = MPDense(3 * self.width, name="attn_qkv")(x)
      h = _cosine_attention(h, self.heads)
      h = MPDense(self.width, name="attn_proj")(h)
      x = mp_sum(x, h, self.attention_balance)
    return jnp.clip(x, -self.clip, self.clip) if self.clip else x


def _cosine_attention(qkv: jax.Array, heads: int) -> jax.Array:
  """Returns attention of normalized vectors; layouts as `residual.attend`."""
  normed = pixel_norm(qkv.reshape(*qkv.shape[:-1], 3 * heads, -1))
  return residual.attend(normed.reshape(qkv.shape), heads)


def fourier(c: jax.Array, freqs: jax.Array, phases: jax.Array) -> jax.Array:
  """Returns sqrt(2) cos(2 pi (c freqs + phases)) (equation 75)."""
  return math.sqrt(2) * jnp.cos(conditioning.turns(c, freqs, phases))


def mp_silu(x: jax.Array) -> jax.Array:
  """Returns silu(x), scaled to keep the magnitude of Gaussians."""
  return nn.silu(x) / 0.596


def mp_sum(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
  """Returns a (1 - t) + b t, scaled as if they were independent."""
  return (a + t * (b - a)) / math.hypot(1 - t, t)


def mp_cat(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
  """Returns [a, b], each scaled by its share: t for b, 1 - t for a."""
  m, n = a.shape[-1], b.shape[-1]
  scale = math.sqrt(m + n) / math.hypot(1 - t, t)
  a = a * (scale * (1 - t) / math.sqrt(m))
  return jnp.concatenate([a, b * (scale * t / math.sqrt(n))], axis=-1)


def pixel_norm(x: jax.Array) -> jax.Array:
  """Returns x over its root mean square along the last axis."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  rms = jnp.sqrt(jnp.mean(wide**2, axis=-1, keepdims=True))
  return (x / (_EPSILON + rms)).astype(x.dtype)


def normalize(params: PyTree) -> Any:
  """Returns parameters whose every weight has unit magnitude (equation 66).

  Training calls it after each update; it changes no output of the network.
  All leaves named "weight" are normalized, others stay as they are.

  Args:
    params: parameters of an `EDM2` network, or a tree that holds them.
  """

  def leaf(path, value):
    last = path[-1] if path else None
    named = isinstance(last, jax.tree_util.DictKey) and last.key == "weight"
    return _unit(value) if named else value

  return jax.tree_util.tree_map_with_path(leaf, params)


def _unit(weight: jax.Array) -> jax.Array:
  """Returns the weight with root mean square 1 over each output's inputs."""
  axes = tuple(range(weight.ndim - 1))
  # a gradient through sqrt(0) is NaN: a dead output keeps its zeros
  square = jnp.mean(weight**2, axis=axes, keepdims=True)
  rms = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
  return weight / (_EPSILON + rms)

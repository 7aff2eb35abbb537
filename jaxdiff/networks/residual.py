r"""The residual block of DDPM++, NCSN++ and ADM.

  h = conv_0(resample(silu(norm_0(x))))
  h = silu(norm_1(h + a))               a affine in the embedding, or
  h = silu(norm_1(h) (1 + s) + b)       (s, b) affine in it: `modulate`
  x = g (skip(x) + conv_1(dropout(h)))
  x = g (x + proj(attend(norm_2(x))))   where the block has attention

with g = sqrt(1 / 2), which keeps the variance of the sum, or 1; skip resamples
x and changes its width with a 1x1 convolution where that is needed. A `Style`
is what the blocks of one architecture share. Sources: Song et al. (2021),
https://arxiv.org/abs/2011.13456, appendix H; Dhariwal and Nichol (2021),
https://arxiv.org/abs/2105.05233, section 3; Karras et al. (2022),
https://arxiv.org/abs/2206.00364, appendix F.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import resampling
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree


class Style(NamedTuple):
  """What the blocks of one architecture have in common.

  Attributes:
    modulate: the embedding scales and shifts the second norm's output, rather
      than shifting its input.
    gain: gain of every sum, g.
    epsilon: epsilon of the norms.
    project: a 1x1 convolution follows resampling on the skip branch, even
      where the width stays.
    kernel: initializer of the layers.
    last: initializer of the layers that end a branch.
    qkv: initializer of queries, keys and values.
  """

  modulate: bool
  gain: float
  epsilon: float
  project: bool
  kernel: Any
  last: Any
  qkv: Any


class Residual(nn.Module):
  """The block of the module docstring.

  Attributes:
    width: channels of its output.
    style: style of its architecture.
    resample: "", "down" or "up".
    taps: taps of the resampling filter.
    heads: attention heads, 0 for no attention.
    dropout: probability that an activation is dropped.
    deterministic: no dropout.
    dtype: dtype of the computation.
  """

  width: int
  style: Style
  resample: str = ""
  taps: tuple[float, ...] = (1, 1)
  heads: int = 0
  dropout: float = 0.0
  deterministic: bool = True
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    """Returns [batch, height', width', self.width] for emb [batch, e]."""
    style, width = self.style, self.width
    h = nn.silu(norm(x, style.epsilon, self.dtype, "norm0"))
    h = self._resampled(h)
    h = conv(width, self.dtype, style.kernel, "conv0")(h)
    affine = nn.Dense(
      (1 + style.modulate) * width,
      dtype=self.dtype,
      kernel_init=style.kernel,
      name="affine",
    )(emb)[:, None, None, :]
    if style.modulate:
      scale, shift = jnp.split(affine, 2, axis=-1)
      h = norm(h, style.epsilon, self.dtype, "norm1") * (1.0 + scale) + shift
    else:
      h = norm(h + affine, style.epsilon, self.dtype, "norm1")
    h = nn.Dropout(self.dropout, deterministic=self.deterministic)(nn.silu(h))
    h = conv(width, self.dtype, style.last, "conv1")(h)
    changed = x.shape[-1] != width
    project = changed or (style.project and bool(self.resample))
    x = self._resampled(x)
    if project:
      x = dense(width, self.dtype, style.kernel, "skip")(x)
    x = (x + h) * style.gain
    if self.heads:
      h = norm(x, style.epsilon, self.dtype, "norm2")
      h = dense(3 * width, self.dtype, style.qkv, "qkv")(h)
      h = dense(width, self.dtype, style.last, "proj")(attend(h, self.heads))
      x = (x + h) * style.gain
    return x

  def _resampled(self, x: jax.Array) -> jax.Array:
    if not self.resample:
      return x
    change = {"down": resampling.halve, "up": resampling.double}[self.resample]
    return change(x, self.taps)


def attend(qkv: jax.Array, heads: int) -> jax.Array:
  """Returns self-attention over pixels; the softmax in float32 or wider.

  Args:
    qkv: [batch, height, width, 3 heads d], in this order: queries, keys and
      values of the first head, ... as [3, heads, d].
    heads: number of heads.

  Returns:
    [batch, height, width, heads d].
  """
  batch, height, width, channels = qkv.shape
  shape = (batch, height * width, 3, heads, channels // (3 * heads))
  q, k, v = jnp.moveaxis(qkv.reshape(shape), 2, 0)
  wide = jnp.promote_types(qkv.dtype, jnp.float32)
  logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
  weights = nn.softmax(logits / math.sqrt(shape[-1]), axis=-1)
  out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
  return out.reshape(batch, height, width, channels // 3)


def conv(
  width: int, dtype: DTypeLike, init: PyTree, name: str, **options: Any
) -> nn.Conv:
  """Returns a 3x3 convolution."""
  return nn.Conv(
    width, (3, 3), dtype=dtype, kernel_init=init, name=name, **options
  )


def dense(width: int, dtype: DTypeLike, init: PyTree, name: str) -> nn.Dense:
  """Returns a 1x1 convolution, which is a matrix for every pixel."""
  return nn.Dense(width, dtype=dtype, kernel_init=init, name=name)


def norm(
  x: jax.Array, epsilon: float, dtype: DTypeLike, name: str
) -> jax.Array:
  """Returns x under a GroupNorm: at most 32 groups of at least 4 channels."""
  channels = x.shape[-1]
  sizes = range(1, min(32, channels // 4) + 1)
  groups = max((g for g in sizes if not channels % g), default=1)
  return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, name=name)(x)

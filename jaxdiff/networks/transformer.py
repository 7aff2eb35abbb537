r"""Transformer blocks: attention and adaLN-Zero.

A block of Peebles and Xie (2023), https://arxiv.org/abs/2212.09748, section
3.2, with (shift, scale, gate) twice linear in silu(emb) and LN without weights:

  h <- h + gate_1 attend(LN(h) (1 + scale_1) + shift_1)
  h <- h + gate_2 mlp(LN(h) (1 + scale_2) + shift_2)

The linear map starts at zero, so that every block starts as the identity.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import attention
from jaxdiff.networks import positions
from jaxdiff.types import DTypeLike


class Attention(nn.Module):
  """Self-attention over tokens [batch, length, width]; float32 softmax.

  Attributes:
    heads: number of heads.
    bias: whether queries, keys and values have one.
    rotary: whether queries and keys are turned by their position.
    dtype: dtype of the computation.
    implementation: implementation of `attention.attend`: "xla", "cudnn" for the
      fused kernel of GPUs, which takes bfloat16 alone, "blocks", "cudnn_jvp".
    kernel_init: initializer of the linear maps.
  """

  heads: int
  bias: bool = True
  rotary: bool = False
  dtype: DTypeLike | None = None
  implementation: str = "xla"
  kernel_init: Any = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, length, width = x.shape
    dense = functools.partial(
      nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init
    )
    qkv = dense(3 * width, use_bias=self.bias, name="qkv")(x)
    qkv = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    if self.rotary:
      q, k = positions.rotate(q), positions.rotate(k)
    h = attention.attend(q, k, v, self.implementation)
    return dense(width, name="out")(h.reshape(x.shape))


class AdaptiveBlock(nn.Module):
  """The adaLN-Zero block of the module docstring.

  Attributes:
    heads: number of heads.
    mlp: width of the perceptron as a multiple of that of the tokens.
    dropout: rate, after the attention and inside the perceptron.
    deterministic: whether dropout is off.
    rotary: whether attention knows positions by rotation.
    epsilon: epsilon of the second norm (the first has 1e-6).
    condition: makes an embedding of this block's own, of what it is told in
      place of `emb`; None for blocks that share one.
    dtype: dtype of the computation.
    implementation: kernel of the attention.
  """

  heads: int
  mlp: float = 4.0
  dropout: float = 0.0
  deterministic: bool = True
  rotary: bool = False
  epsilon: float = 1e-6
  condition: Any = None
  dtype: DTypeLike | None = None
  implementation: str = "xla"

  @nn.compact
  def __call__(self, h: jax.Array, emb: Any) -> tuple[jax.Array, None]:
    """Returns (h, None), as `nn.scan` asks; h [batch, length, width]."""
    width = h.shape[-1]
    if self.condition is not None:
      emb = self.condition(name="condition")(*emb)
    drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
    affine = zeros(6 * width, self.dtype, "modulate")(nn.silu(emb))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(
      affine[:, None], 6, axis=-1
    )
    y = plain_norm(self.dtype)(h) * (1.0 + scale1) + shift1
    y = Attention(
      self.heads,
      rotary=self.rotary,
      dtype=self.dtype,
      implementation=self.implementation,
      name="attention",
    )(y)
    h = h + gate1 * drop(y)
    y = plain_norm(self.dtype, self.epsilon)(h) * (1.0 + scale2) + shift2
    y = xavier(round(self.mlp * width), self.dtype, "mlp_in")(y)
    y = xavier(width, self.dtype, "mlp_out")(drop(nn.gelu(y)))
    return h + gate2 * y, None


class AdaptiveOutput(nn.Module):
  """A modulated norm and a linear map that starts at zero."""

  features: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, h: jax.Array, emb: jax.Array) -> jax.Array:
    affine = zeros(2 * h.shape[-1], self.dtype, "modulate")(nn.silu(emb))
    shift, scale = jnp.split(affine[:, None], 2, axis=-1)
    h = plain_norm(self.dtype)(h) * (1.0 + scale) + shift
    return zeros(self.features, self.dtype, "out")(h)


def xavier(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
  """Returns a linear map that starts as in Glorot and Bengio (2010)."""
  init = nn.initializers.xavier_uniform()
  return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def zeros(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
  """Returns a linear map that starts at zero."""
  init = nn.initializers.zeros
  return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def plain_norm(dtype: DTypeLike, epsilon: float = 1e-6) -> nn.LayerNorm:
  """Returns a layer norm without weights; its moments are float32."""
  return nn.LayerNorm(
    epsilon=epsilon, use_bias=False, use_scale=False, dtype=dtype
  )


def check_heads(width: int, heads: int, factor: int) -> None:
  """Raises a ValueError unless width is a multiple of heads and of factor."""
  if width % heads or width % factor:
    raise ValueError(
      f"width must be a multiple of heads (each takes an equal part) and of"
      f" {factor}, got width={width}, heads={heads}"
    )


def check_images(
  x: jax.Array, factor: int, name: str, attribute: str = "patch"
) -> None:
  """Raises a ValueError unless x is images with sides multiples of factor."""
  if x.ndim != 4:
    raise ValueError(
      f"{name} takes images [batch, height, width, channels], got shape"
      f" {x.shape}; add a channel dimension (x[..., None]) to grey images, or"
      " use an MLP for points"
    )
  if x.shape[1] % factor or x.shape[2] % factor:
    raise ValueError(
      f"{name} with this {attribute} takes images whose sides are multiples of"
      f" {factor}, got {x.shape[1]}x{x.shape[2]}; pad the images or change"
      f" `{attribute}`"
    )

"""Multilayer perceptrons for points and for small flattened images."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import embeddings
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike


class MLP(nn.Module):
  """A plain perceptron for points: the embedding enters beside x, once.

  Attributes:
    features: widths of the hidden layers.
    embedding: width of the embedding of time and label.
    gain: gain of x beside the embedding. A few values of x among many of time
      are hardly seen by a fresh network: 8 suits points of the plane with fine
      structure.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    dtype: dtype of the computation (parameters are float32); None is that of x.
    residual: whether x is added to the answer: a map that begins as the
      identity.
  """

  features: tuple[int, ...] = (128, 128, 128)
  embedding: int = 64
  gain: float = 1.0
  num_classes: int = 0
  dtype: DTypeLike | None = None
  residual: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns an array like x [batch, ...] for c f[batch], label i32[batch]."""
    dtype = self.dtype or x.dtype
    emb = embeddings.Condition(
      self.embedding, self.num_classes, dtype, name="condition"
    )(c, label)
    x_in = self.gain * _flat(x).astype(dtype)
    h = jnp.concatenate([x_in, emb.astype(dtype)], axis=-1)
    for width in self.features:
      h = nn.silu(nn.Dense(width, dtype=dtype)(h))
    out = _out(h, x, dtype)
    return x + out if self.residual else out


class ResidualMLP(nn.Module):
  """Residual blocks whose normalisation is shifted and scaled by time, label.

  A block is x + W2 silu(W1 (LN(x) (1 + scale) + shift)) with scale and shift
  linear in the embedding (FiLM of Perez et al. 2018; the block of Peebles and
  Xie 2023 without attention). The second matrix starts at zero, so that the
  network starts as the identity.

  Attributes:
    width: width of the residual stream.
    blocks: number of residual blocks.
    hidden: width inside a block as a multiple of `width`.
    embedding: width of the embedding of time and label.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    dtype: dtype of the computation (parameters are float32); None is that of x.
  """

  width: int = 256
  blocks: int = 3
  hidden: int = 2
  embedding: int = 128
  num_classes: int = 0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns an array like x [batch, ...] for c f[batch], label i32[batch]."""
    dtype = self.dtype or x.dtype
    emb = embeddings.Condition(
      self.embedding, self.num_classes, dtype, name="condition"
    )(c, label)
    h = nn.Dense(self.width, dtype=dtype, name="in")(_flat(x))
    for i in range(self.blocks):
      y = modulated_norm(h, emb, dtype, f"block{i}_modulate")
      y = nn.Dense(self.hidden * self.width, dtype=dtype, name=f"block{i}_in")(
        y
      )
      y = nn.Dense(
        self.width,
        dtype=dtype,
        kernel_init=nn.initializers.zeros,
        name=f"block{i}_out",
      )(nn.silu(y))
      h = h + y
    return _out(modulated_norm(h, emb, dtype, "out_modulate"), x, dtype)


def modulated_norm(
  h: jax.Array, emb: jax.Array, dtype: DTypeLike, name: str
) -> jax.Array:
  """Returns LN(h) (1 + scale) + shift, both linear in emb f[..., d]."""
  affine = nn.Dense(2 * h.shape[-1], dtype=dtype, name=name)(emb)
  scale, shift = jnp.split(affine, 2, axis=-1)
  norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=dtype)
  return norm(h) * (1.0 + scale) + shift


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1)


def _out(h: jax.Array, x: jax.Array, dtype: DTypeLike) -> jax.Array:
  """Returns a zero-initialised projection of h to the shape of x."""
  out = nn.Dense(
    math.prod(x.shape[1:]),
    dtype=dtype,
    kernel_init=nn.initializers.zeros,
    name="out",
  )(h)
  return out.reshape(x.shape)

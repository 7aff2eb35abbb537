r"""Networks for discrete data: integer tokens in, logits of every place out.

They are called like the others, network(x, c, label), with x i32[batch, length]
in 0..vocabulary - 1, and return f[batch, length, vocabulary]. What a token
stands for (a mask, a padding) is the process's affair: give it a number of the
vocabulary. c is whatever the process tells about the time.

The transformer is the one of masked and uniform discrete diffusion (Lou et al.
2024, https://arxiv.org/abs/2310.16834, appendix C; Sahoo et al. 2024,
https://arxiv.org/abs/2406.07524): bidirectional, adaLN-Zero, rotary.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import stacking
from jaxdiff.networks import time_and_label
from jaxdiff.networks import transformer
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike


class TokenMLP(nn.Module):
  """A perceptron over all tokens of a short sequence at once.

  Attributes:
    vocabulary: number of tokens.
    features: widths of the hidden layers.
    embedding: width of a token's embedding.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    frequencies: angular frequencies of the first and the last time feature.
    dropout: rate, after every hidden layer.
    dtype: dtype of the computation (parameters are float32); None is float32.
  """

  vocabulary: int = 2
  features: tuple[int, ...] = (256, 256, 256)
  embedding: int = 32
  num_classes: int = 0
  frequencies: tuple[float, float] = (0.5, 16.0)
  dropout: float = 0.0
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
    """Returns the logits of every place, f[batch, length, vocabulary].

    Args:
      x: i32[batch, length], tokens in 0..vocabulary - 1.
      c: f[batch], the time condition.
      label: i32[batch]; None is the null label.
      deterministic: whether dropout is off; otherwise a key "dropout" is used.

    Raises:
      ValueError: for x, c or labels that do not fit.
    """
    _check_tokens(x)
    batch, length = x.shape
    dtype = self.dtype or jnp.float32
    h = _embed(self.vocabulary, self.embedding, dtype)(x).reshape(batch, -1)
    for i, width in enumerate(self.features):
      h = nn.Dense(width, dtype=dtype, name=f"layer{i}")(h)
      h = h + time_and_label.TimeAndLabel(
        width,
        self.num_classes,
        frequencies=self.frequencies,
        dtype=dtype,
        name=f"condition{i}",
      )(c, label)
      h = nn.Dropout(self.dropout, deterministic=deterministic)(nn.silu(h))
    h = transformer.zeros(length * self.vocabulary, dtype, "out")(h)
    return h.reshape(batch, length, self.vocabulary)


class TokenTransformer(nn.Module):
  """A bidirectional transformer over tokens.

  Attributes:
    vocabulary: number of tokens.
    width: width of the residual stream; a multiple of `heads`.
    depth: number of blocks.
    heads: heads of the attention; with rotations each has an even width.
    mlp: width of the perceptrons as a multiple of `width`.
    positions: "rotary", for any length, or "learned", for one.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    frequencies: angular frequencies of the first and the last time feature.
    dropout: rate, after the attention and inside the perceptron.
    scan: whether one block is compiled for all; see `stacking`.
    remat: whether blocks are computed again for the gradient, to save memory.
    attention: "xla", or "cudnn" for the fused kernel of GPUs (bfloat16 only);
      "blocks" and "cudnn_jvp" as in `attention.attend`.
    dtype: dtype of the computation (parameters are float32); None is float32.
  """

  vocabulary: int = 2
  width: int = 256
  depth: int = 6
  heads: int = 4
  mlp: float = 4.0
  positions: str = "rotary"
  num_classes: int = 0
  frequencies: tuple[float, float] = (0.5, 16.0)
  dropout: float = 0.0
  scan: bool = False
  remat: bool = False
  attention: str = "xla"
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
    """Returns the logits of every place, f[batch, length, vocabulary].

    Args and Raises are those of `TokenMLP`.
    """
    _check_tokens(x)
    if self.positions not in ("rotary", "learned"):
      raise ValueError(
        f"positions must be 'rotary' or 'learned', got {self.positions!r}"
      )
    rotary = self.positions == "rotary"
    transformer.check_heads(
      self.width, self.heads, 2 * self.heads if rotary else 2
    )
    dtype = self.dtype or jnp.float32
    emb = time_and_label.TimeAndLabel(
      self.width,
      self.num_classes,
      frequencies=self.frequencies,
      dtype=dtype,
      name="condition",
    )(c, label)
    h = _embed(self.vocabulary, self.width, dtype)(x)
    if not rotary:
      init = nn.initializers.normal(0.02)
      where = self.param("positions_table", init, (x.shape[1], self.width))
      h = h + where.astype(dtype)
    block = functools.partial(
      transformer.AdaptiveBlock,
      heads=self.heads,
      mlp=self.mlp,
      dropout=self.dropout,
      deterministic=deterministic,
      rotary=rotary,
      dtype=dtype,
      implementation=self.attention,
    )
    h = stacking.repeat(
      block, self.depth, h, emb, scan=self.scan, remat=self.remat
    )
    return transformer.AdaptiveOutput(self.vocabulary, dtype, name="out")(
      h, emb
    )


def _embed(vocabulary: int, width: int, dtype: DTypeLike) -> nn.Embed:
  init = nn.initializers.normal(0.02)
  return nn.Embed(
    vocabulary, width, dtype=dtype, embedding_init=init, name="tokens"
  )


def _check_tokens(x: jax.Array) -> None:
  if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(
      f"tokens are integers [batch, length], got {x.dtype} of shape {x.shape};"
      " flatten pixels with x.reshape(len(x), -1), and round what is not whole"
    )

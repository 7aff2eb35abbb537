r"""Networks of transition kernels: a heavy backbone, a light flow head.

The backbone reads the state once and gives every token its features h^i. The
head is the velocity of a flow of one token, u(h^i, s, y^i): it is called often,
for all tokens in parallel, and tokens do not meet in it.

One transformer serves all three kinds of transition matching. Its sequence is a
prefix, whose tokens all see one another, and then causal tokens:

  token i is seen from place p   if   i <= p   or   i < prefix

which is full attention (prefix = length: DTM), a state and the next one being
written (prefix = length / 2: ARTM), or a text (prefix = 0: FHTM). Keys and
values of earlier tokens may be handed in as a cache, and the sequence in parts.

References: Shaul et al. (2025), https://arxiv.org/abs/2506.23589; the head is
that of Li et al. (2024), https://arxiv.org/abs/2406.11838, told s beside h.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import embeddings
from jaxdiff.networks import mlp
from jaxdiff.networks import time_and_label
from jaxdiff.networks import transformer
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree

Cache = tuple[jax.Array, jax.Array]


class FlowHead(nn.Module):
  """The velocity of the tokens' flows: residual blocks modulated by h and s.

  Attributes:
    width: width of the residual stream.
    blocks: number of residual blocks.
  """

  width: int = 64
  blocks: int = 3

  @nn.compact
  def __call__(self, h: jax.Array, s: jax.Array, y: jax.Array) -> jax.Array:
    """Returns u, like y.

    Args:
      h: f[..., d], features of the tokens.
      s: f[...], inner times in [0, 1].
      y: f[..., c], states of the tokens' flows.
    """
    dense = functools.partial(nn.Dense, dtype=y.dtype)
    waves = embeddings.fourier(s.reshape(-1), 64).reshape(*s.shape, 64)
    emb = dense(self.width, name="feature_in")(h)
    emb = emb + dense(self.width, name="time_in")(waves.astype(y.dtype))
    emb = nn.silu(emb)
    # without emb the first norm would leave the direction of y alone
    v = dense(self.width, name="in")(y) + emb
    for i in range(self.blocks):
      w = mlp.modulated_norm(v, emb, y.dtype, f"block{i}_modulate")
      w = nn.silu(dense(self.width, name=f"block{i}_in")(w))
      v = v + transformer.zeros(self.width, y.dtype, f"block{i}_out")(w)
    v = mlp.modulated_norm(v, emb, y.dtype, "out_modulate")
    return transformer.zeros(y.shape[-1], y.dtype, "out")(v)


class Perceptron(nn.Module):
  """A backbone for states of few values: a plain MLP over all tokens at once.

  Attributes:
    length: number of tokens.
    width: width of the hidden layers and of the features.
    depth: number of hidden layers; the last one holds the features.
    num_classes: number of classes, 0 for none.
  """

  length: int
  width: int
  depth: int
  num_classes: int = 0

  @nn.compact
  def __call__(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns h f[batch, length, width] of tokens f[batch, length, c]."""
    emb = embeddings.Condition(64, self.num_classes, x.dtype)(c, label)
    widths = [self.width] * (self.depth - 1) + [self.length * self.width]
    # a matrix of their own for the few values of x: beside the many features of
    # time they would enter with weights as small as one of those
    h = nn.Dense(widths[0], dtype=x.dtype, name="in")(x.reshape(len(x), -1))
    h = h + nn.Dense(widths[0], dtype=x.dtype, name="time_in")(emb)
    for width in widths[1:]:
      h = nn.Dense(width, dtype=x.dtype)(nn.silu(h))
    return nn.silu(h).reshape(len(x), self.length, self.width)


class PrefixAttention(nn.Module):
  """Attention that sees the prefix and what came before; float32 softmax."""

  heads: int
  prefix: int

  @nn.compact
  def __call__(
    self, x: jax.Array, start: PyTree, cache: Cache | None
  ) -> tuple[jax.Array, Cache]:
    """Returns what the tokens took up, and the cache with their own.

    Args:
      x: f[batch, k, width], the tokens of the places start .. start + k - 1.
      start: i32[].
      cache: keys and values f[batch, length, heads, d] of the places before;
        None if these are all there are.
    """
    batch, k, width = x.shape
    dense = functools.partial(transformer.xavier, dtype=x.dtype)
    qkv = dense(3 * width, name="qkv")(x)
    qkv = qkv.reshape(batch, k, 3, self.heads, width // self.heads)
    q, *own = (qkv[:, :, i] for i in range(3))
    here = start + jnp.arange(k)
    if cache is None:
      cache, there = tuple(own), here
    else:
      write = lambda whole, part: jax.lax.dynamic_update_slice(
        whole, part, (0, start, 0, 0)
      )
      cache = tuple(write(*pair) for pair in zip(cache, own, strict=True))
      there = jnp.arange(cache[0].shape[1])
    seen = (there <= here[:, None]) | (there < self.prefix)
    h = jax.nn.dot_product_attention(q, *cache, mask=seen[None, None])
    return dense(width, name="out")(h.reshape(x.shape)), cache


class PrefixTransformer(nn.Module):
  """The transformer of the module docstring, with adaLN-Zero blocks.

  Attributes:
    length: length of the sequence.
    prefix: how many of its tokens are seen by all.
    width: width of the tokens; a multiple of `heads`.
    depth: number of blocks.
    heads: heads of the attention.
    num_classes: number of classes, 0 for none.
    mlp: width of the perceptrons as a multiple of `width`.
  """

  length: int
  prefix: int
  width: int
  depth: int
  heads: int
  num_classes: int = 0
  mlp: float = 4.0

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    c: jax.Array,
    label: ArrayLike | None = None,
    start: PyTree = 0,
    cache: PyTree = None,
  ) -> tuple[jax.Array, tuple[Cache, ...]]:
    """Returns the features f[batch, k, width] and the cache of every block.

    Args:
      x: f[batch, k, channels], the tokens of the places start .. start + k - 1;
        all of them without a cache.
      c: f[batch], the time condition.
      label: i32[batch]; None is the null label.
      start: i32[], place of the first token.
      cache: keys and values of every block; None if x is the whole sequence.
    """
    transformer.check_heads(self.width, self.heads, self.heads)
    emb = time_and_label.TimeAndLabel(
      self.width, self.num_classes, dtype=x.dtype, name="condition"
    )(c, label)
    table = self.param(
      "places", nn.initializers.normal(0.02), (self.length, self.width)
    )
    places = jax.lax.dynamic_slice_in_dim(table, start, x.shape[1])
    h = transformer.xavier(self.width, x.dtype, "in")(x)
    h = h + places.astype(x.dtype)
    kept = []
    for i in range(self.depth):
      modulate = transformer.zeros(6 * self.width, x.dtype, f"modulate{i}")
      affine = jnp.split(modulate(nn.silu(emb))[:, None], 6, axis=-1)
      shift1, scale1, gate1, shift2, scale2, gate2 = affine
      y = transformer.plain_norm(x.dtype)(h) * (1.0 + scale1) + shift1
      y, own = PrefixAttention(self.heads, self.prefix, name=f"attention{i}")(
        y, start, None if cache is None else cache[i]
      )
      kept.append(own)
      h = h + gate1 * y
      y = transformer.plain_norm(x.dtype)(h) * (1.0 + scale2) + shift2
      wide = round(self.mlp * self.width)
      y = nn.gelu(transformer.xavier(wide, x.dtype, f"mlp_in{i}")(y))
      y = transformer.xavier(self.width, x.dtype, f"mlp_out{i}")(y)
      h = h + gate2 * y
    return transformer.plain_norm(x.dtype)(h), tuple(kept)


class TransitionNetwork(nn.Module):
  """A backbone and its head.

  Attributes:
    length: length of the backbone's sequence.
    prefix: how many of its tokens are seen by all.
    width: width of the backbone.
    depth: number of its blocks or layers.
    heads: heads of its attention; 0 makes it a `Perceptron`, which takes a
      prefix alone.
    head_width: width of the head.
    head_blocks: number of its blocks.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
  """

  length: int
  prefix: int
  width: int = 64
  depth: int = 2
  heads: int = 4
  head_width: int = 64
  head_blocks: int = 3
  num_classes: int = 0

  def setup(self):
    if self.heads:
      self.backbone = PrefixTransformer(
        self.length,
        self.prefix,
        self.width,
        self.depth,
        self.heads,
        self.num_classes,
      )
    else:
      self.backbone = Perceptron(
        self.length, self.width, self.depth, self.num_classes
      )
    self.head = FlowHead(self.head_width, self.head_blocks)

  def __call__(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns a velocity of every token, so that all parameters are made."""
    return self.velocity(self.features(x, c, label), jnp.zeros(x.shape[:2]), x)

  def features(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns h f[batch, length, width] of the whole sequence."""
    h = self.backbone(x, c, label)
    return h[0] if self.heads else h

  def extend(
    self,
    x: jax.Array,
    c: jax.Array,
    label: ArrayLike,
    start: PyTree,
    cache: PyTree,
  ) -> tuple[jax.Array, Any]:
    """Returns (h f[batch, k, width], cache) of the tokens from `start` on."""
    return self.backbone(x, c, label, start, cache)

  def velocity(self, h: jax.Array, s: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the head's u, like y; see `FlowHead`."""
    return self.head(h, s, y)

  def empty_cache(self, batch: int, dtype: DTypeLike) -> tuple[Cache, ...]:
    """Returns the cache of a sequence of which nothing is known."""
    d = self.width // self.heads
    none = jnp.zeros((batch, self.length, self.heads, d), dtype)
    return ((none, none),) * self.depth

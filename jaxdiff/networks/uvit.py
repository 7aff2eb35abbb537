r"""U-ViT: a transformer with time and label as tokens, and long skips.

The time, the label and the patches are tokens of one sequence with learned
positions. With depth = 2 n + 1 blocks h <- B_i(h),

  h_i = B_i(h_{i-1})                                i = 1..n
  h   = B_{n+1}(h_n)
  h   = B_{n+1+i}(W_i [h, h_{n+1-i}])               i = 1..n,

where B(h) = g + mlp(LN(g)), g = h + attend(LN(h)). A 3x3 convolution may
smooth the seams of the patches at the end.

Reference: Bao et al. (2023), https://arxiv.org/abs/2209.12152, figure 1.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import embeddings
from jaxdiff.networks import patches
from jaxdiff.networks import stacking
from jaxdiff.networks import time_and_label
from jaxdiff.networks import transformer
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike

_START = nn.initializers.truncated_normal(0.02)


class UViT(nn.Module):
  """A U-ViT for images [batch, height, width, channels] of one size.

  Attributes:
    width: width of the tokens, an even multiple of `heads`.
    depth: number of blocks beside the middle one, even.
    heads: heads of the attention.
    patch: side of a patch, in pixels.
    mlp: width of the perceptrons as a multiple of `width`.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    frequencies: angular frequencies of the first and the last time feature;
      see `dit.DiT`.
    time_mlp: whether the time features pass a perceptron.
    bias: whether queries, keys and values have a bias.
    smooth: whether a 3x3 convolution ends the network.
    dropout: rate, after the attention and inside the perceptron.
    scan: whether the blocks of either half are compiled once; see `stacking`.
    remat: whether blocks are computed again for the gradient, to save memory.
    attention: "xla", or "cudnn" for the fused kernel of GPUs (bfloat16 only);
      "blocks" and "cudnn_jvp" as in `attention.attend`.
    dtype: dtype of the computation (parameters are float32); None is that of x.
  """

  width: int = 512
  depth: int = 12
  heads: int = 8
  patch: int = 2
  mlp: float = 4.0
  num_classes: int = 0
  frequencies: tuple[float, float] = (0.5, 16.0)
  time_mlp: bool = False
  bias: bool = False
  smooth: bool = True
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
    """Returns an array like x.

    Args:
      x: [batch, height, width, channels], sides multiples of `patch`.
      c: f[batch], the time condition.
      label: i32[batch]; None is the null label.
      deterministic: whether dropout is off; otherwise a key "dropout" is used.

    Raises:
      ValueError: for x, c, labels or attributes that do not fit.
    """
    self._check(x, c, label)
    dtype = self.dtype or x.dtype
    image = patches.split(x, self.patch)
    rows, columns = image.shape[1:3]
    image = _dense(self.width, dtype, "patches")(image)
    told = self._told(c, label, dtype)
    h = jnp.concatenate([*told, image.reshape(len(x), -1, self.width)], axis=1)
    where = self.param("positions", _START, (h.shape[1], self.width))
    h = h + where.astype(dtype)
    block = functools.partial(
      _Block,
      heads=self.heads,
      mlp=self.mlp,
      bias=self.bias,
      dropout=self.dropout,
      deterministic=deterministic,
      dtype=dtype,
      implementation=self.attention,
    )
    h = self._blocks(block, h)
    h = nn.LayerNorm(1e-5, dtype=dtype, name="out_norm")(h)
    h = _dense(self.patch**2 * x.shape[-1], dtype, "out")(h)
    h = h[:, len(told) :].reshape(len(x), rows, columns, -1)
    h = patches.join(h, self.patch)
    if self.smooth:
      h = nn.Conv(x.shape[-1], (3, 3), dtype=dtype, name="smooth")(h)
    return h

  def _check(self, x: jax.Array, c: jax.Array, label: ArrayLike) -> None:
    transformer.check_images(x, self.patch, "U-ViT")
    transformer.check_heads(self.width, self.heads, 2)
    time_and_label.check_time(c)
    if self.depth % 2 or self.depth < 2:
      raise ValueError(
        "a U-ViT has as many blocks before its middle as after it: depth must"
        f" be even and at least 2, got {self.depth}"
      )
    if label is not None and not self.num_classes:
      raise ValueError(time_and_label.WITHOUT_CLASSES)

  def _told(
    self, c: jax.Array, label: ArrayLike, dtype: DTypeLike
  ) -> list[jax.Array]:
    """Returns the tokens of the label, if there are classes, and the time."""
    time = embeddings.fourier(c, self.width, *self.frequencies).astype(dtype)
    if self.time_mlp:
      time = nn.silu(_dense(4 * self.width, dtype, "time_in")(time))
      time = _dense(self.width, dtype, "time_out")(time)
    told = [time[:, None]]
    if self.num_classes:
      table = nn.Embed(
        self.num_classes + 1,
        self.width,
        dtype=dtype,
        embedding_init=nn.initializers.normal(1.0),
        name="label",
      )
      label = time_and_label.as_class(label, self.num_classes, len(c))
      told.insert(0, table(label)[:, None])
    return told

  def _blocks(self, block: Any, h: jax.Array) -> jax.Array:
    half = self.depth // 2
    middle = stacking.rematerialized(block, self.remat)
    if self.scan:
      inner = stacking.rematerialized(block, self.remat, prevent_cse=False)
      first = stacking.scanned(inner, half, in_axes=nn.broadcast)
      last = stacking.scanned(inner, half, in_axes=0)
      h, skips = first(name="in_blocks")(h, None)
      h, _ = middle(name="middle")(h, None)
      return last(name="out_blocks")(h, skips[::-1])[0]
    skips = []
    for i in range(half):
      h, _ = middle(name=f"in_block{i}")(h, None)
      skips.append(h)
    h, _ = middle(name="middle")(h, None)
    for i in range(half):
      h, _ = middle(name=f"out_block{i}")(h, skips.pop())
    return h


class _Block(nn.Module):
  """A transformer block; with a skip, first mixed with it."""

  heads: int
  mlp: float
  bias: bool
  dropout: float
  deterministic: bool
  dtype: DTypeLike
  implementation: str

  @nn.compact
  def __call__(
    self, h: jax.Array, skip: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns h twice: what goes on, and what a scan collects."""
    width = h.shape[-1]
    drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
    norm = lambda name: nn.LayerNorm(1e-5, dtype=self.dtype, name=name)
    if skip is not None:
      h = jnp.concatenate([h, skip], axis=-1)
      h = _dense(width, self.dtype, "skip")(h)
    y = transformer.Attention(
      self.heads,
      bias=self.bias,
      dtype=self.dtype,
      implementation=self.implementation,
      kernel_init=_START,
      name="attention",
    )(norm("norm_attention")(h))
    h = h + drop(y)
    y = _dense(round(self.mlp * width), self.dtype, "mlp_in")(
      norm("norm_mlp")(h)
    )
    y = drop(nn.gelu(y, approximate=False))
    h = h + _dense(width, self.dtype, "mlp_out")(y)
    return h, h


def _dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
  return nn.Dense(features, dtype=dtype, kernel_init=_START, name=name)

r"""DiT: a transformer over patches, with adaLN-Zero blocks.

A patch becomes a token by a linear map, gets a fixed embedding of its place,
passes `depth` blocks (`transformer.AdaptiveBlock`) that are modulated by the
embedding of time and label, and is mapped back to a patch. SiT is the same
network under the process `rectified_flow`, told t.

The published networks also output a variance, which no solver here reads: it
has no channels in this one (the converters drop them).

References: Peebles and Xie (2023), https://arxiv.org/abs/2212.09748, section
3.2 and table 1; Ma et al. (2024), https://arxiv.org/abs/2401.08740 (SiT).
"""

import functools

import flax.linen as nn
import jax

from jaxdiff.networks import patches
from jaxdiff.networks import positions
from jaxdiff.networks import stacking
from jaxdiff.networks import time_and_label
from jaxdiff.networks import transformer
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike

_SIZES = {  # table 1: width, depth, heads
  "S": (384, 12, 6),
  "B": (768, 12, 12),
  "L": (1024, 24, 16),
  "XL": (1152, 28, 16),
}
# The published sizes: networks.make("dit", **networks.DIT_SIZES["XL/2"]).
SIZES = {
  f"{size}/{patch}": dict(width=width, depth=depth, heads=heads, patch=patch)
  for size, (width, depth, heads) in _SIZES.items()
  for patch in (2, 4, 8)
}


class DiT(nn.Module):
  """A transformer for images [batch, height, width, channels].

  Attributes:
    width: width of the tokens; a multiple of `heads` and of 4.
    depth: number of blocks.
    heads: heads of the attention.
    patch: side of a patch, in pixels.
    mlp: width of the perceptrons as a multiple of `width`.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    label_dim: width of vector labels f[batch, label_dim] instead of classes.
    augment_dim: width of EDM's augmentation labels, 0 for none.
    frequencies: angular frequencies of the first and the last time feature.
      The default suits c = log(sigma / alpha) / 4 and c = t; the published
      networks have `time_and_label.STEPS`, which suits an index 0..999.
    epsilon: epsilon of the norm before the perceptron (diffusers has 1e-5
      there).
    own_conditions: whether every block embeds time and label by itself, as in
      networks that diffusers trained; the paper has one embedding for all.
    dropout: rate, after the attention and inside the perceptron.
    scan: whether one block is compiled for all; see `stacking`.
    remat: whether blocks are computed again for the gradient, to save memory.
    attention: "xla", or "cudnn" for the fused kernel of GPUs (bfloat16 only);
      "blocks" and "cudnn_jvp" as in `attention.attend`.
    dtype: dtype of the computation (parameters are float32); None is that of x.
  """

  width: int = 384
  depth: int = 12
  heads: int = 6
  patch: int = 2
  mlp: float = 4.0
  num_classes: int = 0
  label_dim: int = 0
  augment_dim: int = 0
  frequencies: tuple[float, float] = (0.5, 16.0)
  epsilon: float = 1e-6
  own_conditions: bool = False
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
    augment: ArrayLike | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns an array like x.

    Args:
      x: [batch, height, width, channels], sides multiples of `patch`.
      c: f[batch], the time condition.
      label: i32[batch] or f[batch, label_dim]; None is the null label, zeros.
      augment: f[batch, augment_dim] or None, zeros.
      deterministic: whether dropout is off; otherwise a key "dropout" is used.

    Raises:
      ValueError: for x, c, labels or attributes that do not fit.
    """
    transformer.check_images(x, self.patch, "DiT")
    transformer.check_heads(self.width, self.heads, 4)
    dtype = self.dtype or x.dtype
    condition = functools.partial(
      time_and_label.TimeAndLabel,
      self.width,
      self.num_classes,
      self.label_dim,
      self.augment_dim,
      self.frequencies,
      dtype=dtype,
    )
    told = (c, label, augment)
    emb = condition(name="condition")(*told)
    h = patches.split(x, self.patch)
    rows, columns = h.shape[1:3]
    h = transformer.xavier(self.width, dtype, "patches")(h)
    h = h + positions.waves(rows, columns, self.width).astype(h.dtype)
    block = functools.partial(
      transformer.AdaptiveBlock,
      heads=self.heads,
      mlp=self.mlp,
      dropout=self.dropout,
      deterministic=deterministic,
      epsilon=self.epsilon,
      condition=condition if self.own_conditions else None,
      dtype=dtype,
      implementation=self.attention,
    )
    h = h.reshape(len(x), rows * columns, self.width)
    h = stacking.repeat(
      block,
      self.depth,
      h,
      told if self.own_conditions else emb,
      scan=self.scan,
      remat=self.remat,
    )
    channels = self.patch**2 * x.shape[-1]
    h = transformer.AdaptiveOutput(channels, dtype, name="out")(h, emb)
    return patches.join(h.reshape(len(x), rows, columns, channels), self.patch)

r"""ADM: the U-Net of Dhariwal and Nichol 2021, as EDM trains it.

The same residual blocks as DDPM++ (`residual.Residual`), but the embedding
scales and shifts the second norm's output, sums are not rescaled, attention
has heads of 64 channels and follows every block of its levels, and the class
enters after the embedding's second layer.

References: Dhariwal and Nichol (2021), https://arxiv.org/abs/2105.05233;
Karras et al. (2022), https://arxiv.org/abs/2206.00364, table 7, whose
settings for ImageNet-64 are the defaults. Departure: biases start at zero.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import conditioning
from jaxdiff.networks import residual
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike

# Uniform within +-1 / sqrt(fan-in).
_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_ZERO = nn.initializers.zeros
_STYLE = residual.Style(
  modulate=True,
  gain=1.0,
  epsilon=1e-5,
  project=False,
  kernel=_KERNEL,
  last=_ZERO,
  qkv=_KERNEL,
)


class ADM(nn.Module):
  """A U-Net for images [batch, height, width, channels].

  Attributes:
    channels: width that the multipliers multiply.
    multipliers: width of every level as a multiple of `channels`; each level
      beyond the first halves the resolution.
    blocks: residual blocks per level on the way down; one more on the way up.
    attention: heights in pixels at which blocks are followed by
      self-attention; the middle always has it.
    head: channels of an attention head.
    embedding_width: width of the embedding as a multiple of `channels`.
    time_scale: factor on c; 999 for c = t in 0..1 where steps are 0..999.
    dropout: probability that an activation inside a block is dropped.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    label_dim: length of a vector condition, 0 for none.
    augment_dim: length of the augmentation labels, 0 for none.
    remat: computes the blocks' insides again on the way back.
    dtype: dtype of the computation (parameters are float32); None is that of x.
  """

  channels: int = 192
  multipliers: tuple[int, ...] = (1, 2, 3, 4)
  blocks: int = 3
  attention: tuple[int, ...] = (32, 16, 8)
  head: int = 64
  embedding_width: int = 4
  time_scale: float = 1.0
  dropout: float = 0.1
  num_classes: int = 0
  label_dim: int = 0
  augment_dim: int = 0
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
    """Returns an array like x; arguments are those of `SongUNet`."""
    conditioning.check_images(x, len(self.multipliers))
    dtype = self.dtype or x.dtype
    emb = self._embedding(c, label, augment, dtype)
    cls = nn.remat(residual.Residual) if self.remat else residual.Residual

    def block(h, width, name, attention=False, resample=""):
      return cls(
        width,
        _STYLE,
        resample,
        heads=max(1, width // self.head) if attention else 0,
        dropout=self.dropout,
        deterministic=deterministic,
        dtype=dtype,
        name=name,
      )(h, emb)

    widths = [self.channels * m for m in self.multipliers]
    levels = range(len(widths))
    h = residual.conv(widths[0], dtype, _KERNEL, "enc0_conv")(x.astype(dtype))
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
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = block(h, widths[level], f"dec{level}_block{i}", attention)
    h = nn.silu(residual.norm(h, _STYLE.epsilon, dtype, "out_norm"))
    return residual.conv(x.shape[-1], dtype, _ZERO, "out_conv")(h)

  def _embedding(self, c, label, augment, dtype):
    """Returns the embedding of all that is no image, [batch, e]."""
    batch, full = c.shape[0], self.channels * self.embedding_width
    emb = conditioning.positional(self.time_scale * c, self.channels)
    emb = emb.astype(dtype)
    dense = lambda width, name, init=_KERNEL, bias=True: nn.Dense(
      width, bias, dtype=dtype, kernel_init=init, name=name
    )
    vector = conditioning.augment_vector(augment, batch, self.augment_dim)
    if vector is not None:
      emb = emb + dense(self.channels, "map_augment", _ZERO, bias=False)(vector)
    emb = nn.silu(dense(full, "map_layer0")(emb))
    emb = dense(full, "map_layer1")(emb)
    vector = conditioning.label_vector(
      label, batch, self.num_classes, self.label_dim
    )
    if vector is not None:
      init = nn.initializers.normal(1.0)
      emb = emb + dense(full, "map_label", init, bias=False)(vector)
    return nn.silu(emb)

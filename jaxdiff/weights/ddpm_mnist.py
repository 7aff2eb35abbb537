"""The public DDPM U-Net on MNIST, from an npz of its torch state dict."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxdiff import archives
from jaxdiff import checks
from jaxdiff import models
from jaxdiff.networks import ddpm_mnist
from jaxdiff.weights import fitting

_UNUSED = (
  "network.time_embed.weight",
  "network.b_out.2.ln.weight",
  "network.b_out.2.ln.bias",
)
_CONFIG = models.ModelConfig(
  shape=ddpm_mnist.SHAPE,
  network="ddpm_mnist",
  process="vp_discrete",
  process_options=dict(betas=np.linspace(1e-4, 0.02, 1000).tolist()),
  prediction="eps",
  time="steps",
)


@checks.door
def load(
  path: str | os.PathLike,
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns the model and its parameters.

  Args:
    path: an npz of the state dict, 173 arrays named like
      "network.b1.0.conv1.weight".

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no npz, or holds the weights of another network.
  """
  path = pathlib.Path(path).expanduser()
  arrays = archives.read(path, "The weights are an .npz of plain arrays.")
  return _CONFIG, convert(arrays)


@checks.door
def convert(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the Flax parameters of a torch state dict.

  Args:
    arrays: name to array in torch's layouts: convolutions OIHW, transposed
      ones IOHW, layer norms CHW.

  Raises:
    ValueError: if a parameter is missing, left over, or of another shape; it
      is named.
  """
  used = {k: v for k, v in arrays.items() if k not in _UNUSED}
  return fitting.fill(_CONFIG, used, _source)


def _source(path: tuple[str, ...]) -> tuple[str, Callable]:
  """Returns ("network.b1.0.ln.weight", layout) of ("b1_0_ln", "scale")."""
  layer, kind = path
  stages = ddpm_mnist.STAGES
  roots = [*stages, *("te" + stage[1:] for stage in stages), "down3", "up1"]
  root = next((r for r in roots if layer.startswith(r + "_")), layer)
  name = root + layer[len(root) :].replace("_", ".")
  name = f"network.{name}.{'bias' if kind == 'bias' else 'weight'}"
  return name, lambda value: _layout(value, layer, kind)


def _layout(value: np.ndarray, layer: str, kind: str) -> np.ndarray:
  if layer.endswith("_ln"):
    return value.transpose(1, 2, 0)  # CHW
  if kind == "bias":
    return value
  if value.ndim == 2:
    return value.T
  if layer.startswith("up"):  # a transposed convolution turns its kernel round
    return value[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
  return value.transpose(2, 3, 1, 0)

"""A torch state dict as the parameters of a Flax network.

A converter brings the state dict into the network's terms by its own renaming,
joining and cutting, and says which of its modules is which of the network's.
What remains is the same for all: torch stores linear maps as [out, in] and
convolutions as [out, in, height, width], Flax as [in, out] and [height, width,
in, out]; a 1x1 convolution, and one that cuts an image into patches, are linear
maps of (row, column, channel).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from jaxdiff import models
from jaxdiff import networks


def fit(
  config: models.ModelConfig,
  arrays: Mapping[str, np.ndarray],
  names: Mapping[str, str],
  source: str,
) -> dict[str, Any]:
  """Returns the parameters of a model as float32 arrays of numpy.

  Args:
    config: the model, with scan=False.
    arrays: the state dict; every array must be used.
    names: module of the network ("block0/attention/qkv") to torch's module
      ("blocks.0.attn.qkv").
    source: where the arrays come from, for messages.

  Raises:
    ValueError: if an array is missing, left over, of another shape or not
      finite; it is named.
  """
  expected = models.make_denoiser(config).params
  expected = flax.traverse_util.flatten_dict(expected, sep="/")
  left, params = dict(arrays), {}
  for path, leaf in expected.items():
    module, _, kind = path.rpartition("/")
    ending = "bias" if kind == "bias" else "weight"
    name = names[path] if path in names else f"{names[module]}.{ending}"
    if name not in left:
      raise ValueError(
        f"{source} lacks {name!r}, which becomes {path} {leaf.shape}; it holds"
        f" {len(arrays)} arrays, as {', '.join(sorted(arrays)[:3])}"
      )
    value = _layout(np.asarray(left.pop(name), np.float32), kind, leaf.ndim)
    if value.shape != leaf.shape:
      raise ValueError(
        f"{source}: {name!r} becomes {path} of shape {value.shape}, but the"
        f" network that its configuration describes has {leaf.shape} there"
      )
    if not np.isfinite(value).all():
      raise ValueError(f"{source}: {name!r} holds values that are not finite")
    params[path] = value
  if left:
    raise ValueError(
      f"{source} has {len(left)} arrays that this network has no place for:"
      f" {', '.join(sorted(left)[:5])}; it is another network, or a variant"
      " that is not supported"
    )
  return flax.traverse_util.unflatten_dict(params, sep="/")


def take(
  arrays: dict[str, np.ndarray], name: str, source: str, keep: bool = False
) -> np.ndarray:
  """Returns an array by name, and removes it unless `keep`.

  Raises:
    ValueError: if it is not there.
  """
  if name not in arrays:
    raise ValueError(
      f"{source} lacks {name!r}; it holds {len(arrays)} arrays, as"
      f" {', '.join(sorted(arrays)[:3])}: is it one, and its innermost dict?"
    )
  return arrays[name] if keep else arrays.pop(name)


def first_channels(
  arrays: Mapping[str, np.ndarray], module: str, outputs: int, channels: int
) -> dict[str, np.ndarray]:
  """Returns the arrays with the first outputs of a last layer alone.

  Args:
    arrays: the state dict.
    module: the last layer, whose outputs run over (pixel of a patch, channel).
    outputs: its channels.
    channels: how many of them to keep.
  """
  cut = {}
  for name in (f"{module}.weight", f"{module}.bias"):
    value = np.asarray(arrays.get(name, 0.0))
    if value.ndim and not len(value) % outputs:  # else `fit` names it
      value = value.reshape(-1, outputs, *value.shape[1:])[:, :channels]
      cut[name] = value.reshape(-1, *value.shape[2:])
  return {**arrays, **cut}


def depth(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
  """Returns the number of blocks called `prefix`.0, `prefix`.1, ..."""
  found = [re.match(rf"{prefix}\.(\d+)\.", name) for name in arrays]
  return 1 + max((int(m[1]) for m in found if m), default=-1)


def scanned(
  config: models.ModelConfig, params: dict[str, Any], *kinds: str
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns a model and its parameters with stacks of blocks as one each.

  Args:
    config: the model, with scan=False.
    params: its parameters.
    *kinds: what the blocks are called; "block" by default.
  """
  for kind in kinds or ("block",):
    params = networks.stack_blocks(params, kind, f"{kind}s")
  options = {**config.network_options, "scan": True}
  return dataclasses.replace(config, network_options=options), params


def _layout(value: np.ndarray, kind: str, ndim: int) -> np.ndarray:
  if kind != "kernel":
    return value
  if value.ndim == 4:
    value = value.transpose(2, 3, 1, 0)
    return value if ndim == 4 else value.reshape(-1, value.shape[-1])
  return value.T

"""A torch state dict as the parameters of a Flax network.

A converter brings the state dict into the network's terms by its own renaming,
joining and cutting, and says which of its modules is which of the network's.
What remains is the same for all: torch stores linear maps as [out, in] and
convolutions as [out, in, height, width], Flax as [in, out] and [height, width,
in, out]; a 1x1 convolution, and one that cuts an image into patches, are linear
maps of (row, column, channel).
"""

from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def fit(
  network: nn.Module,
  shape: tuple[int, ...],
  arrays: Mapping[str, np.ndarray],
  names: Mapping[str, str],
  source: str,
) -> dict[str, Any]:
  """Returns the parameters of `network` as float32 arrays of numpy.

  Args:
    network: of `networks`, with scan=False.
    shape: of one sample.
    arrays: the state dict; every array must be used.
    names: module of the network ("block0/attention/qkv") to torch's module
      ("blocks.0.attn.qkv").
    source: where the arrays come from, for messages.

  Raises:
    ValueError: if an array is missing, left over or of another shape; it is
      named.
  """
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  c = jax.ShapeDtypeStruct((1,), jnp.float32)
  init = jax.eval_shape(network.init, jax.random.key(0), x, c)
  expected = flax.traverse_util.flatten_dict(init["params"], sep="/")
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
    params[path] = value
  if left:
    raise ValueError(
      f"{source} has {len(left)} arrays that this network has no place for:"
      f" {', '.join(sorted(left)[:5])}; it is another network, or a variant"
      " that is not supported"
    )
  return flax.traverse_util.unflatten_dict(params, sep="/")


def _layout(value: np.ndarray, kind: str, ndim: int) -> np.ndarray:
  if kind != "kernel":
    return value
  if value.ndim == 4:
    value = value.transpose(2, 3, 1, 0)
    return value if ndim == 4 else value.reshape(-1, value.shape[-1])
  return value.T

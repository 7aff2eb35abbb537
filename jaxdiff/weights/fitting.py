"""Arrays under other names and in other layouts as parameters in Flax."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import models


def fill(
  config: models.ModelConfig,
  arrays: Mapping[str, np.ndarray],
  source: Callable[[tuple[str, ...]], tuple[str, Callable]],
) -> dict[str, Any]:
  """Returns the parameters of a model, float32, from arrays of another layout.

  Args:
    config: the model.
    arrays: name to array; every one must be used.
    source: path of a parameter, ("enc0_conv", "kernel"), to the name of its
      array and the function that brings it into Flax's layout.

  Raises:
    ValueError: if an array is missing, left over, of another shape or not
      finite; it is named.
  """
  left = dict(arrays)
  expected = models.make_denoiser(config).params

  def leaf(path, like):
    name, layout = source(tuple(key.key for key in path))
    if name not in arrays:
      raise ValueError(
        f"the weights lack {name!r}, which the network {config.network!r} with"
        f" {dict(config.network_options)} has; {len(arrays)} arrays were given,"
        f" like {sorted(arrays)[0] if arrays else None!r}"
      )
    left.pop(name, None)
    try:
      value = np.asarray(layout(np.asarray(arrays[name])), np.float32)
    except (ValueError, IndexError, TypeError):
      value = np.asarray(arrays[name])
    if value.shape != like.shape:
      raise ValueError(
        f"{name!r} has shape {np.shape(arrays[name])} and becomes"
        f" {value.shape} in Flax, but the network has {like.shape} there; these"
        " are the weights of another network"
      )
    if not np.isfinite(value).all():
      raise ValueError(f"{name!r} holds values that are not finite numbers")
    return jnp.asarray(value)

  params = jax.tree_util.tree_map_with_path(leaf, expected)
  if left:
    raise ValueError(
      f"the weights have {len(left)} arrays that the network"
      f" {config.network!r} does not use: {sorted(left)[:5]}"
    )
  return params


def matrix(value: np.ndarray) -> np.ndarray:
  """Returns a torch matrix [out, in], or 1x1 convolution, as [in, out]."""
  return value.reshape(value.shape[:2]).T


def kernel(value: np.ndarray) -> np.ndarray:
  """Returns a torch convolution OIHW as HWIO."""
  return value.transpose(2, 3, 1, 0)


def same(value: np.ndarray) -> np.ndarray:
  """Returns the value: a bias, a scale, frequencies."""
  return value


def joint_attention(heads: int) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the layout of a layer that makes queries, keys and values at once.

  NVIDIA's outputs are in the order [heads, channels, 3]; `residual.attend`
  takes them as [3, heads, channels].
  """

  def layout(value):
    parts = value.reshape(heads, -1, 3, *value.shape[1:])
    value = np.moveaxis(parts, 2, 0).reshape(value.shape)
    return value if value.ndim == 1 else matrix(value)

  return layout

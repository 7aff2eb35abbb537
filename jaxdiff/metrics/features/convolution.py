"""What the feature networks share: convolutions whose batch norm is folded in.

After training, y = gamma (w * x - mean) / sqrt(var + eps) + beta is again a
convolution, of the kernel w gamma / sqrt(var + eps) and the bias
beta - mean gamma / sqrt(var + eps).

On a CPU a depthwise convolution is 15 to 90 times faster as the sum of its
shifted products, which fuse to one loop, than as XLA's grouped convolution, and
a 1x1 convolution up to seven times faster as a matrix product.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST  # features are compared across devices


class Conv(nn.Module):
  """A convolution with bias, of kernel f[height, width, in / groups, out]."""

  width: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"
  depthwise: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    inputs = 1 if self.depthwise else x.shape[-1]
    shape = (*self.kernel, inputs, self.width)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    if self.depthwise:
      return _depthwise(x, kernel[:, :, 0], self.stride) + bias
    if self.kernel == (1, 1) and self.stride == 1:
      return jnp.matmul(x, kernel[0, 0], precision=HIGHEST) + bias
    return bias + jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=HIGHEST,
    )


def _depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Returns the convolution of every channel with its own f[k, k, channels]."""
  k, (_, height, width, _) = len(kernel), x.shape
  pads, sides = [], []
  for n in (height, width):  # SAME, as TensorFlow has it: more at the end
    side = -(-n // stride)
    pad = max((side - 1) * stride + k - n, 0)
    pads.append((pad // 2, pad - pad // 2))
    sides.append((side - 1) * stride + 1)
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  return sum(
    x[:, i : i + sides[0] : stride, j : j + sides[1] : stride] * kernel[i, j]
    for i in range(k)
    for j in range(k)
  )


def dense(x: jax.Array, name: str, width: int) -> jax.Array:
  """Returns an affine map; call it inside a compact module."""
  return nn.Dense(width, precision=HIGHEST, name=name)(x)


def fold(
  arrays: Mapping[str, np.ndarray], weight: str, norm: str, eps: float = 1e-3
) -> dict[str, np.ndarray]:
  """Returns the Flax params of a PyTorch convolution and its batch norm.

  Args:
    arrays: arrays of a state dict.
    weight: name of the convolution's weight, f[out, in, height, width].
    norm: the batch norm's name, without `.weight` and so on.
    eps: noise of the batch norm.
  """
  of = lambda part: np.asarray(arrays[f"{norm}.{part}"], np.float64)
  gain = of("weight") / np.sqrt(of("running_var") + eps)
  kernel = np.asarray(arrays[weight], np.float64).transpose(2, 3, 1, 0) * gain
  bias = of("bias") - of("running_mean") * gain
  return {"kernel": np.float32(kernel), "bias": np.float32(bias)}


def affine(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
  """Returns the Flax params of a PyTorch linear layer."""
  return {
    "kernel": np.float32(arrays[f"{name}.weight"]).T,
    "bias": np.float32(arrays[f"{name}.bias"]),
  }


def convert(
  network: nn.Module,
  arrays: Mapping[str, np.ndarray],
  shape: tuple[int, ...],
  names: Any,
  what: str,
) -> dict[str, Any]:
  """Returns the params of `network` from a PyTorch state dict.

  Args:
    network: whose layers are named.
    arrays: the state dict.
    shape: shape of one image that the network takes.
    names: function of a layer's name -> (weight, batch norm), the names in the
      state dict; the batch norm of a linear layer is None.
    what: the weights that are expected, in words.

  Raises:
    ValueError: an array is missing, has another shape or is not finite.
  """
  image = jax.ShapeDtypeStruct((1, *shape), np.float32)
  expected = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
  params = {}
  for layer, leaves in expected.items():
    weight, norm = names(layer)
    try:
      params[layer] = (
        affine(arrays, weight) if norm is None else fold(arrays, weight, norm)
      )
    except KeyError as missing:
      raise ValueError(
        f"weights: expected {what}, but these have no {missing};"
        f" they have {len(arrays)} arrays: {', '.join(list(arrays)[:3])}, ..."
      ) from None
    for leaf, value in params[layer].items():
      if value.shape != leaves[leaf].shape:
        raise ValueError(
          f"weights: expected {what}, but layer {weight!r} has a {leaf} of"
          f" shape {value.shape} instead of {leaves[leaf].shape}"
        )
      if not np.isfinite(value).all():
        raise ValueError(f"weights: layer {weight!r} holds NaN or infinity")
  return params

"""Networks by name, and the small ones of the demonstrations."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff.networks import adm
from jaxdiff.networks import ddpm_mnist
from jaxdiff.networks import dit
from jaxdiff.networks import edm2
from jaxdiff.networks import image_condition as beside_lib
from jaxdiff.networks import layer_dropping
from jaxdiff.networks import mlp
from jaxdiff.networks import song_unet
from jaxdiff.networks import tokens
from jaxdiff.networks import unet
from jaxdiff.networks import unet2d
from jaxdiff.networks import uvit


def digits_unet(num_classes: int = 10, **options: Any) -> unet.UNet:
  """Returns the U-Net for 8x8x1 digits that the demonstrations train.

  Small enough for two CPU cores; see `unet.UNet` for the options.
  """
  defaults = dict(
    channels=48, multipliers=(1,), blocks=1, attention=(4,), patch=2
  )
  return unet.UNet(num_classes=num_classes, **(defaults | options))


def digits_mlp(num_classes: int = 10, **options: Any) -> mlp.ResidualMLP:
  """Returns the residual MLP for 8x8x1 digits: ten times faster still."""
  defaults = dict(width=256, blocks=3, hidden=2, embedding=128)
  return mlp.ResidualMLP(num_classes=num_classes, **(defaults | options))


def beside(
  network: Mapping[str, Any] = MappingProxyType({"name": "unet"}),
  label_dim: int = 1,
  num_classes: int = 0,
) -> beside_lib.Beside:
  """Returns `Beside` around the network that `make(**network)` makes.

  Raises:
    ValueError: for classes: the label is the image.
  """
  if num_classes:
    raise ValueError(
      'the label of a network "beside" is an image, so it has no classes; got'
      f" num_classes={num_classes}"
    )
  return beside_lib.Beside(make(**network), label_dim)


NETWORKS = {
  "mlp": mlp.MLP,
  "residual_mlp": mlp.ResidualMLP,
  "unet": unet.UNet,
  "unet2d": unet2d.UNet2D,
  "dit": dit.DiT,
  "uvit": uvit.UViT,
  "token_mlp": tokens.TokenMLP,
  "token_transformer": tokens.TokenTransformer,
  "layer_dropped": layer_dropping.LayerDropped,
  "digits_mlp": digits_mlp,
  "digits_unet": digits_unet,
  "ddpm": song_unet.ddpm,
  "ddpmpp": song_unet.ddpmpp,
  "ncsnpp": song_unet.ncsnpp,
  "adm": adm.ADM,
  "edm2": edm2.EDM2,
  "ddpm_mnist": ddpm_mnist.mnist_unet,
  "beside": beside,
}


def make(name: str, **options: Any) -> nn.Module:
  """Returns a network by its name in `NETWORKS`.

  Args:
    name: name of the network.
    **options: its attributes as JSON or flags give them: lists stand for
      tuples, "bfloat16" for the dtype.

  Raises:
    ValueError: for an unknown name.
    TypeError: for an unknown option.
  """
  if name not in NETWORKS:
    raise ValueError(
      f"there is no network {name!r}; there are {', '.join(NETWORKS)}"
      + checks.near(name, NETWORKS)
    )
  options = {
    k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
  }
  if isinstance(options.get("dtype"), str):
    options["dtype"] = jnp.dtype(options["dtype"])
  checks.arguments(checks.contract(NETWORKS[name]), (), options)
  return NETWORKS[name](**options)

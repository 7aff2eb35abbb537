r"""Networks of Karras et al. 2024 from NVIDIA's pickles.

The preconditioning is EDM's (process "edm", prediction "edm", clock
log(sigma) / 4). Weights come in half precision and as training left them; the
network normalizes them as it runs. The published files hold averages of EMA
profiles, one file each. The learned log-variance u(sigma), which only training
needs, is read apart, by `load_log_variance`.

Reference: Karras et al. (2024), https://arxiv.org/abs/2312.02696.
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import models
from jaxdiff import pickles
from jaxdiff.weights import edm
from jaxdiff.weights import fitting
from jaxdiff.weights import torch_modules

# Option of the network: (argument of the class, its default).
_OPTIONS = {
  "channels": ("model_channels", 192),
  "multipliers": ("channel_mult", (1, 2, 3, 4)),
  "blocks": ("num_blocks", 3),
  "attention": ("attn_resolutions", (16, 8)),
  "head": ("channels_per_head", 64),
  "time_width": ("channel_mult_noise", 0),
  "embedding_width": ("channel_mult_emb", 0),
  "label_balance": ("label_balance", 0.5),
  "concat_balance": ("concat_balance", 0.5),
  "residual_balance": ("res_balance", 0.3),
  "attention_balance": ("attn_balance", 0.3),
  "taps": ("resample_filter", (1, 1)),
  "clip": ("clip_act", 256),
  "dropout": ("dropout", 0),
}
CLASSES = ("Precond",)
_IGNORED = ("use_fp16", "logvar_channels")
_TURN = 2 * math.pi


@checks.door
def load(
  path: str | os.PathLike,
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns the model in a pickle of EDM2, and its parameters.

  Args:
    path: network-snapshot-*.pkl or one of the published edm2-*.pkl.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no such pickle, is damaged, asks to run code, or holds
      another network.
  """
  module = edm.network(pickles.load(path), CLASSES, path)
  arrays = torch_modules.state_dict(module)
  return convert(torch_modules.arguments(module), arrays)


@checks.door
def load_log_variance(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns freqs, phases f32[m] (in turns) and weight f32[m, 1] of u(sigma).

  It is u = sqrt(2) cos(2 pi (c freqs + phases)) . unit(weight) / sqrt(m) with c
  = log(sigma) / 4: `networks.edm2.fourier`, then an `MPDense` of one feature.
  """
  module = edm.network(pickles.load(path), CLASSES, path)
  arrays = torch_modules.state_dict(module)
  return {
    "freqs": _turns(arrays["logvar_fourier.freqs"]),
    "phases": _turns(arrays["logvar_fourier.phases"]),
    "weight": np.asarray(arrays["logvar_linear.weight"].T, np.float32),
  }


@checks.door
def convert(
  kwargs: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns (config, params) from the arguments and the state of a Precond.

  Args:
    kwargs: the arguments that it was made with.
    arrays: its state dict.

  Raises:
    ValueError: for arguments that are unknown here, and weights that do not
      fit.
  """
  given = dict(kwargs)
  size, *_ = shape = torch_modules.image_shape(given)
  classes = given.pop("label_dim", 0)
  data = given.pop("sigma_data", 0.5)
  options = torch_modules.options(given, _OPTIONS, _IGNORED)
  config = models.ModelConfig(
    shape=shape,
    network="edm2",
    network_options=options,
    num_classes=classes,
    process="edm",
    prediction="edm",
    sigma_data=float(data),
  )
  held = {k: v for k, v in arrays.items() if k.startswith("unet.")}
  source = lambda path: _source(path, size, options["head"], held)
  return config, fitting.fill(config, held, source)


def _turns(value: np.ndarray) -> np.ndarray:
  """Returns angles in turns, from radians."""
  return np.asarray(np.asarray(value, np.float64) / _TURN, np.float32)


def _source(
  path: tuple[str, ...],
  size: int,
  head: int,
  arrays: Mapping[str, np.ndarray],
) -> tuple[str, Any]:
  """Returns (name, layout) of a parameter: see `fitting.fill`."""
  if path in (("freqs",), ("phases",)):
    return f"unet.emb_fourier.{path[0]}", _turns
  parts = list(path)
  match = re.fullmatch(r"(enc|dec)(\d+)_(\w+)", parts[0])
  if match:
    side, level, rest = match.groups()
    pixels = size >> int(level)
    parts[:1] = [side, f"{pixels}x{pixels}_{rest}"]
  name = ".".join(["unet", *parts])
  if parts[-1] != "weight":
    return name, fitting.same
  shape = np.shape(arrays.get(name, (0,)))
  if parts[-2] == "attn_qkv":
    return name, fitting.joint_attention(max(1, shape[0] // 3 // head))
  wide = shape[2:] == (3, 3)
  return name, fitting.kernel if wide else fitting.matrix

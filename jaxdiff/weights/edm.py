r"""Networks of Karras et al. 2022 from NVIDIA's pickles.

The networks' preconditioning becomes process, prediction and clock; what the
network sees and what is made of its output are the same numbers:

| class         | process                | prediction | clock (`time`)         |
|---------------|------------------------|------------|------------------------|
| EDMPrecond    | edm                    | "edm"      | log(sigma) / 4         |
| VPPrecond     | vp_linear              | "eps"      | t, times M - 1 inside  |
| VEPrecond     | ve                     | "eps"      | log(sigma / 2)         |
| iDDPMPrecond  | vp_discrete, M steps   | "eps"      | the step 0..M - 1      |

VEPrecond has D = x + sigma F, hence eps = -F: its last layer changes sign. Of
iDDPM's output only the mean is kept. Its steps are those of the improved cosine
schedule (Nichol and Dhariwal 2021), the only times at which it was trained;
between them the network is asked at fractions, where the original rounds.

Reference: Karras et al. (2022), https://arxiv.org/abs/2206.00364, table 1.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import models
from jaxdiff import pickles
from jaxdiff.types import PyTree
from jaxdiff.weights import fitting
from jaxdiff.weights import torch_modules

# Option of the network: (argument of the class, its default).
_SONG = {
  "channels": ("model_channels", 128),
  "multipliers": ("channel_mult", (1, 2, 2, 2)),
  "blocks": ("num_blocks", 4),
  "attention": ("attn_resolutions", (16,)),
  "embedding": ("embedding_type", "positional"),
  "embedding_width": ("channel_mult_emb", 4),
  "time_width": ("channel_mult_noise", 1),
  "encoder": ("encoder_type", "standard"),
  "decoder": ("decoder_type", "standard"),
  "taps": ("resample_filter", (1, 1)),
  "dropout": ("dropout", 0.1),
  "augment_dim": ("augment_dim", 0),
}
_ADM = {
  "channels": ("model_channels", 192),
  "multipliers": ("channel_mult", (1, 2, 3, 4)),
  "blocks": ("num_blocks", 3),
  "attention": ("attn_resolutions", (32, 16, 8)),
  "embedding_width": ("channel_mult_emb", 4),
  "dropout": ("dropout", 0.1),
  "augment_dim": ("augment_dim", 0),
}
_NETWORKS = {"SongUNet": _SONG, "DhariwalUNet": _ADM}
_DEFAULT_NETWORK = {
  "EDMPrecond": "DhariwalUNet",
  "VPPrecond": "SongUNet",
  "VEPrecond": "SongUNet",
  "iDDPMPrecond": "DhariwalUNet",
}
_LAST = re.compile(r"model\.(out_conv|dec\.\w+_aux_conv)\.")
_HEAD = 64  # channels of an attention head of DhariwalUNet
CLASSES = tuple(_DEFAULT_NETWORK)
_IGNORED = ("use_fp16", "label_dropout", "sigma_min", "sigma_max", "epsilon_t")


@checks.door
def load(
  path: str | os.PathLike,
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns the model in a pickle of EDM, and its parameters.

  Args:
    path: network-snapshot-*.pkl, or one of the published edm-*.pkl and
      baseline-*.pkl.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no such pickle, is damaged, asks to run code, or holds
      another network.
  """
  module = network(pickles.load(path), CLASSES, path)
  arrays = torch_modules.state_dict(module)
  return convert(module.name, torch_modules.arguments(module), arrays)


@checks.door
def network(
  value: PyTree, classes: tuple[str, ...], path: Any = "the pickle"
) -> pickles.Record:
  """Returns the network of a snapshot: a dict with "ema", or it alone.

  Raises:
    ValueError: if there is none of these classes.
  """
  for name in ("ema", "net"):
    if isinstance(value, Mapping) and name in value:
      value = value[name]
  if isinstance(value, pickles.Record) and value.name in classes:
    return value
  found = getattr(value, "name", type(value).__name__)
  if isinstance(value, Mapping):
    found = f"a dict with {', '.join(map(repr, list(value)[:8])) or 'nothing'}"
  raise ValueError(
    f"{path} holds {found}, but a network of one of the classes"
    f" {', '.join(classes)} was expected, alone or as the entry 'ema'; choose"
    " another format, or another file"
  )


@checks.door
def convert(
  precond: str, kwargs: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns (config, params) from a network's class, arguments and state.

  Args:
    precond: name of the class, one of the table above.
    kwargs: the arguments that it was made with.
    arrays: its state dict.

  Raises:
    ValueError: for arguments that are unknown here, and weights that do not
      fit.
  """
  given = dict(kwargs)
  size, _, image = shape = torch_modules.image_shape(given)
  classes = given.pop("label_dim", 0)
  kind = given.pop("model_type", _DEFAULT_NETWORK[precond])
  if kind not in _NETWORKS:
    raise ValueError(
      f"the network is a {kind}; only {', '.join(_NETWORKS)} are known here"
    )
  meaning, ours = _preconditioning(precond, given)
  options = torch_modules.options(given, _NETWORKS[kind], _IGNORED)
  name = "adm"
  if kind == "SongUNet":
    name = "ncsnpp" if options["encoder"] == "residual" else "ddpmpp"
  config = models.ModelConfig(
    shape=shape,
    network=name,
    network_options=options | ours,
    num_classes=classes,
    **meaning,
  )
  held = {k: v for k, v in arrays.items() if _is_weight(k)}
  if precond == "VEPrecond":
    held = {k: -v if _LAST.match(k) else v for k, v in held.items()}
  elif precond == "iDDPMPrecond":
    held = {k: v[:image] if _LAST.match(k) else v for k, v in held.items()}
  source = lambda path: _source(path, kind, size, held)
  return config, fitting.fill(config, held, source)


def _preconditioning(
  precond: str, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns fields of the config and options of the network; takes arguments.

  The range of noise of EDMPrecond is unbounded; ours is the paper's.
  """
  if precond == "EDMPrecond":
    data = given.pop("sigma_data", 0.5)
    return dict(process="edm", prediction="edm", sigma_data=float(data)), {}
  if precond == "VPPrecond":
    low = float(given.pop("beta_min", 0.1))
    high = low + float(given.pop("beta_d", 19.9))
    meaning = dict(process="vp_linear", prediction="eps", time="t")
    meaning["process_options"] = dict(beta_min=low, beta_max=high)
    return meaning, dict(time_scale=float(given.pop("M", 1000) - 1))
  if precond == "VEPrecond":
    meaning = dict(process="ve", prediction="eps", time="log_half_sigma")
    low = float(given.pop("sigma_min", 0.02))
    high = float(given.pop("sigma_max", 100.0))
    meaning["process_options"] = dict(sigma_min=low, sigma_max=high)
    return meaning, {}
  betas = cosine_betas(
    given.pop("M", 1000), given.pop("C_2", 0.008), 1 - given.pop("C_1", 0.001)
  )
  meaning = dict(process="vp_discrete", prediction="eps", time="steps")
  meaning["process_options"] = dict(betas=betas.tolist())
  return meaning, {}


@checks.door
def cosine_betas(
  steps: int = 1000, offset: float = 0.008, largest: float = 0.999
) -> np.ndarray:
  """Returns the betas of the cosine schedule, f64[steps], capped.

  Nichol and Dhariwal (2021), https://arxiv.org/abs/2102.09672, equation 17.
  """
  k = np.arange(steps, -1, -1)
  signal = np.sin(0.5 * np.pi * k / steps / (1 + offset)) ** 2
  return np.minimum(1 - signal[1:] / signal[:-1], largest)


def _is_weight(name: str) -> bool:
  return name.startswith("model.") and not name.endswith("resample_filter")


def _source(
  path: tuple[str, ...],
  kind: str,
  size: int,
  arrays: Mapping[str, np.ndarray],
) -> tuple[str, Any]:
  """Returns (name, layout) of a parameter: see `fitting.fill`."""
  *modules, leaf = path
  if path == ("freqs",):
    return "model.map_noise.freqs", fitting.same
  match = re.fullmatch(r"(enc|dec)(\d+)_(\w+)", modules[0])
  if match:
    side, level, rest = match.groups()
    pixels = size >> int(level)
    modules[:1] = [side, f"{pixels}x{pixels}_{rest}"]
  name = ".".join(["model", *modules, "bias" if leaf == "bias" else "weight"])
  if modules[-1] == "qkv":
    outputs = np.shape(arrays.get(name, (0,)))[0]
    heads = max(1, outputs // 3 // _HEAD) if kind == "DhariwalUNet" else 1
    return name, fitting.joint_attention(heads)
  if leaf != "kernel":
    return name, fitting.same
  wide = np.shape(arrays.get(name, ()))[2:] == (3, 3)
  return name, fitting.kernel if wide else fitting.matrix

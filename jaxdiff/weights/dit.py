r"""State dicts of facebookresearch/DiT and willisma/SiT.

What their .pt files hold, as arrays by name. SiT is the same network under x_s
= s x0 + (1 - s) eps, which predicts x0 - eps and is told s = 1 - t. Both are
folded into the weights: the output is negated, and of the first linear map over
[cos(w s), sin(w s)], with parts (C, S),

  C cos(w s) + S sin(w s) = (C cos w + S sin w) cos(w t)
                            + (C sin w - S cos w) sin(w t).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import models
from jaxdiff import networks
from jaxdiff.networks import positions
from jaxdiff.weights import torch_layout

Params = dict[str, Any]

_HEADS = {s["width"]: s["heads"] for s in networks.DIT_SIZES.values()}
_LABELS = "y_embedder.embedding_table.weight"


@checks.door
def from_dit(
  arrays: Mapping[str, np.ndarray], *, heads: int | None = None
) -> tuple[models.ModelConfig, Params]:
  """Returns a DiT as the network "dit", scan=True, under DDPM's process.

  The half of the outputs that is a variance is dropped; the images (latents,
  for the published weights) are square.

  Args:
    arrays: the state dict.
    heads: heads of the attention; by default what the paper has for this width.

  Raises:
    ValueError: if the width is not one of the paper's and `heads` is not
      given, if the positions were trained, or an array is missing, left over
      or of another shape.
  """
  return _converted(
    arrays,
    heads,
    "this state dict of a DiT",
    process="vp_discrete",
    process_options=dict(betas=np.linspace(1e-4, 0.02, 1000).tolist()),
    prediction="eps",
    time="steps",
  )


@checks.door
def from_sit(
  arrays: Mapping[str, np.ndarray], *, heads: int | None = None
) -> tuple[models.ModelConfig, Params]:
  """Returns a SiT of the linear path that predicts velocity, as "dit".

  Its process is `rectified_flow`, its prediction "flow". Args and Raises are
  those of `from_dit`.
  """
  source = "this state dict of a SiT"
  folded = dict(arrays)
  name = "t_embedder.mlp.0.weight"
  kernel = torch_layout.take(folded, name, source, keep=True)
  c, s = np.split(np.asarray(kernel, np.float64), 2, axis=1)
  w = np.geomspace(*networks.STEPS, c.shape[1])
  parts = (c * np.cos(w) + s * np.sin(w), c * np.sin(w) - s * np.cos(w))
  folded[name] = np.concatenate(parts, axis=1)
  for kind in ("weight", "bias"):
    name = f"final_layer.linear.{kind}"
    folded[name] = -torch_layout.take(folded, name, source, keep=True)
  return _converted(
    folded,
    heads,
    source,
    process="rectified_flow",
    prediction="flow",
    time="t",
  )


def _converted(
  arrays: Mapping[str, np.ndarray],
  heads: int | None,
  source: str,
  **fields: Any,
) -> tuple[models.ModelConfig, Params]:
  rest = dict(arrays)
  take = torch_layout.take
  kernel = take(rest, "x_embedder.proj.weight", source, keep=True)
  width, channels, patch, _ = kernel.shape
  table = take(rest, "pos_embed", source)[0]
  side = round(len(table) ** 0.5)
  expected = positions.waves(side, side, width).reshape(-1, width)
  if table.shape != expected.shape or not np.allclose(table, expected, 0, 1e-5):
    raise ValueError(
      f"{source} has positions that were trained; DiT's are fixed, and only"
      " this is supported"
    )
  last = take(rest, "final_layer.linear.bias", source, keep=True)
  outputs = max(len(last) // patch**2, 1)
  rest = torch_layout.first_channels(
    rest, "final_layer.linear", outputs, channels
  )
  depth = torch_layout.depth(rest, "blocks")
  config = models.ModelConfig(
    shape=(side * patch, side * patch, channels),
    network="dit",
    network_options=dict(
      width=width,
      depth=depth,
      heads=_heads(width, heads),
      patch=patch,
      frequencies=networks.STEPS,
    ),
    num_classes=len(take(rest, _LABELS, source, keep=True)) - 1,
    sigma_data=1.0,
    scale_input=False,
    **fields,
  )
  params = torch_layout.fit(config, rest, _names(depth), source)
  return torch_layout.scanned(config, params)


def _names(depth: int) -> dict[str, str]:
  """Returns torch's module for every module of `DiT`."""
  names = {
    "patches": "x_embedder.proj",
    "condition/time_in": "t_embedder.mlp.0",
    "condition/time_out": "t_embedder.mlp.2",
    "condition/label": _LABELS.removesuffix(".weight"),
    "out/modulate": "final_layer.adaLN_modulation.1",
    "out/out": "final_layer.linear",
  }
  for i in range(depth):
    for ours, theirs in (
      ("modulate", "adaLN_modulation.1"),
      ("attention/qkv", "attn.qkv"),
      ("attention/out", "attn.proj"),
      ("mlp_in", "mlp.fc1"),
      ("mlp_out", "mlp.fc2"),
    ):
      names[f"block{i}/{ours}"] = f"blocks.{i}.{theirs}"
  return names


def _heads(width: int, heads: int | None) -> int:
  if heads is None and width not in _HEADS:
    raise ValueError(
      f"a DiT of width {width} is none of the paper's"
      f" ({', '.join(map(str, _HEADS))}), and the weights do not tell the"
      " number of heads; give heads="
    )
  return heads or _HEADS[width]

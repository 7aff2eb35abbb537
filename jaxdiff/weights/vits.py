"""State dicts of facebookresearch/DiT and baofff/U-ViT.

What their files hold, as arrays by name: `pickles` reads a .pt without torch.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import networks
from jaxdiff import training
from jaxdiff.networks import positions
from jaxdiff.weights import torch_layout

Params = dict[str, Any]

_HEADS = {s["width"]: s["heads"] for s in networks.DIT_SIZES.values()}


def from_dit(
  arrays: Mapping[str, np.ndarray], *, heads: int | None = None
) -> tuple[training.ModelConfig, Params]:
  """Returns a DiT as the network "dit", scan=True, under DDPM's process.

  The half of the outputs that is a variance is dropped; the images (latents,
  for the published weights) are square.

  Args:
    arrays: the state dict.
    heads: of the attention; by default what the paper has for this width.

  Raises:
    ValueError: if the width is not one of the paper's and `heads` is not
      given, if the positions were trained, or an array is missing, left over
      or of another shape.
  """
  source = "this state dict of a DiT"
  rest = dict(arrays)
  kernel = _take(rest, "x_embedder.proj.weight", source, keep=True)
  width, channels, patch, _ = kernel.shape
  table = _take(rest, "pos_embed", source)[0]
  side = round(len(table) ** 0.5)
  shape = (side * patch, side * patch, channels)
  expected = positions.waves(side, side, width).reshape(table.shape)
  if not np.allclose(table, expected, atol=1e-5):
    raise ValueError(
      f"{source} has positions that were trained; DiT's are fixed, and only"
      " this is supported"
    )
  for kind in ("weight", "bias"):
    name = f"final_layer.linear.{kind}"
    value = _take(rest, name, source)
    value = value.reshape(patch**2, -1, *value.shape[1:])[:, :channels]
    rest[name] = value.reshape(-1, *value.shape[2:])
  classes = len(_take(rest, _LABELS, source, keep=True)) - 1
  depth = _depth(rest, "blocks")
  options = dict(
    width=width,
    depth=depth,
    heads=_heads(width, heads),
    patch=patch,
    frequencies=networks.STEPS,
  )
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
  config = training.ModelConfig(
    shape=shape,
    network="dit",
    network_options=options,
    num_classes=classes,
    process="vp_discrete",
    process_options=dict(betas=np.linspace(1e-4, 0.02, 1000).tolist()),
    prediction="eps",
    sigma_data=1.0,
    time="steps",
    scale_input=False,
  )
  params = torch_layout.fit(config, rest, names, source)
  return torch_layout.scanned(config, params)


def from_uvit(
  arrays: Mapping[str, np.ndarray],
  *,
  heads: int,
  null_label: bool = True,
) -> tuple[training.ModelConfig, Params]:
  """Returns a U-ViT as the network "uvit", scan=True, told 999 t.

  The pixel networks were trained on `vp_linear`, whose process this is; those
  of latents have one of 1,000 steps: replace `process` and `time`.

  Args:
    arrays: the state dict.
    heads: of the attention: 8 for the small, 12 for the middle, 16 for the
      large and huge networks.
    null_label: whether the last class stands for none, as in networks that
      were trained for guidance (1,001 classes of ImageNet); otherwise the null
      label gets a token of zeros.

  Raises:
    ValueError: if an array is missing, left over or of another shape.
  """
  source = "this state dict of a U-ViT"
  rest = dict(arrays)
  kernel = _take(rest, "patch_embed.proj.weight", source, keep=True)
  width, channels, patch, _ = kernel.shape
  classes = 0
  if "label_emb.weight" in rest:
    table = rest["label_emb.weight"]
    classes = len(table) - null_label
    rest["label_emb.weight"] = np.pad(
      table, ((0, classes + 1 - len(table)), (0, 0))
    )
  table = _take(rest, "pos_embed", source)[0]
  rest["pos_embed"] = table
  side = round((len(table) - 1 - bool(classes)) ** 0.5)
  shape = (side * patch, side * patch, channels)
  half = _depth(rest, "in_blocks")
  w = 1e-4 ** ((width // 2 - 1) / (width // 2))
  options = dict(
    width=width,
    depth=2 * half,
    heads=heads,
    patch=patch,
    # of the index 999 t, from t itself
    frequencies=(999.0, 999.0 * w),
    time_mlp="time_embed.0.weight" in rest,
    bias="mid_block.attn.qkv.bias" in rest,
    smooth="final_layer.weight" in rest,
  )
  names = {
    "patches": "patch_embed.proj",
    "time_in": "time_embed.0",
    "time_out": "time_embed.2",
    "label": "label_emb",
    "positions": "pos_embed",
    "out_norm": "norm",
    "out": "decoder_pred",
    "smooth": "final_layer",
  }
  blocks = {"middle": "mid_block"}
  for i in range(half):
    blocks |= {f"in_block{i}": f"in_blocks.{i}"}
    blocks |= {f"out_block{i}": f"out_blocks.{i}"}
  for ours, theirs in blocks.items():
    for a, b in (
      ("norm_attention", "norm1"),
      ("attention/qkv", "attn.qkv"),
      ("attention/out", "attn.proj"),
      ("norm_mlp", "norm2"),
      ("mlp_in", "mlp.fc1"),
      ("mlp_out", "mlp.fc2"),
      ("skip", "skip_linear"),
    ):
      names[f"{ours}/{a}"] = f"{theirs}.{b}"
  config = training.ModelConfig(
    shape=shape,
    network="uvit",
    network_options=options,
    num_classes=classes,
    process="vp_linear",
    process_options=dict(beta_min=0.1, beta_max=20.0),
    prediction="eps",
    sigma_data=1.0,
    time="t",
    scale_input=False,
  )
  params = torch_layout.fit(config, rest, names, source)
  return torch_layout.scanned(config, params, "in_block", "out_block")


_LABELS = "y_embedder.embedding_table.weight"


def _take(
  arrays: dict[str, np.ndarray], name: str, source: str, keep: bool = False
) -> np.ndarray:
  if name not in arrays:
    raise ValueError(
      f"{source} lacks {name!r}; it holds {len(arrays)} arrays, as"
      f" {', '.join(sorted(arrays)[:3])}: is it one, and its innermost dict?"
    )
  return arrays[name] if keep else arrays.pop(name)


def _depth(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
  found = [re.match(rf"{prefix}\.(\d+)\.", name) for name in arrays]
  return 1 + max((int(m[1]) for m in found if m), default=-1)


def _heads(width: int, heads: int | None) -> int:
  if heads is None and width not in _HEADS:
    raise ValueError(
      f"a DiT of width {width} is none of the paper's"
      f" ({', '.join(map(str, _HEADS))}), and the weights do not tell the"
      " number of heads; give heads="
    )
  return heads or _HEADS[width]

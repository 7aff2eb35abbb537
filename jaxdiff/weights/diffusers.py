r"""Directories of diffusers: `UNet2DModel` and `DiTTransformer2DModel`.

A directory is what `save_pretrained` writes for the network (config.json and
diffusion_pytorch_model.safetensors) or for a whole pipeline (unet/ or
transformer/, and scheduler/scheduler_config.json, which tells the process and
the prediction). A network of N discrete steps becomes one of continuous time:
t = (i + 1) / N at step i, and time="steps" tells it i.

What is folded into the weights, exactly: the order of sines and cosines, the
three projections of attention in one, the second half of the outputs (a learned
variance), which is dropped.

What is not carried over: the clipping of x0 that diffusers' schedulers do by
default, and the autoencoder of a latent DiT.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import models
from jaxdiff.types import ArrayLike
from jaxdiff.weights import diffusers_folder
from jaxdiff.weights import diffusers_unet
from jaxdiff.weights import torch_layout

Arrays = dict[str, np.ndarray]

_LABELS = "class_embedding.weight"
_TIME = "time_embedding.linear_1.weight"


@checks.door
def load_unet(
  path: str | os.PathLike,
  *,
  betas: ArrayLike | None = None,
  prediction: str | None = None,
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns a `UNet2DModel` as the network "unet2d".

  A class embedding has no row for "no class": the null label gets zeros. If
  the network was trained with one of its classes as null, name that one to
  `guidance.cfg`.

  Args:
    path: directory of the network, or of a pipeline that holds it as unet/.
    betas: f64[N] of the process; by default the scheduler's, or, if there is
      none, DDPM's: 1,000 from 1e-4 to 0.02, linear.
    prediction: what the network predicts, one of `predictions.KINDS`; by
      default the scheduler's, or "eps".

  Raises:
    FileNotFoundError: if there is no config.json or no weights file.
    ImportError: if the package safetensors is not installed.
    ValueError: if it is another network, a variant that is not supported, or
      its weights do not fit its configuration.
  """
  folder, config = diffusers_folder.configuration(
    path, "unet", ("UNet2DModel",)
  )
  config = dict(in_channels=3, out_channels=3) | config
  options = diffusers_unet.options_of(config, folder)
  shape = diffusers_folder.image_shape(config)
  arrays = _cut_variance(
    diffusers_folder.read_arrays(folder), "conv_out", config
  )
  arrays = _joined_projections(_modern_attention(arrays))
  classes = config.get("num_class_embeds") or 0
  cosine_first = config.get("flip_sin_to_cos", True)
  for name, change in (
    (_LABELS, lambda table: np.pad(table, ((0, 1), (0, 0)))),
    (_TIME, lambda w: w if cosine_first else np.roll(w, w.shape[1] // 2, 1)),
  ):
    if name in arrays:  # what is missing is named by `fit`
      arrays[name] = change(arrays[name])
  model = models.ModelConfig(
    shape=shape,
    network="unet2d",
    network_options=options,
    num_classes=classes,
    **diffusers_folder.process_fields(path, folder, betas, prediction),
  )
  names = _unet_names(options)
  params = torch_layout.fit(model, arrays, names, str(folder))
  return model, params


@checks.door
def load_dit(
  path: str | os.PathLike,
  *,
  betas: ArrayLike | None = None,
  prediction: str | None = None,
) -> tuple[models.ModelConfig, dict[str, Any]]:
  """Returns a `DiTTransformer2DModel` as the network "dit", scan=True.

  Two of diffusers' constants differ from those of facebookresearch/DiT: the
  lowest time frequency, 1e-4 and not 1e-4^(127/128), and 1e-5 under the root of
  the second norms, not 1e-6. diffusers' are taken. For weights that were
  trained with the originals set `frequencies` and `epsilon` of the network's
  options to `networks.STEPS` and 1e-6.

  Args:
    path: directory of the network, or of a pipeline that holds it as
      transformer/.
    betas: as in `load_unet`.
    prediction: as in `load_unet`.

  Raises:
    FileNotFoundError, ImportError, ValueError: as `load_unet`.
  """
  classes = ("DiTTransformer2DModel", "Transformer2DModel")
  folder, config = diffusers_folder.configuration(path, "transformer", classes)
  config = dict(in_channels=4, sample_size=32) | config
  diffusers_folder.require(config, folder, _DIT_FIXED)
  heads = config.get("num_attention_heads", 16)
  depth = config.get("num_layers", 28)
  options = dict(
    width=heads * config.get("attention_head_dim", 72),
    depth=depth,
    heads=heads,
    patch=config.get("patch_size", 2),
    frequencies=(1.0, 1e-4),
    epsilon=config.get("norm_eps", 1e-5),
    dropout=config.get("dropout", 0.0),
  )
  shape = diffusers_folder.image_shape(config)
  arrays = _cut_variance(
    diffusers_folder.read_arrays(folder), "proj_out_2", config
  )
  arrays.pop("pos_embed.pos_embed", None)  # computed, and by us too
  arrays, own = _embeddings(_joined_projections(arrays), depth)
  num_classes = config.get("num_embeds_ada_norm", 1000)
  model = models.ModelConfig(
    shape=shape,
    network="dit",
    network_options=options | dict(own_conditions=own),
    num_classes=num_classes,
    **diffusers_folder.process_fields(path, folder, betas, prediction),
  )
  params = torch_layout.fit(model, arrays, _dit_names(depth), str(folder))
  return torch_layout.scanned(model, params)


_DIT_FIXED = {
  "norm_type": ("ada_norm_zero",),
  "activation_fn": ("gelu-approximate",),
  "attention_bias": (True,),
  "norm_elementwise_affine": (False,),
}


def _cut_variance(
  arrays: Arrays, module: str, config: Mapping[str, Any]
) -> Arrays:
  """Returns the arrays without the outputs that stand for a variance."""
  channels = config["in_channels"]
  outputs = config.get("out_channels") or channels
  if outputs == channels:
    return arrays
  if outputs != 2 * channels:
    raise ValueError(
      f"config.json has {channels} channels in and {outputs} out; as many out,"
      " or twice as many (with a learned variance), are supported"
    )
  return torch_layout.first_channels(arrays, module, outputs, channels)


def _modern_attention(arrays: Arrays) -> Arrays:
  """Returns the arrays with the names that attention has had since 2023."""
  modern = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
  }
  pattern = re.compile(rf"(\.attentions\.\d+\.)({'|'.join(modern)})\.")
  rename = lambda found: f"{found[1]}{modern[found[2]]}."
  return {pattern.sub(rename, name): v for name, v in arrays.items()}


def _joined_projections(arrays: Arrays) -> Arrays:
  """Returns the arrays with to_q, to_k and to_v in one to_qkv."""
  joined = dict(arrays)
  for name in arrays:
    if ".to_q." in name:
      parts = [name.replace(".to_q.", f".to_{part}.") for part in "qkv"]
      if all(part in arrays for part in parts):
        value = np.concatenate([joined.pop(part) for part in parts])
        joined[name.replace(".to_q.", ".to_qkv.")] = value
  return joined


def _embeddings(arrays: Arrays, depth: int) -> tuple[Arrays, bool]:
  """Returns the arrays with one embedding for all, and whether blocks differ.

  Every block of diffusers has an embedding of time and label. In weights of
  others these are copies of one; when diffusers trains them they differ, and
  the output has that of the first block.
  """
  block = lambda i: f"transformer_blocks.{i}.norm1.emb."
  first = {k: v for k, v in arrays.items() if k.startswith(block(0))}
  copies = {
    k.replace(block(0), block(i), 1): k for k in first for i in range(depth)
  }
  own = any(
    not np.array_equal(arrays[k], first[source])
    for k, source in copies.items()
    if k in arrays
  )
  shared = {k.replace(block(0), "embedding.", 1): v for k, v in first.items()}
  if own:
    return arrays | shared, True
  return {k: v for k, v in arrays.items() if k not in copies} | shared, False


def _unet_names(options: Mapping[str, Any]) -> dict[str, str]:
  """Returns torch's module for every module of `UNet2D`."""
  levels, blocks = len(options["channels"]), options["blocks"]
  names = {
    "condition/time_in": "time_embedding.linear_1",
    "condition/time_out": "time_embedding.linear_2",
    "condition/label": "class_embedding",
    "in": "conv_in",
    "out_norm": "conv_norm_out",
    "out": "conv_out",
  }

  def block(ours, theirs):
    for a, b in (
      ("norm_in", "norm1"),
      ("conv_in", "conv1"),
      ("modulate", "time_emb_proj"),
      ("norm_out", "norm2"),
      ("conv_out", "conv2"),
      ("skip", "conv_shortcut"),
    ):
      names[f"{ours}/{a}"] = f"{theirs}.{b}"

  def attention(ours, theirs):
    names[f"{ours}/norm"] = f"{theirs}.group_norm"
    names[f"{ours}/attention/qkv"] = f"{theirs}.to_qkv"
    names[f"{ours}/attention/out"] = f"{theirs}.to_out.0"

  block("middle0", "mid_block.resnets.0")
  block("middle1", "mid_block.resnets.1")
  attention("middle_attention", "mid_block.attentions.0")
  for level in range(levels):
    for kind, place, count in (
      ("down", level, blocks),
      ("up", levels - 1 - level, blocks + 1),
    ):
      theirs = f"{kind}_blocks.{place}"
      for i in range(count):
        block(f"{kind}{level}_{i}", f"{theirs}.resnets.{i}")
        attention(f"{kind}{level}_{i}_attention", f"{theirs}.attentions.{i}")
      if options["resample"] == "conv":
        names[f"{kind}{level}"] = f"{theirs}.{kind}samplers.0.conv"
      else:
        block(f"{kind}{level}", f"{theirs}.{kind}samplers.0")
  return names


def _dit_names(depth: int) -> dict[str, str]:
  """Returns torch's module for every module of `DiT`."""
  names = {
    "patches": "pos_embed.proj",
    "out/modulate": "proj_out_1",
    "out/out": "proj_out_2",
  }
  conditions = {"condition": "embedding"}
  for i in range(depth):
    conditions[f"block{i}/condition"] = f"transformer_blocks.{i}.norm1.emb"
    for ours, theirs in (
      ("modulate", "norm1.linear"),
      ("attention/qkv", "attn1.to_qkv"),
      ("attention/out", "attn1.to_out.0"),
      ("mlp_in", "ff.net.0.proj"),
      ("mlp_out", "ff.net.2"),
    ):
      names[f"block{i}/{ours}"] = f"transformer_blocks.{i}.{theirs}"
  for ours, theirs in conditions.items():
    names[f"{ours}/time_in"] = f"{theirs}.timestep_embedder.linear_1"
    names[f"{ours}/time_out"] = f"{theirs}.timestep_embedder.linear_2"
    names[f"{ours}/label"] = f"{theirs}.class_embedder.embedding_table"
  return names

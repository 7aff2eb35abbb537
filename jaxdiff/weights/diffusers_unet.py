"""The configuration of a `UNet2DModel` as the attributes of `UNet2D`."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jaxdiff.weights import diffusers_folder

_FIXED = {
  "center_input_sample": (False,),
  "time_embedding_type": ("positional",),
  "mid_block_type": ("UNetMidBlock2D",),
  "mid_block_scale_factor": (1,),
  "downsample_padding": (1, 0),
  "act_fn": ("silu", "swish"),
  "resnet_time_scale_shift": ("default", "scale_shift"),
  "class_embed_type": (None,),
}
_BLOCKS = {  # of down_block_types and up_block_types: attention, resampling
  "DownBlock2D": (False, "conv"),
  "AttnDownBlock2D": (True, None),
  "ResnetDownsampleBlock2D": (False, "resnet"),
  "UpBlock2D": (False, "conv"),
  "AttnUpBlock2D": (True, None),
  "ResnetUpsampleBlock2D": (False, "resnet"),
}


def options_of(
  config: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
  """Returns the attributes of `UNet2D`.

  Raises:
    ValueError: for a variant that it does not have.
  """
  diffusers_folder.require(config, folder, _FIXED)
  get = lambda name, default: config.get(name, default)
  channels = tuple(get("block_out_channels", (224, 448, 672, 896)))
  attn = ("AttnDownBlock2D",) * 3
  down = tuple(get("down_block_types", ("DownBlock2D", *attn)))
  attn = ("AttnUpBlock2D",) * 3
  up = tuple(get("up_block_types", (*attn, "UpBlock2D")))
  attention, resample = _levels(config, folder, down, up)
  shifted = get("resnet_time_scale_shift", "default") == "default"
  groups = get("norm_num_groups", 32)
  middle = get("attn_norm_num_groups", None)
  if middle not in (None, groups):
    raise ValueError(
      f"{folder}/config.json has attn_norm_num_groups = {middle}, which is not"
      f" supported; that of all norms, {groups}, or null would be"
    )
  features = channels[0]
  shift = get("freq_shift", 0)
  last = (features // 2 - 1) / (features // 2 - shift)
  return dict(
    channels=channels,
    attention=attention,
    blocks=get("layers_per_block", 2),
    head=get("attention_head_dim", 8) or 0,
    groups=groups,
    epsilon=get("norm_eps", 1e-5),
    modulation="shift" if shifted else "scale_shift",
    resample=resample,
    pad_after=get("downsample_padding", 1) == 0,
    middle_attention=get("add_attention", True),
    middle_norm=shifted or middle is not None,
    embedding=get("time_embedding_dim", None) or 0,
    frequencies=(1.0, 1e-4**last),
    dropout=get("dropout", 0.0),
  )


def _levels(
  config: Mapping[str, Any],
  folder: pathlib.Path,
  down: tuple[str, ...],
  up: tuple[str, ...],
) -> tuple[tuple[bool, ...], str]:
  """Returns which levels have attention, and how all of them resample."""
  unknown = sorted({*down, *up} - set(_BLOCKS))
  if unknown:
    raise ValueError(
      f"{folder}/config.json has blocks {', '.join(unknown)}, which are not"
      f" supported; there are {', '.join(_BLOCKS)}"
    )
  attention = tuple(_BLOCKS[name][0] for name in down)
  if attention != tuple(_BLOCKS[name][0] for name in reversed(up)):
    raise ValueError(
      f"{folder}/config.json has down_block_types {down} and up_block_types"
      f" {up}; only networks with attention at the same levels on both ways"
      " are supported"
    )
  kinds = set()  # the last level of either way does not resample
  for names, option in (
    (down[:-1], "downsample_type"),
    (up[:-1], "upsample_type"),
  ):
    for name in names:
      kinds.add(_BLOCKS[name][1] or config.get(option, "conv"))
  if len(kinds) > 1 or not kinds <= {"conv", "resnet"}:
    raise ValueError(
      f"{folder}/config.json changes the resolution in several ways"
      f" ({', '.join(map(str, sorted(kinds, key=str)))}, by block types,"
      " downsample_type and upsample_type); one for all, conv or resnet, is"
      " supported"
    )
  return attention, (kinds or {"conv"}).pop()

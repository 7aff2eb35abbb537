"""State dicts of baofff/U-ViT: what a .pth holds, as arrays by name."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import models
from jaxdiff.weights import torch_layout

Params = dict[str, Any]


@checks.door
def from_uvit(
  arrays: Mapping[str, np.ndarray],
  *,
  heads: int,
  null_label: bool = True,
) -> tuple[models.ModelConfig, Params]:
  """Returns a U-ViT as the network "uvit", scan=True, told 999 t.

  The pixel networks were trained on `vp_linear`, whose process this is; those
  of latents have one of 1,000 steps: replace `process` and `time`.

  Args:
    arrays: the state dict.
    heads: heads of the attention: 8 for the small, 12 for the middle, 16 for
      the large and huge networks.
    null_label: whether the last class stands for none, as in networks that
      were trained for guidance (1,001 classes of ImageNet); otherwise the null
      label gets a token of zeros.

  Raises:
    ValueError: if an array is missing, left over or of another shape.
  """
  source = "this state dict of a U-ViT"
  rest = dict(arrays)
  kernel = torch_layout.take(rest, "patch_embed.proj.weight", source, keep=True)
  width, channels, patch, _ = kernel.shape
  classes = 0
  if "label_emb.weight" in rest:
    table = rest["label_emb.weight"]
    classes = len(table) - null_label
    rest["label_emb.weight"] = np.pad(
      table, ((0, classes + 1 - len(table)), (0, 0))
    )
  table = torch_layout.take(rest, "pos_embed", source)[0]
  rest["pos_embed"] = table
  side = round((len(table) - 1 - bool(classes)) ** 0.5)
  shape = (side * patch, side * patch, channels)
  half = torch_layout.depth(rest, "in_blocks")
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
  config = models.ModelConfig(
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
  params = torch_layout.fit(config, rest, _names(half), source)
  return torch_layout.scanned(config, params, "in_block", "out_block")


# our name -> theirs, of the layers that are there once
_ONCE = {
  "patches": "patch_embed.proj",
  "time_in": "time_embed.0",
  "time_out": "time_embed.2",
  "label": "label_emb",
  "positions": "pos_embed",
  "out_norm": "norm",
  "out": "decoder_pred",
  "smooth": "final_layer",
}
# and of those in every block
_IN_BLOCK = {
  "norm_attention": "norm1",
  "attention/qkv": "attn.qkv",
  "attention/out": "attn.proj",
  "norm_mlp": "norm2",
  "mlp_in": "mlp.fc1",
  "mlp_out": "mlp.fc2",
  "skip": "skip_linear",
}


def _names(half: int) -> dict[str, str]:
  """Returns our name -> theirs, of all layers; `half` blocks go in and out."""
  blocks = {"middle": "mid_block"}
  for i in range(half):
    blocks |= {f"in_block{i}": f"in_blocks.{i}"}
    blocks |= {f"out_block{i}": f"out_blocks.{i}"}
  return _ONCE | {
    f"{ours}/{a}": f"{theirs}.{b}"
    for ours, theirs in blocks.items()
    for a, b in _IN_BLOCK.items()
  }

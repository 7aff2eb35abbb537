"""Reference networks in torch, and their outputs as golden arrays.

  python -m tests.networks.vits_reference <folder>

writes tests/golden/vits.npz; see tests/golden/README.md. The weights are a
function of name and shape, so that tests make them again without torch.
"""

import hashlib
import json
import math
import pathlib
import runpy
import sys

import numpy as np

from tests import ROOT

GOLDEN = ROOT / "tests" / "golden" / "vits.npz"

UNET = dict(
  sample_size=8,
  block_out_channels=[8, 16],
  layers_per_block=1,
  norm_num_groups=4,
)
DIT = dict(
  num_attention_heads=2,
  attention_head_dim=8,
  in_channels=3,
  out_channels=6,
  num_layers=2,
  sample_size=8,
  patch_size=2,
  num_embeds_ada_norm=4,
)
DIFFUSERS = {  # case: class, configuration
  # google/ddpm-cifar10-32 in small
  "unet": (
    "UNet2DModel",
    UNET
    | dict(
      down_block_types=["DownBlock2D", "AttnDownBlock2D"],
      up_block_types=["AttnUpBlock2D", "UpBlock2D"],
      attention_head_dim=None,
      norm_eps=1e-6,
      freq_shift=1,
      flip_sin_to_cos=False,
      downsample_padding=0,
    ),
  ),
  # the networks of openai's consistency models, with a learned variance
  "unet_adm": (
    "UNet2DModel",
    UNET
    | dict(
      out_channels=6,
      down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
      up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
      attention_head_dim=8,
      resnet_time_scale_shift="scale_shift",
      downsample_type="resnet",
      upsample_type="resnet",
      num_class_embeds=4,
    ),
  ),
  # facebook/DiT-XL-2-256 in small: all blocks have copies of one embedding
  "dit": ("DiTTransformer2DModel", DIT),
  # and as diffusers trains it, where they differ
  "dit_own": ("DiTTransformer2DModel", DIT | dict(out_channels=3)),
}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns independent values of mean 0 and variance 1, f32[*shape]."""
  key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
  bits = np.random.Philox(key=key).random_raw(math.prod(shape))
  uniform = (bits >> np.uint64(11)).astype(np.float64) / 2**53
  return (math.sqrt(12.0) * (uniform.reshape(shape) - 0.5)).astype(np.float32)


def weights(shapes: dict[str, list[int]], case: str) -> dict[str, np.ndarray]:
  """Returns a state dict: no entry is zero, and signals keep their scale."""
  arrays = {}
  for name, shape in shapes.items():
    source = name
    if case == "dit":
      source = name.replace("blocks.1.norm1.emb", "blocks.0.norm1.emb")
    v = values(source, tuple(shape))
    if len(shape) > 1:
      arrays[name] = v / np.float32(math.sqrt(math.prod(shape[1:])))
    elif name.endswith("weight"):
      arrays[name] = 1.0 + 0.2 * v
    else:
      arrays[name] = 0.2 * v
  return arrays


def inputs(case: str, side: int, channels: int, classes: int) -> dict:
  """Returns x as torch has it, the steps and the labels."""
  x = values(f"{case}/x", (4, channels, side, side))
  label = np.arange(4) % classes if classes else None
  step = np.array([0, 37, 500, 999])
  if case == "sit":  # is told the time itself
    step = np.array([0.0, 0.3, 0.7, 1.0], np.float32)
  return dict(x=x, step=step, label=label)


def filled(module, case: str):
  """Fills the parameters of a torch module; returns its state dict's shapes."""
  import torch

  fixed = {"pos_embed"} if case in ("original_dit", "sit") else set()
  shapes = {
    name: list(v.shape)
    for name, v in module.state_dict().items()
    if name not in fixed
  }
  arrays = {k: torch.from_numpy(v) for k, v in weights(shapes, case).items()}
  module.load_state_dict(arrays, strict=not fixed)
  return shapes


def diffusers_model(case: str):
  """Returns the torch module of a case of `DIFFUSERS`, filled."""
  import diffusers

  kind, config = DIFFUSERS[case]
  module = getattr(diffusers, kind)(**config).eval()
  filled(module, case)
  return module


def evaluate(module, given: dict, *, positional: bool = False) -> np.ndarray:
  """Returns the output of a torch network, its variance cut off."""
  import torch

  x = torch.from_numpy(given["x"])
  args = [x, torch.from_numpy(given["step"])]
  label = given["label"]
  if label is not None:
    label = torch.from_numpy(label)
  with torch.no_grad():
    if positional:
      out = module(*args, label)
    else:
      out = module(*args, class_labels=label).sample
  return out[:, : x.shape[1]].numpy()


def originals(folder: pathlib.Path) -> dict:
  """Returns the networks of the authors' own code: case -> (module, inputs).

  Args:
    folder: with checkouts of the repositories as DiT/, SiT/ and U-ViT/.
  """
  sys.path.insert(0, str(folder / "U-ViT"))
  from libs import uvit

  def model(name):
    return runpy.run_path(str(folder / name / "models.py"))[name]

  small = dict(patch_size=2, depth=4, num_heads=2)
  vit = dict(input_size=8, hidden_size=16, num_classes=4, **small)
  cases = {
    "original_dit": model("DiT")(**vit),
    "sit": model("SiT")(**vit),
    "uvit": uvit.UViT(
      img_size=8, in_chans=3, embed_dim=16, num_classes=4, **small
    ),
    "uvit_plain": uvit.UViT(
      img_size=8,
      in_chans=3,
      embed_dim=16,
      mlp_time_embed=True,
      qkv_bias=True,
      conv=False,
      **small,
    ),
  }
  made = {}
  for case, module in cases.items():
    classes = 0 if case == "uvit_plain" else 4
    module.eval()
    shapes = filled(module, case)
    given = inputs(
      case, 8, 4 if case in ("original_dit", "sit") else 3, classes
    )
    made[case] = (module, shapes, given)
  return made


def main(folder: str):
  arrays = {}

  def add(case, shapes, given, out):
    arrays[f"{case}/shapes"] = json.dumps(shapes)
    arrays[f"{case}/out"] = out
    arrays.update({f"{case}/{k}": v for k, v in given.items() if k != "x"})

  for case in DIFFUSERS:
    module = diffusers_model(case)
    classes = 0 if case == "unet" else 4
    given = inputs(case, 8, 3, classes)
    shapes = {k: list(v.shape) for k, v in module.state_dict().items()}
    add(case, shapes, given, evaluate(module, given))
  for case, (module, shapes, given) in originals(pathlib.Path(folder)).items():
    add(case, shapes, given, evaluate(module, given, positional=True))
  arrays = {k: v for k, v in arrays.items() if v is not None}
  np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
  main(*sys.argv[1:])

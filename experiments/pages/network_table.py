"""Parameters and cost of every network at its published settings.

  python -m experiments.pages.network_table --output=docs/networks.md

Nothing is computed or compiled: parameters are counted by their shapes,
operations by XLA's analysis of the program for one image. A minute.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app
from absl import flags

from jaxdiff import networks

_OUTPUT = flags.DEFINE_string("output", "", "file to write; '' prints")
_ONLY = flags.DEFINE_list("only", [], "networks to look at; all by default")

_TEXT = """# Networks

Made by `python -m experiments.pages.network_table --output=docs/networks.md`:
the networks of `networks.NETWORKS` at published settings, or as they are by
default.

Parameters are those of our network: outputs that stand for a variance are
dropped, and positions that are computed are no parameters. Operations are those
of the forward pass of one sample as XLA counts them before any optimisation, a
multiplication and an addition being two. Papers on networks call the pair one
"flop": Gmac, half of the count, is to be compared with theirs. XLA does not
count what a convolution multiplies with its padding; others do, so that ours
are some percent lower at small images. "Published" is what the source says.

"""
_HEAD = (
  "network",
  "settings",
  "input",
  "parameters, M",
  "published",
  "Gflop",
  "Gmac",
  "published",
)


class Setting(NamedTuple):
  """A published network: settings, and what its paper says of its size.

  Attributes:
    label: what it is called there.
    shape: shape of one sample; (length,) of tokens.
    options: attributes that are not our defaults.
    classes: number of classes.
    millions: published number of parameters.
    gmacs: published number of multiply-adds of one forward pass.
  """

  label: str
  shape: tuple[int, ...]
  options: dict[str, Any] = {}  # noqa: RUF012  never changed
  classes: int = 0
  millions: float | None = None
  gmacs: float | None = None


_LATENT = (32, 32, 4)
_DIT = {"S/2": (33, 6.06), "B/2": (130, 23.01), "L/2": (458, 80.71)}
_DIT |= {"XL/2": (675, 118.64)}
_EDM2 = {
  "XS": (128, 124.7, 45.5),
  "S": (192, 280.2, 102.2),
  "M": (256, 497.8, 180.8),
  "L": (320, 777.5, 282.2),
  "XL": (384, 1119.3, 405.9),
  "XXL": (448, 1523.2, 552.1),
}
_UVIT_M = dict(width=768, depth=16, heads=12, patch=4)
_UVIT_L = dict(width=1024, depth=20, heads=16)
_UVIT_H = dict(width=1152, depth=28, heads=16, smooth=False)
_DDPM_256 = dict(
  channels=(128, 128, 256, 256, 512, 512),
  attention=(False,) * 4 + (True, False),
)
_TEXT8 = dict(vocabulary=28)

SETTINGS = {
  # Peebles and Xie (2023), table 4; class-conditional ImageNet, latents
  "dit": [
    Setting(
      f"{size}, ImageNet-256", _LATENT, networks.DIT_SIZES[size], 1000, *n
    )
    for size, n in _DIT.items()
  ],
  # Bao et al. (2023), table 2
  "uvit": [
    Setting("S/2, CIFAR-10", (32, 32, 3), {}, 0, 44),
    Setting("M/4, ImageNet-64", (64, 64, 3), _UVIT_M, 1000, 131),
    Setting("L/2, ImageNet-256", _LATENT, _UVIT_L, 1000, 287),
    Setting("H/2, ImageNet-256", _LATENT, _UVIT_H, 1000, 501),
  ],
  # Ho et al. (2020), appendix B
  "unet2d": [
    Setting("DDPM, CIFAR-10", (32, 32, 3), {}, 0, 35.7),
    Setting("DDPM, LSUN and CelebA-HQ", (256, 256, 3), _DDPM_256, 0, 114),
  ],
  # Karras et al. (2022), appendix F; Karras et al. (2024), table 6
  "ddpm": [Setting("score_sde, CIFAR-10", (32, 32, 3))],
  "ddpmpp": [Setting("EDM, CIFAR-10", (32, 32, 3), {}, 0, 55.7)],
  "ncsnpp": [Setting("EDM, CIFAR-10", (32, 32, 3))],
  "adm": [Setting("EDM, ImageNet-64", (64, 64, 3), {}, 1000, 295.9)],
  "edm2": [
    Setting(f"{size}, ImageNet-512", (64, 64, 4), dict(channels=c), 1000, p, g)
    for size, (c, p, g) in _EDM2.items()
  ],
  "token_mlp": [Setting("32 characters of text8", (32,), _TEXT8)],
  "token_transformer": [
    Setting(
      "768 wide, 12 deep, text8",
      (256,),
      dict(width=768, depth=12, heads=12, **_TEXT8),
    )
  ],
  "digits_mlp": [Setting("default", (8, 8, 1), {}, 10)],
  "digits_unet": [Setting("default", (8, 8, 1), {}, 10)],
  "ddpm_mnist": [Setting("default", (28, 28, 1))],
}
_DEFAULT = [Setting("default", (32, 32, 3))]


def measure(name: str, setting: Setting) -> tuple[int, float]:
  """Returns the number of parameters, and of operations for one sample."""
  network = networks.make(name, num_classes=setting.classes, **setting.options)
  dtype = jnp.int32 if name.startswith("token") else jnp.float32
  x = jax.ShapeDtypeStruct((1, *setting.shape), dtype)
  c = jax.ShapeDtypeStruct((1,), jnp.float32)
  params = jax.eval_shape(network.init, jax.random.key(0), x, c)
  lowered = jax.jit(network.apply).lower(params, x, c)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  return count, lowered.cost_analysis()["flops"]


def row(name: str, setting: Setting) -> str:
  """Returns a line of the table."""
  count, flops = measure(name, setting)
  says = lambda value: "" if value is None else f"{value:g}"
  cells = (
    f"`{name}`",
    setting.label,
    "x".join(map(str, setting.shape)),
    _digits(count / 1e6),
    says(setting.millions),
    _digits(flops / 1e9),
    _digits(flops / 2e9),
    says(setting.gmacs),
  )
  return _line(cells)


def _line(cells: tuple[str, ...]) -> str:
  return f"| {' | '.join(cells)} |"


def _digits(value: float) -> str:
  return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def main(argv):
  del argv
  lines = [_line(_HEAD), _line(("---",) * 3 + ("--:",) * 5)]
  for name in _ONLY.value or networks.NETWORKS:
    for setting in SETTINGS.get(name, _DEFAULT):
      lines.append(row(name, setting))
  text = _TEXT + "\n".join(lines) + "\n"
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(text)
  else:
    print(text)


if __name__ == "__main__":
  app.run(main)

r"""Makes a run folder of weights that somebody else trained.

  python -m experiments.convert --source=edm-cifar10-32x32-cond-vp.pkl \
      --out=runs/edm_cifar10
  python -m experiments.convert --format=score_sde --out=runs/song \
      --config=vp/cifar10_ddpmpp_continuous --source=checkpoint_8 \
      --data=cifar10
  python -m experiments.sample --workdir=runs/edm_cifar10

Files are read as data: nothing in them is run, and none of the packages that
wrote them is needed. Each network is asked once at several noise levels; with
--data the errors of its predictions are shown too: that of eps should fall
towards 0 as noise grows, that of x0 as noise falls.
"""

import dataclasses
import importlib
import inspect
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxdiff import checkpoints
from jaxdiff import choosing
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import models
from jaxdiff import pickles
from jaxdiff import weights

from .parts import console
from .parts import sources

FLAGS = flags.FLAGS

# Name of the format: (module of jaxdiff.weights, its function).
FORMATS = {
  "ddpm_mnist": ("ddpm_mnist", "load"),
  "diffusers_unet": ("diffusers", "load_unet"),
  "dit": ("diffusers", "load_dit"),
  "edm": ("edm", "load"),
  "edm2": ("edm2", "load"),
  "score_sde": ("score_sde", "load"),
}
# Those of torch's state dicts, whose files do not say of which network.
STATE_DICTS = {
  "dit_pt": ("dit", "from_dit"),
  "sit_pt": ("dit", "from_sit"),
  "uvit_pt": ("uvit", "from_uvit"),
}
_DIFFUSERS = {
  "UNet2DModel": "diffusers_unet",
  "DiTTransformer2DModel": "dit",
  "Transformer2DModel": "dit",  # its name until 2024
}
_SAMPLES = 8
_OF_WIDTH = 2048  # images that the width is measured on


def guess(source: pathlib.Path) -> str:
  """Returns the name of a file's format.

  Raises:
    FileNotFoundError: if there is no such file or folder.
    ValueError: if it is of no known format.
  """
  if not source.exists():
    raise FileNotFoundError(f"there is no {source}; check --source")
  if source.is_dir():
    # a pipeline of diffusers holds its network in a folder of this name
    folders = (source, source / "unet", source / "transformer")
    found = [
      f / "config.json" for f in folders if (f / "config.json").is_file()
    ]
    name = (
      json.loads(found[0].read_text()).get("_class_name") if found else None
    )
    if name in _DIFFUSERS:
      return _DIFFUSERS[name]
    raise ValueError(
      f"{source} is a folder, but no config.json in it names one of"
      f" {', '.join(_DIFFUSERS)} as its class"
      + (f": it is {name!r}" if found else "")
      + "; name the folder of such a network or pipeline, or a file"
    )
  if source.suffix == ".npz":
    return "ddpm_mnist"
  if source.suffix in (".pkl", ".pickle"):
    classes = (*weights.edm.CLASSES, *weights.edm2.CLASSES)
    network = weights.edm.network(pickles.load(source), classes, source)
    return "edm2" if network.name in weights.edm2.CLASSES else "edm"
  if source.suffix in (".pt", ".pth"):
    raise ValueError(
      f"{source} is a state dict of torch, which does not say of which network;"
      f" give --format, one of {', '.join(STATE_DICTS)}"
    )
  return "score_sde"  # its files have no suffix


def load(form: str, source: pathlib.Path, **options: Any) -> tuple[Any, Any]:
  """Returns (config, params) of a file in one of the formats, or "auto".

  Args:
    form: a key of `FORMATS` or `STATE_DICTS`.
    source: file or folder.
    **options: what the flags of the same names give, None for nothing.

  Raises:
    ValueError: for an option that the format does not take or lacks, and what
      its converter raises.
  """
  form = guess(source) if form == "auto" else form
  module, name = (FORMATS | STATE_DICTS)[form]
  function = getattr(importlib.import_module(f"jaxdiff.weights.{module}"), name)
  known = inspect.signature(function).parameters
  given = {k: v for k, v in options.items() if v is not None}
  for option, value in given.items():
    if option not in known:
      raise ValueError(
        f"--{option}={value} says what files of the format {form} say"
        " themselves, or have not; leave it out"
      )
  for option in options:
    needed = (
      option in known and known[option].default is inspect.Signature.empty
    )
    if needed and option not in given:
      raise ValueError(f"files of the format {form} need --{option} as well")
  if form in STATE_DICTS:
    return function(pickles.state_dict(source), **given)
  return function(source, **given)


def write(
  out: pathlib.Path, config: models.ModelConfig, params: Any
) -> pathlib.Path:
  """Writes a model as the run folder that `training.load_denoiser` reads.

  Raises:
    ValueError: if the folder holds a model already.
  """
  folder = models.checkpoint_directory(out)
  if folder.is_dir() and any(folder.iterdir()):
    raise ValueError(
      f"{out} holds a model already; give another --out, or delete it"
    )
  opened = checkpoints.open(folder)
  try:
    opened.save(0, {"ema_params": params}, wait=True)
  finally:
    opened.close()
  models.save_config(folder, config)  # last: a folder without is no model
  return folder


def check(
  model: denoisers.Denoiser, shape: tuple[int, ...], images: Any = None
) -> str:
  """Returns a table of the model's outputs at five noise levels.

  Args:
    model: the denoiser.
    shape: shape of one sample.
    images: f[n, *shape] to be noised; None takes Gaussian noise of the data's
      size, on which errors mean nothing and are left out.

  Raises:
    ValueError: if an output is not finite, or the images have another shape.
  """
  if images is not None and images.shape[1:] != shape:
    raise ValueError(
      f"--data holds images of shape {images.shape[1:]}, but the network makes"
      f" {shape}; name the data that it was trained on"
    )
  key, process = jax.random.key(0), model.process
  x0 = images
  if x0 is None:
    size = model.sigma_data
    x0 = size * jax.random.normal(key, (_SAMPLES, *shape))
  x0 = jnp.asarray(x0)
  low, high = process.log_snr(np.asarray([process.t_max, process.t_min]))
  times = process.log_snr_inverse(np.linspace(high, low, 7)[1:-1])
  predict = jax.jit(lambda model, x, t: model(x, t))
  names = ["rms x0", "rms eps", "error x0", "error eps"]
  shown = names[: 2 if images is None else 4]
  lines = ["sigma/alpha" + "".join(f"{name:>10}" for name in shown)]
  for t in times:
    x, eps = process.perturb(jax.random.fold_in(key, 1), x0, jnp.float32(t))
    out = predict(model, x, jnp.float32(t))
    if not all(np.isfinite(v).all() for v in out):
      raise ValueError(
        f"the network returns values that are not finite at t = {t:.4g}; the"
        " weights are damaged, or of another configuration"
      )
    noise = float(np.exp(-process.log_snr(np.asarray(t))))
    values = [*out, out.x0 - x0, out.eps - eps][: len(shown)]
    rms = [float(jnp.sqrt(jnp.mean(v**2))) for v in values]
    lines.append(f"{noise:11.4g}" + "".join(f"{v:10.4f}" for v in rms))
  return "\n".join(lines)


def describe(config: models.ModelConfig, params: Any) -> str:
  """Returns what a converted model is, in lines."""
  size = sum(v.size for v in jax.tree.leaves(params))
  classes = f", {config.num_classes} classes" if config.num_classes else ""
  noise = ", ".join(
    f"{len(v)} {k}" if np.ndim(v) else f"{k}={v:g}"
    for k, v in config.process_options.items()
  )
  return "\n".join(
    [
      f"network     {config.network}, {size:,} parameters{classes}",
      f"image       {'x'.join(map(str, config.shape))}",
      f"process     {config.process}({noise})",
      f"prediction  {config.prediction}, told {config.time}",
    ]
  )


def _options(text: str) -> dict[str, Any]:
  try:
    options = json.loads(text)
  except ValueError as e:
    raise ValueError(
      f"--data_options={text} is no JSON ({e}); write it as"
      ' {"keys": {"image": "x_train"}}'
    ) from e
  return options


def define_flags() -> None:
  """Defines the command line; not at import, for others import this file."""
  flags.DEFINE_float(
    "data_width",
    0.0,
    "Standard deviation of the model's data along their widest direction; 0"
    " measures it on --data, and without data it is not known.",
    lower_bound=0.0,
  )
  flags.DEFINE_enum(
    "format", "auto", ["auto", *FORMATS, *STATE_DICTS], "Who wrote the weights."
  )
  flags.DEFINE_string(
    "source", None, "File or folder of the weights.", required=True
  )
  flags.DEFINE_string("out", None, "Run folder to make.", required=True)
  flags.DEFINE_string(
    "config", None, "Configuration of score_sde, vp/cifar10_ddpmpp_continuous."
  )
  flags.DEFINE_integer(
    "heads", None, "Attention heads of a state dict of DiT, SiT or U-ViT."
  )
  flags.DEFINE_string(
    "data", None, "Data set, as data.load takes it, to measure errors on."
  )
  flags.DEFINE_string(
    "data_options",
    "{}",
    'Options of data.load as JSON: {"keys": {"image": "x_train"}}.',
  )


def main() -> None:
  source = pathlib.Path(FLAGS.source).expanduser()
  out = pathlib.Path(FLAGS.out).expanduser()
  config, params = load(
    FLAGS.format, source, config=FLAGS.config, heads=FLAGS.heads
  )
  params = jax.tree.map(jnp.asarray, params)
  images, width = None, FLAGS.data_width
  if FLAGS.data:
    held = data.load(FLAGS.data, **_options(FLAGS.data_options))
    images = sources.subset(held, _SAMPLES)["image"]
    width = width or choosing.width(sources.subset(held, _OF_WIDTH)["image"])
  config = dataclasses.replace(config, data_width=float(f"{width:.4g}"))
  model = dataclasses.replace(models.make_denoiser(config), params=params)
  table = check(model, config.shape, images)
  write(out, config, params)
  print(describe(config, params))
  print(table)
  print(f"Wrote {out}; python -m experiments.sample --workdir={out}")


if __name__ == "__main__":
  define_flags()
  console.run(main)

r"""Trains a model of the zoo and writes it into the package.

  python -m experiments.pages.zoo --name=digits --workdir=runs/zoo/digits

It is `experiments.train` with the configuration named in RECIPES, then the
averaged parameters in float16, with measures of their samples, in
jaxdiff/zoo/NAME.npz; and the table of all models in jaxdiff/zoo/README.md. A
run that was interrupted goes on. With --steps it is a trial: the file goes
into the working directory.

Measures, at equal numbers of samples, half the data set: the Frechet distance
of random features (metrics.random_feature_frechet) between samples and one half
of the data, and the floor, that between the two halves. And what rounding the
parameters does, to float16 as they are stored and to bfloat16: root mean square
change of a sample from the same noise, pixels in [-1, 1]. Samples are those of
20 steps of EDM's Heun, 39 calls, of every class in turn.
"""

import csv
import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import metrics
from jaxdiff import models
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import zoo

from .. import train
from ..parts import console
from ..parts import plots

STEPS = 20  # of EDM's Heun, for the measures and the picture
ROUNDED = 256  # samples that show what rounding does
TAIL = 10  # reports that the final loss is the mean of
FOLDER = pathlib.Path(zoo.__file__).parent


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a model of the zoo is trained.

  Attributes:
    config: file of experiments/configs/.
    changes: new values of its entries.
    what: the model in a line.
  """

  config: str
  what: str
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


RECIPES = {
  "digits": Recipe("digits", "scikit-learn's digits, EDM"),
  "digits_flow": Recipe(
    "digits",
    "scikit-learn's digits, rectified flow",
    dict(
      process="rectified_flow",
      process_options={},
      prediction="flow",
      times=("logit_normal", 0.0, 1.0),
      weighting="output",
      network_options=dict(
        channels=32, multipliers=(1,), blocks=1, attention=(4,), patch=2
      ),
    ),
  ),
  "patches16": Recipe(
    "patches16",
    "photograph patches, EDM",
    dict(
      network_options=dict(
        channels=24, multipliers=(1, 2), blocks=1, attention=(8,)
      ),
      # Neighbouring pixels are alike: the brightness of a whole patch is wider
      # than that of a pixel, and is decided at more noise.
      times=("log_normal", -0.4, 1.8),
      learning_rate=2e-3,
      steps=3500,
    ),
  ),
}


def configuration(name: str) -> Any:
  """Returns the configuration of experiments.train for a model."""
  recipe = RECIPES[name]
  module = importlib.import_module(f"..configs.{recipe.config}", __package__)
  config = module.get_config()
  with config.ignore_type():
    for entry, value in recipe.changes.items():
      setattr(config, entry, value)
  return config


def draw(
  model: denoisers.Denoiser, shape: tuple[int, ...], classes: int, num: int
) -> np.ndarray:
  """Returns samples f32[num, *shape] of every class in turn, of one noise."""
  grid = grids.karras(model.process, STEPS, to_zero=True)
  table = solvers.heun(model.process, grid)
  labels = jnp.arange(num) % max(classes, 1)
  model = denoisers.with_label(model, labels) if classes else model
  x = sampling.sample(
    jax.random.key(0), model, table, (num, *shape), process=model.process
  )
  return np.asarray(x)


def measures(
  model: denoisers.Denoiser, config: models.ModelConfig
) -> dict[str, float]:
  """Returns the measures of the module's docstring."""
  images = data.load(config.dataset, **config.dataset_options)["image"]
  n = len(images) // 2
  chosen = np.random.Generator(np.random.Philox(0)).permutation(len(images))
  half, other = images[chosen[:n]], images[chosen[n : 2 * n]]

  def rounded(dtype: Any) -> denoisers.Denoiser:
    params = jax.tree.map(
      lambda p: p.astype(dtype).astype(jnp.float32), model.params
    )
    return dataclasses.replace(model, params=params)

  draws = functools.partial(
    draw, shape=config.shape, classes=config.num_classes
  )
  exact = draws(model, num=ROUNDED)
  change = lambda dtype: float(
    np.sqrt(np.mean((draws(rounded(dtype), num=ROUNDED) - exact) ** 2))
  )
  frechet = metrics.random_feature_frechet
  return {
    "frechet": frechet(draws(rounded(jnp.float16), num=n), half),
    "frechet floor": frechet(other, half),
    "samples of each": n,
    "change by float16": change(jnp.float16),
    "change by bfloat16": change(jnp.bfloat16),
  }


def final_loss(workdir: pathlib.Path) -> float:
  """Returns the mean loss of the last reports of a run."""
  with (workdir / "metrics.csv").open() as f:
    rows = list(csv.DictReader(f))[-TAIL:]
  return float(np.mean([float(row["loss"]) for row in rows]))


def readme() -> str:
  """Returns README.md of the zoo: a table of the files that are there."""
  lines = [
    "# The zoo",
    "",
    "Trained models that come with the library: `jaxdiff.zoo.load(NAME)`."
    " Written by `experiments/pages/zoo.py`, which says how the measures are"
    " taken. Parameters are stored in float16.",
    "",
    "| name | what | shape | classes | parameters | kB | steps | loss |"
    " Frechet (floor) | change by float16 (bfloat16) | command, seed |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for name in zoo.names():
    card = zoo.describe(name)
    r, config = card.record, card.config
    cells = [
      f"`{name}`",
      r["what"],
      "x".join(map(str, config.shape)),
      f"{config.num_classes}",
      f"{card.parameters:,}",
      f"{card.bytes / 1000:.0f}",
      f"{r['steps']:,}",
      f"{r['loss']:.3f}",
      f"{r['frechet']:.3f} ({r['frechet floor']:.3f}) on"
      f" {r['samples of each']:,}",
      f"{r['change by float16']:.1e} ({r['change by bfloat16']:.1e})",
      f"`{r['command']}`, {r['seed']}",
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  name, steps = flags.FLAGS.name, flags.FLAGS.steps
  if steps is None:
    console.checkout("the zoo")  # whose files are part of the package
  workdir = pathlib.Path(flags.FLAGS.workdir)
  config = configuration(name)
  if steps is not None:
    config.steps = steps
  model = train.train(config, workdir)
  stored = models.load_config(models.checkpoint_directory(workdir))
  record = {
    "what": RECIPES[name].what,
    "command": (
      f"python -m experiments.pages.zoo --name={name} --workdir=WORKDIR"
    ),
    "seed": config.seed,
    "steps": config.steps,
    "loss": final_loss(workdir),
    **measures(model, stored),
  }
  record = {
    k: float(f"{v:.4g}") if isinstance(v, float) else v
    for k, v in record.items()
  }
  path = (FOLDER if steps is None else workdir) / f"{name}.npz"
  zoo.write(path, stored, model.params, record)
  if steps is None:
    (FOLDER / "README.md").write_text(readme())
  images = draw(zoo.load(path), stored.shape, stored.num_classes, 100)
  print(zoo.describe(path))
  print(f"Wrote {path}")
  title = f"{name}, {STEPS} steps of Heun"
  print(plots.samples(images, workdir / "samples.png", title=title))


if __name__ == "__main__":
  flags.DEFINE_enum("name", None, tuple(RECIPES), "Which model.")
  flags.DEFINE_string(
    "workdir", None, "Directory of the run, its checkpoints and its picture."
  )
  flags.DEFINE_integer(
    "steps", None, "Updates, for a trial; as configured by default."
  )
  flags.mark_flags_as_required(["name", "workdir"])
  console.run(main)

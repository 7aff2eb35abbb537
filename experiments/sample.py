r"""Draws samples from a trained model: an .npz file and a picture.

  python -m experiments.sample --workdir=runs/digits --num=100
  python -m experiments.sample --workdir=runs/digits --solver=heun_churn \
      --calls=39 --label=7 --guidance_scale=2

Sample i depends on --seed and on i alone, not on --batch: a larger --num
repeats the first images. Images that an interrupted run wrote are kept.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import auto as tqdm

from experiments import console
from experiments import plots
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import training

FLAGS = flags.FLAGS


def table_for(
  process: Any, solver: str, grid: str, calls: int
) -> tables.Tableau:
  """Returns a solver's table to sigma = 0 for a budget of calls.

  Raises:
    ValueError: if not even one step fits the budget, beside the last call,
      which goes to sigma = 0.
  """
  per_step = solvers.CASES[solver].calls(1)
  table = solvers.for_budget(
    functools.partial(solvers.CASES[solver].build, process),
    functools.partial(grids.GRIDS[grid], process, to_zero=True),
    calls,
  )
  if table is None or table.nfe < min(calls, per_step):
    raise ValueError(
      f"{solver} takes {per_step} calls for a step and one more to reach"
      f" sigma = 0, which --calls={calls} does not allow; give at least"
      f" --calls={per_step + 1}, or another --solver"
    )
  return table


def draw(
  model: denoisers.Denoiser,
  table: tables.Tableau,
  shape: tuple[int, ...],
  *,
  num: int,
  seed: int = 0,
  batch: int = 256,
  classes: int = 0,
  label: int | None = None,
  guidance_scale: float = 1.0,
  keep: pathlib.Path | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (samples f32[num, *shape], labels i32[num]).

  Args:
    model: the denoiser.
    table: the solver.
    shape: of one sample.
    num: number of samples.
    seed: of their noise.
    batch: samples drawn at a time; the last batch is padded to it.
    classes: number of classes, 0 for an unconditional model.
    label: class of all; None takes every class in turn.
    guidance_scale: of classifier-free guidance.
    keep: folder for the batches already drawn; see `remove_parts`. A part of
      another shape is drawn again.

  Raises:
    ValueError: for a label or a guidance_scale of an unconditional model, and
      for a label that the model lacks.
  """
  if not classes and (label is not None or guidance_scale != 1.0):
    given = f"label={label}" if label is not None else ""
    if guidance_scale != 1.0:
      given += f"{' and ' if given else ''}guidance_scale={guidance_scale}"
    raise ValueError(
      f"{given} needs a model with classes, but this one was trained without"
      " (num_classes = 0); leave it out, or train with config.num_classes"
    )
  if label is not None and not 0 <= label < classes:
    raise ValueError(
      f"label={label}, but the model has {classes} classes, 0..{classes - 1}"
    )
  labels = np.arange(num + batch) % max(classes, 1)
  if label is not None:
    labels[:] = label
  parts = []
  for first in tqdm.tqdm(range(0, num, batch), desc="sampling", unit="batch"):
    part = keep / f"part-{first:08d}.npy" if keep else None
    if part is not None and part.exists():
      held = np.load(part)
      if held.shape == (batch, *shape):
        parts.append(held)
        continue
    chosen = jnp.asarray(labels[first : first + batch])
    conditioned = model
    if classes and guidance_scale == 1.0:
      conditioned = denoisers.with_label(model, chosen)
    elif classes:
      conditioned = guidance.cfg(
        model, label=chosen, null=classes, scale=guidance_scale
      )
    x = sampling.sample(
      jax.random.key(seed),
      conditioned,
      table,
      (batch, *shape),
      process=model.process,
      index=np.arange(first, first + batch),
      check_finite=True,
    )
    parts.append(np.asarray(x))
    if part is not None:
      keep.mkdir(parents=True, exist_ok=True)
      partial = part.with_suffix(".partial")
      with open(partial, "wb") as f:
        np.save(f, parts[-1])
      partial.replace(part)
  return np.concatenate(parts)[:num], labels[:num]


def parts_folder(
  out: pathlib.Path, workdir: str, batch: int, **setting: Any
) -> pathlib.Path:
  """Returns where to keep the batches of a setting until all are drawn.

  Args:
    out: folder of the results.
    workdir: of the run; another checkpoint or model is another folder.
    batch: samples really drawn at a time.
    **setting: whatever else the samples depend on.
  """
  values = [*setting.values(), batch, training.fingerprint(workdir)]
  return out / f".parts-{'-'.join(map(str, values))}"


def remove_parts(keep: pathlib.Path) -> None:
  """Removes the batches that `draw` kept."""
  for part in keep.glob("part-*"):
    part.unlink()
  if keep.exists():
    keep.rmdir()


def define_flags() -> None:
  """Defines the command line; not at import, for others import this file."""
  flags.DEFINE_string(
    "workdir", "runs/digits", "Folder of a run of experiments.train."
  )
  flags.DEFINE_enum(
    "solver", "unipc_3", sorted(solvers.CASES), "Solver to sample with."
  )
  flags.DEFINE_enum(
    "grid", "vp_quadratic", sorted(grids.GRIDS), "Grid of times."
  )
  flags.DEFINE_integer(
    "calls", 18, "Network calls for each sample, at most.", lower_bound=1
  )
  flags.DEFINE_integer("num", 100, "Number of samples.", lower_bound=1)
  flags.DEFINE_integer("batch", 256, "Samples drawn at a time.", lower_bound=1)
  flags.DEFINE_integer(
    "label", None, "Class to draw; by default every class in turn."
  )
  flags.DEFINE_float(
    "guidance_scale",
    1.0,
    "Classifier-free guidance: 1 is conditional, 0 unconditional, more than 1"
    " sharpens.",
  )
  flags.DEFINE_integer("seed", 0, "Seed of the samples.")
  flags.DEFINE_string(
    "out", None, "Folder for samples.npz and samples.png; --workdir by default."
  )


def main() -> None:
  folder = training.checkpoint_directory(FLAGS.workdir)
  config = training.load_config(folder)
  model = training.load_denoiser(FLAGS.workdir)
  table = table_for(model.process, FLAGS.solver, FLAGS.grid, FLAGS.calls)
  out = pathlib.Path(FLAGS.out or FLAGS.workdir)
  out.mkdir(parents=True, exist_ok=True)
  batch = min(FLAGS.batch, FLAGS.num)
  names = ("solver", "grid", "calls", "label", "guidance_scale", "seed")
  setting = {name: FLAGS[name].value for name in names}
  keep = parts_folder(out, FLAGS.workdir, batch, **setting)
  images, labels = draw(
    model,
    table,
    config.shape,
    num=FLAGS.num,
    seed=FLAGS.seed,
    batch=batch,
    classes=config.num_classes,
    label=FLAGS.label,
    guidance_scale=FLAGS.guidance_scale,
    keep=keep,
  )
  np.savez(out / "samples.npz", image=images, label=labels)
  remove_parts(keep)
  print(
    f"Wrote {out}/samples.npz ({len(images)} samples, {table.nfe} calls each)."
  )
  title = f"{FLAGS.solver}, {table.nfe} calls, {FLAGS.grid} grid"
  print(plots.samples(images, out / "samples.png", title=title))


if __name__ == "__main__":
  define_flags()
  console.run(main)

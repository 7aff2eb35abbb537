r"""Distils a teacher into a student of few steps.

  python -m experiments.distill --method=dmd --workdir=runs/dmd
  python -m experiments.distill --method=dmd --workdir=runs/dmd4 \
      --config.teacher=runs/digits --config.guidance_scale=2 \
      --config.options.generator.kind=backward_simulation \
      --config.options.generator.calls=4

Every entry of a method's configuration (experiments/configs/distill.py) can be
set on the command line. The teacher is a model of the zoo, the folder of a run
of experiments.train, or "mixture": the exact denoiser of 25 Gaussians. The
working directory receives

  checkpoints/<step>/         student, average, other players, optimizers
  checkpoints/config.json     the student, from which it is rebuilt
  metrics.csv                 one row per report: the losses of all players
  quality.csv                 distance to the data at 1, 2, 4 calls
  samples_1.png ...           the student's samples at 1, 2, 4 calls

If it holds a checkpoint already, training goes on from there, bit for bit.
Ctrl-C and SIGTERM save first; a loss that diverges ends the run before it is
saved. The student is an ordinary model,

  jaxdiff.training.load_denoiser("runs/dmd")

which its own sampler draws from:

  python -m experiments.sample --workdir=runs/dmd --solver=gamma_sampling \
      --start=4 --calls=1
"""

import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import flags
from ml_collections import config_dict

from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import jobs
from jaxdiff import locks
from jaxdiff import metrics
from jaxdiff import models
from jaxdiff import parallel
from jaxdiff import processes
from jaxdiff import training
from jaxdiff import zoo

from . import train
from .configs import distill as configs
from .parts import console
from .parts import grid25
from .parts import plots
from .parts import recipe
from .parts import sources

_MIXTURE = "mixture"


class Task(NamedTuple):
  """A teacher, what it was trained on, and the network of its students.

  Attributes:
    config: config of the teacher's network, or of the one that will imitate it.
    teacher: model(x, t[, label]) -> Prediction, guided if it is to be.
    network: the teacher as a Denoiser; None if it is exact.
    source: the data.
  """

  config: models.ModelConfig
  teacher: Any
  network: denoisers.Denoiser | None
  source: Any


def task(config: config_dict.ConfigDict) -> Task:
  """Returns what a configuration names as its teacher.

  Raises:
    FileNotFoundError: if there is no such teacher.
    ValueError: for guidance of a teacher without classes.
  """
  name = config.teacher
  if name == _MIXTURE:
    return _mixture(config)
  if name in zoo.names():
    model_config, network = zoo.describe(name).config, zoo.load(name)
  else:
    model_config = models.load_config(models.checkpoint_directory(name))
    network = training.load_denoiser(name)
  teacher = network
  if config.guidance_scale != 1.0:
    if not model_config.num_classes:
      raise _without_classes(config)
    teacher = distillation.guided(network, config.guidance_scale)
  options = dict(model_config.dataset_options)
  if config.dataset:
    options = {}
  source = data.load(config.dataset or model_config.dataset, **options)
  return Task(model_config, teacher, network, source)


def _without_classes(config: config_dict.ConfigDict) -> ValueError:
  return ValueError(
    f"config.guidance_scale={config.guidance_scale}, but the teacher"
    f" {config.teacher!r} is one without classes; leave it out"
  )


def _mixture(config: config_dict.ConfigDict) -> Task:
  if config.guidance_scale != 1.0:
    raise _without_classes(config)
  data_set = grid25.pool(jax.random.key(0))
  return Task(grid25.config(), grid25.teacher(), None, data_set)


def batches(config: config_dict.ConfigDict, on: Task) -> data.Batches:
  """Returns the iterator of batches; with labels where there are classes."""
  source = on.source
  if isinstance(source, dict):
    names = ("image", "label") if on.config.num_classes else ("image",)
    source = {name: source[name] for name in names}
  return data.batches(
    source,
    config.batch_size,
    seed=config.seed,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
  )


def student(
  config: config_dict.ConfigDict,
  on: Task,
  workdir: pathlib.Path,
  progress: bool = True,
) -> tuple[models.ModelConfig, denoisers.Denoiser]:
  """Returns the student before its training: a copy of the teacher.

  One of an exact teacher imitates it first; the result is kept in the folder
  `start` of the working directory, so that a resumed run begins with the same.
  """
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  changes = recipe.plain(config, "student")
  model_config = dataclasses.replace(on.config, jumps=config.jumps, **changes)
  if changes:  # another kind of network: it begins anew
    return model_config, models.make_denoiser(model_config, key)
  if on.network is not None:
    return model_config, distillation.student_of(
      key, on.network, on.config.shape, jumps=config.jumps
    )
  steps = config.imitation_steps
  fresh = models.make_denoiser(model_config, key)
  chosen = grid25.imitation(on.teacher, fresh, steps)
  opened = checkpoints.open(workdir / "start", keep=1)
  models.save_config(workdir / "start", model_config)
  try:
    if progress and opened.latest() != steps:
      print("The student imitates its exact teacher first.", flush=True)
    state = training.train(
      distillation.init_state(key, chosen),
      distillation.make_update(chosen),
      batches(config, on),
      steps=steps,
      checkpoints=opened,
      every=steps,
      progress=progress,
    )
  finally:
    opened.close()
  return model_config, chosen.finished(state)


def stand_in(
  config: config_dict.ConfigDict,
  on: Task,
  workdir: pathlib.Path,
  progress: bool = True,
) -> denoisers.Denoiser | None:
  """Returns a network for a fake score that neither player can lend one.

  None if there is no such score, if the teacher has a network, or if the
  student, as its copy, has.
  """
  asked = _takes(config).fake
  if on.network is not None or not (asked and recipe.plain(config, "student")):
    return None
  config = config.copy_and_resolve_references()
  config.jumps, config.student = False, config_dict.ConfigDict()
  return student(config, on, workdir, progress)[1]


def method(
  config: config_dict.ConfigDict,
  on: Task,
  begin: denoisers.Denoiser,
  fake: denoisers.Denoiser | None = None,
) -> distillation.Method:
  """Returns the method that a configuration asks for, ready to be trained.

  Args:
    config: as `configs.distill.get_config(method)` returns it.
    on: the teacher and its data.
    begin: the student before its training.
    fake: the fake score before its training; None leaves it to the builder.

  Raises:
    ValueError: for an unknown builder, or options that it does not take.
  """
  takes = _takes(config)
  options, rates = (
    recipe.plain(config, n) for n in ("options", "learning_rates")
  )
  _check_names(config, [*options, *rates])
  options, rates = (
    {k: v for k, v in given.items() if v is not None}
    for given in (options, rates)
  )
  fill = dict(
    updates=lambda: max(1, config.steps // options.get(takes.parts, 1)),
    shape=lambda: on.config.shape,
    layer=lambda: _layer(begin),
  )
  options = {name: fill[name]() for name in takes.filled} | options
  for name in takes.times:
    if name in options:
      options[name] = recipe.time_sampler(
        options[name], begin.process, f"config.options.{name}"
      )
  if takes.generator:
    options["generator"] = generator(options["generator"], begin.process)
  if config.ema is not None:
    options["ema"] = config.ema
  if fake is not None:
    options["fake"] = fake
  for name, rate in rates.items():
    # several steps in an update: a schedule made for the student's would end
    # early, and leave the student to a fake score that no longer follows it
    options[name] = _optimizer(config, rate, "constant")
  players = (on.teacher, begin) if takes.teacher else (begin,)
  return getattr(distillation, config.builder)(
    *players,
    optimizer=_optimizer(config, config.learning_rate, config.schedule),
    **options,
  )


def _takes(config: config_dict.ConfigDict) -> configs.Builder:
  """Returns what the configuration's builder takes."""
  if config.builder not in configs.BUILDERS:
    raise ValueError(
      f"config.builder={config.builder!r} is no function of"
      f" jaxdiff.distillation with an entry in experiments/configs/distill.py;"
      f" {', '.join(configs.BUILDERS)} are"
    )
  return configs.BUILDERS[config.builder]


def _check_names(config: config_dict.ConfigDict, names: Sequence[str]) -> None:
  entry = configs.get_config(config.method)
  known = [*entry.options, *entry.learning_rates]
  wrong = sorted(set(names) - set(known))
  if wrong:
    raise ValueError(
      f"config.options and config.learning_rates have {', '.join(wrong)}, which"
      f" {config.method} does not take; it takes {', '.join(known)}"
    )


def generator(
  entries: Mapping[str, Any], process: processes.GaussianProcess
) -> distillation.generators.Generator | None:
  """Returns how a student is asked; None leaves it to the builder.

  Args:
    entries: {"kind": name in configs.distill.GENERATORS, ...}; those that are
      None are not set.
    process: process of the student.

  Raises:
    ValueError: for an unknown kind, or entries that it does not have or lacks.
  """
  field = "config.options.generator"
  given = {k: v for k, v in entries.items() if v is not None}
  kind = given.pop("kind", "")
  if not kind and not given:
    return None
  if kind not in configs.GENERATORS:
    raise ValueError(
      f"{field}.kind={kind!r}, but must be one of"
      f" {', '.join(configs.GENERATORS)}"
    )
  known = configs.GENERATORS[kind]
  wrong = sorted(set(given) - set(known))
  if wrong:
    raise ValueError(
      f"{field} has {', '.join(wrong)}, which {kind} does not have; it has"
      f" {', '.join(known)}. Another kind is given as a whole:"
      f" --{field}=\"{{'kind': {kind!r}, ...}}\""
    )
  needed = {"noised_data": "times", "backward_simulation": "calls"}.get(kind)
  if needed and needed not in given:
    raise ValueError(f"{field} is {kind}, which needs {field}.{needed}")
  kinds = distillation.generators
  if kind == "noised_data":
    times = recipe.time_sampler(given["times"], process, f"{field}.times")
    return kinds.noised_data(process, times)
  if kind == "one_step":
    start = given.pop("start", None)
    t = None if start is None else float(process.time_at(start))
    return kinds.one_step(process, t, **given)
  last = given.pop("last", False)
  grid = distillation.few_step_grid(process, **given)
  return kinds.backward_simulation(process, grid, last=last)


def _layer(model: denoisers.Denoiser) -> str:
  """Returns the layer of a network that a discriminator reads."""
  module = model.apply.module
  if hasattr(module, "features"):  # an MLP: its last hidden layer
    return f"Dense_{len(module.features) - 1}"
  if hasattr(module, "hidden"):  # a residual MLP: inside its last block
    return f"block{module.blocks - 1}_in"
  return "middle"


def _optimizer(
  config: config_dict.ConfigDict, rate: float, schedule: str
) -> optax.GradientTransformation:
  config = config.copy_and_resolve_references()
  config.learning_rate, config.schedule = rate, schedule
  return recipe.optimizer(config)


def draw(
  config: config_dict.ConfigDict,
  model: denoisers.Denoiser,
  shape: tuple[int, ...],
  calls: int,
  num: int,
  classes: int = 0,
) -> np.ndarray:
  """Returns samples f32[num, *shape] of a student's own sampler."""
  grid = distillation.few_step_grid(
    model.process,
    calls,
    start=config.start,
    lowest=config.lowest,
    to_zero=config.to_zero,
  )
  model, table = distillation.sampler(model, grid, gamma=config.gamma)
  job = jobs.Job(model, table, shape, seed=config.seed, classes=classes)
  x, _ = jobs.launch(job, np.arange(num))
  return np.asarray(x)


def by_ddim(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """Returns the configuration with which `draw` samples a teacher."""
  config = config.copy_and_resolve_references()
  config.update(dict(gamma=0.0, to_zero=True))
  config.start = config.lowest = None
  return config


def distance(x: np.ndarray, reference: np.ndarray) -> float:
  """Returns a distance to the data, of as many of either.

  The sliced Wasserstein distance of points, the Frechet distance of random
  features of images.
  """
  n = min(len(x), len(reference))
  x, reference = x[:n], reference[:n]
  if x.ndim == 2:
    key = jax.random.key(0)
    return float(metrics.sliced_wasserstein(key, x, reference, 256))
  return metrics.random_feature_frechet(x, reference)


def distil(
  config: config_dict.ConfigDict,
  workdir: str | os.PathLike,
  progress: bool = True,
) -> denoisers.Denoiser:
  """Returns the student, with averaged parameters.

  Args:
    config: as `configs.distill.get_config(method)` returns it.
    workdir: directory for checkpoints, metrics and pictures; training goes on
      from the last checkpoint in it.
    progress: show a progress bar.

  Raises:
    BlockingIOError: if another training holds the working directory.
    FloatingPointError: if the training diverges; the loss and step are named.
    ValueError: if the working directory holds another student, or the options
      do not fit the method.
  """
  recipe.check(config)
  workdir = pathlib.Path(workdir).expanduser().absolute()
  with locks.hold(workdir, "training", only=jax.process_index() == 0):
    return _distil(config, workdir, progress)


def _distil(config, workdir, progress):
  writers = [training.csv_writer(workdir / "metrics.csv")]
  if config.tensorboard:
    writers.append(training.tensorboard_writer(workdir / "tensorboard"))
  on = task(config)
  directory = models.checkpoint_directory(workdir)
  opened = checkpoints.open(directory, keep=config.keep)
  try:
    model_config, begin = student(config, on, workdir, progress)
    fake = stand_in(config, on, workdir, progress)
    chosen = method(config, on, begin, fake)
    model_config = dataclasses.replace(
      model_config, bounds=getattr(chosen.student, "bounds", ())
    )
    if opened.latest() is not None:
      models.check_config(directory, model_config)
    models.save_config(directory, model_config)
    state = distillation.init_state(jax.random.key(config.seed), chosen)
    mesh = parallel.data_mesh(config.devices or None)
    shardings = train.shardings_of(config, mesh, lambda: state)
    if shardings:
      state = jax.device_put(state, shardings[0])
    with data.to_device(
      batches(config, on), shardings and shardings[1]
    ) as iterator:
      state = training.train(
        state,
        distillation.make_update(chosen, shardings=shardings),
        iterator,
        steps=config.steps,
        checkpoints=opened,
        every=config.checkpoint_every,
        log_every=config.log_every,
        on_metrics=training.together(*writers),
        on_checkpoint=_looks(config, on, chosen, workdir),
        progress=progress,
      )
  finally:
    opened.close()
  return chosen.finished(state)


def _looks(
  config: config_dict.ConfigDict,
  on: Task,
  chosen: distillation.Method,
  workdir: pathlib.Path,
) -> Any:
  """Returns on_checkpoint: measures and draws the student as it is."""
  if jax.process_index():
    return None
  write = training.csv_writer(workdir / "quality.csv")
  reference = sources.images(on.source)[: config.samples]

  def look(step: int, state: training.TrainState) -> None:
    model = jax.device_get(chosen.finished(state))
    found = {}
    for calls in config.calls:
      x = draw(
        config,
        model,
        on.config.shape,
        calls,
        config.samples,
        on.config.num_classes,
      )
      found[f"distance_{calls}"] = distance(x, reference)
      title = f"{config.method}, {calls} call(s), update {step}"
      plots.samples(x, workdir / f"samples_{calls}.png", title=title)
    write(step, found)

  return look


def report(config: config_dict.ConfigDict, workdir: pathlib.Path) -> str:
  """Returns what a finished run shows: the student beside its teacher."""
  on = task(config)
  images = sources.images(on.source)
  n = min(config.samples, len(images) // 2)
  reference, other = images[:n], images[n : 2 * n]
  shape, classes = on.config.shape, on.config.num_classes
  rows = [("data, other half", "", distance(other, reference))]
  model = on.network
  if model is None:
    model = training.load_denoiser(workdir / "start", ema=True)
  options = by_ddim(config)
  for calls in (1, 18):
    x = draw(options, model, shape, calls, n, classes)
    rows.append(("teacher, DDIM", calls, distance(x, reference)))
  model = training.load_denoiser(workdir)
  for calls in config.calls:
    x = draw(config, model, shape, calls, n, classes)
    rows.append((f"student, {config.method}", calls, distance(x, reference)))
  lines = [f"{'':24} calls  distance to {n} of the data"]
  lines += [
    f"{name:24} {calls!s:>5}  {value:.4g}" for name, calls, value in rows
  ]
  return "\n".join(lines)


def _named_method(argv: list[str]) -> str:
  """Returns --method of a command line, "dmd" if there is none.

  The entries of the configuration depend on it, so it is read first.
  """
  for i, argument in enumerate(argv):
    name, equals, value = argument.lstrip("-").partition("=")
    if name == "method":
      return value if equals else (argv[i + 1 :] or [""])[0]
  return "dmd"


def by_place(argv: Sequence[str]) -> str | None:
  """Returns what to write in place of a generator given by place, else None."""
  flag = "--config.options.generator"
  for argument in argv:
    if re.match(rf"{flag}=\s*[(\[]", argument):
      return (
        f"{argument}: a generator is given by named entries, {flag}.calls=4, or"
        f" as a whole, {flag}=\"{{'kind': 'one_step', 'start': 4.0}}\""
      )
  return None


def main() -> None:
  """Distils what the flags ask for."""
  config, workdir = flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir)
  distil(config, workdir)
  if jax.process_index() == 0:
    print(report(config, workdir))
    names = ", ".join(f"samples_{calls}.png" for calls in config.calls)
    print(f"Distilled: {workdir} ({names}, quality.csv, metrics.csv).")


if __name__ == "__main__":
  flags.DEFINE_enum(
    "method",
    "dmd",
    sorted(configs.METHODS),
    "How: a name in experiments/configs/distill.py.",
  )
  if mistake := by_place(sys.argv):
    sys.exit(f"error: {mistake}")
  chosen_method = _named_method(sys.argv[1:])
  if chosen_method not in configs.METHODS:
    chosen_method = "dmd"  # the flag itself is refused with the names
  console.define_config(
    configs.get_config(chosen_method),
    "The method's configuration; set entries with --config.NAME=VALUE.",
  )
  flags.DEFINE_string(
    "workdir",
    None,
    "Directory for checkpoints, metrics and pictures. Made if it does not"
    " exist; if it holds a checkpoint, training goes on from there.",
  )
  flags.mark_flag_as_required("workdir")
  console.run(main)

r"""Trains a denoiser, resuming by itself where an earlier run stopped.

  python -m experiments.train --config=experiments/configs/digits.py \
      --workdir=/tmp/digits

Every entry of a configuration can be set on the command line, as in
--config.steps=100 or --config.network_options.channels=32. Another network or
process takes other options, which are given as a whole:
--config.network=residual_mlp --config.network_options="{'width': 64}". The
working directory receives

  checkpoints/<step>/         parameters, their average, optimizer, position
  checkpoints/config.json     the model, from which it is rebuilt
  averages/<step>/            with --config.averages="(0.05, 0.1)": snapshots
  metrics.csv, tensorboard/   one row per report; loss.png at the end
  trace/                      with --config.trace="(100, 110)": the profiler's

If it holds a checkpoint already, training goes on from there, bit for bit.
Ctrl-C and SIGTERM save first. Read the result back with

  jaxdiff.training.load_denoiser("/tmp/digits")

It runs on all devices, the batch split over them; --config.params=sharded
splits parameters and optimizer too. On several hosts start the same command in
each, with --coordinator=auto where the cluster tells who they are, or with

  --coordinator=HOST:PORT --process_count=2 --process_index=0    (and 1)
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
from absl import flags
from ml_collections import config_dict

from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import locks
from jaxdiff import losses
from jaxdiff import models
from jaxdiff import parallel
from jaxdiff import training

from .parts import console
from .parts import plots
from .parts import recipe
from .parts import sources

_CURVE = ("metrics.csv", "loss.png")


def train(
  config: config_dict.ConfigDict,
  workdir: str | os.PathLike,
  progress: bool = True,
) -> denoisers.Denoiser:
  """Returns the trained denoiser, with averaged parameters.

  Args:
    config: as `get_config()` of a file in experiments/configs/ returns it.
    workdir: directory for checkpoints and metrics; training goes on from the
      last checkpoint in it.
    progress: show a progress bar.

  Raises:
    BlockingIOError: if another training holds the working directory.
    ValueError: if the working directory holds a checkpoint of another model,
      the data do not fit the configuration, or a number in it is out of range.
  """
  recipe.check(config)
  first = jax.process_index() == 0
  with locks.hold(workdir, "training", only=first):
    return _train(config, workdir, progress)


def _train(config, workdir, progress):
  workdir = pathlib.Path(workdir).expanduser().absolute()
  writers = _writers(config, workdir)
  source = data.load(config.dataset, **recipe.plain(config, "dataset_options"))
  sample = sources.subset(source)
  _check_labels(config, sources.labels(source, sample))
  model = recipe.model(config, sample)
  denoiser = models.make_denoiser(model)
  optimizer = recipe.optimizer(config)
  init_key, run_key = jax.random.split(jax.random.key(config.seed))

  def begin() -> training.TrainState:
    return training.init_state(
      run_key,
      models.make_denoiser(model, init_key).params,
      optimizer,
      loss_params=losses.uncertainty.init() if config.learned_weighting else (),
      averages=len(config.averages),
    )

  mesh = parallel.data_mesh(config.devices or None)
  shardings = shardings_of(config, mesh, begin)
  update = _update(config, denoiser, optimizer, shardings)
  # Made where it will be: a state that needs all devices never is on one.
  state = jax.jit(begin, out_shardings=shardings and shardings[0])()
  directory = models.checkpoint_directory(workdir)
  snapshots = None
  with_checkpoints = checkpoints.open(directory, keep=config.keep)
  try:
    if with_checkpoints.latest() is not None:
      models.check_config(directory, model)
    models.save_config(directory, model)
    if config.averages:
      snapshots = training.open_snapshots(workdir, config.averages)
    with _batches(config, source, shardings) as iterator:
      state = training.train(
        state,
        update,
        iterator,
        steps=config.steps,
        checkpoints=with_checkpoints,
        every=config.checkpoint_every,
        log_every=config.log_every,
        on_metrics=training.together(*writers),
        snapshots=snapshots,
        snapshot_every=config.snapshot_every,
        trace=_trace(config, workdir),
        progress=progress,
      )
  finally:
    with_checkpoints.close()
    if snapshots is not None:
      snapshots.close()
  params = training.ema.parameters(state.ema_params, state.params)
  return dataclasses.replace(denoiser, params=params)


def _writers(config, workdir):
  """Returns what writes the metrics, as the configuration asks for."""
  writers = [training.csv_writer(workdir / "metrics.csv")]
  if config.tensorboard:
    writers.append(training.tensorboard_writer(workdir / "tensorboard"))
  return writers


def _update(config, denoiser, optimizer, shardings):
  """Returns the update of the configuration."""
  return training.make_update(
    recipe.loss(config, denoiser),
    optimizer,
    ema=config.ema,
    averages=tuple(map(training.ema.power, config.averages)),
    clip_norm=config.clip_norm,
    accumulate=config.accumulate,
    project=training.projection(denoiser),
    shardings=shardings,
  )


def _batches(config, source, shardings):
  """Returns the batches of this process on its devices."""
  batches = data.batches(
    source,
    config.batch_size,
    seed=config.seed,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
    workers=config.workers,
  )
  return data.to_device(
    batches, shardings and shardings[1], size=config.prefetch
  )


def shardings_of(
  config: config_dict.ConfigDict, mesh: Any, begin: Any
) -> tuple[Any, Any] | None:
  """Returns where the state and a batch live; None on a single device."""
  if config.params not in ("replicated", "sharded"):
    raise ValueError(
      f"config.params={config.params!r}, but must be replicated (a copy on"
      " every device) or sharded (split over them)"
    )
  devices = mesh.devices.size
  parts = config.get("accumulate", 1)
  if config.batch_size % (devices * parts):
    raise ValueError(
      f"config.batch_size={config.batch_size} cannot be shared by {devices}"
      f" devices in {parts} part(s); choose a multiple of {devices * parts}, or"
      " set --config.devices"
    )
  if devices == 1:
    return None
  state = jax.eval_shape(begin)
  if config.params == "sharded":
    layout = parallel.fully_sharded(state, mesh)
  else:
    layout = jax.tree.map(lambda _: parallel.replicated(mesh), state)
  return layout, parallel.batch_sharding(mesh)


def _trace(
  config: config_dict.ConfigDict, workdir: pathlib.Path
) -> training.Trace | None:
  return (
    training.Trace(workdir / "trace", *config.trace) if (config.trace) else None
  )


def _check_labels(config: config_dict.ConfigDict, labels: Any) -> None:
  """Refuses labels that the network could not take."""
  if not config.num_classes:
    return
  if labels is None:
    raise ValueError(
      f"config.num_classes={config.num_classes}, but {config.dataset!r} has no"
      " labels; set --config.num_classes=0 to train without"
    )
  try:
    training.check_labels(labels, config.num_classes)
  except ValueError as e:
    raise ValueError(f"{config.dataset!r}: {e} (config.num_classes)") from e


def main() -> None:
  """Trains what the flags ask for."""
  if flags.FLAGS.coordinator:
    parallel.initialize(
      flags.FLAGS.coordinator,
      flags.FLAGS.process_count,
      flags.FLAGS.process_index,
    )
  workdir = flags.FLAGS.workdir
  train(console.config_like("base"), workdir)
  if jax.process_index() == 0:
    print(f"Trained: {workdir}")
    table, picture = (pathlib.Path(workdir) / n for n in _CURVE)
    print(plots.training(table, picture, f"{workdir}"))


if __name__ == "__main__":
  console.define_config_file(
    None,
    "What to train: a file of experiments/configs/. Set single entries with"
    " --config.NAME=VALUE, for instance --config.steps=100.",
    lock_config=True,
  )
  flags.DEFINE_string(
    "workdir",
    None,
    "Directory for checkpoints and metrics. Made if it does not exist; if it"
    " holds a checkpoint, training goes on from there.",
  )
  flags.DEFINE_string(
    "coordinator",
    None,
    "Of several processes: HOST:PORT of the first, or auto where the cluster"
    " tells.",
  )
  flags.DEFINE_integer("process_count", None, "How many processes there are.")
  flags.DEFINE_integer("process_index", None, "Which one this is, from 0 on.")
  flags.mark_flags_as_required(["config", "workdir"])
  console.run(main)

r"""Trains a denoiser, resuming by itself where an earlier run stopped.

  python -m experiments.train --config=experiments/configs/digits.py \
      --workdir=/tmp/digits

Every entry of a configuration can be set on the command line, as in
--config.steps=100 or --config.network_options.channels=32. The working
directory receives

  checkpoints/<step>/         parameters, their average, optimizer, position
  checkpoints/config.json     the model, from which it is rebuilt
  metrics.csv                 one row per report

If it holds a checkpoint already, training goes on from there, bit for bit.
Ctrl-C saves first. Read the result back with

  jaxdiff.training.load_denoiser("/tmp/digits")
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import jax
import optax
from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags

from experiments import console
from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import training


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
    ValueError: if the working directory holds a checkpoint of another model.
  """
  source = data.load(config.dataset)
  model = model_config(config, source)
  init_key, run_key = jax.random.split(jax.random.key(config.seed))
  denoiser = training.make_denoiser(model, init_key)
  loss = losses.denoising(
    denoiser,
    times=time_sampler(config, denoiser.process),
    weighting=config.weighting,
    num_classes=config.num_classes,
    label_dropout=config.label_dropout,
  )
  optimizer = optax.adam(
    optax.warmup_cosine_decay_schedule(
      0.0,
      config.learning_rate,
      min(config.warmup_steps, config.steps // 2),
      config.steps,
    )
  )
  workdir = pathlib.Path(workdir).expanduser().absolute()
  directory = training.checkpoint_directory(workdir)
  with_checkpoints = checkpoints.open(directory, keep=config.keep)
  if with_checkpoints.latest() is None:
    training.save_config(directory, model)
  else:
    training.check_config(directory, model)
  try:
    state = training.train(
      training.init_state(run_key, denoiser.params, optimizer),
      training.make_update(
        loss, optimizer, ema=config.ema, clip_norm=config.clip_norm
      ),
      data.batches(source, config.batch_size, seed=config.seed),
      steps=config.steps,
      checkpoints=with_checkpoints,
      every=config.checkpoint_every,
      log_every=config.log_every,
      on_metrics=training.csv_writer(workdir / "metrics.csv"),
      progress=progress,
    )
  finally:
    with_checkpoints.close()
  return dataclasses.replace(denoiser, params=state.ema_params)


def model_config(
  config: config_dict.ConfigDict, source: Mapping
) -> training.ModelConfig:
  """Returns the model that a configuration asks for, to fit the data."""
  return training.ModelConfig(
    shape=tuple(source["image"].shape[1:]),
    network=config.network,
    network_options=config.network_options.to_dict(),
    num_classes=config.num_classes,
    process=config.process,
    process_options=config.process_options.to_dict(),
    prediction=config.prediction,
    sigma_data=config.sigma_data,
  )


def time_sampler(config: config_dict.ConfigDict, process) -> losses.times.Times:
  """Returns the sampler of times that a configuration names."""
  name, *options = config.times
  return getattr(losses.times, name)(process, *options)


def main() -> None:
  """Trains what the flags ask for."""
  workdir = flags.FLAGS.workdir
  train(flags.FLAGS.config, workdir)
  print(f"Trained: {workdir}")


if __name__ == "__main__":
  config_flags.DEFINE_config_file(
    "config",
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
  flags.mark_flags_as_required(["config", "workdir"])
  console.run(main)

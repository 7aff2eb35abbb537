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
  metrics.csv                 one row per report

If it holds a checkpoint already, training goes on from there, bit for bit.
Ctrl-C saves first. Read the result back with

  jaxdiff.training.load_denoiser("/tmp/digits")
"""

import dataclasses
import inspect
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from absl import flags
from ml_collections import config_dict
from ml_collections import config_flags

from experiments import console
from experiments import sources
from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import training

TIMES = ("uniform", "log_normal", "logit_normal", "uniform_log_snr")


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
    ValueError: if the working directory holds a checkpoint of another model,
      or the data do not fit the configuration.
  """
  source = data.load(config.dataset, **_plain(config, "dataset_options"))
  sample = sources.subset(source)
  _check_labels(config, sources.labels(source, sample))
  model = model_config(config, sample)
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
  try:
    if with_checkpoints.latest() is not None:
      training.check_config(directory, model)
    training.save_config(directory, model)
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
  config: config_dict.ConfigDict, sample: Mapping[str, np.ndarray]
) -> training.ModelConfig:
  """Returns the model that a configuration asks for, to fit the data.

  Args:
    config: the configuration.
    sample: of the data, "image" f[n, ...].
  """
  return training.ModelConfig(
    shape=tuple(sample["image"].shape[1:]),
    network=config.network,
    network_options=_plain(config, "network_options"),
    num_classes=config.num_classes,
    process=config.process,
    process_options=_plain(config, "process_options"),
    prediction=config.prediction,
    sigma_data=sigma_data(config, sample["image"]),
    dataset=config.dataset,
    dataset_options=_plain(config, "dataset_options"),
  )


def sigma_data(config: config_dict.ConfigDict, images: np.ndarray) -> float:
  """Returns config.sigma_data or, if it is None or 0, the measured one."""
  measured = float(f"{np.std(images, dtype=np.float64):.4g}")
  if measured > 5.0:
    print(
      f"Warning: the standard deviation of the data is {measured}; networks"
      " and noise levels are made for data in [-1, 1]. Scale the data, pixels"
      " for instance by x / 127.5 - 1."
    )
  if config.sigma_data:
    return config.sigma_data
  if not 0.0 < measured < float("inf"):
    raise ValueError(
      f"the standard deviation of the data is {measured}, which cannot be"
      " sigma_data; look for NaN or constant images in the data, or set"
      " --config.sigma_data=0.5"
    )
  print(f"sigma_data = {measured}, measured on {len(images)} samples.")
  return measured


def time_sampler(config: config_dict.ConfigDict, process) -> losses.times.Times:
  """Returns the sampler of times that a configuration names.

  Raises:
    ValueError: for an unknown name, or arguments that it does not take.
  """
  name, *options = config.times
  if name not in TIMES:
    raise ValueError(
      f"config.times begins with {name!r}, but must begin with a sampler of"
      f" jaxdiff.losses.times: {', '.join(TIMES)}; for instance"
      " --config.times=\"('log_normal', -1.2, 1.2)\""
    )
  sampler = getattr(losses.times, name)
  arguments = list(inspect.signature(sampler).parameters)[1:]
  if len(options) > len(arguments):
    raise ValueError(
      f"config.times={tuple(config.times)}, but {name} takes at most"
      f" {len(arguments)} arguments: {', '.join(arguments)}"
    )
  return sampler(process, *options)


def _plain(config: config_dict.ConfigDict, name: str) -> dict[str, Any]:
  """Returns an entry of options as a dict, empty if it is not there."""
  options = config.get(name) or {}
  return options.to_dict() if hasattr(options, "to_dict") else dict(options)


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

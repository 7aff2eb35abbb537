"""A model as data: what `config.json` holds, and the denoiser it stands for."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checkpoints
from jaxdiff import denoisers
from jaxdiff import networks
from jaxdiff import processes

_FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A denoiser without its parameters; every field can be stored as JSON.

  Attributes:
    shape: of one sample, (8, 8, 1).
    network: name of the network, one of `networks.NETWORKS`.
    network_options: its attributes.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    process: name of the process, a function of `processes`.
    process_options: its arguments.
    prediction: what the network outputs, one of `predictions.KINDS`.
    sigma_data: standard deviation of the data.
    time: what the network is told about the time, "log_snr" or "t".
  """

  shape: tuple[int, ...]
  network: str = "unet"
  network_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  num_classes: int = 0
  process: str = "edm"
  process_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prediction: str = "edm"
  sigma_data: float = 0.5
  time: str = "log_snr"


def make_denoiser(
  config: ModelConfig, key: jax.Array | None = None
) -> denoisers.Denoiser:
  """Returns a fresh denoiser.

  Args:
    config: the model.
    key: of the initial parameters; None leaves shapes and dtypes in their
      place, which cost nothing.

  Raises:
    ValueError: for an unknown network, process or prediction.
  """
  if config.process not in processes.__all__:
    raise ValueError(
      f"there is no process {config.process!r} in jaxdiff.processes; there"
      f" are {', '.join(p for p in processes.__all__ if p.islower())}"
    )
  network = networks.make(
    config.network, num_classes=config.num_classes, **config.network_options
  )
  process = getattr(processes, config.process)(**config.process_options)

  def init(key):
    x, c = jnp.zeros((1, *config.shape)), jnp.zeros(1)
    return network.init(key, x, c)["params"]

  if key is None:
    params = jax.eval_shape(init, jax.random.key(0))
  else:
    params = jax.jit(init)(key)
  return denoisers.from_linen(
    network,
    params,
    process,
    prediction=config.prediction,
    sigma_data=config.sigma_data,
    time=config.time,
  )


def save_config(directory: str | os.PathLike, config: ModelConfig) -> None:
  """Writes config.json beside the checkpoints of a model."""
  fields = dataclasses.asdict(config)
  checkpoints.write_config(directory, {"model": fields})


def load_config(directory: str | os.PathLike) -> ModelConfig:
  """Returns the model that config.json describes.

  Raises:
    FileNotFoundError: if there is no config.json.
  """
  fields = checkpoints.read_config(directory)["model"]
  return ModelConfig(**(fields | {"shape": tuple(fields["shape"])}))


def check_config(directory: str | os.PathLike, config: ModelConfig) -> None:
  """Refuses to go on with a checkpoint of another model.

  Raises:
    ValueError: if config.json describes another model; the field and both
      values are named.
  """
  stored = checkpoints.read_config(directory)["model"]
  wanted = json.loads(json.dumps(dataclasses.asdict(config)))
  for name, value in wanted.items():
    if stored.get(name) != value:
      raise ValueError(
        f"{directory} holds a model with {name} = {stored.get(name)!r}, but"
        f" {value!r} was asked for; go on with the stored value, or train in"
        " another directory"
      )


def checkpoint_directory(workdir: str | os.PathLike) -> pathlib.Path:
  """Returns the folder of checkpoints inside a run's working directory."""
  return pathlib.Path(workdir).expanduser().absolute() / _FOLDER


def load_denoiser(
  workdir: str | os.PathLike, *, step: int | None = None, ema: bool = True
) -> denoisers.Denoiser:
  """Returns the denoiser of a finished or running training.

  Args:
    workdir: the run's working directory, or its folder of checkpoints.
    step: which checkpoint; the latest by default.
    ema: the averaged parameters rather than the last ones.

  Raises:
    FileNotFoundError: if there is no such run, or no checkpoint in it yet.
    ValueError: if the checkpoint does not fit config.json.
  """
  directory = checkpoint_directory(workdir)
  if not directory.is_dir():
    directory = pathlib.Path(workdir).expanduser().absolute()
  denoiser = make_denoiser(load_config(directory))
  opened = checkpoints.open(directory, create=False)
  name = "ema_params" if ema else "params"
  try:
    state, _ = opened.restore({name: denoiser.params}, step)
  finally:
    opened.close()
  return dataclasses.replace(denoiser, params=state[name])

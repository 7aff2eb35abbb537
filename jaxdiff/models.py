"""Models as data: `config.json`, and the denoiser that it describes."""

import dataclasses
import inspect
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checkpoints
from jaxdiff import checks
from jaxdiff import denoisers
from jaxdiff import networks
from jaxdiff import processes

_FOLDER = "checkpoints"
# Those whose arguments are numbers or lists, which config.json can hold.
_PROCESSES = (
  "edm",
  "pfgmpp",
  "rectified_flow",
  "resshift",
  "sub_vp",
  "ve",
  "vp_cosine",
  "vp_discrete",
  "vp_linear",
)
_DATA = (
  "dataset",
  "dataset_options",
  "data_width",
)  # tell nothing of the network


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A denoiser without its parameters; every field can be stored as JSON.

  Attributes:
    shape: shape of one sample, (8, 8, 1).
    network: name of the network, one of `networks.NETWORKS`.
    network_options: its attributes.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    process: name of the process, a function of `processes`.
    process_options: its arguments.
    prediction: what the network outputs, one of `predictions.KINDS`.
    sigma_data: standard deviation of the data.
    time: what the network is told about the time, one of `denoisers.TIMES`.
    scale_input: whether its input is scaled, as in `denoisers.Denoiser`.
    jumps: whether the network is told where to jump, as students of CTM are.
    bounds: bounds of a mixture of experts over time, `denoisers.Experts`: K + 1
      falling times; none for a single network.
    dataset: name of the data it was trained on, as `data.load` takes it, or "".
    dataset_options: the options of `data.load`.
    data_width: standard deviation of that data along their widest direction, as
      `jaxdiff.width` measures it; 0 if it is not known.
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
  scale_input: bool | None = None
  jumps: bool = False
  bounds: tuple[float, ...] = ()
  dataset: str = ""
  dataset_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  data_width: float = 0.0

  def __post_init__(self):
    for name in ("shape", "bounds"):  # JSON has lists
      value = getattr(self, name)
      value = tuple(value) if isinstance(value, list) else value
      object.__setattr__(self, name, value)
    checks.fields(self, least=dict(num_classes=0, data_width=0))


@checks.door
def make_denoiser(
  config: ModelConfig, key: jax.Array | None = None
) -> denoisers.Denoiser:
  """Returns a fresh denoiser.

  Args:
    config: the model.
    key: PRNG key of the initial parameters; None leaves shapes and dtypes in
      their place, which cost nothing.

  Raises:
    ValueError: for an unknown network, process or prediction, and for options
      that the network or the process does not take.
  """
  if config.process not in _PROCESSES:
    raise ValueError(
      f"process = {config.process!r} cannot be stored with a model: it must be"
      f" one of {', '.join(_PROCESSES)}, whose options are plain numbers"
      + checks.near(config.process, _PROCESSES)
    )
  plain = networks.make(config.network, num_classes=config.num_classes)
  fields = {f.name for f in dataclasses.fields(plain) if f.init}
  fields -= {"parent", "name", "num_classes"}
  _check_options("network", config.network, config.network_options, fields)
  known = inspect.signature(getattr(processes, config.process)).parameters
  _check_options("process", config.process, config.process_options, known)
  network = networks.make(
    config.network, num_classes=config.num_classes, **config.network_options
  )
  process = getattr(processes, config.process)(**config.process_options)

  def init(key):
    x = jnp.zeros((1, *config.shape))
    c = jnp.zeros((1, 2) if config.jumps else 1)
    return network.init(key, x, c)["params"]

  if key is None:
    params = jax.eval_shape(init, jax.random.key(0))
  else:
    params = jax.jit(init)(key)
  denoiser = denoisers.from_linen(
    network,
    params,
    process,
    prediction=config.prediction,
    sigma_data=config.sigma_data,
    time=config.time,
    scale_input=config.scale_input,
    jumps=config.jumps,
    data_width=config.data_width or None,
  )
  if not config.bounds:
    return denoiser
  experts = len(config.bounds) - 1
  stack = lambda tree: jax.tree.map(lambda p: jnp.stack([p] * experts), tree)
  return denoisers.Experts(
    stack(params) if key is not None else jax.eval_shape(stack, params),
    dataclasses.replace(denoiser, params=None),
    bounds=tuple(config.bounds),
  )


def _check_options(kind: str, name: str, options: Any, known: Any) -> None:
  """Refuses options that a network or a process does not take."""
  wrong = [option for option in options if option not in known]
  if wrong:
    field = f"{kind}_options"
    raise ValueError(
      f"{field} has {', '.join(wrong)}, which the {kind} {name!r} does not"
      f" take; it takes {', '.join(sorted(known)) or 'none'}"
      f"{checks.near(wrong[0], known)}. Give all of them"
      f' anew, on the command line as --config.{field}="{{}}" for the'
      f" defaults or as --config.{field}=\"{{'NAME': VALUE}}\""
    )


@checks.door
def save_config(directory: str | os.PathLike, config: ModelConfig) -> None:
  """Writes config.json beside the checkpoints of a model."""
  fields = dataclasses.asdict(config)
  checkpoints.write_config(directory, {"model": fields})


@checks.door
def load_config(directory: str | os.PathLike) -> ModelConfig:
  """Returns the model that config.json describes.

  Raises:
    FileNotFoundError: if there is no config.json.
    ValueError: if it does not describe a model.
  """
  fields = _stored(directory)
  return ModelConfig(**(fields | {"shape": tuple(fields["shape"])}))


def _stored(directory: str | os.PathLike) -> dict[str, Any]:
  """Returns the fields of a ModelConfig that config.json holds."""
  config = checkpoints.read_config(directory)
  fields = config.get("model") if isinstance(config, dict) else None
  path = pathlib.Path(directory) / "config.json"
  if not isinstance(fields, dict) or "shape" not in fields:
    raise ValueError(
      f"{path} does not describe a model: it needs an entry"
      ' {"model": {"shape": ..., ...}}; restore it from a copy, or write it'
      " with models.save_config"
    )
  known = {f.name for f in dataclasses.fields(ModelConfig)}
  unknown = sorted(set(fields) - known)
  if unknown:
    raise ValueError(
      f"{path} has {', '.join(unknown)}, which a model does not have; it has"
      f" {', '.join(sorted(known))}. Remove them, or use the version of"
      " jaxdiff that wrote them"
    )
  return fields


@checks.door
def check_config(directory: str | os.PathLike, config: ModelConfig) -> None:
  """Refuses to go on with a checkpoint of another model.

  The name of the data set may differ: data move.

  Raises:
    ValueError: if config.json describes another model; the field and both
      values are named.
  """
  stored = _stored(directory)
  wanted = json.loads(json.dumps(dataclasses.asdict(config)))
  # those written before there were such students
  stored = {"jumps": False, "bounds": []} | stored
  for name, value in wanted.items():
    if name not in _DATA and stored.get(name) != value:
      raise ValueError(
        f"{directory} holds a model with {name} = {stored.get(name)!r}, but"
        f" {value!r} was asked for; go on with the stored value, or train in"
        " another directory"
      )


@checks.door
def checkpoint_directory(workdir: str | os.PathLike) -> pathlib.Path:
  """Returns the folder of checkpoints inside a run's working directory."""
  return pathlib.Path(workdir).expanduser().absolute() / _FOLDER


def existing_directory(workdir: str | os.PathLike) -> pathlib.Path:
  """Returns the folder of checkpoints of a run, or the folder itself."""
  directory = checkpoint_directory(workdir)
  if directory.is_dir():
    return directory
  return pathlib.Path(workdir).expanduser().absolute()

"""Directories as diffusers writes them: configuration, arrays, scheduler."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import pickles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff.types import ArrayLike
from jaxdiff.weights import safetensors

_WEIGHTS = "diffusion_pytorch_model"
# one file, or an index of shards; the variant stands in one of three places
_SET = re.compile(
  _WEIGHTS
  + r"(\.(?P<a>\w+))?\.(?P<kind>safetensors|bin)"
  + r"(?P<index>(\.(?P<b>\w+))?\.index(\.(?P<c>\w+))?\.json)?"
)
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


@checks.door
def configuration(
  path: str | os.PathLike, part: str, classes: tuple[str, ...]
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the folder of the network inside `path`, and its config.json.

  Args:
    path: the folder of the network, or of a pipeline.
    part: what the pipeline calls the network.
    classes: diffusers' names of it, one of which config.json must have.

  Raises:
    FileNotFoundError: if there is no config.json.
    ValueError: if it is damaged, or describes another class.
  """
  path = pathlib.Path(path).expanduser()
  folder = path / part if (path / part / "config.json").is_file() else path
  file = folder / "config.json"
  if not file.is_file():
    raise FileNotFoundError(
      f"there is no config.json in {path}, nor in {path / part}; give the"
      " directory that save_pretrained of diffusers wrote"
    )
  config = _json(file)
  name = config.get("_class_name", classes[0])
  if name not in classes:
    raise ValueError(
      f"{file} describes a {name}, but this converter takes a {classes[0]};"
      " there are load_unet for UNet2DModel and load_dit for"
      " DiTTransformer2DModel"
    )
  return folder, config


def _json(file: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(file.read_text("utf-8"))
  except ValueError as error:
    raise ValueError(
      f"{file} is not JSON ({error}); copy it again from its source"
    ) from error
  if not isinstance(value, dict):
    raise ValueError(f"{file} holds no JSON object; copy it from its source")
  return value


@checks.door
def read_arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the weights in a network's folder, of one file or of its shards.

  Of several sets safetensors come before torch's .bin; then what has no variant
  in its name (model.fp16.safetensors, model.safetensors.index.fp16.json), then
  variants by name, "non_ema", the parameters before averaging, last.

  Raises:
    FileNotFoundError: if there are none in safetensors, nor in torch's .bin.
    ImportError, ValueError: as `safetensors.read` and `pickles.state_dict`.
  """
  held = sorted(p.name for p in folder.iterdir() if p.is_file())
  found = []
  for name in held:
    match = _SET.fullmatch(name)
    if match:
      variant = next(filter(None, match.group("a", "b", "c")), "")
      rank = (match["kind"] == "bin", variant == "non_ema", variant)
      found.append(((*rank, bool(match["index"])), name, match["kind"]))
  if found:
    _, name, kind = min(found)
    own = pickles.state_dict if kind == "bin" else safetensors.read
    return safetensors.read(folder / name, own)
  raise FileNotFoundError(
    f"there is no {_WEIGHTS}.safetensors in {folder}, nor .bin; it holds"
    f" {', '.join(held)}: copy the file that its authors have beside them"
  )


@checks.door
def require(
  config: Mapping[str, Any],
  folder: pathlib.Path,
  fixed: Mapping[str, tuple[Any, ...]],
) -> None:
  """Refuses variants: an option that is given must be one of those allowed."""
  for name, allowed in fixed.items():
    if config.get(name, allowed[0]) not in allowed:
      raise ValueError(
        f"{folder}/config.json has {name} = {config[name]!r}, which is not"
        f" supported; {' or '.join(map(repr, allowed))} would be"
      )


@checks.door
def image_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
  """Returns (height, width, channels) of what the network takes."""
  size = config.get("sample_size")
  if size is None:
    raise ValueError(
      "config.json has sample_size = null; write the side of the images that"
      " the network was trained on there"
    )
  height, width = size if isinstance(size, list) else (size, size)
  return (height, width, config["in_channels"])


@checks.door
def process_fields(
  path: str | os.PathLike,
  folder: pathlib.Path,
  betas: ArrayLike,
  prediction: str | None,
) -> dict[str, Any]:
  """Returns the fields of a ModelConfig that the scheduler tells.

  Args:
    path: what the user named; the scheduler is in it, in scheduler/, or beside
      the network.
    folder: folder of the network.
    betas: betas of the process; None takes the scheduler's, or DDPM's.
    prediction: None takes the scheduler's, or "eps".

  Raises:
    ValueError: if the scheduler's process or prediction is not supported.
  """
  path = pathlib.Path(path).expanduser()
  near = (path, path / "scheduler", folder.parent / "scheduler")
  files = [p / "scheduler_config.json" for p in near]
  file = next((f for f in files if f.is_file()), None)
  scheduler = {} if file is None else _json(file)
  kind = scheduler.get("prediction_type", "epsilon")
  if prediction is None and kind not in _PREDICTIONS:
    raise ValueError(
      f"{file} has prediction_type = {kind!r}, which is not supported; there"
      f" are {', '.join(_PREDICTIONS)}. Give prediction= to say otherwise"
    )
  if prediction is not None:
    predictions.check_kind(prediction, "prediction")
  if betas is None:
    betas = _betas(scheduler, file)
    if scheduler.get("rescale_betas_zero_snr"):
      if (prediction or _PREDICTIONS[kind]) == "eps":
        raise ValueError(
          f"{file} has rescale_betas_zero_snr with prediction_type = {kind!r}:"
          " no signal is left after the last step, where an eps network says"
          " nothing of x0. Give betas= without their last, or prediction= of"
          " what the network predicts"
        )
      betas = processes.zero_terminal_snr(betas)
  betas = np.asarray(betas, float)
  processes.vp_discrete(betas)  # refuses what are no betas
  return dict(
    process="vp_discrete",
    process_options=dict(betas=betas.tolist()),
    prediction=prediction or _PREDICTIONS[kind],
    sigma_data=1.0,
    time="steps",
    scale_input=False,
  )


def _betas(scheduler: Mapping[str, Any], file: Any) -> np.ndarray:
  """Returns the betas f64[N] of a scheduler's configuration."""
  if scheduler.get("trained_betas") is not None:
    return np.asarray(scheduler["trained_betas"], np.float64)
  n = scheduler.get("num_train_timesteps", 1000)
  first = scheduler.get("beta_start", 1e-4)
  last = scheduler.get("beta_end", 0.02)
  # one that has no betas at all (flow matching, consistency) says so by this
  kind = scheduler.get("beta_schedule", "linear" if file is None else None)
  if kind == "linear":
    return np.linspace(first, last, n)
  if kind == "scaled_linear":
    return np.linspace(first**0.5, last**0.5, n) ** 2
  if kind == "squaredcos_cap_v2":  # Nichol and Dhariwal (2021), eq. 17
    t = np.arange(n + 1) / n
    square = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - square[1:] / square[:-1], 0.999)
  raise ValueError(
    f"{file} has beta_schedule = {kind!r}, of a {scheduler.get('_class_name')},"
    " which is not supported; there are linear, scaled_linear and"
    " squaredcos_cap_v2. Give betas= to say otherwise"
  )

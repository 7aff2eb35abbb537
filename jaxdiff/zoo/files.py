"""Zoo files: a model as one .npz of float16 parameters and a card.

The file holds every parameter under its path in the tree, "down0_0/kernel", and
under "card" a JSON text: the model as `models.ModelConfig` has it, and the
record of its training. float16 keeps 11 bits, bfloat16 8; no weight of a
trained network comes near 65,504, where float16 ends.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdiff import archives
from jaxdiff import checks
from jaxdiff import denoisers
from jaxdiff import models
from jaxdiff.types import PyTree

_FOLDER = pathlib.Path(__file__).parent
_CARD = "card"


@dataclasses.dataclass(frozen=True)
class Card:
  """What a model is, and how it came to be.

  Attributes:
    name: name of the model.
    config: the model without its parameters: shape, classes, process, ...
    record: record of its training: "command", "seed", "steps", "loss" and
      measures of its samples.
    parameters: how many there are.
    bytes: size of the file.
  """

  name: str
  config: models.ModelConfig
  record: Mapping[str, Any]
  parameters: int
  bytes: int

  def __str__(self) -> str:
    shape = "x".join(map(str, self.config.shape))
    classes = self.config.num_classes
    lines = [
      f"{self.name}: {shape}, {classes or 'no'} classes, {self.config.network},"
      f" process {self.config.process}, {self.parameters:,} parameters",
      *(f"  {name}: {value}" for name, value in self.record.items()),
    ]
    return "\n".join(lines)


def names() -> tuple[str, ...]:
  """Returns the names of the models that come with the library."""
  return tuple(sorted(path.stem for path in _FOLDER.glob("*.npz")))


@checks.door
def describe(name: str | os.PathLike) -> Card:
  """Returns the card of a model; print it.

  Args:
    name: one of `names()`, or the path of an .npz file that `write` wrote.

  Raises:
    FileNotFoundError: there is no such model.
    ValueError: the file is not one of `write`.
  """
  path, fields, arrays = _read(name)
  return Card(
    name=path.stem,
    config=_config(fields),
    record=fields["record"],
    parameters=sum(a.size for a in arrays.values()),
    bytes=path.stat().st_size,
  )


@checks.door
def load(name: str | os.PathLike) -> denoisers.Denoiser:
  """Returns a trained model, with parameters in float32.

  Args:
    name: one of `names()`, or the path of an .npz file that `write` wrote.

  Raises:
    FileNotFoundError: there is no such model.
    ValueError: the file is not one of `write`, or its parameters do not fit
      the network that its card names.
  """
  path, fields, arrays = _read(name)
  denoiser = models.make_denoiser(_config(fields))
  shapes = _named(denoiser.params)
  for key in sorted({*arrays, *shapes}):
    stored = arrays[key].shape if key in arrays else None
    wanted = shapes[key].shape if key in shapes else None
    if stored != wanted:
      raise ValueError(
        f"{path}: {key} has shape {stored} in the file and {wanted} in the"
        " network that its card describes; it was written by another version"
        " of jaxdiff, or changed since"
      )
  params = [arrays[key].astype(np.float32) for key in shapes]
  tree = jax.tree.structure(denoiser.params)
  return dataclasses.replace(denoiser, params=tree.unflatten(params))


@checks.door
def write(
  path: str | os.PathLike,
  config: models.ModelConfig,
  params: PyTree,
  record: Mapping[str, Any],
) -> None:
  """Writes a model; the same bytes for the same model.

  Args:
    path: path of the .npz file.
    config: the model without its parameters.
    params: its parameters.
    record: what is to be known of it, as JSON can store it.

  Raises:
    ValueError: a parameter does not fit float16.
  """
  arrays = {key: np.asarray(a) for key, a in _named(params).items()}
  for key, array in arrays.items():
    if not (abs(array) < np.finfo(np.float16).max).all():
      raise ValueError(
        f"params: {key} holds NaN, infinity or more than 65,504, which float16"
        " cannot store; look at the training"
      )
  card = {"config": dataclasses.asdict(config), "record": dict(record)}
  np.savez_compressed(
    path,
    **{_CARD: np.array(json.dumps(card))},
    **{key: array.astype(np.float16) for key, array in arrays.items()},
  )


def _read(
  name: str | os.PathLike,
) -> tuple[pathlib.Path, dict[str, Any], dict[str, np.ndarray]]:
  """Returns the path, the card's JSON and the arrays of a file."""
  path = pathlib.Path(name)
  if path.suffix != ".npz":
    path = _FOLDER / f"{name}.npz"
  if not path.is_file():
    raise FileNotFoundError(
      f"name: the zoo has no {os.fspath(name)!r}; it has"
      f" {', '.join(map(repr, names()))}. A model of your own is read by its"
      " path, which ends in .npz, or by training.load_denoiser(workdir)."
    )
  arrays = archives.read(path, "A model's file is written by zoo.write.")
  if _CARD not in arrays:
    raise ValueError(
      f"{path} has no entry {_CARD!r}, so it is no model of zoo.write; weights"
      " of other libraries are converted, python -m experiments.convert --help"
    )
  return path, json.loads(str(arrays.pop(_CARD))), arrays


def _config(fields: Mapping[str, Any]) -> models.ModelConfig:
  stored = fields["config"]
  return models.ModelConfig(**(stored | {"shape": tuple(stored["shape"])}))


def _named(params: PyTree) -> dict[str, Any]:
  """Returns the leaves by their paths, in the order of jax.tree.leaves."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

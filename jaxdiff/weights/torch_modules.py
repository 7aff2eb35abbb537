"""The state of torch modules that a pickle holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import pickles


def state_dict(module: pickles.Record) -> dict[str, np.ndarray]:
  """Returns the parameters and buffers of a module, by their dotted names.

  Raises:
    ValueError: if it is no module, or one that holds itself.
  """
  found, inside = {}, []

  def walk(module, prefix):
    state = module.state if isinstance(module, pickles.Record) else None
    parts = ("_parameters", "_buffers", "_modules")
    if not isinstance(state, Mapping) or not all(p in state for p in parts):
      raise ValueError(f"{prefix or 'the network'} is no module of torch")
    if any(module is other for other in inside):
      raise ValueError(f"the module {prefix} holds itself")
    inside.append(module)
    for part in parts[:2]:
      for name, value in state[part].items():
        if value is not None:
          found[prefix + name] = np.asarray(value)
    for name, child in state["_modules"].items():
      if child is not None:
        walk(child, f"{prefix}{name}.")
    inside.pop()

  walk(module, "")
  return found


def arguments(module: pickles.Record) -> dict[str, Any]:
  """Returns the keyword arguments that a module of NVIDIA's was made with.

  Raises:
    ValueError: if it does not tell.
  """
  state = module.state if isinstance(module.state, Mapping) else {}
  kwargs = state.get("_init_kwargs")
  if not isinstance(kwargs, Mapping) or state.get("_init_args"):
    raise ValueError(
      f"the {module.name} in this file does not say which keyword arguments it"
      " was made with; write it anew with NVIDIA's torch_utils.persistence"
    )
  return dict(kwargs)


def image_shape(given: dict[str, Any]) -> tuple[int, int, int]:
  """Takes resolution and channels out of a network's arguments.

  Raises:
    ValueError: if they are not there, or are no whole numbers above 0.
  """
  values = [given.pop(k, None) for k in ("img_resolution", "img_channels")]
  if not all(isinstance(v, int) and v > 0 for v in values):
    raise ValueError(
      "the network should have been made with whole numbers img_resolution and"
      f" img_channels, but they are {values[0]!r} and {values[1]!r}"
    )
  size, channels = values
  return size, size, channels


def options(
  given: dict[str, Any],
  table: Mapping[str, tuple[str, Any]],
  ignored: tuple[str, ...],
) -> dict[str, Any]:
  """Takes what remains of a network's arguments as options of ours.

  Args:
    given: the arguments; emptied but for the ignored ones.
    table: option to (argument, its default).
    ignored: arguments that mean nothing here.

  Raises:
    ValueError: for arguments that the table lacks, or whose values are neither
      numbers, text nor lists of numbers.
  """
  found = {}
  for option, (argument, default) in table.items():
    value = given.pop(argument, default)
    if value is None:  # chosen by other arguments, or switched off
      value = 0
    parts = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(part, (int, float, str)) for part in parts):
      raise ValueError(f"the network was made with {argument} = {value!r}")
    found[option] = tuple(value) if isinstance(value, list) else value
  unknown = sorted(set(given) - set(ignored))
  if unknown:
    raise ValueError(
      f"the network was made with {', '.join(unknown)}, which is unknown here;"
      f" known are {', '.join(argument for argument, _ in table.values())}"
    )
  return found

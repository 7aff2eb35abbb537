"""The state of torch modules that a pickle holds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.weights import pickles


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

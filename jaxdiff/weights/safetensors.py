"""Arrays from files in safetensors, by the package of that name."""

import json
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np

from jaxdiff import checks
from jaxdiff.data import optional


@checks.door
def read(
  path: str | os.PathLike,
  reader: Callable[[pathlib.Path], dict[str, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
  """Returns the arrays of a file by name, in the file's dtypes.

  Args:
    path: a .safetensors file, or the .safetensors.index.json of several, whose
      name may hold a variant (.safetensors.index.fp16.json).
    reader: reader of a single file; None reads safetensors.

  Raises:
    FileNotFoundError: if it, or a file that the index names, is not there.
    ImportError: if the package safetensors is not installed.
    ValueError: if it is damaged, or no such file.
  """
  path = pathlib.Path(path)
  if re.search(r"\.index(\.\w+)?\.json$", path.name):
    try:
      files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
      raise ValueError(
        f'{path} is no index of shards: it needs {{"weight_map": {{"name":'
        f' "file"}}}} ({error!r}); copy it again from its source'
      ) from error
    arrays = {}
    for name in files:
      arrays |= read(path.parent / pathlib.Path(name).name, reader)
    return arrays
  if reader is not None:
    return reader(path)
  package = optional.require("safetensors", f"reading {path.name}", "weights")
  numpy_front = optional.require(
    "safetensors.numpy", f"reading {path.name}", "weights"
  )
  if not path.is_file():
    raise FileNotFoundError(f"there is no file {path}")
  try:
    return numpy_front.load_file(path)
  except package.SafetensorError as error:
    raise ValueError(
      f"{path} ({path.stat().st_size} bytes) is no whole safetensors file:"
      f" {error}; it was cut off while it was copied, or is a file of another"
      " kind (a pointer of git-lfs, a .bin): copy it again from its source"
    ) from error

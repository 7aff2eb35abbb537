"""Data: small sets that need no download, readers, and the batch iterator.

`load(name)` opens a source by name, `batches(source, ...)` iterates over it.
Optional packages are imported by the reader that needs them, when called.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff.data.arrays import from_npz
from jaxdiff.data.digits import digits
from jaxdiff.data.loader import Batches
from jaxdiff.data.loader import batches
from jaxdiff.data.patches import patches
from jaxdiff.data.tfds import from_tfds

__all__ = [
  "load",
  "digits",
  "patches",
  "from_npz",
  "from_tfds",
  "batches",
  "Batches",
]

_NAMES: Mapping[str, Callable[..., Any]] = {
  "digits": digits,
  "patches16": functools.partial(patches, 16),
  "patches32": functools.partial(patches, 32),
}
# Names of the form prefix:rest, where the reader is given the rest.
_PREFIXES: Mapping[str, Callable[..., Any]] = {
  "npz": from_npz,
  "tfds": from_tfds,
}


def load(name: str, **options: Any) -> Any:
  """Opens the data set `name`.

  Args:
    name: `"digits"`, `"patches16"`, `"patches32"`, `"npz:/path/to/file.npz"`
      or `"tfds:mnist"` (with a config and a version where wanted).
    **options: handed on to `digits`, `patches`, `from_npz` or `from_tfds`.

  Returns:
    A source for `batches`: a dict of arrays, or for `tfds:` a sequence of
    examples read on demand.

  Raises:
    ValueError: the name is not known.
  """
  prefix, colon, rest = name.partition(":")
  if name in _NAMES:
    return _NAMES[name](**options)
  if colon and rest and prefix in _PREFIXES:
    return _PREFIXES[prefix](rest, **options)
  known = [*map(repr, _NAMES), "'npz:/path/to/file.npz'", "'tfds:<name>'"]
  raise ValueError(f"name: got {name!r}, expected one of {', '.join(known)}.")

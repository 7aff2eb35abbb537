"""Data: sets by name, readers, the batch iterator, and batches on devices.

`load(name)` opens a source by name, `batches(source, ...)` iterates over it,
and `to_device(iterator, sharding)` copies ahead of use. Optional packages are
imported by the reader that needs them, when called.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff import checks
from jaxdiff.data import named
from jaxdiff.data.arrays import from_npz
from jaxdiff.data.arrays import look
from jaxdiff.data.arrays import scaled
from jaxdiff.data.degradation import blur
from jaxdiff.data.degradation import degrade
from jaxdiff.data.degradation import downsample
from jaxdiff.data.degradation import upsample
from jaxdiff.data.device import OnDevice
from jaxdiff.data.device import to_device
from jaxdiff.data.digits import digits
from jaxdiff.data.folder import Folder
from jaxdiff.data.folder import from_folder
from jaxdiff.data.loader import Batches
from jaxdiff.data.loader import batches
from jaxdiff.data.memory import in_memory
from jaxdiff.data.patches import patches
from jaxdiff.data.shards import from_shards
from jaxdiff.data.tfds import from_tfds

__all__ = [
  "load",
  "digits",
  "patches",
  "from_npz",
  "from_folder",
  "from_shards",
  "from_tfds",
  "in_memory",
  "look",
  "scaled",
  "batches",
  "blur",
  "degrade",
  "downsample",
  "upsample",
  "to_device",
  "Batches",
  "Folder",
  "OnDevice",
]

_NAMES: Mapping[str, Callable[..., Any]] = {
  "digits": digits,
  "patches8": functools.partial(patches, 8),
  "patches16": functools.partial(patches, 16),
  "patches32": functools.partial(patches, 32),
  **{name: functools.partial(named.load, name) for name in named.SETS},
}
# Names of the form prefix:rest, where the reader is given the rest.
_PREFIXES: Mapping[str, Callable[..., Any]] = {
  "npz": from_npz,
  "folder": from_folder,
  "shards": from_shards,
  "tfds": from_tfds,
}


@checks.door
def load(name: str, **options: Any) -> Any:
  """Opens the data set `name`.

  Args:
    name: `"digits"`, `"patches8"`, `"patches16"`, `"patches32"`; `"cifar10"`,
      `"mnist"`, `"celeba"`, `"imagenet32"`, `"imagenet64"`, where they are
      prepared; `"npz:/path/to/file.npz"`, `"folder:/path/to/pictures"`,
      `"shards:/folder"` (as experiments.sample writes them), or
      `"tfds:mnist"` (with a config and a version where wanted).
    **options: handed on to `digits`, `patches`, `named.load`, `from_npz`,
      `from_folder`, `from_shards` or `from_tfds`. All but the digits, which
      are no bytes, take `scale=False`, which leaves pixels u8 for `scaled`.

  Returns:
    A source for `batches`: a dict of arrays, or a sequence of examples read on
    demand.

  Raises:
    ValueError: the name is not known.
  """
  prefix, colon, rest = name.partition(":")
  if name in _NAMES:
    return _NAMES[name](**options)
  if colon and rest and prefix in _PREFIXES:
    return _PREFIXES[prefix](rest, **options)
  known = [
    *map(repr, _NAMES),
    "'npz:/path/to/file.npz'",
    "'folder:/path/to/pictures'",
    "'shards:/folder'",
    "'tfds:<name>'",
  ]
  meant = checks.near(prefix, (*_NAMES, *_PREFIXES))
  raise ValueError(
    f"name: got {name!r}, expected one of {', '.join(known)}{meant}"
  )

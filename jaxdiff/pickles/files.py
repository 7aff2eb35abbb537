r"""Reads arrays out of Python pickles and torch files; nothing in them runs.

The stack machine of `machine.run` may make arrays, numbers, strings and
containers, by the functions of the table `_CALLS` and no others. Source text in
a file, as NVIDIA's networks carry it, is dropped unread. No torch is needed.

Tensors are views of storages, and a storage is, in an ordinary pickle, bytes
that are again a stream of `torch.save`: an archive (zip) or the older format
of several pickles and raw numbers. The same machine reads those, and inside of
them nothing may be called at all. A view that leaves its storage is refused.
"""

import io
import math
import os
import pathlib
import re
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.pickles import machine
from jaxdiff.pickles.machine import Forbidden
from jaxdiff.pickles.machine import like
from jaxdiff.pickles.machine import Record

_DTYPES = {
  "Bool": np.bool_,
  "Byte": np.uint8,
  "Char": np.int8,
  "Short": np.int16,
  "Int": np.int32,
  "Long": np.int64,
  "Half": np.float16,
  "BFloat16": jnp.bfloat16,
  "Float": np.float32,
  "Double": np.float64,
}
_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C  # opens torch's older format


def load(path: str | os.PathLike) -> Any:
  """Returns what a pickle or a file of torch.save holds, as data.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no pickle, is damaged or cut off, or asks to call
      anything (`Forbidden`); nothing of it has run then either.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(f"there is no file {path}; check the path")
  try:
    return loads(path.read_bytes())
  except Forbidden as e:
    raise Forbidden(
      f"{path} was refused, and nothing in it was run: {e}. Weights are arrays"
      " and need no such call: do not open the file with pickle or torch, and"
      " get it from its authors again"
    ) from None
  except ValueError as e:
    raise ValueError(
      f"{path} cannot be read: {e}. It is no file of weights, or was not copied"
      " to the end: compare its size with the original and copy it again"
    ) from e


def state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the tensors of a state dict saved by torch.save, by name.

  A file {"ema": {...}} or {"state_dict": {...}} is read as that entry, the
  average first; what is no tensor is left out.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is of another kind, was cut short, or asks to run
      code, which it does not.
  """
  tree = load(path)
  for name in ("ema", "state_dict"):
    if isinstance(tree, dict) and isinstance(tree.get(name), dict):
      tree = tree[name]
  tensors = {
    str(name): value
    for name, value in (tree.items() if isinstance(tree, dict) else ())
    if isinstance(value, np.ndarray)
  }
  if not tensors:
    raise ValueError(
      f"{os.fspath(path)!r} is no state dict: it holds no tensors by"
      " name; save one with torch.save(model.state_dict(), path), or give an"
      " .npz of the arrays"
    )
  return tensors


def loads(data: bytes) -> Any:
  """Returns what bytes hold: a pickle, or either format of torch.save.

  Raises:
    ValueError: as in `load`.
  """
  try:
    if data[:4] == _ZIP:
      return _archive(data, _CALLS)
    stream = io.BytesIO(data)
    value = machine.run(stream, _CALLS)
    magic = isinstance(value, int) and value == _MAGIC
    return _legacy(stream, _CALLS) if magic else value
  except (TypeError, OverflowError, RuntimeError) as e:  # around the pickles
    raise ValueError(f"it makes no sense ({type(e).__name__}: {e})") from e


# Arrays of numpy: first an empty one, then its state.


def _numpy_dtype(name: str, *_: Any) -> np.dtype:
  # "f4", "<i8", "U3": no objects, and nothing that numpy would have to parse
  if not re.fullmatch(r"[|<>=]?[biufcSU]\d{1,4}", like(name, str)):
    raise Forbidden(f"the pickle holds values of dtype {name!r}")
  # a dtype of its own, which the memo tells from all others
  return np.dtype(name, copy=True)


def _empty_array(*_: Any) -> Record:
  return Record(machine.EMPTY_ARRAY)


def _numpy_array(state: Any) -> np.ndarray:
  *_, shape, dtype, fortran, data = like(state, tuple)
  if isinstance(data, str):  # bytes of Python 2 are read as text
    data = data.encode("latin1")
  order = "F" if fortran else "C"
  return _numpy_buffer(data, dtype, shape, order)


def _numpy_buffer(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
  flat = np.frombuffer(data, like(dtype, np.dtype))
  return flat.reshape(like(shape, tuple), order=order)


def _numpy_scalar(dtype: Any, data: bytes) -> Any:
  return np.frombuffer(data, like(dtype, np.dtype))[0].item()


def _encode(text: str, coding: str) -> bytes:
  """Returns bytes that Python 2's protocols store as text."""
  if coding != "latin1":
    raise ValueError(f"bytes coded as {coding!r}")
  return like(text, str).encode("latin1")


# Tensors of torch: views of storages.


def _tensor(
  storage: Any, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
  """Returns the view of a storage; one that leaves it is refused."""
  like(storage, np.ndarray)
  bad = len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0
  if bad:
    raise ValueError(f"a tensor of size {size} with strides {stride}")
  last = offset + sum((n - 1) * s for n, s in zip(size, stride))
  count = math.prod(size)
  if not count:
    return np.zeros(size, storage.dtype)
  if max(last + 1, count) > storage.size:
    raise ValueError(
      f"a tensor of size {size} leaves its storage of {storage.size} numbers"
    )
  item = storage.dtype.itemsize
  return np.lib.stride_tricks.as_strided(
    storage[offset:], size, [s * item for s in stride], writeable=False
  )


def _parameter(tensor: Any, *_: Any) -> np.ndarray:
  return like(tensor, np.ndarray)


def _storage_bytes(data: bytes) -> np.ndarray:
  """Returns the storage that bytes of torch.save hold, and nothing else."""
  like(data, bytes)
  if data[:4] == _ZIP:
    return like(_archive(data, {}), np.ndarray)
  stream = io.BytesIO(data)
  magic = machine.run(stream, {})
  if not isinstance(magic, int) or magic != _MAGIC:
    raise ValueError("a storage that torch.save did not write")
  return like(_legacy(stream, {}), np.ndarray)


def _stored_type(identity: Any) -> tuple[np.dtype, str, int]:
  """Returns (dtype, key, size) of a storage's persistent id."""
  what, kind, key, _, size, *rest = like(identity, tuple)
  name = (
    kind.name.removesuffix("Storage") if isinstance(kind, machine.Name) else ""
  )
  if what != "storage" or name not in _DTYPES or any(rest):
    raise ValueError(f"a storage of unknown type {machine.describe(kind)}")
  return np.dtype(_DTYPES[name]), str(key), like(size, int)


def _legacy(stream: io.BytesIO, calls: dict) -> Any:
  """Returns what torch's older format holds, read behind its magic number.

  Storages are made empty when they are named; their numbers come last.
  """
  storages = {}
  room = stream.getbuffer().nbytes

  def persistent(identity):
    dtype, key, size = _stored_type(identity)
    if not 0 <= size * dtype.itemsize <= room:
      raise ValueError(f"a storage of {size} numbers in {room} bytes")
    if key not in storages:
      storages[key] = np.zeros(size, dtype)
    return storages[key]

  machine.run(stream, {})  # version of the format
  system = like(machine.run(stream, {}), dict)
  if not system.get("little_endian", True):
    raise ValueError("numbers with the most significant byte first")
  value = machine.run(stream, calls, persistent)
  for key in like(machine.run(stream, {}), list):
    storage = storages.get(str(key))
    count = int.from_bytes(stream.read(8), "little")
    if storage is None or count != storage.size:
      raise ValueError(f"storage {key!r} has {count} numbers")
    raw = stream.read(storage.nbytes)
    if len(raw) != storage.nbytes:
      raise ValueError(f"storage {key!r} breaks off")
    storage[:] = np.frombuffer(raw, storage.dtype)
  return value


def _archive(data: bytes, calls: dict) -> Any:
  """Returns what an archive of torch.save holds."""
  try:
    archive = zipfile.ZipFile(io.BytesIO(data))
    names = {n.partition("/")[2]: n for n in archive.namelist()}
    packed = any(
      i.compress_type != zipfile.ZIP_STORED for i in archive.filelist
    )
    if "data.pkl" not in names or packed:
      raise ValueError("an archive that torch.save did not write")
    read = lambda name: archive.read(names[name])
    if "byteorder" in names and read("byteorder") != b"little":
      raise ValueError("numbers with the most significant byte first")
    storages = {}

    def persistent(identity):
      dtype, key, size = _stored_type(identity)
      if key not in storages:
        storages[key] = np.frombuffer(read(f"data/{key}"), dtype)
      if storages[key].size < size:
        raise ValueError(f"storage {key!r} breaks off")
      return storages[key]

    return machine.run(io.BytesIO(read("data.pkl")), calls, persistent)
  except (zipfile.BadZipFile, KeyError, EOFError) as e:
    raise ValueError(f"its archive is damaged ({e})") from e


# Objects.


def _persistent_object(meta: Any) -> Record:
  """Returns an object of NVIDIA's; the source text beside it is dropped."""
  name = like(like(meta, dict).get("class_name"), str)
  return Record(name, state=like(meta.get("state"), dict))


def _set(items: Any = ()) -> set:
  return set(machine.keys(list(items)))


def _dict(items: Any = ()) -> dict:
  pairs = [tuple(pair) for pair in items]
  machine.keys([key for key, _ in pairs])
  return dict(pairs)


_CALLS = {
  "_codecs.encode": _encode,
  "builtins.frozenset": _set,
  "builtins.set": _set,
  "__builtin__.set": _set,
  "collections.OrderedDict": _dict,
  "copy_reg._reconstructor": lambda cls, *_: machine.new(cls, ()),
  "copyreg._reconstructor": lambda cls, *_: machine.new(cls, ()),
  "dnnlib.util.EasyDict": _dict,
  machine.EMPTY_ARRAY: _numpy_array,
  "numpy.dtype": _numpy_dtype,
  "torch.Size": tuple,
  "torch.device": lambda *args: Record("torch.device", args),
  "torch._utils._rebuild_parameter": _parameter,
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch.storage._load_from_bytes": _storage_bytes,
  "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
}
for _core in ("numpy.core", "numpy._core"):
  _CALLS[f"{_core}.multiarray._reconstruct"] = lambda *_: Record(
    machine.EMPTY_ARRAY
  )
  _CALLS[f"{_core}.multiarray.scalar"] = _numpy_scalar
  _CALLS[f"{_core}.numeric._frombuffer"] = _numpy_buffer

"""Tensors from a PyTorch file, without PyTorch and without running the file.

A .pth file is a pickle, and a pickle can name any function of any module to be
called. Here the names are not looked up: five of them have a meaning, and any
other one ends the reading. Both layouts are read: the zip archive (PyTorch 1.6
and later) and the older stream of pickles followed by raw storages.
"""

import hashlib
import io
import math
import os
import pathlib
import pickle
import re
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

_STORAGES = {
  "DoubleStorage": "<f8",
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "<i1",
  "ByteStorage": "<u1",
  "BoolStorage": "?",
}
_MAGIC = 0x1950A86A20F9469CFC6C  # opens the older layout


class _Dtype(NamedTuple):
  name: str


class _Storage(NamedTuple):
  dtype: np.dtype
  key: str
  size: int  # numbers


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in numbers


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the tensors of a state dict saved by torch.save, by name.

  A file {"state_dict": {...}} is read as its state dict; what is no tensor is
  left out.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is of another kind, was cut short, or asks for
      anything but tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"weights: there is no file {str(path)!r}; it is looked for from"
      f" {os.getcwd()!r}"
    )
  try:
    if zipfile.is_zipfile(path):
      tree, storages = _read_archive(path)
    else:
      tree, storages = _read_stream(path)
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
      tree = tree["state_dict"]
    if not isinstance(tree, dict):
      raise ValueError(f"it holds a {type(tree).__name__}, not a dict")
    tensors = {
      str(name): _array(value, storages[value.storage.key])
      for name, value in tree.items()
      if isinstance(value, _Tensor)
    }
    if not tensors:
      raise ValueError("it holds no tensors")
  except Exception as e:  # a damaged pickle can raise nearly anything
    raise ValueError(
      f"weights: {str(path)!r} cannot be read as the tensors of a PyTorch state"
      f" dict: {e or type(e).__name__}. Nothing in it was run. Copy it again"
      " (a download may have been cut short), or give an .npz of the arrays"
    ) from e
  return tensors


def checksum(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file, compared with the one that its name gives.

  PyTorch's convention: `inception-6726825d.pth` names the first eight digits.

  Raises:
    ValueError: the name gives other digits.
  """
  path = pathlib.Path(path)
  with open(path, "rb") as f:
    digest = hashlib.file_digest(f, "sha256").hexdigest()
  named = re.search(r"-([0-9a-f]{8,64})$", path.stem)
  if named and not digest.startswith(named[1]):
    raise ValueError(
      f"weights: {str(path)!r} should have the SHA-256 {named[1]}..., but has"
      f" {digest[:16]}...; it was changed or cut short: download it again, or"
      " rename it if it is a file of your own"
    )
  return digest


class _Reader(pickle.Unpickler):
  """An unpickler that knows five names and looks none of them up."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
      return OrderedDict
    if module == "torch" and name in _STORAGES:
      return _Dtype(_STORAGES[name])
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return lambda storage, offset, shape, strides, *_: _Tensor(
        storage, offset, shape, strides
      )
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      return lambda tensor, *_: tensor
    raise ValueError(f"it asks for {module}.{name}, which is no tensor")

  def persistent_load(self, saved: tuple) -> _Storage:
    kind, dtype, key, _, size, *view = saved
    if kind != "storage" or any(v is not None for v in view):
      raise ValueError(f"it refers to {kind!r}, which is no plain storage")
    return _Storage(np.dtype(dtype.name), str(key), int(size))


def _read_archive(path: pathlib.Path) -> tuple[Any, dict[str, bytes]]:
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    pickles = [n for n in names if n.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise ValueError("the archive has no data.pkl")
    tree = _Reader(io.BytesIO(archive.read(pickles[0]))).load()
    folder = pickles[0].removesuffix(".pkl") + "/"
    return tree, {
      n.removeprefix(folder): archive.read(n)
      for n in names
      if n.startswith(folder)
    }


def _read_stream(path: pathlib.Path) -> tuple[Any, dict[str, bytes]]:
  with open(path, "rb") as f:
    if _Reader(f).load() != _MAGIC:
      raise ValueError("it does not begin as one")
    _Reader(f).load()  # version of the layout
    _Reader(f).load()  # sizes of C types
    reader = _Reader(f)
    tree = reader.load()
    keys = _Reader(f).load()
    sizes = {
      value.storage.key: value.storage.dtype.itemsize
      for branch in _branches(tree)
      for value in branch.values()
      if isinstance(value, _Tensor)
    }
    storages = {}
    for key in keys:
      count = int.from_bytes(f.read(8), "little")
      storages[str(key)] = f.read(count * sizes[str(key)])
  return tree, storages


def _branches(tree: Any) -> list[dict]:
  """Returns a dict and the dicts in it."""
  if not isinstance(tree, dict):
    return []
  return [tree, *(b for v in tree.values() for b in _branches(v))]


def _array(tensor: _Tensor, data: bytes) -> np.ndarray:
  """Returns the tensor's own copy of its part of a storage."""
  storage, offset, shape, strides = tensor
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
  held = len(data) // storage.dtype.itemsize
  inside = min((offset, *shape, *strides)) >= 0 and last < held
  if held < storage.size or (math.prod(shape) and not inside):
    raise ValueError(
      f"a tensor of shape {tuple(shape)} has {held} of {storage.size} numbers"
    )
  flat = np.frombuffer(data, storage.dtype)[offset:]
  width = storage.dtype.itemsize
  return np.lib.stride_tricks.as_strided(
    flat, shape, [s * width for s in strides]
  ).copy()

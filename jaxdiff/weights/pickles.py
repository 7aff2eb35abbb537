r"""Reads arrays out of Python pickles without running anything that is in them.

A pickle is a program for a small stack machine. Python's own machine looks up
any function that the file names and calls it: to load a file is to trust it.
The machine here works on data alone. A name is only a `Name`; the few calls
that arrays and containers need (`_CALLS`) are done by functions of this file,
which know nothing but arrays, numbers, strings and containers; objects of any
class become an inert `Record` of their state; every other call is refused, and
the file with it. Source text inside a file, as NVIDIA's networks carry it, is
dropped unread. No torch is needed.

Tensors are views of storages, and a storage is, in an ordinary pickle, bytes
that are again a stream of `torch.save`: an archive (zip) or the older format
of several pickles and raw numbers. The same machine reads those, and inside of
them nothing may be called at all. A view that leaves its storage is refused.
"""

import dataclasses
import io
import math
import os
import pathlib
import pickletools
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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
_MAGIC = 0x1950A86A20F9469CFC6C  # opens torch's older format
_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"


class Name(NamedTuple):
  """A class or function that a pickle names; it is never looked up."""

  module: str
  name: str

  def __str__(self) -> str:
    return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Record:
  """An object of some class, as data.

  Attributes:
    name: of the class.
    args: what it was made from.
    state: its attributes, mostly a dict.
  """

  name: str
  args: tuple = ()
  state: Any = None


class Forbidden(ValueError):
  """A pickle asks for something that no array needs."""


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


def loads(data: bytes) -> Any:
  """Returns what bytes hold: a pickle, or either format of torch.save.

  Raises:
    ValueError: as in `load`.
  """
  if data[:4] == b"PK\x03\x04":
    return _archive(data, _CALLS)
  stream = io.BytesIO(data)
  value = _run(stream, _CALLS, None)
  return _legacy(stream, _CALLS) if value == _MAGIC else value


def _run(stream: io.BytesIO, calls: dict, persistent: Any) -> Any:
  """Returns what one pickle makes, and leaves the stream behind it.

  Args:
    stream: at the start of a pickle.
    calls: name to function of the calls that are allowed.
    persistent: function of a persistent id, None where there are none.
  """
  stack, marks, memo = [], [], {}
  position = stream.tell()

  def above_mark():
    first = marks.pop()
    items = stack[first:]
    del stack[first:]
    return items

  try:
    for opcode, arg, position in pickletools.genops(stream):
      name = opcode.name
      if name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
      elif name in _LITERALS:
        stack.append(arg)
      elif name in ("PROTO", "FRAME"):
        pass
      elif name == "MARK":
        marks.append(len(stack))
      elif name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[arg])
      elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
      elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
        memo[arg] = stack[-1]
      elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        items = [stack.pop() for _ in range(int(name[-1]))]
        stack.append(tuple(items[::-1]))
      elif name == "TUPLE":
        stack.append(tuple(above_mark()))
      elif name == "LIST":
        stack.append(above_mark())
      elif name == "DICT":
        stack.append(_pairs(above_mark()))
      elif name == "FROZENSET":
        stack.append(frozenset(above_mark()))
      elif name == "APPEND":
        item = stack.pop()
        _like(stack[-1], list).append(item)
      elif name == "APPENDS":
        items = above_mark()
        _like(stack[-1], list).extend(items)
      elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        _like(stack[-1], dict)[key] = value
      elif name == "SETITEMS":
        items = above_mark()
        _like(stack[-1], dict).update(_pairs(items))
      elif name == "ADDITEMS":
        items = above_mark()
        _like(stack[-1], set).update(items)
      elif name == "POP":
        stack.pop()
      elif name == "POP_MARK":
        above_mark()
      elif name == "DUP":
        stack.append(stack[-1])
      elif name == "GLOBAL":
        stack.append(Name(*arg.split(" ", 1)))
      elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(Name(_like(module, str), _like(attribute, str)))
      elif name == "REDUCE":
        args, function = stack.pop(), stack.pop()
        stack.append(_call(calls, function, args))
      elif name in ("NEWOBJ", "NEWOBJ_EX"):
        if name == "NEWOBJ_EX":
          stack.pop()  # keywords: nothing is made of them
        args, cls = stack.pop(), stack.pop()
        stack.append(_new(cls, args))
      elif name == "BUILD":
        state = stack.pop()
        stack[-1] = _build(stack[-1], state, memo)
      elif name in ("PERSID", "BINPERSID") and persistent:
        stack.append(persistent(arg if name == "PERSID" else stack.pop()))
      elif name == "STOP":
        return stack.pop()
      else:  # INST, OBJ, extension registries, buffers out of band
        raise Forbidden(
          f"the pickle uses the operation {name} at byte {position}, which no"
          " known file of weights does"
        )
  except (IndexError, KeyError, TypeError, RecursionError) as e:
    raise ValueError(
      f"its pickle makes no sense after byte {position}"
      f" ({type(e).__name__}: {e})"
    ) from e
  except Forbidden:
    raise
  except ValueError as e:
    raise ValueError(f"its pickle breaks off or is damaged ({e})") from e
  raise ValueError("its pickle has no end")


_CONSTANTS = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_TUPLE": tuple,
  "EMPTY_LIST": list,
  "EMPTY_DICT": dict,
  "EMPTY_SET": set,
}
_LITERALS = frozenset(
  [
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "FLOAT",
    "BINFLOAT",
  ]
)


def _pairs(items: list) -> dict:
  if len(items) % 2:
    raise ValueError("a key without a value")
  return dict(zip(items[::2], items[1::2]))


def _like(value: Any, kind: type) -> Any:
  if not isinstance(value, kind):
    raise TypeError(f"expected a {kind.__name__}, found {_describe(value)}")
  return value


def _describe(value: Any) -> str:
  named = isinstance(value, (Name, Record))
  return f"{value.name}" if named else f"a {type(value).__name__}"


def _call(calls: dict, function: Any, args: Any) -> Any:
  known = calls.get(str(function)) if isinstance(function, Name) else None
  if known is None:
    what = str(function) if isinstance(function, Name) else _describe(function)
    raise Forbidden(f"the pickle asks to call {what}")
  try:
    return known(*_like(args, tuple))
  except TypeError as e:
    raise ValueError(f"{function} is called with wrong arguments: {e}") from e


def _new(cls: Any, args: Any) -> Any:
  """Returns the new object of a class: a dict for those that are dicts."""
  if not isinstance(cls, Name):
    raise Forbidden(f"the pickle makes an object of {_describe(cls)}")
  if str(cls) in ("dnnlib.util.EasyDict", "collections.OrderedDict"):
    return dict(*_like(args, tuple))
  return Record(str(cls), _like(args, tuple))


def _build(target: Any, state: Any, memo: dict) -> Any:
  """Returns an object with its state; arrays get theirs in the memo too."""
  if isinstance(target, Record) and target.name == _EMPTY_ARRAY:
    return _remember(memo, target, _numpy_array(state))
  if isinstance(target, Record):
    target.state = state
    return target
  if isinstance(target, np.dtype):
    order = _like(_like(state, tuple)[1], str)
    swapped = target if order == "|" else target.newbyteorder(order)
    return _remember(memo, target, swapped)
  if isinstance(target, dict):  # attributes of a subclass of dict
    return target
  raise Forbidden(f"the pickle sets attributes of {_describe(target)}")


def _remember(memo: dict, before: Any, after: Any) -> Any:
  for key, value in memo.items():
    if value is before:
      memo[key] = after
  return after


# Arrays of numpy: first an empty one, then its state.

_EMPTY_ARRAY = "numpy.ndarray"


def _numpy_dtype(name: str, *_: Any) -> np.dtype:
  dtype = np.dtype(_like(name, str))
  if dtype.kind not in "biufcSUV" or dtype.hasobject:
    raise Forbidden(f"the pickle holds values of dtype {name!r}")
  # a dtype of its own, which the memo tells from all others
  return np.dtype(dtype, copy=True)


def _numpy_array(state: Any) -> np.ndarray:
  *_, shape, dtype, fortran, data = _like(state, tuple)
  order = "F" if fortran else "C"
  return _numpy_buffer(data, dtype, shape, order)


def _numpy_buffer(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
  flat = np.frombuffer(data, _like(dtype, np.dtype))
  return flat.reshape(_like(shape, tuple), order=order)


def _numpy_scalar(dtype: Any, data: bytes) -> Any:
  return np.frombuffer(data, _like(dtype, np.dtype))[0].item()


def _encode(text: str, coding: str) -> bytes:
  """Returns bytes that Python 2's protocols store as text."""
  if coding != "latin1":
    raise ValueError(f"bytes coded as {coding!r}")
  return _like(text, str).encode("latin1")


# Tensors of torch: views of storages.


def _tensor(
  storage: Any, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
  """Returns the view of a storage; one that leaves it is refused."""
  _like(storage, np.ndarray)
  bad = len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0
  if bad:
    raise ValueError(f"a tensor of size {size} with strides {stride}")
  last = offset + sum((n - 1) * s for n, s in zip(size, stride))
  if math.prod(size) and last >= storage.size:
    raise ValueError(
      f"a tensor of size {size} leaves its storage of {storage.size} numbers"
    )
  if not math.prod(size):
    return np.zeros(size, storage.dtype)
  item = storage.dtype.itemsize
  return np.lib.stride_tricks.as_strided(
    storage[offset:], size, [s * item for s in stride], writeable=False
  )


def _parameter(tensor: Any, *_: Any) -> np.ndarray:
  return _like(tensor, np.ndarray)


def _storage_bytes(data: bytes) -> np.ndarray:
  """Returns the storage that bytes of torch.save hold, and nothing else."""
  _like(data, bytes)
  if data[:4] == b"PK\x03\x04":
    return _like(_archive(data, {}), np.ndarray)
  stream = io.BytesIO(data)
  if _run(stream, {}, None) != _MAGIC:
    raise ValueError("a storage that torch.save did not write")
  return _like(_legacy(stream, {}), np.ndarray)


def _stored_type(identity: Any) -> tuple[np.dtype, str, int]:
  """Returns (dtype, key, size) of a storage's persistent id."""
  what, kind, key, _, size, *rest = _like(identity, tuple)
  name = kind.name.removesuffix("Storage") if isinstance(kind, Name) else ""
  if what != "storage" or name not in _DTYPES or any(rest):
    raise ValueError(f"a storage of unknown type {_describe(kind)}")
  return np.dtype(_DTYPES[name]), str(key), _like(size, int)


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

  _run(stream, {}, None)  # version of the format
  system = _like(_run(stream, {}, None), dict)
  if not system.get("little_endian", True):
    raise ValueError("numbers with the most significant byte first")
  value = _run(stream, calls, persistent)
  for key in _like(_run(stream, {}, None), list):
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

    return _run(io.BytesIO(read("data.pkl")), calls, persistent)
  except (zipfile.BadZipFile, KeyError, EOFError) as e:
    raise ValueError(f"its archive is damaged ({e})") from e


# Objects.


def _persistent_object(meta: Any) -> Record:
  """Returns an object of NVIDIA's; the source text beside it is dropped."""
  name = _like(_like(meta, dict).get("class_name"), str)
  return Record(name, state=_like(meta.get("state"), dict))


_CALLS = {
  "_codecs.encode": _encode,
  "builtins.frozenset": frozenset,
  "builtins.set": set,
  "__builtin__.set": set,
  "collections.OrderedDict": dict,
  "copyreg._reconstructor": lambda cls, *_: _new(cls, ()),
  "dnnlib.util.EasyDict": dict,
  "numpy.dtype": _numpy_dtype,
  "torch.Size": tuple,
  "torch.device": lambda *args: Record("torch.device", args),
  "torch._utils._rebuild_parameter": _parameter,
  "torch._utils._rebuild_tensor": _tensor,
  "torch._utils._rebuild_tensor_v2": _tensor,
  "torch.storage._load_from_bytes": _storage_bytes,
  _PERSISTENT: _persistent_object,
}
for _core in ("numpy.core", "numpy._core"):
  _CALLS[f"{_core}.multiarray._reconstruct"] = lambda *_: Record(_EMPTY_ARRAY)
  _CALLS[f"{_core}.multiarray.scalar"] = _numpy_scalar
  _CALLS[f"{_core}.numeric._frombuffer"] = _numpy_buffer

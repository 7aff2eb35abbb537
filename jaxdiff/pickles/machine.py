r"""A stack machine for pickles that works on data alone.

A pickle is a program for a small machine. Python's own looks up any function
that the program names and calls it: to load a file is to trust it. Here a name
is only a `Name`; a call is done by a function of the caller's table, or refused
with the whole file; an object of any class is an inert `Record` of its state.
Nothing is imported, no attribute of anything is read or set, and extension
registries and out-of-band buffers do not exist.

The opcodes are those that `pickletools` of the standard library documents.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

EMPTY_ARRAY = "numpy.ndarray"  # the Record of an array before its numbers


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
    name: name of the class.
    args: what it was made from.
    state: its attributes, mostly a dict.
  """

  name: str
  args: tuple = ()
  state: Any = None


class Forbidden(ValueError):
  """A pickle asks for something that no array needs."""


def run(
  stream: io.BytesIO,
  calls: Mapping[str, Callable],
  persistent: Callable[[Any], Any] | None = None,
) -> Any:
  """Returns what one pickle makes, and leaves the stream behind it.

  Args:
    stream: at the start of a pickle.
    calls: name to function of the calls that are allowed.
    persistent: function of a persistent id, None where there are none.
  """
  machine = _Machine([], [], {}, calls, persistent)
  position = stream.tell()
  try:
    for opcode, arg, position in pickletools.genops(stream):
      if opcode.name == "STOP":
        return machine.stack.pop()
      _step(machine, opcode.name, arg, position)
  except Forbidden:
    raise
  except _NONSENSE as e:
    raise ValueError(
      f"its pickle makes no sense after byte {position}"
      f" ({type(e).__name__}: {e})"
    ) from e
  except ValueError as e:
    raise ValueError(f"its pickle breaks off or is damaged ({e})") from e
  raise ValueError("its pickle has no end")


_NONSENSE = (IndexError, KeyError, TypeError, OverflowError, RecursionError)


class _Machine(NamedTuple):
  """What the operations of one pickle work on.

  Attributes:
    stack: values, the last one on top.
    marks: heights of the stack at which lists of items begin.
    memo: values that the pickle refers to again.
    calls: name to function of the calls that are allowed.
    persistent: function of a persistent id.
  """

  stack: list
  marks: list[int]
  memo: dict[int, Any]
  calls: Mapping[str, Callable]
  persistent: Callable[[Any], Any] | None


def _step(machine: _Machine, name: str, arg: Any, position: int) -> None:
  """Does one operation; raises if it is none of the tables below."""
  if name in _VALUES:
    machine.stack.append(_VALUES[name](machine, arg))
  elif name in _CHANGES:
    _CHANGES[name](machine, arg)
  elif name in _OUTSIDE and machine.persistent:
    machine.stack.append(machine.persistent(_OUTSIDE[name](machine, arg)))
  elif name in (*_OUTSIDE, "NEXT_BUFFER", "READONLY_BUFFER"):
    raise ValueError("it refers to something outside of the file")
  else:  # INST and OBJ, which call by name; registries of extensions
    what = f"{name} {arg}" if arg is not None else name
    raise Forbidden(
      f"the pickle uses the operation {what} at byte {position}, which no"
      " known file of weights does"
    )


def _top(machine: _Machine, n: int) -> list:
  """Takes n values off the stack; returns them in the order of their pushes."""
  return [machine.stack.pop() for _ in range(n)][::-1]


def _marked(machine: _Machine) -> list:
  """Takes the values above the last mark off the stack."""
  first = machine.marks.pop()
  items = machine.stack[first:]
  del machine.stack[first:]
  return items


def _stack_global(machine: _Machine, arg: None) -> Name:
  module, attribute = _top(machine, 2)
  return Name(like(module, str), like(attribute, str))


def _new_with_keywords(machine: _Machine, arg: None) -> Any:
  cls, args, _ = _top(machine, 3)  # keywords: nothing is made of them
  return new(cls, args)


def _put(machine: _Machine, at: int) -> None:
  machine.memo[at] = machine.stack[-1]


def _append(machine: _Machine, items: list) -> None:
  like(machine.stack[-1], list).extend(items)


def _set(machine: _Machine, items: list) -> None:
  like(machine.stack[-1], dict).update(_pairs(items))


def _add(machine: _Machine, items: list) -> None:
  like(machine.stack[-1], set).update(keys(items))


def _build_top(machine: _Machine, arg: None) -> None:
  target, state = _top(machine, 2)
  machine.stack.append(_build(target, state, machine.memo, machine.calls))


# (machine, argument of the operation) -> the value that goes onto the stack
_LITERALS = """
  INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
  STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
  UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
"""
_VALUES = {name: lambda m, arg: arg for name in _LITERALS.split()} | {
  "NONE": lambda m, arg: None,
  "NEWTRUE": lambda m, arg: True,
  "NEWFALSE": lambda m, arg: False,
  "EMPTY_TUPLE": lambda m, arg: (),
  "EMPTY_LIST": lambda m, arg: [],
  "EMPTY_DICT": lambda m, arg: {},
  "EMPTY_SET": lambda m, arg: set(),
  "TUPLE1": lambda m, arg: tuple(_top(m, 1)),
  "TUPLE2": lambda m, arg: tuple(_top(m, 2)),
  "TUPLE3": lambda m, arg: tuple(_top(m, 3)),
  "TUPLE": lambda m, arg: tuple(_marked(m)),
  "LIST": lambda m, arg: _marked(m),
  "DICT": lambda m, arg: _pairs(_marked(m)),
  "FROZENSET": lambda m, arg: frozenset(keys(_marked(m))),
  "GET": lambda m, arg: m.memo[arg],
  "BINGET": lambda m, arg: m.memo[arg],
  "LONG_BINGET": lambda m, arg: m.memo[arg],
  "DUP": lambda m, arg: m.stack[-1],
  "GLOBAL": lambda m, arg: Name(*arg.split(" ", 1)),
  "STACK_GLOBAL": _stack_global,
  "REDUCE": lambda m, arg: _call(m.calls, *_top(m, 2)),
  "NEWOBJ": lambda m, arg: new(*_top(m, 2)),
  "NEWOBJ_EX": _new_with_keywords,
}
# (machine, argument of the operation) -> nothing; the machine changes
_CHANGES = {
  "PROTO": lambda m, arg: None,
  "FRAME": lambda m, arg: None,
  "MARK": lambda m, arg: m.marks.append(len(m.stack)),
  "PUT": _put,
  "BINPUT": _put,
  "LONG_BINPUT": _put,
  "MEMOIZE": lambda m, arg: _put(m, len(m.memo)),
  "APPEND": lambda m, arg: _append(m, _top(m, 1)),
  "APPENDS": lambda m, arg: _append(m, _marked(m)),
  "SETITEM": lambda m, arg: _set(m, _top(m, 2)),
  "SETITEMS": lambda m, arg: _set(m, _marked(m)),
  "ADDITEMS": lambda m, arg: _add(m, _marked(m)),
  "POP": lambda m, arg: m.stack.pop(),
  "POP_MARK": lambda m, arg: _marked(m),
  "BUILD": _build_top,
}
# (machine, argument of the operation) -> id of something outside of the file
_OUTSIDE = {
  "PERSID": lambda m, arg: arg,
  "BINPERSID": lambda m, arg: m.stack.pop(),
}


def _pairs(items: list) -> dict:
  if len(items) % 2:
    raise ValueError("a key without a value")
  return dict(zip(keys(items[::2]), items[1::2]))


def keys(items: list) -> list:
  """Returns the items, which must be plain: to hash nests can take forever."""
  for item in items:
    parts = item if isinstance(item, tuple) else (item,)
    for part in parts:
      if part is not None and not isinstance(part, (str, int, float, bytes)):
        raise TypeError(f"{describe(part)} as a key")
  return items


def like(value: Any, kind: type) -> Any:
  """Returns the value; raises a TypeError if it is of another kind."""
  if not isinstance(value, kind):
    raise TypeError(f"expected a {kind.__name__}, found {describe(value)}")
  return value


def describe(value: Any) -> str:
  """Returns what a value is, for messages."""
  named = isinstance(value, (Name, Record))
  return f"{value.name}" if named else f"a {type(value).__name__}"


def _call(calls: Mapping[str, Callable], function: Any, args: Any) -> Any:
  known = calls.get(str(function)) if isinstance(function, Name) else None
  if known is None:
    what = str(function) if isinstance(function, Name) else describe(function)
    raise Forbidden(f"the pickle asks to call {what}")
  try:
    return known(*like(args, tuple))
  except TypeError as e:
    raise ValueError(f"{function} is called with wrong arguments: {e}") from e


def new(cls: Any, args: Any) -> Record | dict:
  """Returns a new object of a class: a dict for NVIDIA's, or a `Record`."""
  if not isinstance(cls, Name):
    raise Forbidden(f"the pickle makes an object of {describe(cls)}")
  if str(cls) in ("dnnlib.util.EasyDict", "collections.OrderedDict"):
    return {}
  return Record(str(cls), like(args, tuple))


def _build(
  target: Any, state: Any, memo: dict, calls: Mapping[str, Callable]
) -> Any:
  """Returns an object with its state; arrays get theirs in the memo too."""
  if isinstance(target, Record) and target.name == EMPTY_ARRAY:
    return _remember(memo, target, calls[EMPTY_ARRAY](state))
  if isinstance(target, Record):
    target.state = state
    return target
  if isinstance(target, np.dtype):
    order = like(like(state, tuple)[1], str)
    swapped = target if order == "|" else target.newbyteorder(order)
    return _remember(memo, target, swapped)
  if isinstance(target, dict):  # attributes of a subclass of dict
    return target
  raise Forbidden(f"the pickle sets attributes of {describe(target)}")


def _remember(memo: dict, before: Any, after: Any) -> Any:
  for key, value in memo.items():
    if value is before:
      memo[key] = after
  return after

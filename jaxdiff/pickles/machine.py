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
        stack.append(frozenset(keys(above_mark())))
      elif name == "APPEND":
        item = stack.pop()
        like(stack[-1], list).append(item)
      elif name == "APPENDS":
        items = above_mark()
        like(stack[-1], list).extend(items)
      elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        like(stack[-1], dict).update(_pairs([key, value]))
      elif name == "SETITEMS":
        items = above_mark()
        like(stack[-1], dict).update(_pairs(items))
      elif name == "ADDITEMS":
        items = above_mark()
        like(stack[-1], set).update(keys(items))
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
        stack.append(Name(like(module, str), like(attribute, str)))
      elif name == "REDUCE":
        args, function = stack.pop(), stack.pop()
        stack.append(_call(calls, function, args))
      elif name in ("NEWOBJ", "NEWOBJ_EX"):
        if name == "NEWOBJ_EX":
          stack.pop()  # keywords: nothing is made of them
        args, cls = stack.pop(), stack.pop()
        stack.append(new(cls, args))
      elif name == "BUILD":
        state = stack.pop()
        stack[-1] = _build(stack[-1], state, memo, calls)
      elif name in ("PERSID", "BINPERSID") and persistent:
        stack.append(persistent(arg if name == "PERSID" else stack.pop()))
      elif name == "STOP":
        return stack.pop()
      elif name in ("PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"):
        raise ValueError("it refers to something outside of the file")
      else:  # INST and OBJ, which call by name; registries of extensions
        what = f"{name} {arg}" if arg is not None else name
        raise Forbidden(
          f"the pickle uses the operation {what} at byte {position}, which no"
          " known file of weights does"
        )
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
  """
  INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
  STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
  UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
  """.split()  # noqa: SIM905
)


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

"""Public parameters say what they take: few of them are typed Any."""

import dataclasses
import importlib
import inspect
import pkgutil
import typing

import jaxdiff as jd
from jaxdiff import checks
from jaxdiff import types

MOST = 0.03
ROOMS = [
  "jaxdiff",
  *(
    f"jaxdiff.{module.name}"
    for module in pkgutil.iter_modules(jd.__path__)
    if module.name != "experiments"  # the scripts, of another package
  ),
]


def things():
  """Yields every public function and class of the rooms once."""
  seen = set()
  for room in ROOMS:
    module = importlib.import_module(room)
    own = [n for n, v in vars(module).items() if _is_of(v, room)]
    for name in getattr(module, "__all__", own):
      thing = getattr(module, name, None)
      if id(thing) not in seen and not inspect.ismodule(thing):
        seen.add(id(thing))
        yield name, thing


def _is_of(value, room):
  name = getattr(value, "__name__", "_")
  return getattr(value, "__module__", "") == room and not name.startswith("_")


def parameters():
  """Yields (what, annotation) of every parameter and dataclass field."""
  for name, thing in things():
    if inspect.isfunction(thing):
      yield from _of_function(name, thing)
    elif inspect.isclass(thing):
      if dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
          yield f"{name}.{field.name}", field.type
      for method, function in vars(thing).items():
        public = method == "__call__" or not method.startswith("_")
        if public and inspect.isfunction(function):
          found = list(_of_function(f"{name}.{method}", function))
          yield from found[1:]  # without self


def _of_function(name, function):
  for p in inspect.signature(function).parameters.values():
    if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
      yield f"{name}({p.name})", p.annotation


def test_few_public_parameters_are_typed_any():
  found = list(parameters())
  untyped = [
    what
    for what, annotation in found
    if annotation in (typing.Any, "Any", inspect.Parameter.empty)
  ]
  assert len(found) > 2000
  assert len(untyped) < MOST * len(found), "\n".join(untyped)


def test_what_stands_for_arrays_and_trees_is_left_to_those_who_read_it():
  """`checks.door` refuses no list, number, tree or key for these."""

  @checks.door
  def asked(
    a: types.ArrayLike,
    b: types.ArrayLike | None = None,
    tree: types.PyTree = None,
    model: types.Model | None = None,
    dtype: types.DTypeLike | None = None,
  ):
    return True

  for value in (1, 2.0, [1, 2], {"a": 1}, None, "text"):
    assert asked(value, value, value, value, value)

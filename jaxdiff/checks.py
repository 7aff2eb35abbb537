"""Checks of arguments: what was given, what was expected, how to mend it.

Every check runs while tracing. Values are looked at only where they are
concrete; under a transformation a traced value passes.

A public function says by its annotations what it takes; `door` holds callers to
them, so that a function checks by itself only what an annotation cannot say.
"""

import collections
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


def concrete(x: PyTree) -> bool:
  """Returns whether the value of x can be read now."""
  return not isinstance(x, jax.core.Tracer)


def falling_grid(
  grid: ArrayLike,
  t_min: float,
  t_max: float,
  t_zero: float,
  outside: Callable[[float], str] | None = None,
):
  """Returns the grid as f64[n + 1] after checking that a solver can walk it.

  Args:
    grid: 1-D times, strictly falling, inside [t_min, t_max]; the last one may
      also be `t_zero`.
    t_min: the process's smallest time.
    t_max: the process's largest time.
    t_zero: the time at which the process has no noise, NaN if there is none.
    outside: what more to say of a time outside of the process.

  Raises:
    TypeError: if the grid is traced.
    ValueError: if it is not 1-D, has fewer than two times, a NaN, an equal or
      rising pair, or a time outside the process.
  """
  if not concrete(grid):
    raise TypeError(
      "the grid is a traced array, but tables are computed on the host in"
      " float64; build the table outside of jit and pass it as an argument"
      " (tables of one shape share one compilation)"
    )
  grid = _times(grid)
  if np.isnan(grid).any():
    raise ValueError(f"the grid holds NaN at index {_first(np.isnan(grid))}")
  rising = np.diff(grid) >= 0
  if rising.any():
    i = _first(rising)
    raise ValueError(
      "the time grid must be strictly decreasing (sampling goes from noise"
      f" to data), but grid[{i}] = {grid[i]:.6g} is followed by grid[{i + 1}]"
      f" = {grid[i + 1]:.6g}; "
      + (
        "a step of length 0 asks the network and goes nowhere: drop the"
        " repeated times with grids.distinct(times)"
        if grid[i] == grid[i + 1]
        else "pass grid[::-1] if it is the wrong way round (to encode data use"
        " solvers.encoder)"
      )
    )
  slack = 1e-9 * max(abs(t_min), abs(t_max))
  beyond = (grid > t_max + slack) | (grid < t_min - slack)
  beyond[-1] &= grid[-1] != t_zero
  if beyond.any():
    i = _first(beyond)
    raise ValueError(
      f"grid[{i}] = {grid[i]:.6g} is outside of the process's times"
      f" [{t_min:.6g}, {t_max:.6g}]; give the process a wider range, as in"
      " dataclasses.replace(process, t_max=...), or shorten the grid"
      + (
        ""
        if np.isnan(t_zero)
        else f" (its last time alone may be {t_zero:.6g}, free of noise)"
      )
      + ("" if outside is None else outside(float(grid[i])))
    )
  grid[0] = min(grid[0], t_max)  # alpha may be negative beyond, if by rounding
  return grid


def _times(grid: ArrayLike) -> np.ndarray:
  """Returns a grid as f64[n + 1]; at least two numbers in a row."""
  try:
    times = np.array(grid, np.float64)
  except (TypeError, ValueError) as error:
    raise TypeError(
      f"a grid is a 1-D array of times, got {given(grid)}; make one with"
      " grids.karras(process, n) or from numbers, [t_max, ..., t_min]"
    ) from error
  if times.ndim != 1 or len(times) < 2:
    raise ValueError(
      f"a grid is a 1-D array of at least two times, got shape {times.shape};"
      " n steps need n + 1 times"
      + (f": grids.karras(process, {grid})" if _is(int, grid) else "")
    )
  return times


def rising_times(process: Any, times: ArrayLike) -> np.ndarray:
  """Returns times as f64[n] after checking that they rise within a process.

  Args:
    process: a process; its range is (t_min, t_max].
    times: 1-D times, or one.

  Raises:
    ValueError: if one is outside of the range, or they do not rise.
  """
  times = np.atleast_1d(np.asarray(times, np.float64))
  inside = (times > process.t_min) & (times <= process.t_max * (1 + 1e-9))
  if not inside.all():
    raise ValueError(
      f"the time {times[~inside][0]:.6g} is outside of ({process.t_min:.6g},"
      f" {process.t_max:.6g}], the times that the score is known at"
    )
  if np.any(np.diff(times) <= 0):
    raise ValueError(f"the times T must rise, got {times}")
  return times


def order(value: int | None, steps: int, highest: int, name: str) -> int:
  """Returns a multistep order that the grid can carry.

  Args:
    value: what the user asked for; None is the highest that `steps` allows.
    steps: number of steps of the grid.
    highest: the highest order that the method is defined for.
    name: name of the solver, for the message.

  Raises:
    ValueError: if the order is outside of 1..highest or exceeds the steps.
  """
  if value is None:
    return max(1, min(highest, steps))
  number(value, f"order of {name}", integer=True)
  if not 1 <= value <= highest:
    raise ValueError(
      f"{name} is defined for orders 1..{highest}, got order={value}"
    )
  if value > steps:
    raise ValueError(
      f"{name} of order {value} needs at least {value} steps, but the grid"
      f" has {steps} (a step out of alpha = 0 or into sigma = 0 does not"
      " count); lower the order, or leave it out and the highest that the"
      " grid allows is taken"
    )
  return value


def model(value: PyTree, call: str) -> None:
  """Raises a TypeError unless value can be a model."""
  if not callable(value):
    raise TypeError(
      f"{call} takes a model, a function model(x, t) -> (x0, eps), got"
      f" {given(value)}{_MODEL}"
    )


_MODEL = (
  "; make one of a network and its parameters with denoisers.from_linen,"
  " from_nnx or from_function"
)


def is_shape(x: PyTree) -> bool:
  """Returns whether x is a shape, a tuple or list of integers."""
  return isinstance(x, (tuple, list)) and all(_is(int, d) for d in x)


def samples(x: PyTree) -> None:
  """Raises unless x is a batch of at least one sample, or the shape of one.

  Args:
    x: a tree of numbers, or a shape (batch, ...).

  Raises:
    TypeError: if something else arrived.
    ValueError: for an empty batch, or dimensions below 1.
  """
  mend = "give an array [batch, ...], a tree of them, or a shape (batch, ...)"
  if is_shape(x):
    if not x or min(x) < 1:
      raise ValueError(
        f"x={tuple(x)} is no shape of samples: every dimension is at least 1,"
        f" the first is the batch; {mend}"
      )
    return
  leaves = jax.tree.leaves(x)
  for leaf in leaves:
    if not isinstance(leaf, (jax.Array, np.ndarray, numbers.Number)):
      raise TypeError(
        f"x is a batch of samples, but there is {given(leaf)} in it; {mend}"
      )
  if isinstance(x, numbers.Number) or not leaves:
    raise TypeError(f"x is a batch of samples, got {given(x)}; {mend}")
  if any(jnp.ndim(leaf) and not jnp.shape(leaf)[0] for leaf in leaves):
    raise ValueError(
      "x holds no sample, its batch axis has the length 0; leave out empty"
      " batches"
    )


def sharding(value: PyTree, name: str = "sharding") -> None:
  """Raises a TypeError unless value is None or a jax Sharding."""
  if value is None or isinstance(value, jax.sharding.Sharding):
    return
  mend = "make one with parallel.batch_sharding(mesh)"
  if isinstance(value, jax.sharding.PartitionSpec):
    mend = f"give the mesh with it: NamedSharding(mesh, {value})"
  raise TypeError(
    f"{name} is a jax.sharding.Sharding, got {given(value)}; {mend}"
  )


def same_types(made: PyTree, kept: PyTree, what: str, source: str) -> None:
  """Raises a TypeError unless two trees have the same leaves and types.

  Args:
    made: the tree of ShapeDtypeStructs that a function returned.
    kept: the tree of arrays that it must be like, to be carried on.
    what: the function, for the message.
    source: where `kept` comes from.
  """
  paths = jax.tree_util.tree_leaves_with_path
  name = lambda path: jax.tree_util.keystr(path) or "(the value itself)"
  typed = lambda v: f"{jnp.result_type(v).name}{list(jnp.shape(v))}"
  weak = lambda v: getattr(v, "weak_type", isinstance(v, numbers.Number))
  have = {name(p): typed(leaf) for p, leaf in paths(made)}
  want = {name(p): typed(leaf) for p, leaf in paths(kept)}
  free = {name(p) for p, leaf in paths(kept) if weak(leaf)}  # loops widen them
  for leaf in sorted({*have, *want}):
    if leaf not in free and have.get(leaf) != want.get(leaf):
      raise TypeError(
        f"{what} returned {have.get(leaf, 'nothing')} at {leaf}, but {source}"
        f" has {want.get(leaf, 'nothing')} there; what a loop carries keeps"
        " its shape and dtype: make both alike, as with .astype"
      )
  if jax.tree.structure(made) != jax.tree.structure(kept):
    raise TypeError(
      f"{what} returned {jax.tree.structure(made)}, but {source} has"
      f" {jax.tree.structure(kept)}; return the same kind of tree"
    )


def labels(label: ArrayLike, classes: int | None, what: str = "label") -> None:
  """Raises unless a condition is one that a model can take.

  Args:
    label: classes i32[batch] or a scalar, vectors or images of floats, or a
      tree of them; None passes.
    classes: number of the model's classes, whose null label is `classes`; None
      or 0 if that is not known.
    what: name of the argument, for the message.

  Raises:
    TypeError: for what is no array of numbers, or floats for classes.
    ValueError: for a class that there is not, or floats that are not finite.
  """
  for leaf in jax.tree.leaves(label):
    if not concrete(leaf):
      continue
    value = np.asarray(leaf)
    kind = jnp.dtype(value.dtype)
    whole = jnp.issubdtype(kind, jnp.integer)
    if not (whole or jnp.issubdtype(kind, jnp.floating)):
      raise TypeError(
        f"{what} is a class, an integer, or a vector of floats; got"
        f" {given(leaf)}"
      )
    if not whole:
      vector = value.ndim > 1 or (value.ndim and value.shape[0] == classes)
      if classes and not vector:
        raise TypeError(
          f"{what} holds {value.dtype}, but the model takes classes"
          f" 0..{classes}, integers; convert them with .astype(np.int32)"
        )
      if not np.isfinite(np.asarray(value, np.float64)).all():
        raise ValueError(f"{what} holds NaN or infinity; give finite numbers")
    elif classes and value.size:
      low, high = int(value.min()), int(value.max())
      if low < 0 or high > classes:
        raise ValueError(
          f"{what} holds {low if low < 0 else high}, but the model has the"
          f" classes 0..{classes - 1}, and {classes} for no class; give one of"
          " these"
        )


def scale(value: PyTree, name: str = "scale") -> None:
  """Raises unless value is finite numbers, as of guidance; traced ones pass."""
  if not concrete(value):
    return
  try:
    numeric = np.asarray(value, np.float64)
  except (TypeError, ValueError) as error:
    raise TypeError(
      f"{name} is a number, or one for each sample; got {given(value)}"
    ) from error
  if isinstance(value, (bool, str)) or value is None:
    raise TypeError(
      f"{name} is a number, or one for each sample; got {given(value)}"
    )
  if not np.isfinite(numeric).all():
    raise ValueError(
      f"{name} is finite, got {given(value)}; 1.0 is the conditional model"
    )


def process(value: PyTree, call: str) -> None:
  """Raises a TypeError unless value is a forward process.

  Args:
    value: what arrived.
    call: how the function is called, for the message.
  """
  if hasattr(value, "log_snr") and hasattr(value, "t_max"):
    return
  mend = "make one, as in jaxdiff.edm()"
  if callable(value):
    name = getattr(value, "__name__", "it")
    mend = f"call it: {name}()"
  raise TypeError(f"{call} takes a process there, got {given(value)}; {mend}")


def one_of(value: PyTree, choices: Iterable, name: str) -> None:
  """Raises a ValueError that lists the choices unless value is among them."""
  choices = tuple(choices)
  if not isinstance(value, collections.abc.Hashable) or value not in choices:
    listed = ", ".join(repr(c) for c in choices)
    raise ValueError(
      f"{name} must be one of {listed}; got {given(value)}"
      + near(value, choices)
    )


def near(value: PyTree, choices: Iterable[Any]) -> str:
  """Returns "; did you mean 'x'?" of the nearest choice, empty if none is."""
  names = [c for c in choices if isinstance(c, str)]
  found = difflib.get_close_matches(str(value), names, n=1)
  return f"; did you mean {found[0]!r}?" if found else ""


def given(value: PyTree) -> str:
  """Returns how a message shows a value that arrived: short, never an array."""
  if isinstance(value, (np.ndarray, jax.Array, jax.ShapeDtypeStruct)):
    if not concrete(value):
      return f"a traced value {value.dtype}{list(value.shape)}"
    if not isinstance(value, jax.ShapeDtypeStruct) and value.ndim == 0:
      return f"{value}"
    return f"an array {value.dtype}{list(value.shape)}"
  if isinstance(value, type):
    return f"the class {value.__name__}"
  if inspect.isroutine(value):
    return f"the function {value.__name__}"
  if value is None or isinstance(value, (bool, str, numbers.Number)):
    return repr(value)
  text = " ".join(repr(value).split())
  text = text if len(text) <= 40 else text[:37] + "..."
  return f"{type(value).__name__} {text}"


_KEY_SHAPES = types.MappingProxyType(
  {"threefry2x32": (2,), "rbg": (4,), "unsafe_rbg": (4,)}
)


def key(value: PyTree, call: str) -> None:
  """Raises a TypeError or ValueError unless value is one PRNG key.

  Keys of every implementation pass, typed (`jax.random.key`) and raw
  (`jax.random.PRNGKey`, uint32).

  Args:
    value: what arrived.
    call: how the function is called, for the message.
  """
  make = "make one with jax.random.key(0)"
  wrong = f"{call} takes a PRNG key, got {given(value)}; {make}"
  if not isinstance(value, (jax.Array, np.ndarray)):
    raise TypeError(wrong)
  if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
    batch = value.shape
  elif value.dtype == np.uint32 and value.ndim:
    kind = jax.config.jax_default_prng_impl
    own = _KEY_SHAPES.get(kind)
    if own is not None and value.shape[-1:] != own:
      raise ValueError(
        f"{call} takes a PRNG key, got {given(value)}; a raw key of {kind} is"
        f" uint32{list(own)}: {make}"
      )
    batch = value.shape[:-1]
  else:
    raise TypeError(wrong)
  if batch:
    raise ValueError(
      f"{call} takes one PRNG key, got a batch of keys {list(batch)}; pass one"
      " of them, or map over all with jax.vmap (the samples of a batch get"
      " keys of their own from one)"
    )


def number(
  value: PyTree,
  name: str,
  *,
  least: float | None = None,
  above: float | None = None,
  below: float | None = None,
  integer: bool = False,
) -> None:
  """Raises unless value is one finite number in a range; traced ones pass.

  Args:
    value: what arrived.
    name: name of the argument, for the message.
    least: smallest value, itself allowed.
    above: largest value that is not allowed any more, at the low end.
    below: smallest value that is not allowed any more, at the high end.
    integer: whether it counts something.

  Raises:
    TypeError: if it is no number, or no integer.
    ValueError: if it is not finite or outside of the range.
  """
  kind = int if integer else float
  if not concrete(value):
    return
  if not _is(kind, value):
    raise TypeError(
      f"{name} is {_NAMES[kind]}, got {given(value)}" + _mend(kind, value, name)
    )
  _check_range(value, name, least, above, below)


def _check_range(value, name, least=None, above=None, below=None, other=""):
  low = least is not None and not value >= least
  if low or (above is not None and not value > above):
    word = f"at least {least:g}" if low else f"more than {above:g}"
    raise ValueError(f"{name} must be {word}{other}, got {given(value)}")
  if below is not None and not value < below:
    raise ValueError(f"{name} must be less than {below:g}, got {given(value)}")
  if not math.isfinite(value):
    raise ValueError(f"{name} is a finite number{other}, got {given(value)}")


_Takes = typing.ParamSpec("_Takes")
_Gives = typing.TypeVar("_Gives")


@typing.overload
def door(function: Callable[_Takes, _Gives]) -> Callable[_Takes, _Gives]: ...


@typing.overload
def door(
  function: None = None,
  *,
  least: Mapping[str, float] | None = None,
  above: Mapping[str, float] | None = None,
  host: bool = False,
) -> Callable[[Callable[_Takes, _Gives]], Callable[_Takes, _Gives]]: ...


def door(
  function: Callable | None = None,
  *,
  least: Mapping[str, float] | None = None,
  above: Mapping[str, float] | None = None,
  host: bool = False,
) -> Callable:
  """Holds the callers of a public function to its annotations.

  Before the function runs, the names of the arguments are compared with its
  own, and each value with its annotation where that is plain: numbers, bools,
  strings, paths, functions, tuples of numbers, processes, tables, optimizers;
  what is called `key` is one PRNG key. Numbers are finite, unless the default
  is not. A traced number passes.

  Args:
    function: the function.
    least: smallest values of some arguments, themselves allowed.
    above: the same, not allowed themselves.
    host: whether it computes on the host, where no value may be traced.

  Returns:
    The function that checks. It raises TypeError for an unknown or missing
    argument and for a value of another type, ValueError for one out of range.
  """
  if function is None:
    return functools.partial(door, least=least, above=above, host=host)
  least, above = dict(least or {}), dict(above or {})
  taken = functools.cache(lambda: contract(function))  # all types exist by then

  @functools.wraps(function)
  def checked(*args: Any, **named: Any) -> Any:
    arguments(taken(), args, named, least, above, host)
    return function(*args, **named)

  return checked


def sampler(function: Callable[_Takes, _Gives]) -> Callable[_Takes, _Gives]:
  """Holds the callers of a sampler to `door`, and to the order of all samplers.

  Every sampler is called by position as (key, model, what is walked, x), all
  else by name. A value whose kind shows that it stands in another's place is
  refused before anything else is looked at.

  Args:
    function: the sampler.

  Returns:
    The function that checks. It raises TypeError for another order, and what
    `door` raises.
  """
  held = door(function)
  taken = functools.cache(lambda: contract(function))

  @functools.wraps(function)
  def checked(*args: Any, **named: Any) -> Any:
    _check_order(taken(), args)
    return held(*args, **named)

  return checked


# What cannot stand in each of the four places, whatever the sampler.
_MISPLACED = (
  ("a PRNG key first", ("function", "process", "table")),
  ("a {model} second", ("key", "process", "table", "array")),
  ("{walked} third", ("key", "process", "function")),
  ("{x} fourth", ("key", "process", "function", "table", "number")),
)


def _check_order(taken, args):
  names = list(taken.parameters)[: len(_MISPLACED)]
  order = f"the order of samplers is {', '.join(names)}, all else by name"
  if len(args) > len(names):
    rest = [n for n in taken.parameters if n not in names]
    raise TypeError(
      f"{taken.call} takes {len(names)} arguments by position, got"
      f" {len(args)}; {order}: {', '.join(rest)}"
    )
  for i, (value, (place, wrong)) in enumerate(zip(args, _MISPLACED)):
    kinds = taken.kinds[names[i]]
    if i == 2 and kinds is not None:  # of what is plain `door` says more
      wrong = ("array",) if {*kinds} <= {int, float, types.NoneType} else ()
    if _role(value) in wrong:
      what = place.format(model=names[1], walked=names[2], x=names[3])
      raise TypeError(f"{taken.call} takes {what}, got {given(value)}; {order}")


def _role(value):
  """Returns what a value is to a sampler, None if that is not plain."""
  if isinstance(value, (jax.Array, np.ndarray)):
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
      return "key"
    return "array" if value.ndim else "number"
  if type(value).__name__ == "Tableau":
    return "table"
  if hasattr(value, "t_max") and not isinstance(value, type):
    return "process"
  if _is(float, value):
    return "number"
  return "function" if callable(value) else None


class Contract(typing.NamedTuple):
  """What a function takes: its name, its parameters, and their kinds."""

  name: str
  parameters: Mapping[str, inspect.Parameter]
  kinds: Mapping[str, tuple | None]

  @property
  def call(self) -> str:
    """How the function is called."""
    positional = [
      p.name
      for p in self.parameters.values()
      if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
    ]
    named = [
      f"{p.name}=..."
      for p in self.parameters.values()
      if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    ]
    return f"{self.name}({', '.join(positional + named)})"


# What these names count or measure is the same wherever they are arguments.
_COUNTS = frozenset(
  (
    "buckets",
    "critic_steps",
    "directions",
    "draws",
    "fake_steps",
    "log_every",
    "max_calls",
    "replicas",
    "rounds",
    "score_steps",
    "snapshot_every",
    "subsets",
  )
)
_POSITIVE = frozenset(("bandwidth", "learning_rate", "sigma_data"))


def _low_ends(name, least, above):
  """Returns (least, above) of an argument, None where there is none."""
  if name in least or name in above:
    return least.get(name), above.get(name)
  if name in _COUNTS:
    return 1, None
  if name in _POSITIVE:
    return None, 0
  return None, None


def contract(function: Callable) -> Contract:
  """Returns what a function, or the fields of a dataclass, take."""
  parameters = inspect.signature(function).parameters
  try:
    hints = typing.get_type_hints(function)
  except (NameError, TypeError):  # of types that are nowhere, or of an object
    hints = {}
  kinds = {n: _kinds(hints.get(n, Any), n) for n in parameters}
  name = getattr(function, "__name__", type(function).__name__)
  return Contract(name, parameters, kinds)


def arguments(
  taken: Contract,
  args: Sequence[Any],
  named: Mapping[str, Any],
  least: Mapping[str, float] = types.MappingProxyType({}),
  above: Mapping[str, float] = types.MappingProxyType({}),
  host: bool = False,
) -> None:
  """Raises unless the arguments of a call are what a function takes.

  Args:
    taken: by the function.
    args: positional arguments.
    named: named ones.
    least: as in `door`.
    above: as in `door`.
    host: as in `door`.
  """
  parameters = taken.parameters
  values = _bound(taken, args, named)
  for name, value in values.items():
    parameter = parameters[name]
    if value is parameter.default:
      continue
    kinds = taken.kinds[name]
    if kinds is None:
      continue
    if _KEY in kinds:
      if value is not None or types.NoneType not in kinds:
        key(value, taken.call)
      continue
    if not concrete(value):
      if host and any(k in (int, float, bool, str) for k in kinds):
        raise TypeError(
          f"{name} of {taken.call} is a traced value, but grids and tables are"
          " computed on the host in float64; build them outside of jit and"
          " pass the table as an argument"
        )
      continue
    if not any(_is(kind, value) for kind in kinds):
      _refuse(taken, name, value, kinds, values)
    if _is(float, value) and not _unbounded(parameter.default, value):
      what = f"{name} of {taken.call}"
      other = " or None" if types.NoneType in kinds else ""
      _check_range(value, what, *_low_ends(name, least, above), other=other)


def _unbounded(default: Any, value: PyTree) -> bool:
  """Returns whether a number may be infinite, as its default is."""
  if not isinstance(default, float) or math.isfinite(default):
    return False
  return math.isnan(default) or not math.isnan(value)


def _bound(taken, args, named):
  """Returns the arguments by name, without those that go to * and **."""
  parameters = taken.parameters
  kinds = {p.kind for p in parameters.values()}
  ordered = [
    n
    for n, p in parameters.items()
    if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
  ]
  if len(args) > len(ordered) and inspect.Parameter.VAR_POSITIONAL not in kinds:
    rest = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    raise TypeError(
      f"{taken.call} takes at most {len(ordered)} arguments by position, got"
      f" {len(args)}"
      + (f"; give the others by name: {', '.join(rest)}" if rest else "")
    )
  values = dict(zip(ordered, args))
  for name, value in named.items():
    if name in values:
      raise TypeError(f"{taken.call} was given {name} twice; drop one of them")
    if name not in parameters:
      if inspect.Parameter.VAR_KEYWORD in kinds:
        continue
      known = [n for n in parameters if n not in ordered[: len(args)]]
      raise TypeError(
        f"{taken.call} does not take {name!r}; it takes"
        f" {', '.join(known) or 'no options'}{near(name, parameters)}"
      )
    values[name] = value
  for name, p in parameters.items():
    if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
      values.pop(name, None)
    elif p.default is p.empty and name not in values:
      raise TypeError(
        f"{taken.call} needs {name}, which was not given; it takes"
        f" {', '.join(parameters)}"
      )
  return values


def fields(
  config: Any,
  *,
  least: Mapping[str, float] | None = None,
  above: Mapping[str, float] | None = None,
) -> None:
  """Raises unless the fields of a dataclass are what its annotations say.

  Args:
    config: the dataclass, as its __post_init__ sees it.
    least: as in `door`.
    above: as in `door`.
  """
  kind = type(config)
  values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  arguments(contract(kind), (), values, least or {}, above or {})


_KEY = "key"


def _kinds(annotation: Any, name: str) -> tuple | None:
  """Returns the alternatives of an annotation, None where all is taken."""
  found = _alternatives(annotation, name)
  # what is an array is found out by those who read it
  return None if {*(found or ())} <= {np.ndarray, types.NoneType} else found


def _alternatives(annotation: Any, name: str) -> tuple | None:
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    parts = [_alternatives(a, name) for a in typing.get_args(annotation)]
    if any(p is None for p in parts):
      return None
    return tuple(kind for p in parts for kind in p)
  if annotation in (int, float, bool, str, types.NoneType):
    return (annotation,)
  origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is collections.abc.Callable or annotation is Callable:
    return (Callable,)
  if origin in (tuple, collections.abc.Sequence) and parts:
    plain = {p for p in parts if p is not ...}
    if len(plain) == 1 and plain <= {int, float, str}:
      size = None if origin is not tuple or ... in parts else len(parts)
      return ((plain.pop(), size, name == "shape"),)
    return None
  if annotation is os.PathLike or origin is os.PathLike:
    return (os.PathLike,)
  if annotation is np.ndarray:
    return (np.ndarray,)
  if annotation is jax.Array and name == "key":
    return (_KEY,)
  if getattr(annotation, "__name__", "") in _CLASSES:
    return (annotation,)
  return None


_NAMES = types.MappingProxyType(
  {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    types.NoneType: "None",
    Callable: "a function",
    os.PathLike: "a path",
    np.ndarray: "an array of numbers",
  }
)

# Classes whose objects only their own builders make, and these.
_CLASSES = types.MappingProxyType(
  {
    "GaussianProcess": "make one, as in jaxdiff.edm()",
    "Tableau": "build one with a solver, as in dpmpp_2m(process, grid)",
    "Collector": "such as sampling.every(1)",
    "Interpolant": "make one with interpolants.interpolant()",
    "CriticallyDamped": "make one with phase_space.CriticallyDamped()",
    "GradientTransformation": "make one, as in optax.adam(1e-3)",
    "ModelConfig": "make one with models.ModelConfig(shape=(8, 8, 1))",
    "TrainState": "make one with init_state(key, params, optimizer)",
    "Mesh": "make one with parallel.data_mesh()",
    "AbstractMesh": "take that of a Mesh, mesh.abstract_mesh",
    "Trace": "make one with training.Trace(folder, first, last)",
    "Guard": "make one with training.Guard(), or None",
  }
)
_METHODS = types.MappingProxyType(  # for those that others may write as well
  {
    "GaussianProcess": ("log_snr", "t_max"),
    "Collector": ("init", "update"),
    "GradientTransformation": ("init", "update"),
  }
)


def _is(kind: Any, value: PyTree) -> bool:
  """Returns whether a concrete value is of a kind."""
  if kind in (int, float):
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0:
      if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return False  # a key
      value = value.dtype.type(0)  # its type alone matters
    numeric = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, (bool, np.bool_)):
      return False
    if kind is float and isinstance(value, np.generic):
      return jnp.issubdtype(value.dtype, jnp.number) and not np.iscomplexobj(
        value
      )
    return isinstance(value, numeric)
  if kind is bool:
    return isinstance(value, (bool, np.bool_))
  if kind is Callable:
    return callable(value)
  if kind is os.PathLike:
    return isinstance(value, os.PathLike)
  if kind is np.ndarray:
    return isinstance(value, (np.ndarray, jax.Array, list, tuple))
  if kind is _KEY:
    return isinstance(value, jax.Array)
  if isinstance(kind, tuple):
    part, size, shape = kind
    if not isinstance(value, (tuple, list, np.ndarray, range)):
      return False
    if size is not None and len(value) != size:
      return False
    whole = (int, float, bool) if part is float else (part,)  # 0, 1 or a mask
    return all(
      any(_is(k, v) for k in whole) and not (shape and v < 1) for v in value
    )
  if isinstance(kind, type) and kind.__name__ in _CLASSES:
    if isinstance(value, type):
      return False
    methods = _METHODS.get(kind.__name__)
    if methods is not None:
      return all(hasattr(value, m) for m in methods)
  return isinstance(value, kind)


def _name(kind: Any) -> str:
  if isinstance(kind, tuple):
    part, size, shape = kind
    many = {int: "integers", float: "numbers", str: "strings"}[part]
    if shape:
      return "a tuple of integers of at least 1"
    return f"a tuple of {many}" if size is None else f"{size} {many}"
  if kind is _KEY:
    return "a PRNG key"
  if isinstance(kind, type) and kind.__name__ in _CLASSES:
    return {
      "GaussianProcess": "a process",
      "GradientTransformation": "an optimizer of optax",
    }.get(kind.__name__, f"a {kind.__name__}")
  return _NAMES[kind]


def _refuse(taken, name, value, kinds, values):
  """Raises the TypeError for a value of another kind than its annotation."""
  first = kinds[0]
  expected = " or ".join(dict.fromkeys(_name(kind) for kind in kinds))
  if name == "model" and first is Callable:
    expected = "a model"
  place = "there" if expected.lower() == f"a {name}" else f"as {name}"
  text = f"{taken.call} takes {expected} {place}, got {given(value)}"
  plain = all(k in _NAMES or isinstance(k, tuple) for k in kinds)
  swapped = [
    other
    for other, v in values.items()
    if other != name
    and concrete(v)
    and v is not None
    and any(_is(kind, v) for kind in kinds)
    and not any(_is(kind, v) for kind in taken.kinds[other] or ())
    and (taken.kinds[other] is not None or not plain)
  ]
  if swapped:
    mend = f"; it seems to be swapped with {swapped[0]}"
  else:
    mend = _mend(first, value, name)
  default = taken.parameters[name].default
  if not mend and default is not inspect.Parameter.empty:
    mend = f"; leave it out for {given(default)}"
  raise TypeError(text + (mend or f"; give {expected}"))


def _mend(kind, value, name):
  """Returns "; " and what to write instead, or "" if that is not known."""
  if isinstance(kind, type) and kind.__name__ in _CLASSES:
    if inspect.isroutine(value) and kind.__name__ != "Tableau":
      return f"; call it: {getattr(value, '__name__', 'it')}()"
    return f"; {_CLASSES[kind.__name__]}"
  if kind in (int, float, bool) and isinstance(value, str):
    if kind is bool:
      return f"; write {name}=True or {name}=False, without quotes"
    try:
      return f"; write {name}={kind(value)}, without quotes"
    except ValueError:
      return ""
  if kind is int and _is(float, value):
    whole = math.isfinite(value) and float(value).is_integer()
    return f"; write {name}={int(value)}" if whole else "; round it"
  if kind in (int, float) and isinstance(value, (bool, np.bool_)):
    return f"; write {name}={kind(value)} if that is meant"
  if kind is bool and _is(int, value) and value in (0, 1):
    return f"; write {name}={bool(value)}"
  if kind in (int, float) and isinstance(value, (np.ndarray, jax.Array, list)):
    return "; one number holds for all"
  if isinstance(kind, tuple) and kind[0] in (int, float) and _is(float, value):
    return f"; write {name}=({given(value)},)"
  if kind is Callable and name == "model":
    return f"; it is a function model(x, t) -> (x0, eps){_MODEL}"
  if kind is Callable and isinstance(value, str):
    return f"; pass the function {value} itself, not its name"
  return ""


def same_structure(
  given: Any, expected: PyTree, what: str, source: str
) -> None:
  """Raises a ValueError naming the first leaf where shape or tree differ.

  Args:
    given: the tree that arrived.
    expected: the tree it should match, leaf by leaf.
    what: the given tree's name in the message.
    source: where the expectation comes from, in the message.
  """
  paths = jax.tree_util.tree_leaves_with_path
  name = lambda path: jax.tree_util.keystr(path) or "(the array itself)"
  have = {name(p): jnp.shape(leaf) for p, leaf in paths(given)}
  want = {name(p): jnp.shape(leaf) for p, leaf in paths(expected)}
  for leaf in want:
    if leaf not in have:
      raise ValueError(
        f"{what} lacks the leaf {leaf} that {source} has; it holds"
        f" {', '.join(have) or 'nothing'}"
      )
    if have[leaf] != want[leaf]:
      raise ValueError(
        f"{what} has shape {have[leaf]} at leaf {leaf}, but {source} has"
        f" {want[leaf]} there"
      )
  for leaf in have:
    if leaf not in want:
      raise ValueError(f"{what} has a leaf {leaf} that {source} lacks")


def _first(mask: np.ndarray) -> int:
  return int(np.flatnonzero(mask)[0])

"""Loops and branches whose types agree, wherever they are traced.

With an array's shape and dtype JAX keeps over which axes of a mesh it varies
(inside `shard_map`) and over which Explicit axes it is split. A loop takes and
returns one type, a branch that of its sibling; but the zeros that an
accumulator begins with, or a state that no noise has met yet, have a smaller
one. The loops here have the names of `jax.lax` and widen first: a carry is
given the least type that its body keeps. Outside of a mesh they are `jax.lax`.

What makes constants of the type of a state, numbers the samples of a batch that
is split, or hands a network to the compiler, stands beside them.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree


def scan(
  f: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
  init: PyTree,
  xs: PyTree = None,
  length: int | None = None,
) -> tuple[PyTree, PyTree]:
  """`jax.lax.scan`, its carry as wide as f makes it."""
  if not _typed((init, xs)):
    return jax.lax.scan(f, init, xs, length=length)
  first = lambda leaf: jnp.asarray(leaf)[0]
  init = _widest(lambda c, xs: f(c, jax.tree.map(first, xs))[0], init, xs)

  def step(carry, x):
    new, y = f(carry, x)
    return like(new, carry), y

  return jax.lax.scan(step, init, xs, length=length)


def while_loop(
  more: Callable[[PyTree], jax.Array],
  body: Callable[[PyTree], PyTree],
  init: PyTree,
) -> PyTree:
  """`jax.lax.while_loop`, its carry as wide as the body makes it."""
  if not _typed(init):
    return jax.lax.while_loop(more, body, init)
  init = _widest(body, init)
  return jax.lax.while_loop(more, lambda c: like(body(c), c), init)


def fori_loop(
  lower: ArrayLike,
  upper: ArrayLike,
  body: Callable[[jax.Array, PyTree], PyTree],
  init: PyTree,
) -> PyTree:
  """`jax.lax.fori_loop`, its carry as wide as the body makes it."""
  if not _typed((lower, upper, init)):
    return jax.lax.fori_loop(lower, upper, body, init)
  init = _widest(lambda c, i: body(i, c), init, jnp.asarray(lower))
  return jax.lax.fori_loop(lower, upper, lambda i, c: like(body(i, c), c), init)


def cond(
  pred: ArrayLike,
  true_fun: Callable[..., PyTree],
  false_fun: Callable[..., PyTree],
  *operands: Any,
) -> PyTree:
  """`jax.lax.cond`, its result as wide as the wider branch."""
  branches = _agreeing(pred, (true_fun, false_fun), operands)
  return jax.lax.cond(pred, *branches, *operands)


def switch(
  index: ArrayLike, branches: list[Callable[..., PyTree]], *operands: Any
) -> PyTree:
  """`jax.lax.switch`, its result as wide as the widest branch."""
  branches = _agreeing(index, branches, operands)
  return jax.lax.switch(index, branches, *operands)


def like(new: PyTree, old: PyTree) -> PyTree:
  """Returns `new` with the types of `old`: what varies, and how it is split."""
  if jax.tree.structure(new) != jax.tree.structure(old):
    return new  # the loop says better what is wrong
  return jax.tree.map(lambda n, o: _cast(n, _type(o)), new, old)


def full(
  x: PyTree,
  value: PyTree,
  dtype: DTypeLike | None = None,
  lead: tuple[int, ...] = (),
) -> jax.Array:
  """Returns an array of one value, of the type of x.

  Args:
    x: array, or a ShapeDtypeStruct of one.
    value: scalar.
    dtype: that of x by default.
    lead: axes in front of those of x.
  """
  kind = _type(x)
  if kind.sharding is not None:
    spec = (None,) * len(lead) + _spec(kind, len(x.shape))
    kind = dataclasses.replace(kind, sharding=_over(kind, spec))
  new = jnp.full((*lead, *x.shape), value, x.dtype if dtype is None else dtype)
  return _cast(new, kind)


def set_row(rows: jax.Array, row: jax.Array, i: Any) -> jax.Array:
  """Returns rows [n, ...] with row i replaced, in place inside of a loop."""
  kind = _type(rows)
  if kind.sharding is not None:
    spec = _spec(kind, len(rows.shape))[1:]
    row = _cast(row, dataclasses.replace(kind, sharding=_over(kind, spec)))
  return jax.lax.dynamic_update_index_in_dim(rows, row, i, 0)


def rows_at(rows: jax.Array, index: jax.Array) -> jax.Array:
  """Returns rows[index], split as the indices are."""
  kind = _type(index)
  if kind.sharding is None:
    return rows[index]
  whole = dataclasses.replace(kind, sharding=_over(kind, ()))
  spec = _spec(kind, index.ndim) + (None,) * (rows.ndim - 1)
  return _cast(rows, whole).at[index].get(out_sharding=_over(kind, spec))


def along_batch(values: jax.Array, x: PyTree) -> jax.Array:
  """Returns values [batch, ...] split as the first axis of x is."""
  leaf = jax.tree.leaves(x)[0]
  kind = _type(leaf)
  if kind.sharding is not None:
    spec = _spec(kind, len(leaf.shape))[:1] + (None,) * (values.ndim - 1)
    kind = dataclasses.replace(kind, sharding=_over(kind, spec))
  return _cast(values, kind)


def check_index(value: PyTree) -> None:
  """Raises a ValueError if concrete indices of samples are no 32-bit integers.

  Wider ones would be cut to 32 bits, and two samples share their noise.
  """
  if value is None or isinstance(value, jax.core.Tracer):
    return
  dtype = getattr(value, "dtype", None)
  if dtype is not None and jnp.dtype(dtype).itemsize <= 4:
    return  # nothing is copied to be looked at
  wide = np.asarray(jax.device_get(value))
  if wide.dtype.kind not in "iuO" or not wide.size:
    return
  least, most = int(wide.min()), int(wide.max())
  limits = np.iinfo(np.int32)
  if least < limits.min or most > limits.max:
    wrong = most if most > limits.max else least
    raise ValueError(
      f"index numbers the samples by int32, {limits.min}..{limits.max}, got"
      f" {wrong}; to draw more, fold a number of the part into the key:"
      " jax.random.fold_in(key, part)"
    )


def numbers(x: PyTree, index: ArrayLike | None = None) -> jax.Array:
  """Returns the numbers of the samples of x, i32[batch].

  By default 0, 1, ...; inside `shard_map` those in the whole batch, of which x
  is a part: every device numbers its own, and no two draw the same noise.

  Args:
    x: tree of [batch, ...].
    index: numbers to take instead; they are laid out as x is.
  """
  check_index(index)
  if index is None:
    leaf = jax.tree.leaves(x)[0]
    size = leaf.shape[0]
    at, _ = part(_axes_of_batch(leaf))
    index = jnp.arange(size, dtype=jnp.int32) + at * size
  return along_batch(jnp.asarray(index), x)


def own_rows(draw: Callable[[int], PyTree], x: PyTree) -> PyTree:
  """Returns the rows of draw(n) [n, ...] that belong to the samples of x.

  n is the size of the whole batch, of which x is a part inside `shard_map`:
  what is drawn for all of it does not depend on how it is split.
  """
  leaf = jax.tree.leaves(x)[0]
  size = leaf.shape[0]
  at, parts = part(_axes_of_batch(leaf))
  if parts == 1:
    return draw(size)
  own = lambda v: jax.lax.dynamic_slice_in_dim(v, at * size, size)
  return jax.tree.map(own, draw(size * parts))


def varying(x: PyTree) -> tuple[str, ...]:
  """Returns the axes of the mesh over which any leaf of x varies."""
  names = frozenset().union(*(_type(leaf).varying for leaf in _leaves(x)))
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(name for name in mesh.axis_names if name in names)


def split_axes(x: PyTree, over: PyTree, axis_name: str | None) -> tuple:
  """Returns the mesh axes that a batch is split over and parameters are not.

  Args:
    x: the batch, a part of it inside `shard_map` or `pmap`.
    over: parameters.
    axis_name: an axis that types don't tell of, as in `pmap`, or None.
  """
  names = [n for n in varying(x) if n not in varying(over)]
  if axis_name is not None and axis_name not in names:
    names.append(axis_name)
  return tuple(names)


@contextlib.contextmanager
def batch_over(axis_name: str | None) -> Iterator[None]:
  """Says, while a function is traced, over which axis its batch is split.

  For `numbers` and `own_rows` inside `pmap`, where no type says so.
  """
  token = _batch_axis.set(axis_name)
  try:
    yield
  finally:
    _batch_axis.reset(token)


def vary(x: PyTree, axes: tuple[str, ...]) -> PyTree:
  """Returns x as a value of each device's own along the axes.

  A gradient with respect to it is then that of the device's part of a batch.
  """

  def one(v):
    kind = _type(v)
    varies = kind.varying | frozenset(axes)
    return _cast(v, dataclasses.replace(kind, varying=varies))

  return jax.tree.map(one, x) if axes else x


def mean_over(x: PyTree, axes: tuple[str, ...]) -> PyTree:
  """Returns the mean of x over axes of a mesh, the same on each of them."""
  return jax.lax.pmean(vary(x, axes), axes) if axes else x


def gathered(x: PyTree, axes: tuple[str, ...]) -> PyTree:
  """Returns x of every device along the axes, leaves [devices, ...]."""
  at, parts = part(axes)

  def one(v):
    rows = jnp.zeros((parts, *jnp.shape(v)), jnp.result_type(v))
    rows = jax.lax.dynamic_update_index_in_dim(rows, v, at, 0)
    return jax.lax.psum(rows, axes)  # not all_gather, whose result varies

  return jax.tree.map(one, vary(x, axes))


def part(axes: tuple[str, ...]) -> tuple[Any, int]:
  """Returns which part of a batch split over axes is here, and of how many."""
  at, parts = 0, 1
  for name in axes:
    size = jax.lax.axis_size(name)
    at, parts = at * size + jax.lax.axis_index(name), parts * size
  return at, parts


def constrain(x: PyTree, sharding: Any) -> PyTree:
  """Returns x laid out as `sharding` says, one for all leaves or a tree.

  On a mesh with Explicit axes the layout becomes part of the type.
  """
  if not isinstance(sharding, NamedSharding):
    return jax.lax.with_sharding_constraint(x, sharding)
  context = jax.sharding.get_abstract_mesh()
  mesh = sharding.mesh if context.empty else context
  if AxisType.Explicit in _axis_types(mesh):
    return jax.tree.map(lambda v: jax.sharding.reshard(v, sharding), x)
  if not context.empty:  # its axes may be Auto where those of the mesh are not
    sharding = NamedSharding(context, sharding.spec)
  return jax.lax.with_sharding_constraint(x, sharding)


def is_explicit(sharding: Any) -> bool:
  """Returns whether a sharding is over a mesh with Explicit axes."""
  mesh = getattr(sharding, "mesh", None)
  return AxisType.Explicit in _axis_types(mesh)


def automatic(
  f: Callable[..., PyTree],
  *args: Any,
  batch: PyTree,
  like: tuple | None = None,
) -> PyTree:
  """Returns f(*args), whose layout within is left to the compiler.

  Networks are written for arrays, not for Explicit axes, on which a reshape or
  a product over a split axis must say how its result is split. Without such
  axes this is f(*args).

  Args:
    f: function of arrays; none that it closes over may lie on Explicit axes.
    *args: its arguments.
    batch: tree of [batch, ...], the first leaf of which says how it is split.
    like: prefix of the result whose arrays are laid out as these are, the rest
      is copied; None splits what has the length of the batch.
  """
  kinds = [_type(v) for v in _leaves((batch, args))]
  kinds = [kind for kind in kinds if kind.sharding is not None]
  if not kinds:
    return f(*args)
  mesh = next((k.devices for k in kinds if k.devices), kinds[0].sharding.mesh)
  names = zip(mesh.axis_names, mesh.axis_types, strict=True)
  axes = tuple(name for name, kind in names if kind == AxisType.Explicit)
  over = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  call = functools.partial(jax.sharding.auto_axes, f, axes=axes)
  if like is None:
    shapes = jax.eval_shape(call(out_sharding=over()), *args)
    leaf = jax.tree.leaves(batch)[0]
    size, first = leaf.shape[:1], _spec(_type(leaf), len(leaf.shape))[:1]
    out = lambda s: over(*first if s.shape[:1] == size else ())
    out = jax.tree.map(out, shapes)
  else:
    as_it_is = lambda v: over(*_spec(_type(v), len(jnp.shape(v))))
    out = (*jax.tree.map(as_it_is, like), over())
  return call(out_sharding=out)(*args)


@dataclasses.dataclass(frozen=True)
class _Type:
  """What a type says beside shape and dtype; a leaf of trees.

  Attributes:
    varying: axes of the mesh that it varies over, inside `shard_map`.
    sharding: over a mesh with Explicit axes, or None.
    devices: that mesh, known of arrays that are not traced.
  """

  varying: frozenset = frozenset()
  sharding: NamedSharding | None = None
  devices: Any = dataclasses.field(default=None, compare=False)


def _type(leaf: PyTree) -> _Type:
  """Returns the type of an array, a ShapeDtypeStruct, or one of another."""
  if isinstance(leaf, _Type):
    return leaf
  aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
  manual = getattr(aval, "manual_axis_type", None)
  sharding = getattr(aval, "sharding", None)
  varies = frozenset() if manual is None else manual.varying
  if not is_explicit(sharding):
    return _Type(varies)
  traced = isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct))
  lies = None if traced else leaf.sharding
  return _Type(varies, sharding, getattr(lies, "mesh", None))


def _axes_of_batch(leaf: PyTree) -> tuple[str, ...]:
  """Returns the axes of the mesh over which a batch is split here."""
  names, told = varying(leaf), _batch_axis.get()
  return names if told is None or told in names else (*names, told)


def _axis_types(mesh: Any) -> tuple:
  return () if mesh is None else mesh.axis_types or ()


def _leaves(x: PyTree) -> list:
  """Returns what has a type; a model may hold functions beside its arrays."""
  array = lambda v: hasattr(v, "shape") and hasattr(v, "dtype")
  return [leaf for leaf in jax.tree.leaves(x) if array(leaf)]


def _typed(x: PyTree) -> bool:
  """Returns whether types may differ: in a mesh, or with arrays laid out."""
  kinds = _axis_types(jax.sharding.get_abstract_mesh())
  if AxisType.Manual in kinds or AxisType.Explicit in kinds:
    return True
  return any(_type(leaf) != _PLAIN for leaf in _leaves(x))


def _spec(kind: _Type, ndim: int) -> tuple:
  """Returns the axes that each dimension is split over, a tuple of ndim."""
  spec = () if kind.sharding is None else tuple(kind.sharding.spec)
  return spec + (None,) * (ndim - len(spec))


def _over(kind: _Type, spec: tuple) -> NamedSharding:
  return NamedSharding(kind.sharding.mesh, PartitionSpec(*spec))


def _join(a: PyTree, b: PyTree) -> _Type:
  """Returns the least type that both leaves can be given."""
  ndim = len(jnp.shape(b))
  a, b = _type(a), _type(b)
  sharding = a.sharding or b.sharding
  if a.sharding is not None and b.sharding is not None:
    names = lambda axis: axis if isinstance(axis, tuple) else (axis,)
    spec = list(_spec(a, ndim))
    for i, axis in enumerate(_spec(b, ndim)):
      taken = {name for part in spec for name in names(part)}
      if spec[i] is None and not taken & set(names(axis)) - {None}:
        spec[i] = axis
    sharding = _over(a, spec)
  return _Type(a.varying | b.varying, sharding, a.devices or b.devices)


def _cast(leaf: PyTree, kind: _Type) -> Any:
  """Returns the leaf with a type that is as wide as its own or wider."""
  own = _type(leaf)
  if own == kind:
    return leaf
  leaf = jnp.asarray(leaf)
  more = tuple(sorted(kind.varying - own.varying))
  if more:
    leaf = jax.lax.pcast(leaf, more, to="varying")
  if kind.sharding is not None and own.sharding != kind.sharding:
    mesh = kind.devices or kind.sharding.mesh
    leaf = jax.sharding.reshard(leaf, NamedSharding(mesh, kind.sharding.spec))
  return leaf


def _widest(body: Callable[..., PyTree], carry: PyTree, *rest: Any) -> PyTree:
  """Returns the carry with the least type that body(carry, *rest) keeps."""
  for _ in range(_ROUNDS):
    new = jax.eval_shape(body, carry, *rest)
    if jax.tree.structure(new) != jax.tree.structure(carry):
      return carry  # the loop says better what is wrong
    kinds = jax.tree.map(_join, carry, new)
    wider = jax.tree.map(_cast, carry, kinds)
    same = jax.tree.map(lambda v, kind: _type(v) == kind, carry, kinds)
    if all(jax.tree.leaves(same)):
      return carry
    carry = wider
  return carry


def _agreeing(pred: ArrayLike, branches: Any, operands: tuple) -> list:
  """Returns the branches, their results cast to one type."""
  if not _typed((pred, operands)):
    return list(branches)
  shapes = [jax.eval_shape(branch, *operands) for branch in branches]
  if len({jax.tree.structure(s) for s in shapes}) > 1:
    return list(branches)  # the branch says better what is wrong
  join = lambda a, b: jax.tree.map(_join, a, b)
  kinds = functools.reduce(join, shapes, jax.tree.map(_type, shapes[0]))

  def wide(branch):
    return lambda *args: jax.tree.map(_cast, branch(*args), kinds)

  return [wide(branch) for branch in branches]


_batch_axis = contextvars.ContextVar("batch_axis", default=None)
_PLAIN = _Type()
_ROUNDS = 8  # each widens by one axis at least


def called(function: Callable, *arguments: Any) -> set[str]:
  """Returns the names of all primitives and jitted functions that are called.

  Args:
    function: a function of arrays, which is traced.
    *arguments: its arguments.
  """
  return _called(jax.make_jaxpr(function)(*arguments).jaxpr)


def _called(jaxpr) -> set[str]:
  found = set()
  for equation in jaxpr.eqns:
    found.add(equation.primitive.name)
    name = equation.params.get("name")
    if isinstance(name, str):
      found.add(name)
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"),
    ):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        found |= _called(inner)
  return found

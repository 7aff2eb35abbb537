"""Helpers over pytrees of arrays: batches of samples, randomness, partition."""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import control
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree


def batch_size(x: PyTree) -> int:
  """Returns the common leading dimension of all leaves of x.

  Raises:
    ValueError: if x has no leaves, or leaves without or with different
      leading dimensions; the leaf is named.
  """
  leaves = jax.tree_util.tree_leaves_with_path(x)
  if not leaves:
    raise ValueError(
      "expected a batch of samples, got a tree without leaves; pass an array"
      " f[batch, ...] or a tree of them"
    )
  size = None
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path) or "x"
    if not jnp.shape(leaf):
      raise ValueError(
        f"expected a batch of samples, but leaf {name} is a scalar; add a"
        " leading batch dimension, x[None] for a single sample"
      )
    if size is None:
      size = jnp.shape(leaf)[0]
    elif size != jnp.shape(leaf)[0]:
      raise ValueError(
        f"all leaves need one batch size, but leaf {name} has"
        f" {jnp.shape(leaf)[0]} samples where earlier leaves have {size}"
      )
  return size


def compute_dtype(dtype: DTypeLike) -> jnp.dtype:
  """Returns the dtype that solver arithmetic runs in: float32 or wider.

  Wider only if jax may use it: float64 host arrays count as float32 otherwise.
  """
  return jax.dtypes.canonicalize_dtype(jnp.promote_types(dtype, jnp.float32))


def expand(t: ArrayLike, x: PyTree) -> Any:
  """Returns t (scalar or [batch]) to broadcast against x [batch, ...]."""
  if jnp.ndim(t) == 0:
    return t
  return t.reshape(t.shape + (1,) * (jnp.ndim(x) - jnp.ndim(t)))


def sample_size(x: PyTree) -> int:
  """Returns how many values one sample has, over all leaves [batch, ...]."""
  return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(x))


def squared_norm(x: PyTree) -> jax.Array:
  """Returns |x|^2 of every sample over all leaves, f[batch], in float32 up."""

  def one(leaf):
    wide = leaf.astype(compute_dtype(leaf.dtype))
    return jnp.sum(wide.reshape(leaf.shape[0], -1) ** 2, axis=1)

  return sum(one(leaf) for leaf in jax.tree.leaves(x))


def normal(
  key: jax.Array, like: PyTree, index: ArrayLike | None = None
) -> PyTree:
  """Returns standard normal noise shaped like a batch of samples.

  Every sample draws from a key of its own, folded from `key` and the sample's
  index: its noise does not depend on how many others are drawn with it, nor on
  how the batch is split over devices.

  Args:
    key: PRNG key.
    like: tree of arrays or ShapeDtypeStructs, each [batch, ...].
    index: i32[batch], the samples' indices; 0, 1, ... by default, counted
      through the whole batch inside `shard_map`.

  Returns:
    A tree like `like`; drawn in float32 (or wider), then cast.

  Raises:
    TypeError: if a leaf is not of a floating dtype.
    ValueError: if `index` does not number every sample.
  """
  leaves, treedef = jax.tree.flatten(like)
  size = batch_size(like)
  index = control.numbers(like, index)
  if index.shape != (size,):
    raise ValueError(
      f"index must give every sample its number, shape ({size},), got"
      f" {index.shape}"
    )
  dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
  for dtype in dtypes:
    if not jnp.issubdtype(dtype, jnp.floating):
      raise TypeError(
        f"Gaussian noise cannot be held in {dtype}; convert the data to"
        " float32 first (and scale it: pixels 0..255 to x / 127.5 - 1)"
      )

  def one(i):
    own = jax.random.fold_in(key, i)
    return [
      jax.random.normal(
        jax.random.fold_in(own, j), leaf.shape[1:], compute_dtype(dtype)
      )
      for j, (leaf, dtype) in enumerate(zip(leaves, dtypes, strict=True))
    ]

  draws = jax.vmap(one)(index)
  draws = [d.astype(dtype) for d, dtype in zip(draws, dtypes, strict=True)]
  return jax.tree.unflatten(treedef, draws)


def digest(tree: PyTree) -> str:
  """Returns a name of the numbers in a tree: equal trees, equal names.

  It depends on paths, shapes, dtypes and bits, not on where they lie or when
  they were written: copies of a checkpoint have one name on every host.
  """
  code = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaf = np.asarray(leaf)
    name = jax.tree_util.keystr(path)
    code.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
    code.update(np.ascontiguousarray(leaf).tobytes())
  return code.hexdigest()[:16]


def is_array(x: PyTree) -> bool:
  """Returns whether x can be a traced argument of a jitted function."""
  return isinstance(x, (jax.Array, np.ndarray, np.generic, float, int, complex))


def partition(tree: PyTree) -> tuple[list, tuple]:
  """Splits a tree into its arrays and a hashable rest.

  This is how a model travels into a jitted function: arrays (parameters,
  labels, a guidance scale) as traced arguments, whatever else is in it (a plain
  function, a process) as part of the compilation key.

  Returns:
    (arrays, static): `combine(arrays, static)` is the tree again.

  Raises:
    TypeError: if something in it is neither an array nor hashable.
  """
  leaves, treedef = jax.tree.flatten(tree)
  abstract = [x for x in leaves if isinstance(x, jax.ShapeDtypeStruct)]
  if abstract:
    raise TypeError(
      f"the model has no parameters yet: {len(abstract)} of its leaves are"
      f" shapes, such as {abstract[0]}; load them with"
      " training.load_denoiser(workdir), or give make_denoiser a key"
    )
  arrays = [leaf for leaf in leaves if is_array(leaf)]
  rest = tuple(None if is_array(leaf) else _Static(leaf) for leaf in leaves)
  # treedefs of different dataclasses with equal fields are equal (jax 0.10), so
  # one class would run the other's program: the types are told apart here
  static = (treedef, rest, _types(treedef))
  try:
    hash(static)
  except TypeError as error:
    raise TypeError(
      "a model is a function, or a pytree of arrays, functions and hashable"
      f" settings, so that its compiled program can be found again ({error});"
      " register the class as a pytree with its arrays as leaves, wrap a"
      " network with denoisers.from_function, or pass a plain function"
    ) from error
  return arrays, static


def combine(arrays: list, static: tuple) -> PyTree:
  """Returns the tree that `partition` split."""
  treedef, rest, _ = static
  arrays = iter(arrays)
  leaves = [next(arrays) if leaf is None else leaf.value for leaf in rest]
  return jax.tree.unflatten(treedef, leaves)


def _types(treedef: Any) -> tuple | None:
  """Returns the types of a tree's nodes, as a nested tuple."""
  node = treedef.node_data()
  return node and (node[0], *map(_types, treedef.children()))


@dataclasses.dataclass(frozen=True)
class Bound:
  """A function with its first arguments, equal to another of equal ones.

  A closure is another object each time it is made, and another program.
  """

  function: Callable
  values: tuple

  def __call__(self, *args: Any) -> Any:
    return self.function(*self.values, *args)


class _Static:
  """Wraps a non-array leaf, so that None can stand for an array."""

  def __init__(self, value: PyTree):
    self.value = value

  def __hash__(self) -> int:
    return hash(self.value)

  def __eq__(self, other: PyTree) -> bool:
    return isinstance(other, _Static) and self.value == other.value

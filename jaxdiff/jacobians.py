r"""Jacobians of fields of samples, in whole, in part, and in random probes.

A field maps a batch of samples f[batch, ...] to f[batch, ...], every sample by
itself: its Jacobian is one d x d matrix J for each sample. Products J v cost
one pass more than the field itself, whatever d is. The trace is exact by d of
them, or unbiased by a few with random signs v (Hutchinson 1989):

  tr J = sum_i e_i . J e_i = E v . J v,   v_i = +-1 independent,

with the variance sum_{i < j} (J_ij + J_ji)^2 of one probe. Reference:
Hutchinson (1989), https://doi.org/10.1080/03610918908812806.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff import control
from jaxdiff.types import ArrayLike

Field = Callable[[jax.Array], jax.Array]

_AT_ONCE = 16  # columns of an exact Jacobian that are in memory together


def divergence(
  field: Field, x: jax.Array, probes: jax.Array | None = None
) -> jax.Array:
  """Returns the divergence of a field at x, f[batch].

  Args:
    field: from f[batch, ...] to f[batch, ...], sample by sample.
    x: f[batch, ...].
    probes: random directions f[m, batch, ...] as `rademacher` draws them, for
      an unbiased estimate by m products; None is exact, by d products.
  """
  _, push = jax.linearize(field, x)
  dot = lambda v: jnp.sum((v * push(v)).reshape(len(x), -1), axis=1)
  if probes is not None:
    return jnp.mean(jax.lax.map(dot, probes), axis=0)
  return jnp.sum(_by_column(dot, x), axis=0)


def jacobian(field: Field, x: jax.Array) -> jax.Array:
  """Returns the Jacobian of a field at x, f[batch, d, d]: d field_i / d x_j.

  Args:
    field: from f[batch, ...] to f[batch, ...], sample by sample.
    x: f[batch, ...], of d values a sample.
  """
  _, push = jax.linearize(field, x)
  columns = _by_column(lambda v: push(v).reshape(len(x), -1), x)
  return jnp.moveaxis(columns, 0, 2)


def rademacher(
  key: jax.Array,
  like: jax.Array,
  count: int = 1,
  index: ArrayLike | None = None,
) -> jax.Array:
  """Returns random signs f[count, *like.shape].

  Args:
    key: PRNG key; a sample's signs depend on it and the sample's index only.
    like: f[batch, ...].
    count: number of probes.
    index: i32[batch], the samples' indices; 0, 1, ... by default.
  """
  index = control.numbers(like, index)
  shape = (count, *like.shape[1:])
  draw = lambda i: jax.random.rademacher(
    jax.random.fold_in(key, i), shape, like.dtype
  )
  return jnp.moveaxis(jax.vmap(draw)(index), 1, 0)


def _by_column(f: Field, x: jax.Array) -> jax.Array:
  """Returns f(e_i) for the unit vectors e_i shaped like x, [d, ...]."""
  d = math.prod(x.shape[1:])

  def at(i):
    row = (jnp.arange(d) == i).astype(x.dtype).reshape(x.shape[1:])
    return f(control.like(jnp.broadcast_to(row, x.shape), x))

  if d <= _AT_ONCE:
    return jax.vmap(at)(jnp.arange(d))
  return jax.lax.map(at, jnp.arange(d), batch_size=_AT_ONCE)

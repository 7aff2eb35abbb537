r"""Conservativity: tests whether a field is a gradient.

Differential: the Jacobian J = S + K of a gradient is symmetric. `asymmetry` is
|K| / |J| in Frobenius norms, 0 for a gradient, 1 for a rotation; with random
signs v, 4 |K|^2 = E |J v - J^T v|^2 and |J|^2 = E |J v|^2.

Integral: the work of a gradient along a closed path is 0. `circulation` is the
work along a circle over the work that a field of that size could do,

  sum_k f(x_k) . dx_k / sum_k |f(x_k)| |dx_k|,

with equal steps, which converges faster than any power of their number on a
smooth field. It also sees what a Jacobian at single points does not: a field
with a hole in the middle. Neither test tells whether a field samples the right
law: see `gauge`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import jacobians
from jaxdiff import numerics
from jaxdiff import tree

Field = Callable[[jax.Array], jax.Array]


@checks.door
def asymmetry(
  field: Field, x: jax.Array, probes: jax.Array | None = None
) -> jax.Array:
  """Returns |K| / |J| at every sample, f[batch], within 0 and 1.

  Args:
    field: from f[batch, ...] to f[batch, ...], sample by sample.
    x: f[batch, ...].
    probes: f[m, batch, ...] of `jacobians.rademacher` for an estimate by 2 m
      products; None is exact, by d products.
  """
  if probes is None:
    matrix = jacobians.jacobian(field, x)
    skew = 0.5 * (matrix - jnp.swapaxes(matrix, 1, 2))
    square = lambda m: jnp.sum(m**2, axis=(1, 2))
    return jnp.sqrt(numerics.safe_divide(square(skew), square(matrix)))
  _, push = jax.linearize(field, x)
  pull = jax.linear_transpose(push, x)

  def squares(v):
    forward, (backward,) = push(v), pull(v)
    total = lambda w: jnp.sum((w**2).reshape(len(x), -1), axis=1)
    size = 0.5 * (total(forward) + total(backward))  # both estimate |J|^2
    return 0.25 * total(forward - backward), size

  skew, size = (jnp.mean(s, axis=0) for s in jax.lax.map(squares, probes))
  return jnp.sqrt(numerics.safe_divide(skew, size))


@checks.door
def circulation(
  key: jax.Array, field: Field, x: jax.Array, radius: float, points: int = 64
) -> jax.Array:
  """Returns the relative work along one random circle a sample, f[batch].

  Args:
    key: PRNG key of the circles' planes; a sample's depends on its index.
    field: from f[batch, ...] to f[batch, ...], sample by sample.
    x: f[batch, ...], the centres; at least two values a sample.
    radius: radius of the circles, in units of x.
    points: number of points on a circle.

  Raises:
    ValueError: for samples of a single value, where every field is a gradient.
  """
  if math.prod(x.shape[1:]) < 2:
    raise ValueError(
      "a closed path needs two dimensions, the samples have shape"
      f" {x.shape[1:]}: on a line every field is a gradient"
    )
  one, other = (
    tree.normal(jax.random.fold_in(key, i), x).reshape(len(x), -1)
    for i in (0, 1)
  )
  unit = lambda v: v / jnp.linalg.norm(v, axis=1, keepdims=True)
  one = unit(one)
  other = unit(other - jnp.sum(one * other, axis=1, keepdims=True) * one)
  centre = x.reshape(len(x), -1)

  def at(angle):
    place = centre + radius * (jnp.cos(angle) * one + jnp.sin(angle) * other)
    step = jnp.cos(angle) * other - jnp.sin(angle) * one  # of length 1
    value = field(place.reshape(x.shape)).reshape(len(x), -1)
    return jnp.sum(value * step, axis=1), jnp.linalg.norm(value, axis=1)

  angles = 2 * jnp.pi * jnp.arange(points, dtype=x.dtype) / points
  work, most = jax.lax.map(at, angles)
  return numerics.safe_divide(jnp.sum(work, axis=0), jnp.sum(most, axis=0))

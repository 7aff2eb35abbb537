"""Nearest neighbours among many features: in blocks, on the accelerator.

Squared distances are |x|^2 + |y|^2 - 2 x . y in float32 at the highest
precision, of features about the mean of y, so that little cancels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 1024


def nearest(
  x: np.ndarray, y: np.ndarray, k: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """Returns distances f32[n, k] to the nearest of y, and their i32[n, k].

  Args:
    x: f[n, d].
    y: f[m, d], m >= k.
    k: how many, nearest first.
  """
  centre = y.mean(0)
  reference = jnp.asarray(y - centre, jnp.float32)
  return _in_blocks(lambda block: _nearest(block, reference, k), x - centre)


def radii(x: np.ndarray, k: int) -> np.ndarray:
  """Returns each sample's distance to its k-th nearest other one, f32[n]."""
  return nearest(x, x, k + 1)[0][:, k]  # the first is the sample itself


def balls(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
  """Returns in how many of the balls about y each of x lies, i32[n].

  Args:
    x: f[n, d].
    y: f[m, d], the centres.
    radius: f[m].
  """
  centre = y.mean(0)
  reference = jnp.asarray(y - centre, jnp.float32)
  radius = jnp.asarray(radius, jnp.float32)
  count = lambda block: (_count(block, reference, radius),)
  return _in_blocks(count, x - centre)[0]


def largest_ratio(
  x: np.ndarray, y: np.ndarray, radius: np.ndarray
) -> np.ndarray:
  """Returns max_j radius_j / |x_i - y_j|, f32[n], arguments as in `balls`."""
  centre = y.mean(0)
  reference = jnp.asarray(y - centre, jnp.float32)
  radius = jnp.asarray(radius, jnp.float32)
  ratio = lambda block: (_ratio(block, reference, radius),)
  return _in_blocks(ratio, x - centre)[0]


def _in_blocks(function, x: np.ndarray) -> tuple[np.ndarray, ...]:
  """Returns function(block) of all rows of x, the last block padded."""
  size = min(_BLOCK, len(x))
  parts = []
  for i in range(0, len(x), size):
    block = x[i : i + size]
    padded = np.pad(block, ((0, size - len(block)), (0, 0)))
    out = function(jnp.asarray(padded, jnp.float32))
    parts.append([np.asarray(v)[: len(block)] for v in out])
  return tuple(np.concatenate(v) for v in zip(*parts, strict=True))


def _squared(x: jax.Array, y: jax.Array) -> jax.Array:
  product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
  square = jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1) - 2.0 * product
  return jnp.maximum(square, 0.0)


@functools.partial(jax.jit, static_argnums=2)
def _nearest(x: jax.Array, y: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  square, index = jax.lax.top_k(-_squared(x, y), k)
  return jnp.sqrt(-square), index


@jax.jit
def _count(x: jax.Array, y: jax.Array, radius: jax.Array) -> jax.Array:
  return jnp.sum(jnp.sqrt(_squared(x, y)) <= radius, axis=1)


@jax.jit
def _ratio(x: jax.Array, y: jax.Array, radius: jax.Array) -> jax.Array:
  return jnp.max(radius / jnp.sqrt(_squared(x, y)), axis=1)

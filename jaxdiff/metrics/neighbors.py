r"""Nearest neighbours among many features: in blocks, on the accelerator.

Squared distances by one matrix product, |x|^2 + |y|^2 - 2 x . y in float32 of
features about the mean of y, are off by at most

  e = (d + 16) 2^{-24} (|x| + |y|)^2,

which for tight groups far apart is more than the distances themselves. They
only say which pairs may decide; those are taken anew in float64, as differences
of what was given. Every answer is the one of differences in float64.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import distance

_BLOCK = 1024
_MORE = 8  # candidates beyond the k that are asked for
_VALUES = 1 << 22  # differences that are held at a time


def nearest(
  x: np.ndarray, y: np.ndarray, k: int = 1, block: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns distances f64[n, k] to the nearest of y, and their i64[n, k].

  Args:
    x: f[n, d].
    y: f[m, d], m >= k.
    k: how many, nearest first.
    block: rows of x that are compared at a time; None is 1024.
  """
  wide = min(k + _MORE, len(y))
  distances, places = [], []
  for part in _blocks(x, y, block):
    at, bound = map(np.asarray, _candidates(part.x, part.y, wide))
    at, bound = at[: part.size], bound[: part.size].astype(np.float64)
    rows = np.broadcast_to(np.arange(part.size)[:, None], at.shape)
    d = _distances(part.own, y, rows.ravel(), at.ravel()).reshape(at.shape)
    order = np.argsort(d, axis=1, kind="stable")[:, :k]
    d, at = (np.take_along_axis(v, order, 1) for v in (d, at))
    # all others are at least as far as the last candidate may be
    undecided = bound[:, -1] < (d[:, -1] / part.scale) ** 2
    if wide < len(y) and undecided.any():
      d[undecided], at[undecided] = _by_differences(part.own[undecided], y, k)
    distances.append(d)
    places.append(at)
  return np.concatenate(distances), np.concatenate(places)


def radii(x: np.ndarray, k: int) -> np.ndarray:
  """Returns each sample's distance to its k-th nearest other one, f64[n]."""
  return nearest(x, x, k + 1)[0][:, k]  # the first is the sample itself


def balls(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
  """Returns in how many of the balls about y each of x lies, i64[n].

  Args:
    x: f[n, d].
    y: f[m, d], the centres.
    radius: f[m].
  """
  counts = []
  for block in _blocks(x, y):
    square = jnp.asarray((radius / block.scale) ** 2, jnp.float32)
    inside, near = _within(block.x, block.y, square)
    count = np.array(inside[: block.size], np.int64)
    i, j = np.nonzero(np.asarray(near)[: block.size])
    hit = _distances(block.own, y, i, j) <= radius[j]
    counts.append(count + np.bincount(i[hit], minlength=block.size))
  return np.concatenate(counts)


def largest_ratio(
  x: np.ndarray, y: np.ndarray, radius: np.ndarray
) -> np.ndarray:
  """Returns max_j radius_j / |x_i - y_j|, f64[n], arguments as in `balls`.

  The centre of a ball of radius 0 lies on its edge, 1.
  """
  largest = []
  for block in _blocks(x, y):
    square = jnp.asarray((radius / block.scale) ** 2, jnp.float32)
    may = np.asarray(_may_be_largest(block.x, block.y, square))[: block.size]
    i, j = np.nonzero(may)
    d = _distances(block.own, y, i, j)
    with np.errstate(divide="ignore", invalid="ignore"):
      ratio = np.where((d == 0) & (radius[j] == 0), 1.0, radius[j] / d)
    best = np.zeros(block.size)
    np.maximum.at(best, i, ratio)
    largest.append(best)
  return np.concatenate(largest)


class _Block(NamedTuple):
  """Some rows of x beside all of y, as given and as the accelerator has them.

  Attributes:
    own: f[size, d], the rows as given.
    size: their number.
    x: f32[block, d], about the mean of y and divided by the scale; padded.
    y: f32[m, d], likewise.
    scale: f64[], the largest value, so that no square overflows.
  """

  own: np.ndarray
  size: int
  x: jax.Array
  y: jax.Array
  scale: float


def _blocks(
  x: np.ndarray, y: np.ndarray, size: int | None = None
) -> Iterator[_Block]:
  centre = y.mean(0, dtype=np.float64)
  scale = max(abs(x - centre).max(), abs(y - centre).max()) or 1.0
  reference = jnp.asarray((y - centre) / scale, jnp.float32)
  size = min(size or _BLOCK, len(x))
  for i in range(0, len(x), size):
    own = x[i : i + size]
    part = (own - centre) / scale
    padded = np.pad(part, ((0, size - len(part)), (0, 0)))
    block = jnp.asarray(padded, jnp.float32)
    yield _Block(own, len(own), block, reference, float(scale))


def _distances(x, y, i, j):
  """Returns |x_i - y_j| of the pairs, f64, by differences."""
  step = max(1, _VALUES // x.shape[1])
  parts = [np.zeros(0)]
  for k in range(0, len(i), step):
    apart = np.subtract(
      x[i[k : k + step]], y[j[k : k + step]], dtype=np.float64
    )
    parts.append(np.sqrt(np.sum(apart**2, axis=1)))
  return np.concatenate(parts)


def _by_differences(x, y, k):
  """Returns what `nearest` does, from all differences."""
  at = []
  for i in range(0, len(x), _MORE):
    square = distance.cdist(x[i : i + _MORE], y, "sqeuclidean")
    at.append(np.argsort(square, axis=1, kind="stable")[:, :k])
  at = np.concatenate(at)
  rows = np.broadcast_to(np.arange(len(x))[:, None], at.shape)
  d = _distances(x, y, rows.ravel(), at.ravel())
  return d.reshape(at.shape), at


def _bounds(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns what |x_i - y_j|^2 is at least and at most, f32[n, m] each."""
  product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
  xx, yy = jnp.sum(x**2, 1)[:, None], jnp.sum(y**2, 1)
  square = xx + yy - 2.0 * product
  off = (x.shape[1] + 16) * 2.0**-24 * (jnp.sqrt(xx) + jnp.sqrt(yy)) ** 2
  return square - off, square + off


@functools.partial(jax.jit, static_argnums=2)
def _candidates(x, y, k):
  """Returns the k that may be nearest, and what their squares are at least."""
  low, at = jax.lax.top_k(-_bounds(x, y)[0], k)
  return at, -low


@jax.jit
def _within(x, y, square):
  """Returns how many balls surely hold x, and which may."""
  low, high = _bounds(x, y)
  surely = high <= square * (1.0 - 1e-6)
  may = low <= square * (1.0 + 1e-6)
  return jnp.sum(surely, axis=1), may & ~surely


@jax.jit
def _may_be_largest(x, y, square):
  low, high = _bounds(x, y)
  least = jnp.max(square / high, axis=1, keepdims=True) * (1.0 - 1e-6)
  return square * (1.0 + 1e-6) >= least * jnp.maximum(low, 0.0)

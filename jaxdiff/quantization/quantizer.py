r"""Uniform quantizers: real numbers on a grid of 2^b integers.

  q(x) = s (clip(round(x / s) + z, low, high) - z),   low, high = -2^{b-1},
                                                      2^{b-1} - 1,

with a scale s and a zero point z, an integer, so that 0 is on the grid. Weights
are symmetric (z = 0, low = -high) with a scale for each output channel,
activations asymmetric with one for the tensor. The range is searched, not read
off the extremes: of thresholds shrunk from the largest value the one that
minimizes E |x - q(x)|^p is taken, p = 2.4 as in the study of Shang et al.
(2023), https://arxiv.org/abs/2211.15736.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_AT_ONCE = 8  # candidate ranges that are tried together


class Quantizer(NamedTuple):
  """A grid; a pytree whose arrays broadcast against what it quantizes.

  Attributes:
    scale: s, f32.
    zero: z, f32 of integers.
    low: smallest integer, f32.
    high: largest integer, f32.
  """

  scale: jax.Array
  zero: jax.Array
  low: jax.Array
  high: jax.Array


def to_integers(x: jax.Array, q: Quantizer) -> jax.Array:
  """Returns clip(round(x / s) + z, low, high), integers held as f32."""
  return jnp.clip(jnp.round(x / q.scale) + q.zero, q.low, q.high)


def from_integers(n: jax.Array, q: Quantizer) -> jax.Array:
  """Returns s (n - z)."""
  return q.scale * (n - q.zero)


@jax.custom_jvp
def fake_quant(x: jax.Array, q: Quantizer) -> jax.Array:
  """Returns q(x) in the dtype of x; the gradient is 1 inside the range."""
  return from_integers(to_integers(x, q), q).astype(x.dtype)


@fake_quant.defjvp
def _straight_through(primals, tangents):
  x, q = primals
  level = jnp.round(x / q.scale) + q.zero
  inside = (level >= q.low) & (level <= q.high)
  return fake_quant(x, q), jnp.where(inside, tangents[0], 0.0)


def limits(bits: int, symmetric: bool) -> tuple[float, float]:
  """Returns the smallest and the largest integer of a grid.

  Raises:
    ValueError: for bits outside of 2..16.
  """
  if not 2 <= bits <= 16:
    raise ValueError(
      f"a grid has 2 to 16 bits, got {bits}; leave the layer in float instead"
      " (Config.skip), or 1 bit to methods that train"
    )
  high = 2.0 ** (bits - 1) - 1.0
  return (-high if symmetric else -high - 1.0), high


def for_range(
  minimum: jax.Array, maximum: jax.Array, bits: int, symmetric: bool
) -> Quantizer:
  """Returns the grid that spans a range, widened to hold 0.

  Args:
    minimum: of the range; ignored if symmetric.
    maximum: of the range, the threshold if symmetric.
    bits: 2..16.
    symmetric: whether z = 0.
  """
  low, high = limits(bits, symmetric)
  tiny = jnp.finfo(jnp.float32).tiny
  full = lambda v: jnp.full(jnp.shape(maximum), v, jnp.float32)
  if symmetric:
    scale = jnp.maximum(maximum / high, tiny)
    return Quantizer(scale, full(0.0), full(low), full(high))
  minimum, maximum = jnp.minimum(minimum, 0.0), jnp.maximum(maximum, 0.0)
  scale = jnp.maximum((maximum - minimum) / (high - low), tiny)
  zero = jnp.clip(jnp.round(low - minimum / scale), low, high)
  return Quantizer(scale, zero, full(low), full(high))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def search_range(
  x: jax.Array,
  bits: int,
  symmetric: bool,
  p: float = 2.4,
  candidates: int = 100,
) -> Quantizer:
  """Returns the grid of least mean |x - q(x)|^p for the values x, f[n].

  Symmetric: of `candidates` thresholds up to max |x|. Asymmetric: both ends are
  shrunk together, and then each by itself in turn, three times over, first on
  the whole range and then ever closer around the best.

  Args:
    x: values, flattened.
    bits: 2..16.
    symmetric: whether z = 0.
    p: exponent of the error.
    candidates: number of thresholds on a line.
  """
  x = x.reshape(-1).astype(jnp.float32)

  def error(minimum, maximum):
    grid = for_range(minimum, maximum, bits, symmetric)
    return jnp.mean(jnp.abs(x - fake_quant(x, grid)) ** p)

  def best(at, ends):
    """Of pairs of ends at(c), those of least error."""
    pairs = at(ends)
    errors = jax.lax.map(lambda pair: error(*pair), pairs, batch_size=_AT_ONCE)
    return tuple(v[jnp.argmin(errors)] for v in pairs)

  shrink = jnp.arange(1, candidates + 1, dtype=jnp.float32) / candidates
  if symmetric:
    most = jnp.max(jnp.abs(x))
    ends = best(lambda c: (-most * c, most * c), shrink)
    return for_range(*ends, bits, symmetric)
  lowest, highest = jnp.min(x), jnp.max(x)
  ends = best(lambda c: (lowest * c, highest * c), shrink)
  for width in (1.0, 0.3, 0.1):
    near = 1.0 + width * (2.0 * shrink - 1.0)
    fixed = ends[1]
    ends = best(
      lambda c, at=ends[0], fixed=fixed: (at * c, jnp.full_like(c, fixed)), near
    )
    fixed = ends[0]
    ends = best(
      lambda c, at=ends[1], fixed=fixed: (jnp.full_like(c, fixed), at * c), near
    )
  return for_range(*ends, bits, symmetric)


def search_channels(
  w: jax.Array, bits: int, p: float = 2.4, candidates: int = 100
) -> Quantizer:
  """Returns symmetric grids for the output channels (the last axis) of w.

  Args:
    w: a kernel, f[..., channels].
    bits: 2..16.
    p: exponent of the error.
    candidates: number of thresholds.
  """
  columns = jnp.asarray(w).reshape(-1, w.shape[-1]).T
  return jax.lax.map(
    lambda column: search_range(column, bits, True, p, candidates), columns
  )

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
import numpy as np

from jaxdiff import checks
from jaxdiff import control

_AT_ONCE = 8  # candidate ranges that are tried together
_CHANNELS = 32  # output channels whose ranges are searched in one program


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
  minimum: jax.Array, maximum: jax.Array, low: float, high: float
) -> Quantizer:
  """Returns the grid that spans a range, widened to hold 0.

  Args:
    minimum: minimum of the range; -maximum for a symmetric grid.
    maximum: maximum of the range.
    low: smallest integer, of `limits`.
    high: largest integer.
  """
  minimum = jnp.minimum(jnp.asarray(minimum, jnp.float32), 0.0)
  maximum = jnp.maximum(jnp.asarray(maximum, jnp.float32), 0.0)
  tiny = jnp.finfo(jnp.float32).tiny
  scale = jnp.maximum((maximum - minimum) / (high - low), tiny)
  zero = jnp.clip(jnp.round(low - minimum / scale), low, high)
  full = lambda v: jnp.full(jnp.shape(scale), v, jnp.float32)
  return Quantizer(scale, zero, full(low), full(high))


@checks.door
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
    x: values of any shape.
    bits: 2..16.
    symmetric: whether z = 0.
    p: exponent of the error.
    candidates: number of thresholds on a line.
  """
  low, high = limits(bits, symmetric)
  x = jnp.asarray(x, jnp.float32).reshape(-1)
  return _search(x, low, high, p, symmetric, candidates)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _search(x, low, high, p, symmetric, candidates):
  def error(minimum, maximum):
    grid = for_range(minimum, maximum, low, high)
    return jnp.mean(jnp.abs(x - fake_quant(x, grid)) ** p)

  def best(at, c):
    """Of the pairs of ends at(c), the one of least error."""
    errors = jax.lax.map(lambda c: error(*at(c)), c, batch_size=_AT_ONCE)
    return at(c[jnp.argmin(errors)])

  shrink = jnp.arange(1, candidates + 1, dtype=jnp.float32) / candidates
  if symmetric:
    most = jnp.max(jnp.abs(x))
    return for_range(*best(lambda c: (-most * c, most * c), shrink), low, high)
  lowest, highest = jnp.min(x), jnp.max(x)
  ends = best(lambda c: (lowest * c, highest * c), shrink)

  def refine(ends, width):
    near = 1.0 + width * (2.0 * shrink - 1.0)
    ends = best(lambda c: (ends[0] * c, ends[1]), near)
    ends = best(lambda c: (ends[0], ends[1] * c), near)
    return ends, None

  widths = jnp.asarray([1.0, 0.3, 0.1], x.dtype)
  ends, _ = control.scan(refine, ends, widths)
  return for_range(*ends, low, high)


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
  low, high = limits(bits, True)
  columns = np.asarray(w, np.float32).reshape(-1, w.shape[-1]).T
  channels, inputs = columns.shape
  # zeros lie on every grid and move no best one: few shapes, few programs
  padded = np.zeros(
    (-(-channels // _CHANNELS) * _CHANNELS, 1 << (inputs - 1).bit_length()),
    np.float32,
  )
  padded[:channels, :inputs] = columns
  parts = [
    _search_columns(part, low, high, p, candidates)
    for part in padded.reshape(-1, _CHANNELS, padded.shape[1])
  ]
  return jax.tree.map(lambda *v: jnp.concatenate(v)[:channels], *parts)


@functools.partial(jax.jit, static_argnums=4)
def _search_columns(columns, low, high, p, candidates):
  one = lambda column: _search(column, low, high, p, True, candidates)
  return jax.lax.map(one, columns)

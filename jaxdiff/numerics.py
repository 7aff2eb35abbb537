r"""Stable elementary functions and quadratures that the tables are made of.

Everything here accepts numpy arrays (computed in float64 on the host, where
tables are built) and jax arrays (in their own dtype, inside training losses)
alike: the namespace follows the argument.

Exponential integrators need

  phi_0(z) = e^z,   phi_{k+1}(z) = (phi_k(z) - 1/k!) / z,
  j! phi_{j+1}(z) = int_0^1 e^{z (1 - u)} u^j du,

whose recursion cancels catastrophically near z = 0, hence the series there.
"""

import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


def namespace(*args: Any) -> ModuleType:
  """Returns jax.numpy if any argument is a jax array, else numpy."""
  return jnp if any(isinstance(a, jax.Array) for a in args) else np


def as_float(x: PyTree) -> Array:
  """Returns jax arrays as they are and anything else as numpy float64."""
  return x if isinstance(x, jax.Array) else np.asarray(x, np.float64)


def safe_divide(numerator: ArrayLike, denominator: ArrayLike) -> Array:
  """Returns numerator / denominator, and 0 where the denominator is 0.

  The division is guarded before it is masked, so gradients stay finite too.
  """
  xp = namespace(numerator, denominator)
  zero = denominator == 0
  quotient = numerator / xp.where(zero, 1.0, denominator)
  return xp.where(zero, 0.0, quotient)


def log(x: ArrayLike) -> Array:
  """Returns the logarithm, -inf at 0 without a warning on the host."""
  if namespace(x) is jnp:
    return jnp.log(x)
  with np.errstate(divide="ignore"):
    return np.log(x)


def log1mexp(x: ArrayLike) -> Array:
  """Returns log(1 - exp(-x)) for x > 0 without cancellation at either end."""
  xp = namespace(x)
  x = as_float(x)
  small = x < math.log(2.0)
  near = log(-xp.expm1(-xp.where(small, x, 1.0)))
  far = xp.log1p(-xp.exp(-xp.where(small, 1.0, x)))
  return xp.where(small, near, far)


def logit(p: ArrayLike) -> Array:
  """Returns log(p / (1 - p)), accurate near both ends of [0, 1]."""
  xp = namespace(p)
  if xp is np:
    with np.errstate(divide="ignore"):
      return np.log(p) - np.log1p(-p)
  return jnp.log(p) - jnp.log1p(-p)


def sigmoid(x: ArrayLike) -> Array:
  """Returns 1 / (1 + exp(-x)) without overflow."""
  xp = namespace(x)
  return xp.exp(-softplus(-x))


def softplus(x: ArrayLike) -> Array:
  """Returns log(1 + exp(x)) without overflow."""
  xp = namespace(x)
  return xp.logaddexp(x, 0.0)


_SERIES_RADIUS = 1.0
_SERIES_TERMS = 20  # the first term left out is below 1 / 20! = 4e-19


def phi(k: int, z: ArrayLike) -> Array:
  """Returns phi_k(z), the k-th exponential-integrator function.

  Args:
    k: order, at least 0.
    z: any shape; -inf gives the limit 0 (for k >= 1).

  Raises:
    ValueError: if k is negative.
  """
  if k < 0:
    raise ValueError(
      f"phi is defined for orders k >= 0, got k={k}; phi_0 is exp"
    )
  xp = namespace(z)
  z = as_float(z)
  if k == 0:
    return xp.exp(z)
  small = abs(z) < _SERIES_RADIUS
  near = xp.where(small, z, 0.0)
  series = xp.zeros_like(near)
  for term in reversed(range(_SERIES_TERMS)):
    series = series * near + 1.0 / math.factorial(k + term)
  far = xp.where(small, 1.0, z)
  value = xp.expm1(far) / far
  for j in range(1, k):
    value = (value - 1.0 / math.factorial(j)) / far
  return xp.where(small, series, value)


def vandermonde_weights(nodes: np.ndarray, moments: np.ndarray) -> np.ndarray:
  """Returns the weights w with sum_k w_k nodes_k^j = moments_j, f64[m].

  These are the integrals of the Lagrange basis on `nodes` against whatever
  measure has the given monomial `moments`.

  Args:
    nodes: f64[m], pairwise different, of order 1 for a well-posed system.
    moments: f64[m].
  """
  nodes = np.asarray(nodes, np.float64)
  powers = nodes[None, :] ** np.arange(len(nodes))[:, None]
  return np.linalg.solve(powers, np.asarray(moments, np.float64))


def exponential_weights(nodes: np.ndarray, z: float) -> np.ndarray:
  r"""Returns int_0^1 e^{z (1 - u)} L_k(u) du for the Lagrange basis L_k.

  Args:
    nodes: f64[m], places in units of the step: 0 is its start, 1 its end,
      earlier outputs are negative.
    z: h for noise prediction, -h for data prediction.
  """
  moments = [math.factorial(j) * phi(j + 1, z) for j in range(len(nodes))]
  return vandermonde_weights(nodes, np.asarray(moments))


def lagrange(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Returns the Lagrange basis on `nodes` at x, f64[m, *x.shape]."""
  x = np.asarray(x, np.float64)
  basis = []
  for k, node in enumerate(nodes):
    others = np.delete(nodes, k)
    factors = [(x - other) / (node - other) for other in others]
    basis.append(np.prod(factors, axis=0) if factors else np.ones_like(x))
  return np.stack(basis)


@functools.cache
def _legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns n points on [-1, 1] and their weights: dearer than most sums."""
  x, w = np.polynomial.legendre.leggauss(n)
  x.flags.writeable = w.flags.writeable = False
  return x, w


def gauss_legendre(
  f: Callable[[np.ndarray], np.ndarray], a: float, b: float, n: int = 64
) -> np.ndarray:
  """Returns the integral of f over [a, b] by n-point Gauss-Legendre.

  Args:
    f: maps f64[n] to f64[..., n].
    a: lower end; may exceed b, the integral then changes sign.
    b: upper end.
    n: number of points.
  """
  x, w = _legendre(n)
  half = 0.5 * (b - a)
  return half * np.sum(f(a + half * (x + 1.0)) * w, axis=-1)


def invert_decreasing(
  f: Callable[[ArrayLike], ArrayLike], value: ArrayLike, low: float, high: float
) -> Array:
  """Returns x in [low, high] with f(x) = value for a decreasing f.

  Bisection with a fixed number of halvings, so that it can be traced: accurate
  to the rounding of x. Values outside f's range return the nearer end. A traced
  x has the first derivative of the inverse, 1 / f'(x), with respect to `value`.
  """
  xp = namespace(value)
  value = as_float(value)
  lower = xp.full_like(value, low)
  upper = xp.full_like(value, high)
  for _ in range(64):
    middle = 0.5 * (lower + upper)
    left = f(middle) > value  # f decreases: the solution lies right of middle
    lower = xp.where(left, middle, lower)
    upper = xp.where(left, upper, middle)
  x = 0.5 * (lower + upper)
  if xp is np:
    return x
  # the halvings carry no gradient, so it is added to an x that is held fixed
  x = jax.lax.stop_gradient(x)
  inside = (lower > low) & (upper < high)
  at = xp.where(inside, x, 0.5 * (low + high))
  slope = jax.jvp(f, (at,), (xp.ones_like(at),))[1]
  shift = safe_divide(value - jax.lax.stop_gradient(value), slope)
  return x + xp.where(inside, shift, 0.0)

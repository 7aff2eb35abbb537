r"""Signal and noise as functions of time: x_t = alpha(t) x0 + sigma(t) eps.

A schedule is a frozen dataclass with five functions of t, all of which take
numpy float64 (tables) and traced arrays (training):

  alpha(t), sigma(t)     never by a difference of nearly equal numbers
  log_snr(t)             lambda = log(alpha / sigma), falling in t
  log_snr_inverse(lam)   the t of a given lambda
  rates(t)               (d alpha / dt, d sigma / dt)

and `t_zero`, the time at which sigma = 0 (NaN if there is none). To add one,
write such a class and hand it to `GaussianProcess`.

NaN is unequal to itself, and programs are compiled anew for what is unequal:
`key` is what processes and schedules are compared and hashed by.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import numerics
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


def key(dataclass: Any) -> tuple:
  """Returns what a frozen dataclass is compared and hashed by: NaN is NaN."""
  fields = (f for f in dataclasses.fields(dataclass) if f.compare)
  return (
    type(dataclass),
    *(_field_key(getattr(dataclass, f.name)) for f in fields),
  )


def _field_key(value):
  if isinstance(value, float) and math.isnan(value):
    return "nan"  # one object for all of them
  params = getattr(type(value), "__dataclass_params__", None)
  if params is None or not params.eq:  # it says itself when it is equal
    return value
  return key(value)


@dataclasses.dataclass(frozen=True)
class LinearVP:
  """alpha = exp(-B / 2), sigma^2 = 1 - alpha^2, B = int_0^t beta."""

  beta_min: float
  beta_max: float
  t_zero: float = 0.0

  def integral(self, t: ArrayLike) -> Array:
    return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

  def integral_inverse(self, b: ArrayLike) -> Array:
    xp = numerics.namespace(b)
    slope = self.beta_max - self.beta_min
    root = xp.sqrt(self.beta_min**2 + 2.0 * slope * b)
    if self.beta_min < 0:  # the stable one of the two forms of the root
      return (root - self.beta_min) / slope
    return 2.0 * b / (root + self.beta_min)

  def beta(self, t: ArrayLike) -> Array:
    return self.beta_min + (self.beta_max - self.beta_min) * t

  def alpha(self, t: ArrayLike) -> Array:
    return numerics.namespace(t).exp(-0.5 * self.integral(t))

  def sigma(self, t: ArrayLike) -> Array:
    xp = numerics.namespace(t)
    return xp.sqrt(-xp.expm1(-self.integral(t)))

  def log_snr(self, t: ArrayLike) -> Array:
    b = self.integral(t)  # log(e^b - 1) without overflow
    return -0.5 * (b + numerics.log1mexp(b))

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    return self.integral_inverse(numerics.softplus(-2.0 * lam))

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    alpha = self.alpha(t)
    beta = self.beta(t)
    sigma_dot = 0.5 * beta * alpha**2 / self.sigma(t)
    return -0.5 * beta * alpha, sigma_dot


@dataclasses.dataclass(frozen=True)
class SubVP:
  """alpha as in `LinearVP`, sigma = 1 - alpha^2 (Song et al. 2021, eq. 29)."""

  beta_min: float
  beta_max: float
  t_zero: float = 0.0

  @property
  def _vp(self) -> LinearVP:
    return LinearVP(self.beta_min, self.beta_max)

  def alpha(self, t: ArrayLike) -> Array:
    return self._vp.alpha(t)

  def sigma(self, t: ArrayLike) -> Array:
    return -numerics.namespace(t).expm1(-self._vp.integral(t))

  def log_snr(self, t: ArrayLike) -> Array:
    return -0.5 * self._vp.integral(t) - numerics.log(self.sigma(t))

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    # alpha - 1 / alpha = -e^{-lam}, hence log(alpha) = -asinh(e^{-lam} / 2)
    xp = numerics.namespace(lam)
    return self._vp.integral_inverse(2.0 * xp.arcsinh(0.5 * xp.exp(-lam)))

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    alpha = self.alpha(t)
    beta = self._vp.beta(t)
    return -0.5 * beta * alpha, beta * alpha**2


@dataclasses.dataclass(frozen=True)
class CosineVP:
  """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

  t_zero: float = 0.0

  def alpha(self, t: ArrayLike) -> Array:
    # as a sine, so that it is exactly zero (and never negative) at t = 1
    return numerics.namespace(t).sin(0.5 * math.pi * (1.0 - t))

  def sigma(self, t: ArrayLike) -> Array:
    return numerics.namespace(t).sin(0.5 * math.pi * t)

  def log_snr(self, t: ArrayLike) -> Array:
    return numerics.log(self.alpha(t)) - numerics.log(self.sigma(t))

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    xp = numerics.namespace(lam)
    return (2.0 / math.pi) * xp.arctan(xp.exp(-lam))

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    return -0.5 * math.pi * self.sigma(t), 0.5 * math.pi * self.alpha(t)


@dataclasses.dataclass(frozen=True)
class DiscreteVP:
  r"""The VP process of N discrete betas, made continuous.

  t = k / N after k of the steps, alpha^2 = prod (1 - beta). Between the steps
  lambda is linear in t, or rho = sigma / alpha is. Before the first step rho is
  proportional to t. A last beta of 1 leaves no signal: there 1 / rho falls
  linearly to 0 at t = 1.
  """

  betas: tuple[float, ...]
  t_zero: float = 0.0
  interpolation: str = "log_snr"

  @functools.cached_property
  def _nodes(self) -> tuple[np.ndarray, np.ndarray]:
    """The times k / N and lambda there, as far as lambda is finite."""
    n = len(self.betas)
    inner = np.asarray(self.betas, np.float64)[: n - int(self._silent)]
    log_square = np.cumsum(np.log1p(-inner))
    lam = 0.5 * log_square - 0.5 * numerics.log1mexp(-log_square)
    return np.arange(1, len(inner) + 1) / n, lam

  @property
  def _silent(self) -> bool:
    """Whether no signal is left after the last step."""
    return self.betas[-1] == 1.0

  @property
  def _ends(self) -> tuple[float, float, float, float]:
    """First and last node; Python numbers, which keep the dtype of arrays."""
    times, lam = self._nodes
    return float(times[0]), float(lam[0]), float(times[-1]), float(lam[-1])

  def _left(self, t: ArrayLike) -> Array:
    """Returns what is left of alpha / sigma of the last node, in [0, 1]."""
    _, _, last, _ = self._ends
    xp = numerics.namespace(t)
    if not self._silent:
      return xp.ones_like(t)
    return xp.clip((1.0 - t) / (1.0 - last), 0.0, 1.0)

  def _inside(self, t: ArrayLike) -> Array:
    """Returns lambda between the first and the last node, constant outside."""
    times, lam = self._nodes
    if self.interpolation == "log_snr":
      return _interpolate(t, times, lam)
    return -numerics.log(_interpolate(t, times, np.exp(-lam)))

  def log_snr(self, t: ArrayLike) -> Array:
    xp = numerics.namespace(t)
    time, lam, _, _ = self._ends
    before = lam - numerics.log(xp.minimum(t / time, 1.0))
    inside = self._inside(t) + numerics.log(self._left(t))
    return xp.where(t < time, before, inside)

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    xp = numerics.namespace(lam)
    time, node, last, end = self._ends
    before = time * xp.exp(xp.minimum(node - lam, 0.0))
    times, nodes = self._nodes
    if self.interpolation == "log_snr":
      inside = _interpolate(lam, nodes[::-1], times[::-1])
    else:
      rho = xp.exp(-xp.maximum(lam, end))
      inside = _interpolate(rho, np.exp(-nodes), times)
    if self._silent:
      after = 1.0 - (1.0 - last) * xp.exp(xp.minimum(lam - end, 0.0))
      inside = xp.where(lam < end, after, inside)
    return xp.where(lam > node, before, inside)

  def alpha(self, t: ArrayLike) -> Array:
    xp = numerics.namespace(t)
    if not self._silent:
      return xp.exp(-0.5 * numerics.softplus(-2.0 * self.log_snr(t)))
    left, early = self._last_step(t)
    alpha, sigma = self._pair(early)
    return left * alpha / xp.hypot(left * alpha, sigma)

  def sigma(self, t: ArrayLike) -> Array:
    xp = numerics.namespace(t)
    if not self._silent:
      return xp.exp(-0.5 * numerics.softplus(2.0 * self.log_snr(t)))
    left, early = self._last_step(t)
    alpha, sigma = self._pair(early)
    return sigma / xp.hypot(left * alpha, sigma)

  def _last_step(self, t):
    """Returns (left, t moved to before the last step), smooth at t = 1."""
    _, _, last, _ = self._ends
    return self._left(t), numerics.namespace(t).minimum(t, last)

  def _pair(self, t):
    xp = numerics.namespace(t)
    lam = self.log_snr(t)
    return (
      xp.exp(-0.5 * numerics.softplus(-2.0 * lam)),
      xp.exp(-0.5 * numerics.softplus(2.0 * lam)),
    )

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    xp = numerics.namespace(t)
    times, lam = self._nodes
    alpha, sigma = self.alpha(t), self.sigma(t)
    plain = self.interpolation == "log_snr"
    slopes = np.diff(lam if plain else np.exp(-lam)) / np.diff(times)
    slopes = xp.asarray(slopes, alpha.dtype)
    piece = xp.searchsorted(xp.asarray(times, alpha.dtype), t) - 1
    slope = slopes[xp.clip(piece, 0, len(slopes) - 1)]
    time, node, last, end = self._ends
    # (alpha', sigma') of a lambda and of a rho that is linear in t
    by_lam = (slope * alpha * sigma**2, -slope * sigma * alpha**2)
    by_rho = lambda rise: (-rise * sigma * alpha**2, rise * alpha**3)
    rates = by_lam if plain else by_rho(slope)
    early = by_rho(math.exp(-node) / time)
    rates = [xp.where(t < time, e, r) for e, r in zip(early, rates)]
    if self._silent:
      fall = math.exp(end) / (1.0 - last)  # of 1 / rho
      late = (-fall * sigma**3, fall * alpha * sigma**2)
      rates = [xp.where(t > last, e, r) for e, r in zip(late, rates)]
    return tuple(rates)


@dataclasses.dataclass(frozen=True)
class GeometricVE:
  """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t."""

  sigma_min: float
  sigma_max: float
  t_zero: float = -math.inf

  @property
  def _log_ratio(self) -> float:
    return math.log(self.sigma_max / self.sigma_min)

  def alpha(self, t: ArrayLike) -> Array:
    return numerics.namespace(t).ones_like(t)

  def sigma(self, t: ArrayLike) -> Array:
    xp = numerics.namespace(t)
    return self.sigma_min * xp.exp(self._log_ratio * t)

  def log_snr(self, t: ArrayLike) -> Array:
    return -math.log(self.sigma_min) - self._log_ratio * t

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    return (-lam - math.log(self.sigma_min)) / self._log_ratio

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    zero = numerics.namespace(t).zeros_like(t)
    return zero, self._log_ratio * self.sigma(t)


@dataclasses.dataclass(frozen=True)
class NoiseLevel:
  """alpha = 1, sigma = t: EDM's parameterization."""

  t_zero: float = 0.0

  def alpha(self, t: ArrayLike) -> Array:
    return numerics.namespace(t).ones_like(t)

  def sigma(self, t: ArrayLike) -> Array:
    return t

  def log_snr(self, t: ArrayLike) -> Array:
    return -numerics.log(t)

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    return numerics.namespace(lam).exp(-lam)

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    xp = numerics.namespace(t)
    return xp.zeros_like(t), xp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class Linear:
  """alpha = 1 - t, sigma = t: rectified flow."""

  t_zero: float = 0.0

  def alpha(self, t: ArrayLike) -> Array:
    return 1.0 - t

  def sigma(self, t: ArrayLike) -> Array:
    return t

  def log_snr(self, t: ArrayLike) -> Array:
    return -numerics.logit(t)

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    return numerics.sigmoid(-lam)

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    one = numerics.namespace(t).ones_like(t)
    return -one, one


@dataclasses.dataclass(frozen=True)
class ResidualShift:
  """alpha = 1 - t^2, sigma = kappa t; t^2 is the eta of Yue et al. (2023)."""

  kappa: float
  t_zero: float = 0.0

  def alpha(self, t: ArrayLike) -> Array:
    return (1.0 - t) * (1.0 + t)

  def sigma(self, t: ArrayLike) -> Array:
    return self.kappa * t

  def log_snr(self, t: ArrayLike) -> Array:
    return numerics.log(self.alpha(t)) - numerics.log(self.sigma(t))

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    # the root of t^2 + kappa t e^lam = 1, in the form that does not cancel
    xp = numerics.namespace(lam)
    half = 0.5 * self.kappa * xp.exp(lam)
    return 1.0 / (half + xp.hypot(half, xp.ones_like(half)))

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    return -2.0 * t, self.kappa * numerics.namespace(t).ones_like(t)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """Any pair of functions written with jax.numpy; the rest is derived.

  On the host they are evaluated in float64, their derivatives come from
  forward-mode differentiation, the inverse of the log-SNR from bisection. An
  alpha that is lost in the rounding of sigma is 0: cos(pi / 2) is 6e-17, or
  -4e-8 in float32, and neither its sign nor its logarithm means anything.
  """

  alpha_fn: Callable[[Array], Array]
  sigma_fn: Callable[[Array], Array]
  t_low: float
  t_high: float
  t_zero: float

  def __eq__(self, other: PyTree) -> bool:
    if type(other) is not type(self):
      return NotImplemented
    return self is other or key(self) == key(other)

  def __hash__(self) -> int:
    return hash(key(self))

  def alpha(self, t: ArrayLike) -> Array:
    alpha, sigma = evaluate(self.alpha_fn, t), self.sigma(t)
    rounding = float(jnp.finfo(alpha.dtype).eps)
    seen = alpha > rounding * sigma
    return numerics.namespace(alpha).where(seen, alpha, 0.0)

  def sigma(self, t: ArrayLike) -> Array:
    return evaluate(self.sigma_fn, t)

  def log_snr(self, t: ArrayLike) -> Array:
    return numerics.log(self.alpha(t)) - numerics.log(self.sigma(t))

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    return numerics.invert_decreasing(
      self.log_snr, lam, self.t_low, self.t_high
    )

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    rate = lambda f: lambda s: jax.jvp(f, (s,), (jnp.ones_like(s),))[1]
    return (
      evaluate(rate(self.alpha_fn), t),
      evaluate(rate(self.sigma_fn), t),
    )


def _interpolate(x: ArrayLike, places: np.ndarray, values: np.ndarray) -> Array:
  """Returns the piecewise linear function through (places, values) at x."""
  xp = numerics.namespace(x)
  cast = lambda v: xp.asarray(v, xp.result_type(x))
  return xp.interp(x, cast(places), cast(values)).astype(xp.result_type(x))


def evaluate(f: Callable[[ArrayLike], ArrayLike], t: ArrayLike) -> Array:
  """Returns f(t): traced arrays as they are, host values in float64."""
  if isinstance(t, jax.Array):
    return jnp.broadcast_to(f(t), jnp.shape(t))
  cpu = jax.local_devices(backend="cpu")[0]
  with (
    jax.enable_x64(True),
    jax.default_device(cpu),
    jax.ensure_compile_time_eval(),
  ):
    value = f(jnp.asarray(t, jnp.float64))
    return np.broadcast_to(np.asarray(value, np.float64), np.shape(t))

r"""Stochastic interpolants: bridges of finite time between any two densities.

  x_t = I(t, x0, x1) + gamma(t) z,   I = alpha(t) x0 + beta(t) x1,

with z ~ N(0, 1) and time from x0 (t = 0) to x1 (t = 1). Two regressions tell
all about it,

  v(x, t) = E[dI/dt | x_t = x],   eta(x, t) = E[z | x_t = x],

a model returns them as its pair, and everything else is linear in the pair:

  velocity   b = v + gamma' eta                     dX/dt = b
  score      s = -eta / gamma
  forwards   dX = (b + eps s) dt + sqrt(2 eps) dW   for any eps(t) >= 0
  backwards  dX = (b - eps s) dt + sqrt(2 eps) dW   run from 1 to 0,

which all share the law of x_t: ODE and SDEs are tables with output weights
(1, gamma' -+ eps / gamma), see `interpolants.transport`.

| path                | alpha                    | beta                      |
|---------------------|--------------------------|---------------------------|
| "linear"            | 1 - t                    | t                         |
| "trig"              | sqrt(1 - gamma^2) cos    | sqrt(1 - gamma^2) sin     |
| "encoding_decoding" | cos(pi t)^2 for t <= 1/2 | cos(pi t)^2 for t > 1/2   |
| "mirror"            | 0                        | 1, from x1 to x1 by noise |

(cos, sin of pi t / 2), with gamma^2 = a times

| gamma       | gamma^2 / a     | gamma                            |
|-------------|-----------------|----------------------------------|
| "brownian"  | t (1 - t)       | gamma' is infinite at both ends  |
| "quadratic" | (t (1 - t))^2   | smooth                           |
| "sin2"      | sin(pi t)^4     | smooth                           |
| "none"      | 0               | flow matching: no score, no SDE  |

`one_sided` starts from noise, x_t = gamma(t) z + beta(t) x1: these are the
Gaussian processes of `rectified_flow` and `vp_cosine` with 1 - t for t.

Reference: Albergo, Boffi and Vanden-Eijnden (2023), "Stochastic interpolants: a
unifying framework for flows and diffusions", https://arxiv.org/abs/2303.08797.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff import tree
from jaxdiff.processes import schedules
from jaxdiff.processes.gaussian import GaussianProcess
from jaxdiff.processes.gaussian import rectified_flow
from jaxdiff.processes.gaussian import vp_cosine
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike

Function = Callable[[Array], Array]

PATHS = ("linear", "trig", "encoding_decoding", "mirror")
ONE_SIDED = ("linear", "trig")


@dataclasses.dataclass(frozen=True)
class Interpolant:
  """A bridge as three functions of time; hashable, no arrays.

  Functions of t take numpy numbers (in float64) and traced arrays. Where gamma
  stands in a denominator, t is first moved into [t_min, 1 - t_min].

  Attributes:
    alpha_fn: weight of x0, written with jax.numpy.
    beta_fn: weight of x1.
    gamma_squared_fn: gamma^2, which is smooth where gamma is not.
    t_min: the network is asked and trained in [t_min, 1 - t_min].
    needs_x0: whether there is an x0: not one-sided, nor a mirror.
  """

  alpha_fn: Function
  beta_fn: Function
  gamma_squared_fn: Function
  t_min: float = 1e-3
  needs_x0: bool = True

  @property
  def t_max(self) -> float:
    """The last time that the network is asked at."""
    return 1.0 - self.t_min

  def inside(self, t: ArrayLike) -> Array:
    """Returns t, moved into [t_min, 1 - t_min]."""
    t = numerics.as_float(t)
    return numerics.namespace(t).clip(t, self.t_min, self.t_max)

  def alpha(self, t: ArrayLike) -> Array:
    """Returns the weight of x0."""
    return schedules.evaluate(self.alpha_fn, numerics.as_float(t))

  def beta(self, t: ArrayLike) -> Array:
    """Returns the weight of x1."""
    return schedules.evaluate(self.beta_fn, numerics.as_float(t))

  def path_rates(self, t: ArrayLike) -> tuple[Array, Array]:
    """Returns (d alpha / dt, d beta / dt)."""
    return _rate(self.alpha_fn, t), _rate(self.beta_fn, t)

  def gamma(self, t: ArrayLike) -> Array:
    """Returns the scale of the latent noise z."""
    square = schedules.evaluate(self.gamma_squared_fn, numerics.as_float(t))
    xp = numerics.namespace(square)
    return xp.sqrt(xp.maximum(square, 0.0))

  def gamma_gamma_dot(self, t: ArrayLike) -> Array:
    """Returns gamma gamma', which is finite at both ends."""
    return 0.5 * _rate(self.gamma_squared_fn, t)

  def gamma_dot(self, t: ArrayLike) -> Array:
    """Returns gamma' at t moved inside; 0 where gamma is."""
    t = self.inside(t)
    return numerics.safe_divide(self.gamma_gamma_dot(t), self.gamma(t))

  @property
  def has_score(self) -> bool:
    """Whether there is latent noise, and hence a score."""
    return bool(self.gamma(0.5) > 0)

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    """Returns the weights of the pair (v, eta) in the velocity b."""
    rate = self.gamma_dot(t)
    return numerics.namespace(rate).ones_like(rate), rate

  def interpolate(
    self, t: ArrayLike, x0: ArrayLike, x1: ArrayLike, z: ArrayLike
  ) -> Any:
    """Returns x_t, a tree like x1; x0 is None if there is none.

    Raises:
      ValueError: if x0 or z is not shaped like x1, or x0 is missing.
    """
    return self._mix((self.alpha(t), self.beta(t), self.gamma(t)), x0, x1, z)

  def path_velocity(self, t: ArrayLike, x0: ArrayLike, x1: ArrayLike) -> Any:
    """Returns dI/dt, whose mean at x_t is v."""
    alpha, beta = self.path_rates(t)
    return self._mix((alpha, beta, jnp.zeros_like(alpha)), x0, x1, x1)

  def _mix(self, weights, x0, x1, z):
    if x0 is None and self.needs_x0:
      raise ValueError(
        "this interpolant goes from x0 to x1 and needs both; one_sided(path)"
        ' starts from noise, path="mirror" from x1'
      )
    x0 = x1 if x0 is None or not self.needs_x0 else x0
    checks.same_structure(x0, x1, "x0", "x1")
    checks.same_structure(z, x1, "z", "x1")

    def mix(x0, x1, z):
      a, b, c = (tree.expand(w, x1) for w in weights)
      return (a * x0 + b * x1 + c * z).astype(x1.dtype)

    return jax.tree.map(mix, x0, x1, z)


@checks.door
def interpolant(
  path: str = "linear",
  gamma: str = "brownian",
  a: float = 1.0,
  t_min: float = 1e-3,
) -> Interpolant:
  """Returns a two-sided interpolant by the names in the module's tables.

  Args:
    path: "linear", "trig", "encoding_decoding" or "mirror".
    gamma: "brownian", "quadratic", "sin2" or "none".
    a: factor of gamma^2.
    t_min: the network is asked and trained in [t_min, 1 - t_min]; 0 only
      where gamma' is finite.

  Raises:
    ValueError: for other names, a that is not positive, or a "trig" path whose
      gamma reaches 1.
  """
  checks.one_of(path, PATHS, "path")
  checks.one_of(gamma, tuple(_GAMMAS), "gamma")
  if not a > 0:
    raise ValueError(
      f'a is a factor of gamma^2, positive; got a={a}; gamma="none" is no'
      " latent noise"
    )
  return _named(path, gamma, float(a), float(t_min))


@checks.door
def one_sided(path: str = "linear", t_min: float = 1e-3) -> Interpolant:
  """Returns x_t = gamma z + beta x1, from noise to data.

  Args:
    path: "linear", (1 - t, t), or "trig", cos and sin of pi t / 2.
    t_min: the network is asked and trained in [t_min, 1 - t_min].

  Raises:
    ValueError: for another path.
  """
  checks.one_of(path, ONE_SIDED, "path")
  weights = (_line, _line_down2) if path == "linear" else (_sine, _cosine2)
  return Interpolant(_zero, *weights, float(t_min), needs_x0=False)


@checks.door
def one_sided_process(
  path: str = "linear", t_min: float = 1e-3
) -> GaussianProcess:
  """Returns the Gaussian process that `one_sided` is, whose time is 1 - t."""
  checks.one_of(path, ONE_SIDED, "path")
  return rectified_flow(t_min) if path == "linear" else vp_cosine(t_min)


def from_functions(
  alpha: Function, beta: Function, gamma_squared: Function, t_min: float = 1e-3
) -> Interpolant:
  """Returns a two-sided interpolant from functions written with jax.numpy.

  Raises:
    ValueError: if a function has not its value at an end: alpha 1 and 0, beta 0
      and 1, gamma^2 0 and 0, or gamma^2 is negative between.
  """
  made = Interpolant(alpha, beta, gamma_squared, float(t_min))
  ends = np.asarray([0.0, 1.0])
  required = (
    ("alpha", made.alpha(ends), (1.0, 0.0)),
    ("beta", made.beta(ends), (0.0, 1.0)),
    ("gamma_squared", schedules.evaluate(gamma_squared, ends), (0.0, 0.0)),
  )
  for name, value, expected in required:
    if not np.allclose(value, expected, atol=1e-6):
      raise ValueError(
        f"{name} must be {expected[0]:g} at t = 0 and {expected[1]:g} at t ="
        f" 1, so that x_t is x0 and x1 there; got {value[0]:.4g} and"
        f" {value[1]:.4g}"
      )
  between = np.linspace(0.0, 1.0, 257)
  square = schedules.evaluate(gamma_squared, between)
  if not (square >= -1e-12).all():
    at = between[~(square >= -1e-12)][0]
    raise ValueError(f"gamma_squared is negative at t = {at:.4g}")
  return made


@functools.lru_cache(256)  # one object for one set of arguments: they compare
def _named(path, gamma, a, t_min):
  square = functools.partial(_GAMMAS[gamma], a)
  if path == "mirror":
    return Interpolant(_zero, _one, square, t_min, needs_x0=False)
  if path == "linear":
    return from_functions(_line_down, _line, square, t_min)
  if path == "encoding_decoding":
    return from_functions(_encode, _decode, square, t_min)
  highest = schedules.evaluate(square, np.linspace(0.0, 1.0, 257)).max()
  if highest >= 1.0:
    raise ValueError(
      f'the "trig" path divides 1 - gamma^2 up, but gamma="{gamma}" with'
      f" a={a:g} reaches gamma^2 = {highest:.4g}; lower a"
    )
  rest = lambda t: jnp.sqrt(1.0 - square(t))
  return from_functions(
    lambda t: rest(t) * _cosine(t), lambda t: rest(t) * _sine(t), square, t_min
  )


def _rate(f, t):
  t = numerics.as_float(t)
  rate = lambda s: jax.jvp(f, (s,), (jnp.ones_like(s),))[1]
  return schedules.evaluate(rate, t)


_zero = jnp.zeros_like
_one = jnp.ones_like
_line = lambda t: t
_line_down = lambda t: 1.0 - t
_line_down2 = lambda t: (1.0 - t) ** 2
_sine = lambda t: jnp.sin(0.5 * jnp.pi * t)
_cosine = lambda t: jnp.sin(0.5 * jnp.pi * (1.0 - t))  # exactly 0 at t = 1
_cosine2 = lambda t: _cosine(t) ** 2
_encode = lambda t: jnp.where(t <= 0.5, jnp.cos(jnp.pi * t) ** 2, 0.0)
_decode = lambda t: jnp.where(t > 0.5, jnp.cos(jnp.pi * t) ** 2, 0.0)
_GAMMAS = {
  "brownian": lambda a, t: a * t * (1.0 - t),
  "quadratic": lambda a, t: a * (t * (1.0 - t)) ** 2,
  "sin2": lambda a, t: a * jnp.sin(jnp.pi * t) ** 4,
  "none": lambda a, t: jnp.zeros_like(t),
}

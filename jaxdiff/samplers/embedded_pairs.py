r"""Embedded pairs: a step and an estimate of its error from the same calls.

A pair asks s places of a step and combines linearly what it is told, F =
output . (x0, eps), so one step is a small table whose numbers depend on where
the step lies and how long it is:

  y_i = carry_i x + sum_{j < i} weights_ij F_j        (place i, then F_i)
  x'  = carry_s x + sum_j weights_sj F_j
  error = sum_j error_j F_j

Runge-Kutta pairs take F = dx / dtau in one of three clocks tau, with carry 1:

| clock    | tau                | F                                           |
|----------|--------------------|---------------------------------------------|
| "lambda" | log(alpha / sigma) | (alpha' x0 + sigma' eps) / lambda'          |
| "sigma"  | sigma / alpha      | (alpha' x0 + sigma' eps) / (sigma / alpha)' |
| "t"      | t                  | alpha' x0 + sigma' eps                      |

Exponential pairs (DPM-Solver) take F = eps or x0 in lambda and carry the rest
exactly: with z = h, c = sigma (eps) or z = -h, c = alpha (x0), and the first
order in front of every sum, carry x - c expm1(z r) F_0 at the place r,

  12:  + c expm1(z) / (2 r_1) (F_0 - F_1),  r_1 = 1/2, against first order,
  23:  + c z phi_2(z) / r_2 (F_0 - F_2),    r = 1/3, 2/3, against the order 2.

References: Bogacki and Shampine (1989); Dormand and Prince (1980); Lu et al.
(2022), appendix C, https://arxiv.org/abs/2206.00927 and 2211.01095.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxdiff import numerics
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike

CLOCKS = ("lambda", "sigma", "t")


class Step(NamedTuple):
  """The coefficients of one step; every number is a scalar or [batch].

  Attributes:
    carry: s numbers, of the state in the places 1..s - 1 and in the result.
    weights: s tuples, of the outputs in the same.
    error: s numbers, of the outputs in the error.
  """

  carry: tuple
  weights: tuple
  error: tuple


@dataclasses.dataclass(frozen=True)
class RungeKutta:
  """A Butcher array with two sets of weights.

  Attributes:
    stages: the strictly lower triangle, row by row from the second.
    weights: weights of the result.
    error: weights minus those of the lower order.
    order: order of the result.
    lower: order of the other.
  """

  stages: tuple
  weights: tuple
  error: tuple
  order: int
  lower: int
  clocks: tuple = CLOCKS

  @property
  def places(self) -> tuple[float, ...]:
    """Where in the step it asks, from 0 to 1."""
    return (0.0, *(math.fsum(row) for row in self.stages))

  @property
  def last_is_first(self) -> bool:
    """Whether the last place is the result, and the next step's first."""
    return (*self.stages[-1], 0.0) == self.weights

  def output(self, process: GaussianProcess, clock: str, t: ArrayLike) -> tuple:
    """Returns the weights of (x0, eps) in F at time t."""
    pair = process.rates(t)
    if clock == "t":
      return pair
    alpha, sigma = process.alpha(t), process.sigma(t)
    rate = pair[0] / alpha - pair[1] / sigma  # of lambda
    if clock == "sigma":
      rate = -sigma / alpha * rate
    return pair[0] / rate, pair[1] / rate

  def step(self, process: GaussianProcess, t: list, h: ArrayLike) -> Step:
    """Returns the step of length h in the clock; t are the places' times."""
    del process, t  # a Runge-Kutta step is the same everywhere
    one = h * 0.0 + 1.0
    scaled = lambda row: tuple(h * w for w in row)
    return Step(
      (one,) * len(self.weights),
      (*map(scaled, self.stages), scaled(self.weights)),
      scaled(self.error),
    )


@dataclasses.dataclass(frozen=True)
class Exponential:
  """DPM-Solver-12 or -23, of a noise or a data prediction.

  Attributes:
    output_half: "eps" or "x0".
    order: 2 or 3.
  """

  output_half: str
  order: int
  clocks: tuple = ("lambda",)
  last_is_first: bool = False

  @property
  def lower(self) -> int:
    """Order of the other result."""
    return self.order - 1

  @property
  def places(self) -> tuple[float, ...]:
    """Where in the step it asks, in lambda."""
    return (0.0, 1 / 2) if self.order == 2 else (0.0, 1 / 3, 2 / 3)

  def output(self, process: GaussianProcess, clock: str, t: ArrayLike) -> tuple:
    """Returns the weights of (x0, eps) in F."""
    del process, clock, t
    return (1.0, 0.0) if self.output_half == "x0" else (0.0, 1.0)

  def step(self, process: GaussianProcess, t: list, h: ArrayLike) -> Step:
    """Returns the step of length h in lambda; t are the times of all places.

    Args:
      process: the forward process.
      t: times of the places, and of the end.
      h: length of the step.
    """
    alpha = [process.alpha(s) for s in t]
    sigma = [process.sigma(s) for s in t]
    kept, c = (sigma, alpha) if self.output_half == "x0" else (alpha, sigma)
    z = -h if self.output_half == "x0" else h
    r = (*self.places, 1.0)
    xp = numerics.namespace(z)
    carry = [kept[i] / kept[0] for i in range(len(r))]
    first = [-c[i] * xp.expm1(r[i] * z) for i in range(len(r))]
    if self.order == 2:
      gain = first[2] / (2 * r[1])
      weights = ((first[1],), (first[2] - gain, gain))
      error = (-gain, gain)
    else:
      bend = lambda i: -c[i] * (r[i] * z) * numerics.phi(2, r[i] * z)
      inner, outer = bend(2) * r[2] / r[1], bend(3) / r[2]
      low = first[3] / (2 * r[1])
      weights = (
        (first[1],),
        (first[2] - inner, inner),
        (first[3] - outer, 0.0 * outer, outer),
      )
      error = (low - outer, -low, outer)
    return Step(tuple(carry[1:]), weights, error)


def _pair(stages, weights, other, order, lower):
  error = tuple(w - o for w, o in zip(weights, other, strict=True))
  return RungeKutta(stages, weights, error, order, lower)


_DORMAND_PRINCE = (
  (1 / 5,),
  (3 / 40, 9 / 40),
  (44 / 45, -56 / 15, 32 / 9),
  (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
  (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
  (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)

PAIRS: Mapping[str, Any] = MappingProxyType(
  {
    "bogacki_shampine": _pair(
      ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
      (2 / 9, 1 / 3, 4 / 9, 0.0),
      (7 / 24, 1 / 4, 1 / 3, 1 / 8),
      3,
      2,
    ),
    "dormand_prince": _pair(
      _DORMAND_PRINCE,
      (*_DORMAND_PRINCE[-1], 0.0),
      (
        5179 / 57600,
        0.0,
        7571 / 16695,
        393 / 640,
        -92097 / 339200,
        187 / 2100,
        1 / 40,
      ),
      5,
      4,
    ),
    "dpm_solver_12": Exponential("eps", 2),
    "dpm_solver_23": Exponential("eps", 3),
    "dpmpp_12": Exponential("x0", 2),
    "dpmpp_23": Exponential("x0", 3),
  }
)

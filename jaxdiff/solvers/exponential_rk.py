r"""Exponential Runge-Kutta (ETD-RK): stages that know the linear part exactly.

In lambda = log(alpha / sigma) the probability-flow ODE is semilinear, with x0
or eps for its nonlinear part. With h = lambda' - lambda and stages at lambda +
c_i h,

  x0  (z = -h):  x_i = (sigma_i / sigma) x + alpha_i h sum_j a_ij(z) x0_j,
  eps (z = h):   x_i = (alpha_i / alpha) x - sigma_i h sum_j a_ij(z) eps_j,

and the same with b_j(z) for the step's end. The coefficients are combinations
of phi functions, written phi_k = phi_k(z), phi_k,i = phi_k(c_i z). A method has
stiff order p if it meets, for all z and up to p, conditions that its classical
order at z = 0 does not imply; the first are

  sum_j b_j c_j^{k-1} / (k-1)! = phi_k,    sum_j a_ij = c_i phi_1,i.

| method            | calls | order | stiff | what                             |
|-------------------|-------|-------|-------|----------------------------------|
| "res_2s"          | 2     | 2     | 2     | RES; DPM-Solver-2 "heun"         |
| "exp_heun_2"      | 2     | 2     | 2     | the same, its stage at the end   |
| "dpm_2"           | 2     | 2     | 1     | DPM-Solver-2, ++(2S)             |
| "dpm_3"           | 3     | 3     | 3     | DPM-Solver-3 = Hochbruck (5.9)   |
| "cox_matthews_4"  | 4     | 4     | 2     | ETDRK4                           |
| "krogstad_4"      | 4     | 4     | 3     | ETDRK4-B                         |
| "hochbruck_4"     | 5     | 4     | 4     | Hochbruck and Ostermann (5.19)   |
| `lawson(butcher)` | any   | its   | -     | integrating factor, any array    |

References: Hochbruck and Ostermann (2005),
https://doi.org/10.1137/040611434; Zhang et al. (2023), RES,
https://arxiv.org/abs/2308.02157; Lu et al. (2022),
https://arxiv.org/abs/2206.00927.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.numerics import exponential_weights
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.runge_kutta import Butcher
from jaxdiff.tableau import Tableau


class Exponential(NamedTuple):
  """An explicit exponential Runge-Kutta method.

  Attributes:
    places: c, one for each stage, c_1 = 0.
    stages: z -> the strictly lower triangle of a(z), row by row.
    weights: z -> b(z), one for each stage.
  """

  places: Sequence[float]
  stages: Callable[[float], Sequence[Sequence[float]]]
  weights: Callable[[float], Sequence[float]]


def two_stages(r: float, kind: str = "heun") -> Exponential:
  """Returns the method of a stage at r: "heun" is RES, "midpoint" DPM-Solver.

  The second output's weight is phi_2 / r ("heun") or phi_1 / (2 r).
  """

  def weights(z):
    second = phi(2, z) / r if kind == "heun" else phi(1, z) / (2.0 * r)
    return [phi(1, z) - second, second]

  return Exponential([0.0, r], lambda z: [[r * phi(1, r * z)]], weights)


def three_stages(r1: float, r2: float, kind: str = "midpoint") -> Exponential:
  """Returns the method of stages at r1 and r2, of order 3 for r2 = 2/3.

  kind="midpoint" weighs the first and the last output, as DPM-Solver-3 does;
  "heun" integrates the parabola through all three, of order 3 for any r1, r2.
  """

  def stages(z):
    bend = r2**2 / r1 * phi(2, r2 * z)
    return [[r1 * phi(1, r1 * z)], [r2 * phi(1, r2 * z) - bend, bend]]

  def weights(z):
    if kind == "heun":
      return exponential_weights(np.asarray([0.0, r1, r2]), z)
    last = phi(2, z) / r2
    return [phi(1, z) - last, 0.0, last]

  return Exponential([0.0, r1, r2], stages, weights)


def lawson(method: Butcher) -> Exponential:
  """Returns the integrating-factor form of any Runge-Kutta method.

  Its coefficients are a_ij e^{(c_i - c_j) z}: the classical method on e^{-z u}
  x, of the same classical order, exact for no constant output.
  """
  c, a = method.places, method.matrix

  def stages(z):
    grown = a * np.exp((c[:, None] - c[None, :]) * z)
    return [grown[i, :i] for i in range(1, len(c))]

  return Exponential(
    c, stages, lambda z: np.asarray(method.weights) * np.exp((1.0 - c) * z)
  )


def _krogstad_weights(z):
  p1, p2, p3 = (phi(k, z) for k in (1, 2, 3))
  middle = 2.0 * p2 - 4.0 * p3
  return [p1 - 3.0 * p2 + 4.0 * p3, middle, middle, 4.0 * p3 - p2]


def _cox_matthews_stages(z):
  half = 0.5 * phi(1, z / 2)
  return [[half], [0.0, half], [half * np.expm1(z / 2), 0.0, 2.0 * half]]


def _krogstad_stages(z):
  half, bend = 0.5 * phi(1, z / 2), phi(2, z / 2)
  return [
    [half],
    [half - bend, bend],
    [phi(1, z) - 2.0 * phi(2, z), 0.0, 2.0 * phi(2, z)],
  ]


def _hochbruck_stages(z):
  one, two, three = (phi(k, z / 2) for k in (1, 2, 3))
  p1, p2, p3 = (phi(k, z) for k in (1, 2, 3))
  a52 = two / 2 - p3 + p2 / 4 - three / 2
  a54 = two / 4 - a52
  return [
    [one / 2],
    [one / 2 - two, two],
    [p1 - 2.0 * p2, p2, p2],
    [one / 2 - 2.0 * a52 - a54, a52, a52, a54],
  ]


def _hochbruck_weights(z):
  p1, p2, p3 = (phi(k, z) for k in (1, 2, 3))
  return [
    p1 - 3.0 * p2 + 4.0 * p3,
    0.0,
    0.0,
    4.0 * p3 - p2,
    4.0 * p2 - 8.0 * p3,
  ]


METHODS = MappingProxyType(
  {
    "euler": Exponential([0.0], lambda z: [], lambda z: [phi(1, z)]),
    "res_2s": two_stages(1 / 2),
    "exp_heun_2": two_stages(1.0),
    "dpm_2": two_stages(1 / 2, "midpoint"),
    "dpm_3": three_stages(1 / 3, 2 / 3),
    "cox_matthews_4": Exponential(
      [0.0, 1 / 2, 1 / 2, 1.0], _cox_matthews_stages, _krogstad_weights
    ),
    "krogstad_4": Exponential(
      [0.0, 1 / 2, 1 / 2, 1.0], _krogstad_stages, _krogstad_weights
    ),
    "hochbruck_4": Exponential(
      [0.0, 1 / 2, 1 / 2, 1.0, 1 / 2], _hochbruck_stages, _hochbruck_weights
    ),
  }
)
"""Named methods; calls per step are their number of places."""


@solver
def exponential_rk(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  method: str | Exponential = "res_2s",
  output: str = "x0",
) -> Tableau:
  """Returns the table of an exponential Runge-Kutta method, f64[n + 1] times.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    method: a name of `METHODS`, or an `Exponential` of your own.
    output: "x0" or "eps", the nonlinear part.

  Raises:
    ValueError: for an unknown method or output.
  """
  checks.one_of(output, ("x0", "eps"), "output")
  if isinstance(method, str):
    checks.one_of(method, tuple(METHODS), "method")
    method = METHODS[method]
  return tables.concat(
    *(
      step(process, grid[i], grid[i + 1], method, output)
      for i in range(len(grid) - 1)
    )
  )


@solver
def exp_heun_2_x0(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of ComfyUI's exp_heun_2_x0: `exponential_rk` of that."""
  return exponential_rk.build(process, grid, method="exp_heun_2")


def step(
  process: GaussianProcess,
  t: float,
  t_next: float,
  method: Exponential,
  output: str,
) -> Tableau:
  """Returns the rows of one step from t to t_next; arguments as above."""
  lam, end = process.log_snr(np.asarray([t, t_next]))
  h = end - lam
  c = np.asarray(method.places)
  at = np.asarray(process.log_snr_inverse(lam + c * h))
  at[c == 0.0], at[c == 1.0] = t, t_next
  alpha, sigma, _ = coefficients(process, np.append(at, t_next))
  if output == "x0":
    z, keep, gain = -h, sigma / sigma[0], alpha * h
  else:
    z, keep, gain = h, alpha / alpha[0], -sigma * h
  ways = [*method.stages(z), method.weights(z)]
  rows = []
  for i, way in enumerate(ways):
    start = (0.0, keep[i + 1]) if i else (keep[i + 1], 0.0)  # y = a at first
    mix = np.trim_zeros(np.asarray(way), "f")[::-1]  # newest first
    y = (*start, *(gain[i + 1] * mix))
    a = y if i == len(ways) - 1 else (0.0, 1.0)
    rows.append(tables.row(at[i], output, y, a))
  return tables.concat(*rows)

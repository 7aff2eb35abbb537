r"""STORK: many stages of a stabilized Runge-Kutta method, one call per step.

A step is one of the second-order Runge-Kutta-Gegenbauer method (RKG2) with s
stages, all but the first of which ask a Taylor polynomial and no network: F(u)
= sum_k D_k (u - u_i)^k / k!, with D_k the derivatives at u_i of the polynomial
through the last answers. With h the step, w = 6 / ((s + 4) (s - 1)),
b_0 = 1, b_1 = 1/3, b_j = 4 (j - 1) (j + 4) / (3 j (j + 1) (j + 2) (j + 3)),

  Y_1 = Y_0 + w h f_0,
  Y_j = mu Y_{j-1} + nu Y_{j-2} + (1 - mu - nu) Y_0
        + mu w h f(Y_{j-1}, c_{j-1}) - mu w (1 - j (j + 1) b_{j-1} / 2) h f_0,
  mu = (2 j + 1) b_j / (j b_{j-1}),     nu = -(j + 1) b_j / (j b_{j-2}),

at c_1 = w and c_j = (j + 4) (j - 1) / ((s + 4) (s - 1)). Two forms:

  "flow":  d(x / c) / du = eps - x0                     (`forms.py`),
  "eps":   dx/dt = (alpha'/alpha) x + (sigma' - sigma alpha'/alpha) eps,

for networks of a flow, and of eps in the process's own time, whose linear part
is what the stages stabilize. All of it is linear in x and the answers: a
multistep table. Second order; the stages change what comes after.

The authors' code takes c_j = (j^2 + j - 2) / (s^2 + s - 2) and c_1 = c_2 / 3,
those of another method (RKL2), under which a step errs by 0.01 h^2 F' at s =
50: `published=True`. Departures from it: no half steps at the start, where the
derivatives rise from none (put a time there to have one), and derivatives that
are right for unequal steps.

Reference: Tan et al. (2025), https://arxiv.org/abs/2505.24210, STORK-2; RKG2 is
of Skaras et al. (2021), https://doi.org/10.1016/j.jcp.2020.109879.
"""

import math

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import multistep_weights
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver(least=dict(stages=3))
def stork(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  derivatives: int = 2,
  stages: int = 50,
  output: str = "flow",
  published: bool = False,
) -> Tableau:
  """Returns the table of STORK-2 on `grid`: n calls, K = derivatives + 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    derivatives: degree of the Taylor polynomial, 1, 2 or 3; fewer at the start,
      and where weights would enlarge rounding a thousandfold.
    stages: s, at least 3.
    output: "flow" or "eps".
    published: whether the stages are asked at the places of the authors' code.

  Raises:
    ValueError: for another number of derivatives or output.
  """
  checks.one_of(output, ("flow", "eps"), "output")
  checks.one_of(derivatives, (1, 2, 3), "derivatives")
  n = len(grid) - 1
  form = forms.FORMS[output]
  u = form.clock(process, grid) if output == "flow" else grid
  steps = []
  for i in range(n):
    h = u[i + 1] - u[i]
    linear = None
    if output == "eps":
      linear = lambda c, i=i, h=h: _drift(process, grid[i] + c * h, h)
    steps.append(_step(stages, linear, published))
  steps = np.stack(steps)  # of x, F, h D_1, h^2 D_2, h^3 D_3
  scale = form.scale(process, grid) if output == "flow" else np.ones(n + 1)
  steps[:, 0] *= scale[1:] / scale[:-1]
  if output == "flow":
    steps[:, 1:] *= (scale[1:] * np.diff(u))[:, None]

  def candidates(i):
    for most in range(min(derivatives, i), -1, -1):
      ago = np.arange(most + 1)
      places = (u[i - ago] - u[i]) / (u[i + 1] - u[i])
      taylor = np.linalg.inv(places[:, None] ** ago)
      taylor *= [[math.factorial(k)] for k in ago]
      yield steps[i, 1 : most + 2] @ taylor

  outputs = form.output(process, grid[:-1])
  carry = steps[:, 0]
  history = multistep_weights(process, grid, outputs, carry, candidates)
  return tables.multistep(grid[:-1], outputs, carry, history)


def _drift(process, t, h):
  """Returns h times the weights of x and eps in dx/dt."""
  of_x0, of_eps = process.rates(t)
  alpha, sigma = process.alpha(t), process.sigma(t)
  return h * of_x0 / alpha, h * (of_eps - sigma * of_x0 / alpha)


def _step(s, linear, published):
  """Returns the step of RKG2 as weights of x, F and its scaled derivatives.

  Args:
    s: number of stages.
    linear: c -> h times the weights of x and F in the ODE at the place c of the
      step; None if F is all of it, in units of h.
    published: whether at the places of the authors' code.
  """
  powers = np.asarray([1.0 / math.factorial(k) for k in range(4)])

  def slope(c, y):
    f = np.concatenate([[0.0], powers * c ** np.arange(4)])
    if linear is None:
      return f
    of_x, of_f = linear(c)
    return of_x * y + of_f * f

  def b(j):
    if j < 2:
      return (1.0, 1.0 / 3.0)[j]
    return 4.0 * (j - 1) * (j + 4) / (3.0 * j * (j + 1) * (j + 2) * (j + 3))

  def place(j):
    if published:
      return (4.0 / 3.0 if j == 1 else j**2 + j - 2.0) / (s**2 + s - 2.0)
    return w if j == 1 else (j + 4.0) * (j - 1.0) / ((s + 4.0) * (s - 1.0))

  w = 6.0 / ((s + 4.0) * (s - 1.0))
  first = np.eye(5)[0]
  begin = slope(0.0, first)
  before, y = first, first + w * begin
  for j in range(2, s + 1):
    mu = (2 * j + 1) * b(j) / (j * b(j - 1))
    nu = -(j + 1) * b(j) / (j * b(j - 2))
    back = -mu * w * (1.0 - j * (j + 1) * b(j - 1) / 2.0)
    new = mu * y + nu * before + (1.0 - mu - nu) * first
    new = new + mu * w * slope(place(j - 1), y) + back * begin
    before, y = y, new
  return y

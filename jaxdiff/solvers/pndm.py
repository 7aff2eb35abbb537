r"""PNDM: DDIM's transfer with the noise mixed by classical methods.

The transfer is one step of DDIM, phi(x, e, t, s) = (alpha_s / alpha_t) x -
sigma_s expm1(lambda_s - lambda_t) e. A step takes e for a mix of outputs with
the weights of a classical method for equal steps in t:

  start="runge_kutta": three pseudo Runge-Kutta steps, m = (t + s) / 2,
    e1 = eps(x, t),                  e2 = eps(phi(x, e1, t, m), m),
    e3 = eps(phi(x, e2, t, m), m),   e4 = eps(phi(x, e3, t, s), s),
    e = (e1 + 2 e2 + 2 e3 + e4) / 6,
  start="heun": one pseudo improved-Euler step, e2 = eps(phi(x, e1, t, s), s),
    e = (e1 + e2) / 2,
  start="multistep": none, which is `ipndm`;

then Adams-Bashforth of `order`, or of what the history allows, on the e1 of all
steps. F-PNDM is order 4 from Runge-Kutta, S-PNDM order 2 from Heun, and the
PLMS of latent diffusion order 4 from Heun. Only e1 is remembered: the call that
a mix needs may lie 12 calls back, so K = 13 after Runge-Kutta.

The mix is a polynomial in t but the transfer's weight is none, so the order is
2 whatever the mix, with the error constant of a high-order method at 10 to 50
steps; where t is the noise level and the steps are equal (EDM, a uniform grid)
phi is Euler's step and the order that of the classical method. `fon`, the
paper's baseline, is that classical method on dx/dt itself: order 4.

Reference: Liu et al. (2022), https://arxiv.org/abs/2202.09778, Algorithm 2 and
eq. 11-13; PLMS: Rombach et al. (2022), https://arxiv.org/abs/2112.10752.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import adams_bashforth
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.runge_kutta import METHODS
from jaxdiff.tableau import Tableau

STARTS = {
  "runge_kutta": (METHODS["rk4"], 3),
  "heun": (METHODS["heun"], 1),
  "multistep": (METHODS["euler"], 0),
}


@solver
def pndm(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int = 4,
  start: str = "runge_kutta",
  strict: bool = False,
) -> Tableau:
  """Returns the table of PNDM on `grid`, f64[n + 1]: F-PNDM by default.

  It takes n + 9 calls from "runge_kutta", n + 1 from "heun", n from
  "multistep".

  Args:
    process: the forward process.
    grid: f64[n + 1], meant to be uniform in t.
    order: 1..4 of the mix; fewer steps have lower orders.
    start: "runge_kutta", "heun" or "multistep".
    strict: whether to refuse a grid whose steps in t are not equal.

  Raises:
    ValueError: for another order or start, or an uneven grid if strict.
  """
  return _build(process, grid, order, start, "eps", strict)


@solver
def s_pndm(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of S-PNDM, order 2 from Heun: n + 1 calls, K = 3."""
  return _build(process, grid, 2, "heun", "eps", False)


@solver
def plms(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of PLMS, order 4 from Heun: n + 1 calls, K = 5."""
  return _build(process, grid, 4, "heun", "eps", False)


@solver
def fon(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of FON: RK4, then Adams-Bashforth 4, on dx/dt."""
  return _build(process, grid, 4, "runge_kutta", "velocity", False)


def _build(process, grid, order, start, output, strict):
  checks.one_of(start, tuple(STARTS), "start")
  checks.one_of(order, (1, 2, 3, 4), "order")
  steps = -np.diff(grid)
  if strict and np.ptp(steps) > 1e-6 * steps.max():
    i = int(np.argmax(abs(steps - steps.mean())))
    raise ValueError(
      "PNDM's weights are those of equal steps in t, but step"
      f" {i} of this grid is {steps[i]:.4g} and their mean {steps.mean():.4g};"
      " use grids.uniform, or strict=False"
    )
  method, warm_up = STARTS[start]
  rows, calls = [], []  # rows, and the indices of the calls that made an e1
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
    calls.append(len(rows))
    if i < warm_up:
      rows += _runge_kutta_step(process, t, s, method, output)
      continue
    mix = adams_bashforth(min(order, len(calls)))
    ago = len(rows) - np.asarray(calls[::-1][: len(mix)])
    spread = np.zeros(ago[-1] + 1)
    spread[ago] = mix
    keep, gain = _transfer(process, t, s, output)
    at = forms.FORMS[output].output(process, t)
    rows.append(tables.row(t, at, (keep, 0.0, *(gain * spread))))
  return tables.concat(*rows)


def _transfer(process, t, s, output):
  """Returns the weights of x and of e in phi(x, e, t, s)."""
  form = forms.FORMS[output]
  keep = form.scale(process, s) / form.scale(process, t)
  width = form.clock(process, s) - form.clock(process, t)
  return keep, form.scale(process, s) * width


def _runge_kutta_step(process, t, s, method, output):
  """Returns the rows of one pseudo step: stages by transfers, in t."""
  form = forms.FORMS[output]
  rows = []
  ends = np.append(method.places[1:], 1.0)
  for i, way in enumerate([*method.stages, method.weights]):
    asked = t + method.places[i] * (s - t)
    last = i == len(method.stages)
    to = s if ends[i] == 1.0 else t + ends[i] * (s - t)
    keep, gain = _transfer(process, t, to, output)
    mix = np.asarray(way[::-1]) / ends[i]  # stage i goes c_i of the way
    y = (0.0, keep, *(gain * mix))
    at = s if method.places[i] == 1.0 else asked
    rows.append(
      tables.row(at, form.output(process, at), y, y if last else (0.0, 1.0))
    )
  return rows

r"""SA-Solver: stochastic Adams predictor and corrector of any order.

The reverse SDE whose noise at time t has tau(t)^2 times the forward variance,
with c = 1 + tau^2 held over a step of length h in lambda:

  x' = (sigma'/sigma) e^{-tau^2 h} x + alpha' sum_k b_k x0_k
       + sigma' sqrt(1 - e^{-2 tau^2 h}) z,
  b_k = c h int_0^1 e^{-c h (1 - u)} L_k(u) du.

L_k is the Lagrange basis on the lambdas of the last p calls (predictor), or on
those of the last q - 1 calls and the one at the end of the step (corrector,
which redoes the step with the SAME noise). One call a step: the call at the
predicted point serves the corrector, and the next step starts from the
corrected sample. Orders rise from 1 and, with `lower_order_final`, fall again.

tau = 0 is UniPC with its systems solved exactly (predictor p, corrector
p + 1); without corrector it is the exponential Adams-Bashforth method in x0, at
p = 3 DPM-Solver++(3M), and with a constant tau its SDE form of eta = tau^2.
`few_steps` reproduces a change of the published code to its order-2 formulas,
which take h^2 / 2 for an integral that it equals up to O(h^3).

In the table predictor and corrector are one step of the predicted samples
(`building.corrected`), in which the noise stays: what a row accepts is the
prediction. `pece` asks once more at the corrected sample, and the answer there
takes the other's place in the history: two calls a step, but for the first and
that into sigma = 0, and correction and prediction are rows of their own. Mean
and variance converge at order 2 for Gaussian data.

Reference: Xue et al. (2023), https://arxiv.org/abs/2309.05019, Algorithm 1. It
takes tau at the end of a step, and tau = 0 in the last one (give a tau that
vanishes there).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.numerics import exponential_weights
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import corrected
from jaxdiff.solvers.building import renewal
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver
def sa_solver(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  predictor: int | None = None,
  corrector: int | None = None,
  tau: float | Callable[[float], float] = 1.0,
  lower_order_final: bool = True,
  few_steps: bool = False,
  pece: bool = False,
) -> Tableau:
  """Returns the table of SA-Solver on `grid`: n calls, 2n - 1 with `pece`.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    predictor: its order, 1..6; None is 3, or what fewer steps allow.
    corrector: its order, calls at both ends counted; 0 for none, None for
      predictor + 1.
    tau: strength of the noise, 0 for the ODE, 1 for the usual reverse SDE; a
      number, or a function of the time at the end of a step.
    lower_order_final: whether the orders fall again in the last steps.
    few_steps: whether order 2 is that of the published code.
    pece: whether the corrected sample is asked again, before the next step
      (predict, evaluate, correct, evaluate).

  Raises:
    ValueError: for orders out of range or above the steps, a negative tau, or
      `pece` without a corrector.
  """
  n = len(grid) - 1
  p = (
    min(3, n)
    if predictor is None
    else checks.order(predictor, n, 6, "sa_solver")
  )
  q = p + 1 if corrector is None else corrector
  _check_corrector(q, corrector, pece)
  strength = _strength(tau, grid)
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  kept, fresh = renewal(strength**2, h)
  carry = sigma[1:] / sigma[:-1] * kept
  noise = sigma[1:] * fresh
  rising = np.arange(1, n + 1)
  left = rising[::-1] if lower_order_final else np.full(n, n)
  predicts = np.minimum(np.minimum(p, rising), left)
  corrects = np.minimum(np.minimum(q, rising + 1), left + 1)
  steps = _Steps(alpha, lam, strength, predicts, corrects, few_steps)
  if pece:
    return _asked_twice(grid, steps, carry, noise)
  history = np.zeros((n, max(p + 1, q) if q else p))
  for i in range(n):
    step = _weights(steps, i, i - np.arange(predicts[i]))
    if i > 0 and q > 0:
      step = corrected(carry[i], step, *_correction(steps, i))
    history[i, : len(step)] = step
  return tables.multistep(grid[:-1], "x0", carry, history, noise)


class _Steps(NamedTuple):
  """What the weights of all steps come from.

  Attributes:
    alpha: f64[n + 1].
    lam: f64[n + 1], log(alpha / sigma).
    strength: f64[n], tau at the end of every step.
    predicts: i[n], calls that the predictor of a step looks at.
    corrects: i[n], calls that its corrector looks at.
    few_steps: whether order 2 is that of the published code.
  """

  alpha: np.ndarray
  lam: np.ndarray
  strength: np.ndarray
  predicts: np.ndarray
  corrects: np.ndarray
  few_steps: bool


def _weights(steps, i, nodes):
  """Returns the weights of the calls at grid[nodes] in the step i -> i + 1."""
  lam = steps.lam
  h = lam[i + 1] - lam[i]
  places = (lam[nodes] - lam[i]) / h
  ch = (1.0 + steps.strength[i] ** 2) * h
  b = ch * exponential_weights(places, -ch)
  if steps.few_steps and len(nodes) == 2:
    past = places.min()
    bend = 0.5 * ch / (places.max() - past)
    b = np.where(places == past, -bend, bend) - np.expm1(-ch) * (places == 0)
  return steps.alpha[i + 1] * b


def _correction(steps, i):
  """Returns the weights of the step to i when predicted, and once corrected."""
  before = _weights(steps, i - 1, i - 1 - np.arange(steps.predicts[i - 1]))
  again = _weights(steps, i - 1, i - np.arange(steps.corrects[i - 1]))
  return before, again


def _asked_twice(grid, steps, carry, noise):
  """Returns the table that asks at every corrected sample, too."""
  rows = []
  for i, t in enumerate(grid[:-1]):
    # every place but the first was asked twice: predicted, then corrected
    if i > 0:
      before, again = _correction(steps, i)
      mix = np.zeros(2 * max(len(before), len(again) - 1) + 1)
      mix[0] = again[0]
      mix[1 : 2 * len(again) - 2 : 2] += again[1:]
      mix[1 : 2 * len(before) : 2] -= before
      rows.append(tables.row(t, "x0", (1.0, 0.0, *mix), (0.0, 1.0)))
    step = _weights(steps, i, i - np.arange(steps.predicts[i]))
    mix = np.zeros(2 * len(step) - 1)
    mix[::2] = step
    fresh = (0.0, noise[i], noise[i])
    rows.append(tables.row(t, "x0", (carry[i], 0.0, *mix), noise=fresh))
  return tables.concat(*rows)


def _check_corrector(q, corrector, pece):
  if not 0 <= q <= 7:
    raise ValueError(
      "the corrector of sa_solver is defined for orders 1..7, and 0 for none;"
      f" got corrector={corrector}"
    )
  if pece and not q:
    raise ValueError(
      "pece asks again at the corrected sample, and corrector=0 corrects none;"
      " drop one of them"
    )


def _strength(tau, grid):
  """Returns tau at the end of every step, f64[n]."""
  strength = np.asarray(
    [tau(t) if callable(tau) else tau for t in grid[1:]], np.float64
  )
  if not (strength >= 0).all():
    i = int(np.flatnonzero(~(strength >= 0))[0])
    raise ValueError(
      f"tau must be at least 0, got {strength[i]} at t = {grid[i + 1]:.4g}"
    )
  return strength

r"""DPM-Solver-1, 2 and 3, singlestep: order k by k calls per step.

With h = lambda' - lambda and eps extrapolated along the step,

  order 1:  x' = (alpha'/alpha) x - sigma' (e^h - 1) eps
  order 2:  u at r h by order 1;
            x' = order 1 - sigma' (e^h - 1) / (2 r) (eps_u - eps)
  order 3:  u at r1 h by order 1; w at r2 h by order 1
            - sigma_w (r2 / r1) h phi_2(r2 h) r2 (eps_u - eps);
            x' = order 1 - sigma' h phi_2(h) / r2 (eps_w - eps)

Reference: Lu et al. (2022), https://arxiv.org/abs/2206.00927, Algorithms 1 and
2, appendix B; r = 1/2, r1 = 1/3, r2 = 2/3. `orders_for_budget` is their
"DPM-Solver-fast": as many third-order steps as a budget of calls allows, the
rest of lower order.
"""

from collections.abc import Sequence

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver
def dpm_solver(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | Sequence[int] = 2,
) -> Tableau:
  """Returns the table of singlestep DPM-Solver on `grid`, f64[n + 1].

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: 1, 2 or 3 for all steps (order * n calls), or one for each step; a
      step at either end that is taken by a single call needs none.

  Raises:
    ValueError: for other orders, or if their number is not that of the steps.
  """
  steps = len(grid) - 1
  orders = [order] * steps if np.ndim(order) == 0 else list(order)
  if len(orders) != steps:
    raise ValueError(
      f"dpm_solver was given {len(orders)} orders for {steps} steps; give one"
      " order for all, or one for each step that is not the step into sigma"
      " = 0 or out of alpha = 0"
    )
  for each in orders:
    checks.one_of(each, (1, 2, 3), "dpm_solver's order")
  return tables.concat(
    *(
      _STEPS[each](process, grid[i], grid[i + 1])
      for i, each in enumerate(orders)
    )
  )


def orders_for_budget(calls: int) -> tuple[int, ...]:
  """Returns the orders of DPM-Solver-fast: they sum to `calls`."""
  if calls < 1:
    raise ValueError(f"a budget is at least one call, got {calls}")
  third, rest = divmod(calls, 3)
  if rest == 0:
    return (3,) * (third - 1) + (2, 1)
  return (3,) * third + (rest,)


def _first(process, t, t_next):
  alpha, sigma, lam = coefficients(process, np.asarray([t, t_next]))
  h = lam[1] - lam[0]
  y = (alpha[1] / alpha[0], 0.0, -sigma[1] * np.expm1(h))
  return tables.row(t, "eps", y)


def _second(process, t, t_next):
  s = process.log_snr_inverse(_between(process, t, t_next, 1 / 2))
  alpha, sigma, lam = coefficients(process, np.asarray([t, s, t_next]))
  h = lam[2] - lam[0]
  to_stage = (alpha[1] / alpha[0], 0.0, -sigma[1] * np.expm1(lam[1] - lam[0]))
  gain = -sigma[2] * np.expm1(h)  # r = 1/2: all of the weight is eps_u's
  return tables.concat(
    tables.row(t, "eps", y=to_stage, a=(0.0, 1.0)),
    tables.row(s, "eps", y=(0.0, alpha[2] / alpha[0], gain)),
  )


def _third(process, t, t_next):
  r1, r2 = 1 / 3, 2 / 3
  s = process.log_snr_inverse(
    _between(process, t, t_next, np.asarray([r1, r2]))
  )
  alpha, sigma, lam = coefficients(process, np.asarray([t, *s, t_next]))
  h = lam[3] - lam[0]
  ratio = alpha[1:] / alpha[0]
  to_u = (ratio[0], 0.0, -sigma[1] * np.expm1(r1 * h))
  bend = -sigma[2] * (r2 / r1) * (r2 * h) * phi(2, r2 * h)
  to_w = (0.0, ratio[1], bend, -sigma[2] * np.expm1(r2 * h) - bend)
  bend = -sigma[3] / r2 * h * phi(2, h)
  to_end = (0.0, ratio[2], bend, 0.0, -sigma[3] * np.expm1(h) - bend)
  return tables.concat(
    tables.row(t, "eps", y=to_u, a=(0.0, 1.0)),
    tables.row(s[0], "eps", y=to_w, a=(0.0, 1.0)),
    tables.row(s[1], "eps", y=to_end),
  )


def _between(process, t, t_next, r):
  start, end = process.log_snr(np.asarray([t, t_next]))
  return start + r * (end - start)


_STEPS = {1: _first, 2: _second, 3: _third}

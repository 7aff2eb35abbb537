r"""DPM-Solver and DPM-Solver++, singlestep: order k by k calls per step.

With h = lambda' - lambda and eps extrapolated along the step,

  order 1:  x' = (alpha'/alpha) x - sigma' (e^h - 1) eps
  order 2:  u at r h by order 1;
            x' = order 1 - sigma' (e^h - 1) / (2 r) (eps_u - eps)
  order 3:  u at r1 h by order 1; w at r2 h by order 1
            - sigma_w (r2 / r1) h phi_2(r2 h) r2 (eps_u - eps);
            x' = order 1 - sigma' h phi_2(h) / r2 (eps_w - eps)

and output="x0" is DPM-Solver++(2S) and (3S), the same with x0 extrapolated:
sigma and alpha change places, h its sign. They are the exponential Runge-Kutta
methods "dpm_2" and "dpm_3" (`exponential_rk.py`). solver_type="heun" (the
authors' "taylor") integrates the polynomial through all outputs exactly
instead.

References: Lu et al. (2022), https://arxiv.org/abs/2206.00927, Algorithms 1 and
2, appendix B, and https://arxiv.org/abs/2211.01095, Algorithm 1; r = 1/2, r1 =
1/3, r2 = 2/3. `orders_for_budget` is their "DPM-Solver-fast": as many
third-order steps as a budget of calls allows, the rest of lower order.
"""

from collections.abc import Sequence

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.exponential_rk import METHODS
from jaxdiff.solvers.exponential_rk import step
from jaxdiff.solvers.exponential_rk import three_stages
from jaxdiff.solvers.exponential_rk import two_stages
from jaxdiff.tableau import Tableau


@solver
def dpm_solver(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | Sequence[int] = 2,
  output: str = "eps",
  solver_type: str = "midpoint",
) -> Tableau:
  """Returns the table of singlestep DPM-Solver on `grid`, f64[n + 1].

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: 1, 2 or 3 for all steps (order * n calls), or one for each step; a
      step at either end that is taken by a single call needs none.
    output: "eps" (DPM-Solver) or "x0" (DPM-Solver++).
    solver_type: "midpoint" or "heun".

  Raises:
    ValueError: for other choices, or if the number of orders is not that of
      the steps.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.karras(process, 10)
    >>> jd.dpm_solver(process, grid, order=3).nfe
    30
    >>> orders = [1] * 4 + [2] * 4 + [3] * 2
    >>> jd.dpm_solver(process, grid, order=orders).nfe
    18
  """
  checks.one_of(output, ("eps", "x0"), "output")
  checks.one_of(solver_type, ("midpoint", "heun"), "solver_type")
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
  methods = {
    1: METHODS["euler"],
    2: two_stages(1 / 2, solver_type),
    3: three_stages(1 / 3, 2 / 3, solver_type),
  }
  return tables.concat(
    *(
      step(process, grid[i], grid[i + 1], methods[each], output)
      for i, each in enumerate(orders)
    )
  )


@checks.door(host=True)
def orders_for_budget(calls: int) -> tuple[int, ...]:
  """Returns the orders of DPM-Solver-fast: they sum to `calls`."""
  if calls < 1:
    raise ValueError(f"a budget is at least one call, got {calls}")
  third, rest = divmod(calls, 3)
  if rest == 0:
    return (3,) * (third - 1) + (2, 1)
  return (3,) * third + (rest,)

r"""Exponential Adams-Bashforth: any order, one call per step, in any output.

The probability-flow ODE is d(x / c) / du = F for each kind of prediction F
(`forms.py`). F is extrapolated by the polynomial through the last p calls, and
the step's integral is exact for it:

  x' = (c' / c) x + c' sum_k F_{i-k} int_u^u' L_k du.

One method under many names, by what F is and what it is a polynomial of:

| output   | variable  | the literature's name                              |
|----------|-----------|----------------------------------------------------|
| x0       | log_snr   | DPM-Solver++ 3M (p = 3), 2M "heun" (p = 2), UniP    |
| eps      | log_snr   | DPM-Solver multistep, lambda-AB-DEIS               |
| eps      | own (rho) | rhoAB-DEIS = LMS of k-diffusion = iPNDM-v          |
| eps      | a process | tAB-DEIS                                           |
| v        | own       | Adams-Bashforth in the angle, dx / dphi = v if VP  |
| flow     | own       | Adams-Bashforth in the time of the straight path   |
| velocity | own (t)   | Adams-Bashforth in the process's own time          |

With x0 or eps the linear part of the ODE is solved exactly and order 1 is DDIM.
With v and the flow no linear part is left, since x0 and eps are weighted alike.

The first steps have orders 1, 2, ..., which caps the order at 2 from a cold
start; from an exact history it is p. A step whose weights would enlarge the
error of an answer more than 1000 times has a lower order
(`building.multistep_weights`). References: Hochbruck and Ostermann
(2010), https://doi.org/10.1017/S0962492910000048, section 2.5; Zhang and Chen
(2023), https://arxiv.org/abs/2204.13902.
"""

from collections.abc import Sequence

import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import multistep_weights
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def exponential_ab(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | Sequence[int] | None = None,
  output: str = "x0",
  variable: str | GaussianProcess = "log_snr",
  lower_order_final: bool = False,
) -> Tableau:
  """Returns the table of exponential Adams-Bashforth: n calls, K = order.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: p, 1..16, or one for each step; None is 3, or what fewer steps
      allow.
    output: what is extrapolated: "x0", "eps", "v", "flow" or "velocity".
    variable: what it is a polynomial of: "log_snr", "own" (the clock in which
      it is x's velocity), or a process, whose time is meant.
    lower_order_final: whether the order falls to 1 in the last steps.

  Raises:
    ValueError: for other choices, or an order that exceeds the steps.
  """
  checks.one_of(output, tuple(forms.FORMS), "output")
  n = len(grid) - 1
  orders = step_orders(
    order, n, 16, "exponential_ab", 3, lower_final=lower_order_final
  )
  f = forms.FORMS[output].output(process, grid[:-1])
  carry = forms.carry(output, process, grid[:-1], grid[1:])

  def candidates(i):
    for p in range(orders[i], 0, -1):
      nodes = grid[i - np.arange(p)]  # newest first
      yield forms.weights(
        output, process, nodes, (grid[i], grid[i + 1]), variable
      )

  history = multistep_weights(
    process, grid, f, np.broadcast_to(carry, (n,)), candidates
  )
  deeper = max(orders) - history.shape[1]  # the same shape on every grid
  return multistep(
    t=grid[:-1],
    output=f,
    carry=carry,
    history=np.pad(history, ((0, 0), (0, deeper))),
  )

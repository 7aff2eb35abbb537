r"""Adams-Bashforth in the process's own time: any order, one call per step.

  x' = x + sum_k w_k v_{i-k},   w_k = int_t^t' L_k(s) ds,

on the velocity v = alpha_dot x0 + sigma_dot eps of the probability-flow ODE,
with the Lagrange basis L_k on the last p times, whatever their distances. Equal
steps give the classical weights 1 | 3/2, -1/2 | 23, -16, 5 over 12 | ... Order
1 is `euler`. The first steps have lower orders, which caps the order at 2 from
a cold start. It is `exponential_ab` with output="velocity". Reference: Hairer,
Norsett and Wanner, Solving Ordinary Differential Equations I, section III.5.
"""

from collections.abc import Sequence

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.solvers.exponential_ab import exponential_ab
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def adams_bashforth(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | Sequence[int] | None = None,
) -> Tableau:
  """Returns the table of Adams-Bashforth on `grid`: n calls, K = order.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: 1..16, or one for each step; None is 3, or what fewer steps allow.

  Raises:
    ValueError: for other orders, or one that exceeds the steps.
  """
  orders = step_orders(order, len(grid) - 1, 16, "adams_bashforth", 3)
  return exponential_ab.build(
    process, grid, order=orders, output="velocity", variable="own"
  )

r"""DC-Solver: UniPC whose last answer is moved in time before every step.

What the corrector mends makes the answer at the predicted sample stale for the
corrected one. Before a step is predicted the answer F_i is replaced by the
parabola through the last three, taken at a ratio q_i of the step before,

  F_i <- sum_k L_k(t_i^c) F_{i-k},   t_i^c = q_i t_i + (1 - q_i) t_{i-1},

with L_k of Lagrange at t_i, t_{i-1}, t_{i-2}, in the process's time; those that
were replaced stay so. The corrector of the step before has met F_i itself. q =
1 is UniPC; the first two steps have no three answers, and keep theirs.

`learning.dc_solver` learns q. Reference: Zhao et al. (2024),
https://arxiv.org/abs/2409.03755, section 3.2.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import parameters
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.solvers.neural_solver import newest_first
from jaxdiff.solvers.unipc import step_weights
from jaxdiff.tableau import Tableau


@solver
def dc_solver(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  ratios: np.ndarray | None = None,
  order: int | None = None,
  variant: str = "bh2",
  output: str = "x0",
  lower_order_final: bool = True,
) -> Tableau:
  """Returns the table of DC-Solver on `grid`, f64[n + 1]: n calls, K = n.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    ratios: q, f64[n], of which the first two are not used; None is 1, UniPC.
    order: p of the predictor, 1..6; None is 3, or what fewer steps allow.
    variant: "bh2" or "bh1".
    output: "x0" or "eps".
    lower_order_final: whether the order falls again in the last steps.

  Raises:
    ValueError: for other choices or shapes.
  """
  n = len(grid) - 1
  checks.one_of(variant, ("bh1", "bh2"), "variant")
  checks.one_of(output, ("x0", "eps"), "output")
  q = parameters(ratios, 1.0, (n,), "ratios")
  orders = step_orders(
    order, n, 6, "dc_solver", 3, lower_final=lower_order_final
  )
  coeffs = coefficients(process, grid)
  step = lambda i, extra: step_weights(
    coeffs, i, orders[i], extra, variant, output, False
  )
  carry, weights = np.zeros(n), np.zeros((n, n))
  moved = []  # each answer as it is used, by those of the network
  for i in range(n):
    own = np.eye(n)[i]
    before = moved.copy()
    moved.append(own)
    if i > 1:
      nodes = grid[[i, i - 1, i - 2]]
      to = q[i] * grid[i] + (1.0 - q[i]) * grid[i - 1]
      basis = numerics.lagrange(nodes, np.asarray([to]))
      used = np.stack([own, moved[i - 1], moved[i - 2]])
      moved[i] = np.reshape(basis, 3) @ used
    carry[i], predicts, _ = step(i, False)
    if i:  # the step before once more, with the answer at its end
      _, old, _ = step(i - 1, False)
      _, past, fresh = step(i - 1, True)
      again = fresh * own + _combined(past - old, before)
      weights[i] = carry[i] * again
    weights[i] += _combined(predicts, moved)
  history = newest_first(weights)
  if ratios is None:  # of UniPC, which looks back no further than its order
    history = history[:, : max(orders) + 1]
  return tables.multistep(grid[:-1], output, carry, history)


def _combined(weights, answers):
  """Returns sum_k weights_k answers_{-1-k}."""
  return weights @ np.stack(answers[: -len(weights) - 1 : -1])

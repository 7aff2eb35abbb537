r"""UniPC: predictor and corrector of order p + 1, one call per step.

The predictor extrapolates m (x0 or eps) through the last p calls. After the
call at the predicted point, the corrector redoes the same step with that call
added, and the next step starts from the corrected sample; the call itself is
not repeated. In the table a row corrects with its fresh output and predicts
from there, the two as one step of the predicted samples
(`building.corrected`): what it accepts is the prediction, whose correction the
next call brings.

With nodes r_k = (lambda_{i-k} - lambda_i) / h, D_k = (m_{i-k} - m_i) / r_k,
z = -h (x0) or h (eps) and B = z ("bh1") or expm1(z) ("bh2"):

  x' = first-order step - c B sum_k rho_k D_k,  c = alpha' (x0) or sigma' (eps),
  sum_k rho_k r_k^{j-1} = j! phi_{j+1}(z) z / B,  j = 1, 2, ...

The orders rise from 1 and, with `lower_order_final`, fall again in the last
steps, which is better at few calls and caps the order at 2 in the limit of
many; without it the order p + 1 is that from an exact history.

No corrector follows the last step, whose end is never asked. The published code
takes rho = 1/2 where a single node is left (predictor of order 2, corrector of
order 1) instead of solving the 1x1 system; `exact=True` solves it.

Reference: Zhao et al. (2023), https://arxiv.org/abs/2302.04867, Algorithms 1
and 2.
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import corrected
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.tableau import Tableau


@solver
def unipc(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | Sequence[int] | None = None,
  variant: str = "bh2",
  output: str = "x0",
  corrector: bool = True,
  lower_order_final: bool | None = None,
  exact: bool = False,
) -> Tableau:
  """Returns the table of UniPC on `grid`, f64[n + 1]: n calls, K = order + 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: p of the predictor, 1..6, or one for each step (that into sigma = 0
      is not counted); None is 3, or what fewer steps allow.
    variant: "bh2" or "bh1".
    output: "x0" (data prediction) or "eps" (noise prediction).
    corrector: False leaves UniP alone, a multistep solver of order p.
    lower_order_final: whether the order falls again in the last steps; None is
      True for one order, and takes a list of them as it is.
    exact: whether to solve the 1x1 systems that the published code rounds to
      1/2.

  Raises:
    ValueError: for other choices, or an order that exceeds the steps.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.log_snr(process, 10)
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> for corrector in False, True:
    ...   table = jd.unipc(process, grid, corrector=corrector)
    ...   _, variance = jd.oracles.propagate(table, process, data)
    ...   print(table.nfe, round(float(variance[0]) ** 0.5, 3))
    10 0.553
    10 0.533
  """
  n = len(grid) - 1
  if lower_order_final is None:
    lower_order_final = np.ndim(order) == 0
  orders = step_orders(order, n, 6, "unipc", 3)
  memory = max(orders)
  if lower_order_final:
    orders = [min(p, n - i) for i, p in enumerate(orders)]
  checks.one_of(variant, ("bh1", "bh2"), "variant")
  checks.one_of(output, ("x0", "eps"), "output")
  coeffs = coefficients(process, grid)
  step = lambda i, extra: step_weights(
    coeffs, i, orders[i], extra, variant, output, exact
  )
  carry = np.zeros(n)
  history = np.zeros((n, memory + 1))
  for i in range(n):
    carry[i], weights, _ = step(i, False)
    if i > 0 and corrector:
      _, before, _ = step(i - 1, False)
      _, past, fresh = step(i - 1, True)
      again = np.append(fresh, past)
      weights = corrected(carry[i], weights, before, again)
    history[i, : len(weights)] = weights
  return tables.multistep(grid[:-1], output, carry, history)


def step_weights(coeffs, i, order, correct, variant, output, exact):
  """Returns the step i -> i + 1 as (carry, weights of m_i, ..., of m_{i+1}).

  Args:
    coeffs: alpha, sigma, lambda on the grid.
    i: index of the step.
    order: number of past calls that it uses.
    correct: whether the call at its end is known.
    variant: "bh1" or "bh2".
    output: "x0" or "eps".
    exact: see `unipc`.
  """
  alpha, sigma, lam = coeffs
  h = lam[i + 1] - lam[i]
  if output == "x0":
    z, scale, carry = -h, alpha[i + 1], sigma[i + 1] / sigma[i]
  else:
    z, scale, carry = h, sigma[i + 1], alpha[i + 1] / alpha[i]
  b = z if variant == "bh1" else np.expm1(z)
  r = (lam[i - np.arange(1, order)] - lam[i]) / h
  if correct:
    r = np.append(r, 1.0)
  size = len(r)
  power = np.arange(1, size + 1)
  if size == 0:
    rho = np.zeros(0)
  elif size == 1 and not exact:
    rho = np.asarray([0.5])
  else:
    right = [math.factorial(j) * phi(j + 1, z) * z / b for j in power]
    rho = np.linalg.solve(r[None, :] ** (power[:, None] - 1), right)
  by_node = -scale * b * rho / r
  weights = np.zeros(order)
  weights[0] = -scale * np.expm1(z) - by_node.sum()
  weights[1:] = by_node[: order - 1]
  return carry, weights, by_node[-1] if correct else 0.0

r"""DPM-Solver++(3M): third order, one call per step, deterministic.

x0(lambda) is extrapolated by the parabola through the last three calls and the
step's integral is exact for it:

  x' = (sigma' / sigma) x + alpha' h sum_k w_k x0_{i-k},
  w_k = int_0^1 e^{-h (1 - u)} L_k(u) du,

with L_k the Lagrange basis on the last three lambdas in units of h: it is
`exponential_ab` of order 3. Orders 1 and 2 (with the exact integral, unlike 2M)
warm it up, which caps the order at 2 from a cold start; from an exact history
it is 3. `dpm_solver_3m` is the same in eps, DPM-Solver's multistep form.

Reference: Lu et al. (2022), https://arxiv.org/abs/2211.01095, appendix B.
Public implementations (and their copies) lack the factor 2 in the second
divided difference D2 = 2 (A - B) / (r0 + r1) and are second order;
`published=True` reproduces them from the third step on (steps 1 and 2 being 1M
and 2M there).
"""

from collections.abc import Sequence

import numpy as np

from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.solvers.dpmpp_2m import dpm_solver_2m
from jaxdiff.solvers.dpmpp_2m import dpmpp_2m
from jaxdiff.solvers.exponential_ab import exponential_ab
from jaxdiff.tableau import concat
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau
from jaxdiff.tableau import take


@solver
def dpmpp_3m(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | Sequence[int] | None = None,
  published: bool = False,
  lower_order_final: bool = False,
) -> Tableau:
  """Returns the table of DPM-Solver++(3M) on `grid`: n calls, K = 3.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: 1..3, or one for each step (that into sigma = 0 is not counted); None
      is 3, or what fewer steps allow.
    published: whether to reproduce the second-order coefficients of the public
      code instead of the third-order ones.
    lower_order_final: whether the last two steps have the orders 2 and 1, as
      the authors advise for fewer than 15 steps.

  Raises:
    ValueError: for an order that exceeds the steps, or the calls made so far.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.karras(process, 10)
    >>> for order in 1, 2, 3:
    ...   table = jd.dpmpp_3m(process, grid, order=order)
    ...   weights = table.history[5, 0]  # of the last x0, in the sixth step
    ...   print(order, table.nfe, int((weights != 0).sum()))
    1 10 1
    2 10 2
    3 10 3
  """
  return _three_steps(process, grid, "x0", order, published, lower_order_final)


@solver
def dpm_solver_3m(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | Sequence[int] | None = None,
  published: bool = False,
  lower_order_final: bool = False,
) -> Tableau:
  """Returns the table of multistep DPM-Solver-3 in eps; as `dpmpp_3m`."""
  return _three_steps(process, grid, "eps", order, published, lower_order_final)


def _three_steps(process, grid, output, order, published, lower_final):
  name = "dpmpp_3m" if output == "x0" else "dpm_solver_3m"
  n = len(grid) - 1
  orders = step_orders(order, n, 3, name, lower_final=lower_final)
  build = exponential_ab.build
  if not published:
    return build(process, grid, order=orders, output=output)
  lower = dpmpp_2m if output == "x0" else dpm_solver_2m
  tables = {
    1: build(process, grid, order=1, output=output),
    2: lower.build(process, grid),
    3: _published(process, grid, output),
  }
  rows = [take(tables[p], slice(i, i + 1)) for i, p in enumerate(orders)]
  return concat(*rows)


def _published(process, grid, output):
  """Returns the public code's formula on every step; right from the third."""
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  z, scale = (-h, alpha[1:]) if output == "x0" else (h, sigma[1:])
  carry = forms.carry(output, process, grid[:-1], grid[1:])
  history = np.zeros((len(h), 3))
  for i in range(2, len(h)):
    r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
    a = np.asarray([1.0, -1.0, 0.0]) / r0
    b = np.asarray([0.0, 1.0, -1.0]) / r1
    d0 = np.asarray([1.0, 0.0, 0.0])
    d1 = a + r0 / (r0 + r1) * (a - b)
    d2 = (a - b) / (r0 + r1)  # half of the second derivative
    sums = phi(1, z[i]) * d0 + phi(2, z[i]) * d1 + phi(3, z[i]) * d2
    history[i] = -scale[i] * z[i] * sums
  return multistep(grid[:-1], output, carry, history)

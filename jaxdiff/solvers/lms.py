r"""LMS of k-diffusion: linear multistep in the noise level, one call per step.

  x' = (alpha' / alpha) x + alpha' sum_k eps_{i-k} int_rho^rho' L_k(s) ds

with rho = sigma / alpha and the Lagrange basis on the last noise levels: the
variable-step Adams-Bashforth method on d(x / alpha) / d rho = eps. The same
table is known as rhoAB-DEIS (`deis`, variant="rho_ab") and as iPNDM-v; here
with k-diffusion's default order 4 and its cold start by orders 1, 2, 3. Their
last step, into sigma = 0, is of the full order too; as everywhere in this
library it is the clean sample itself here.

Reference: Crowson (2022), https://github.com/crowsonkb/k-diffusion, sample_lms.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.solvers.deis import deis
from jaxdiff.tableau import Tableau


@solver
def lms(
  process: GaussianProcess, grid: np.ndarray, *, order: int | None = None
) -> Tableau:
  """Returns the table of LMS on `grid`, f64[n + 1]: n calls, K = order.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: 1..4; None is 4, or what fewer steps allow.

  Raises:
    ValueError: for an order outside of 1..4, or one that exceeds the steps.
  """
  orders = step_orders(order, len(grid) - 1, 4, "lms")
  return deis.build(process, grid, order=orders, variant="rho_ab")

r"""Adams' methods in the angle: order p + 1 by one call per step.

With s the standard deviation of the data, R = sqrt(s^2 alpha^2 + sigma^2) and
theta = arctan(sigma / (s alpha)) the probability-flow ODE is

  d(x / R) / dtheta = v,   v = (s alpha eps - sigma x0 / s) / R,

where v is nearly constant wherever the data look like one Gaussian of variance
s^2: for such data it is 0 and a single step is exact. That is so in the whole
upper range of noise levels, which is why few calls like it. The predictor is
Adams and Bashforth's through the last p values of v, a polynomial in theta;
after the call at the predicted point the step is taken once more with that
value (Adams and Moulton's of order p + 1), which costs no further call:

  a' = (R' / R) a + R' int_theta^theta' (L_1 v(y', t') + sum_k L_{-k} v_{i-k}).

In the table the two are one step of the predicted samples
(`building.corrected`). Both are finite at alpha = 0 (theta = pi / 2). The step
into sigma = 0 is the answer x0 itself, as in every table: an integral of v
would leave noise where the data have none, from points about the last one. No
corrector follows the last step, whose end is never asked. The first steps have
orders 1, 2, ..., p; a step whose weights would enlarge errors has a lower one.

The ingredients are old: v is Salimans and Ho's (2022),
https://arxiv.org/abs/2202.00512, with the s of Karras et al. (2022) and Lu and
Song (2024), https://arxiv.org/abs/2410.11081; the free corrector is Zhao et
al.'s (2023), https://arxiv.org/abs/2302.04867. Without it, and with s = 1, this
is `exponential_ab(output="v", variable="own")`.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import adams
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def angular_adams(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | None = None,
  corrector: bool = True,
  data_std: float = 1.0,
) -> Tableau:
  """Returns the table on `grid`, f64[n + 1]: n calls, K = order + 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: p of the predictor, 1..16; None is 4, or what fewer steps allow.
    corrector: whether the free corrector follows each call but the first.
    data_std: s. The order is the same for any; the nearer, the fewer calls.

  Raises:
    ValueError: for an order outside of 1..16, or one that exceeds the steps,
      or a data_std that is not positive.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.karras(process, 10)
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> for guess in 1.0, 0.5:
    ...   table = jd.angular_adams(process, grid, data_std=guess)
    ...   _, variance = jd.oracles.propagate(table, process, data)
    ...   print(guess, round(float(variance[0]) ** 0.5, 3))
    1.0 0.502
    0.5 0.5
  """
  if not data_std > 0:
    raise ValueError(f"data_std must be positive, got {data_std}")
  n = len(grid) - 1
  orders = step_orders(order, n, 16, "angular_adams", 4)
  alpha, sigma = data_std * process.alpha(grid), process.sigma(grid)
  r, theta = np.hypot(alpha, sigma), np.arctan2(sigma, alpha)
  output = np.stack([-sigma / data_std, alpha], axis=-1) / r[:, None]
  return adams(
    process,
    grid,
    orders,
    clock=theta,
    scale=r,
    output=output,
    corrector=corrector,
  )

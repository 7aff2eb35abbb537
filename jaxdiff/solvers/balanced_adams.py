r"""Adams' methods in a clock that bounds what errors at high noise do.

`angular_adams` extrapolates v = (s alpha eps - sigma x0 / s) / R over the angle
theta = arctan(l / s), with the noise level l = sigma / alpha, R = sqrt(s^2
alpha^2 + sigma^2) and s the standard deviation of the data. An error e of a
network's eps is an error -l e of its x0, and hence one of e sqrt(1 + l^2 / s^2)
in v: at high noise it is enlarged without bound, and extrapolated. With S(l) =
sqrt(s^2 + (c l)^2) and the clock

  du / dl = S / (s^2 + l^2),
  d(x / R) / du = F = (s / S) v,

that error is at most e / c. The exact solution is the same; polynomials are
taken in u, which is theta at c = 0 and grows as c log(l) well above s:

  u = c asinh(c l / s) + k arctan(k l / S),   k = sqrt(1 - c^2).

For data that look like one Gaussian of variance s^2, F is 0 and a single step
is exact, as there.

No published method: angular_adams with another clock.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import adams
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.tableau import Tableau


@solver
def balanced_adams(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | None = None,
  corrector: bool = True,
  data_std: float = 1.0,
  slope: float = 0.7,
) -> Tableau:
  """Returns the table on `grid`, f64[n + 1]: n calls, K = order + 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: p of the predictor, 1..16; None is 3, or what fewer steps allow.
    corrector: whether the free corrector follows each call but the first.
    data_std: s. The order is the same for any; the nearer, the fewer calls.
    slope: c, 0 to 1; 0 is `angular_adams`.

  Raises:
    ValueError: for an order outside of 1..16, or one that exceeds the steps, a
      data_std that is not positive, or a slope outside of [0, 1].

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.karras(process, 10)
    >>> table = jd.solvers.balanced_adams(process, grid, data_std=0.5)
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> _, variance = jd.oracles.propagate(table, process, data)
    >>> print(round(float(variance[0]) ** 0.5, 3))
    0.5
  """
  if not data_std > 0:
    raise ValueError(f"data_std must be positive, got {data_std}")
  if not 0 <= slope <= 1:
    raise ValueError(f"slope must be in [0, 1], got {slope}")
  orders = step_orders(order, len(grid) - 1, 16, "balanced_adams", 3)
  alpha, sigma = data_std * process.alpha(grid), process.sigma(grid)
  r, wide = np.hypot(alpha, sigma), np.hypot(alpha, slope * sigma)
  rest = np.sqrt(1.0 - slope**2)
  clock = rest * np.arctan2(rest * sigma, wide)
  if slope:
    clock = clock + slope * np.arcsinh(slope * sigma / alpha)
  damped = 1.0 if slope == 0 else alpha / wide  # s / S
  output = np.stack([-sigma / data_std, alpha], axis=-1)
  output = output * (damped / r)[:, None]
  return adams(
    process,
    grid,
    orders,
    clock=clock,
    scale=r,
    output=output,
    corrector=corrector,
  )

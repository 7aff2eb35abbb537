r"""The classical Runge-Kutta method: fourth order, four calls per step.

On the probability-flow ODE dx/dt = alpha_dot x0 + sigma_dot eps in the
process's own time. Its four calls pay off late; as a reference solver on a fine
grid it has no rival of its simplicity. Reference: Hairer, Norsett and Wanner,
Solving Ordinary Differential Equations I, section II.1.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import runge_kutta
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def rk4(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of RK4 on `grid`, f64[n + 1]: 4n calls, K = 4.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> for n in 5, 10, 20:
    ...   table = jd.rk4(process, jd.grids.karras(process, n))
    ...   _, variance = jd.oracles.propagate(table, process, data)
    ...   print(table.nfe, round(float(variance[0]) ** 0.5, 3))
    20 0.53
    40 0.504
    80 0.5
  """
  return runge_kutta(
    process,
    grid,
    stages=[[1 / 2], [0.0, 1 / 2], [0.0, 0.0, 1.0]],
    weights=[1 / 6, 2 / 6, 2 / 6, 1 / 6],
  )

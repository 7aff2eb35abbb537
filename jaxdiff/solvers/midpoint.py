r"""The explicit midpoint rule: second order, two calls per step.

  x_m = x + h/2 v(x, t),   x' = x + h v(x_m, t + h/2),   h = t' - t,

on the probability-flow ODE in the process's own time. Reference: Hairer,
Norsett and Wanner, Solving Ordinary Differential Equations I, section II.1.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import runge_kutta
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def midpoint(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of the midpoint rule on `grid`, f64[n + 1]: 2n calls.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> for n in 5, 10, 20:
    ...   table = jd.midpoint(process, jd.grids.karras(process, n))
    ...   _, variance = jd.oracles.propagate(table, process, data)
    ...   print(table.nfe, round(float(variance[0]) ** 0.5, 3))
    10 0.451
    20 0.49
    40 0.499
  """
  return runge_kutta(process, grid, stages=[[1 / 2]], weights=[0.0, 1.0])

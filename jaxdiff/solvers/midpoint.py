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
  """Returns the table of the midpoint rule on `grid`, f64[n + 1]: 2n calls."""
  return runge_kutta(process, grid, stages=[[1 / 2]], weights=[0.0, 1.0])

r"""Euler's method on the probability-flow ODE: first order, one call per step.

  x' = x + (t' - t) (alpha_dot x0 + sigma_dot eps)

in the process's own time t. For EDM and rectified flow, whose paths are
straight in t, this is DDIM. Reference: Karras et al. (2022), eq. 4,
https://arxiv.org/abs/2206.00364.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import velocity
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def euler(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of Euler's method on `grid`: n calls, K = 1.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> for n in 10, 20, 40:
    ...   table = jd.euler(process, jd.grids.karras(process, n))
    ...   _, variance = jd.oracles.propagate(table, process, data)
    ...   print(table.nfe, round(float(variance[0]) ** 0.5, 3))
    10 0.376
    20 0.434
    40 0.466
  """
  return multistep(
    t=grid[:-1],
    output=velocity(process, grid[:-1]),
    carry=1.0,
    history=np.diff(grid)[:, None],
  )

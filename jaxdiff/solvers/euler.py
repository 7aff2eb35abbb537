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
  """Returns the table of Euler's method on `grid`: n calls, K = 1."""
  return multistep(
    t=grid[:-1],
    output=velocity(process, grid[:-1]),
    carry=1.0,
    history=np.diff(grid)[:, None],
  )

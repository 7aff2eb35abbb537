r"""Euler-Maruyama on the reverse SDE: weakly of first order, one call, noisy.

  x' = x - h (f x - g^2 score) + g sqrt(h) z,    h = t - t' > 0,
     = (1 - h f) x - h (g^2 / sigma) eps + g sqrt(h) z,

with the drift f(t) x and the diffusion g(t) of the process in its own time, so
that, unlike the steps that integrate the noise exactly, it does depend on how
the process counts time. Reference: Song et al. (2021), section 4.1 and appendix
D, https://arxiv.org/abs/2011.13456.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def euler_maruyama(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of Euler-Maruyama on `grid`: n calls, K = 1."""
  t, h = grid[:-1], -np.diff(grid)
  f = process.rates(t)[0] / process.alpha(t)
  g = process.diffusion(t)
  return multistep(
    t=t,
    output="eps",
    carry=1.0 - h * f,
    history=(-h * g**2 / process.sigma(t))[:, None],
    noise=g * np.sqrt(h),
  )

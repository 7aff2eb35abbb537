r"""DPM-Solver++(2M): second order, one call per step, deterministic.

With lambda = log(alpha / sigma) and h = lambda_{i+1} - lambda_i the
probability-flow ODE is solved exactly but for x0(lambda), which is extrapolated
linearly through the last two calls and frozen at the middle of the step:

  x_{i+1} = sigma_{i+1} / sigma_i x_i
            - alpha_{i+1} expm1(-h_i) ((1 + r) x0_i - r x0_{i-1}),
  r = h_i / (2 h_{i-1}).

First order on the first step. Reference: Lu et al. (2022),
https://arxiv.org/abs/2211.01095, Algorithm 2.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def dpmpp_2m(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of DPM-Solver++(2M) on `grid`, f64[n + 1]: n calls."""
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  r = np.zeros_like(h)
  r[1:] = h[1:] / (2.0 * h[:-1])
  gain = -alpha[1:] * np.expm1(-h)
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=sigma[1:] / sigma[:-1],
    history=np.stack([gain * (1.0 + r), -gain * r], axis=-1),
  )

r"""DDIM: the first-order exponential integrator, from ODE to SDE by eta.

With h = lambda' - lambda and q^2 = 1 - eta^2 (1 - e^{-2h}),

  x' = alpha' x0 + sigma' q eps + eta sigma' sqrt(1 - e^{-2h}) z
     = (sigma' / sigma) q x + alpha' (1 - q e^{-h}) x0 + ...

eta = 0 is the probability-flow ODE (also called DPM-Solver-1), eta = 1 the
ancestral sampler of DDPM with the smaller of its two variances. For data at one
point the marginals are exact for every eta and any number of steps. Reference:
Song et al. (2021), eq. 12, https://arxiv.org/abs/2010.02502, written for any
process.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def ddim(
  process: GaussianProcess, grid: np.ndarray, *, eta: float = 0.0
) -> Tableau:
  """Returns the table of DDIM on `grid`, f64[n + 1]: n calls, K = 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    eta: share of the noise that is renewed, in [0, 1].

  Raises:
    ValueError: if eta is outside of [0, 1].

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.karras(process, 10)
    >>> table = jd.ddim(process, grid)
    >>> table.nfe, table.memory, table.stochastic
    (10, 1, False)
    >>> jd.ddim(process, grid, eta=1.0).stochastic
    True
  """
  if not 0 <= eta <= 1:
    raise ValueError(
      "eta runs from 0 (the deterministic ODE) to 1 (ancestral sampling),"
      f" got eta={eta}"
    )
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  log_q = 0.5 * np.log1p(eta**2 * np.expm1(-2.0 * h)) if eta else 0.0
  fresh = eta * sigma[1:] * np.sqrt(-np.expm1(-2.0 * h)) if eta else 0.0
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=sigma[1:] / sigma[:-1] * np.exp(log_q),
    history=(-alpha[1:] * np.expm1(-h + log_q))[:, None],
    noise=fresh,
  )

r"""DDPM's ancestral sampler: first order (weakly), one call per step, noisy.

The reverse of one forward transition t' -> t, given x0, is the Gaussian

  mean = e^{-2h} (alpha' / alpha) x + alpha' (1 - e^{-2h}) x0,
  variance = sigma'^2 (1 - e^{-2h}),                    h = lambda' - lambda,

with x0 replaced by its prediction. variance="large" uses the forward
transition's own sigma^2 - (alpha / alpha')^2 sigma'^2 instead (beta_t), the
upper of the two bounds. Reference: Ho et al. (2020), eq. 6-7 and section 3.2,
https://arxiv.org/abs/2006.11239, written for any process.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def ddpm(
  process: GaussianProcess, grid: np.ndarray, *, variance: str = "small"
) -> Tableau:
  """Returns the table of ancestral sampling on `grid`: n calls, K = 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    variance: "small" (the posterior's) or "large" (the transition's, beta_t).

  Raises:
    ValueError: for any other variance.

  Example:
    >>> import numpy as np
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.karras(process, 10)
    >>> table = jd.ddpm(process, grid)
    >>> same = jd.ddim(process, grid, eta=1.0)
    >>> all(map(np.allclose, table, same))
    True
  """
  checks.one_of(variance, ("small", "large"), "variance")
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  renewed = -np.expm1(-2.0 * h)  # 1 - e^{-2h}
  kept = np.exp(-2.0 * h)
  std = sigma[1:] if variance == "small" else sigma[:-1]
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=kept * alpha[1:] / alpha[:-1],
    history=(alpha[1:] * renewed)[:, None],
    noise=std * np.sqrt(renewed),
  )

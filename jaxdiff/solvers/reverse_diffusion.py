r"""Reverse diffusion: the forward transition's own steps, taken backwards.

The forward transition t' -> t is x = (alpha / alpha') x' + G z, that is x' + f
+ G z with

  f = (alpha / alpha' - 1) x',   G^2 = sigma^2 - (alpha / alpha')^2 sigma'^2,

and its reverse takes both at x: x' = x - f(x) + G^2 score + G z, hence

  x' = (2 - alpha / alpha') x - (G^2 / sigma) eps + G z.

Weakly of first order, one call. Its ancestral sibling, which reverses the
transition by Bayes' rule, is `ddpm`: "small" is the one that the paper gives
for VE, "large" the one for VP. On VE both have the mean of `ddpm`. The
transition here is exact, where the paper's code takes beta(t) / N for 1 -
(alpha / alpha')^2. Reference: Song et al. (2021), eq. 46-47 and appendix F,
https://arxiv.org/abs/2011.13456.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def reverse_diffusion(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of reverse diffusion on `grid`: n calls, K = 1."""
  alpha, sigma, lam = coefficients(process, grid)
  ratio = alpha[:-1] / alpha[1:]
  renewed = -np.expm1(-2.0 * np.diff(lam))  # G^2 = sigma^2 (1 - e^{-2h})
  return multistep(
    t=grid[:-1],
    output="eps",
    carry=2.0 - ratio,
    history=(-sigma[:-1] * renewed)[:, None],
    noise=sigma[:-1] * np.sqrt(renewed),
  )

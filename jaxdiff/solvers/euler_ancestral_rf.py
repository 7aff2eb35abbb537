r"""Ancestral Euler of rectified flows: past the target, then new noise.

In the time of a flow, u = sigma / (alpha + sigma), a step from u to u' goes on
to

  u_down = u' r,   r = 1 + eta (u' / u - 1),

and returns by noise: with s = sigma / alpha = u / (1 - u) at each of them,

  x' = alpha' (x_down / alpha_down + sqrt(s'^2 - s_down^2) z)
     = (sigma' q / sigma) x + alpha' (1 - alpha s_down / sigma) x0 + sigma'
       sqrt(1 - q^2) z,      q = s_down / s' = r (1 - u') / (1 - r u').

It is `ddim` with another share of new noise. eta = 0 is the ODE; at eta = 1
u_down = u'^2 / u, and a step keeps a share q < u' / u of the noise. For data at
one point the marginals are exact. Reference: sample_euler_ancestral_RF of
ComfyUI, which takes it for every flow.
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def euler_ancestral_rf(
  process: GaussianProcess, grid: np.ndarray, *, eta: float = 1.0
) -> Tableau:
  """Returns the table of the ancestral Euler of flows on `grid`: n calls.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    eta: how far a step goes past its target, in [0, 1].

  Raises:
    ValueError: if eta is outside of [0, 1].
  """
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  q = kept(alpha, sigma, eta)
  down = sigma[1:] * q  # alpha' s_down
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=down / sigma[:-1],
    history=(alpha[1:] - alpha[:-1] * down / sigma[:-1])[:, None],
    noise=sigma[1:] * np.sqrt((1.0 - q) * (1.0 + q)),
  )


def kept(alpha: np.ndarray, sigma: np.ndarray, eta: float) -> np.ndarray:
  """Returns q, the share of the noise that each step keeps, f64[n].

  Args:
    alpha: f64[n + 1], beside sigma.
    sigma: f64[n + 1].
    eta: how far a step goes past its target, in [0, 1].

  Raises:
    ValueError: if eta is outside of [0, 1].
  """
  if not 0 <= eta <= 1:
    raise ValueError(
      "an ancestral step goes past its target by a share eta, from 0 (the"
      f" deterministic ODE) to 1; got eta={eta}"
    )
  u = sigma / (alpha + sigma)
  less = eta * (1.0 - u[1:] / u[:-1])  # 1 - r
  return (1.0 - less) * (1.0 - u[1:]) / (1.0 - u[1:] + less * u[1:])

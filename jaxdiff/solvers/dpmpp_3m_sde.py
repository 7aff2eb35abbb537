r"""DPM-Solver++(3M) SDE: the parabola through three calls, and fresh noise.

  x' = (sigma'/sigma) e^{-eta h} x + alpha' c h sum_k w_k x0_{i-k}
       + sigma' sqrt(1 - e^{-2 eta h}) z,
  w_k = int_0^1 e^{-c h (1 - u)} L_k(u) du,        c = 1 + eta,

with L_k the Lagrange basis on the last three lambdas in units of h; lower
orders warm it up. eta = 0 is `dpmpp_3m`. The noise limits mean and variance to
second order.

Reference: k-diffusion's sample_dpmpp_3m_sde, after Lu et al. (2022),
https://arxiv.org/abs/2211.01095. The public code lacks the factor 2 in the
second divided difference, as that of 3M does; `published=True` reproduces it.
(diffusers has, besides, the wrong sign in front of the 1/2 of its phi_3: its
"sde-dpmsolver++" of order 3 is not consistent with the SDE to second order.)
"""

import numpy as np

from jaxdiff.numerics import exponential_weights
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import renewal
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def dpmpp_3m_sde(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  eta: float = 1.0,
  published: bool = False,
) -> Tableau:
  """Returns the table of DPM-Solver++(3M) SDE on `grid`: n calls, K = 3.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    eta: variance of the noise in units of the forward SDE's; 0 is the ODE.
    published: whether to reproduce the coefficients of the public code.

  Raises:
    ValueError: for a negative eta.
  """
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  kept, fresh = renewal(eta, h)
  weights = np.zeros((len(h), 3))
  for i in range(len(h)):
    past = lam[i - min(i, 2) : i + 1][::-1]
    ch = (1.0 + eta) * h[i]
    if published and i > 1:
      weights[i] = _published((past - lam[i]) / h[i], ch)
    else:
      nodes = (past - lam[i]) / h[i]
      weights[i, : len(nodes)] = ch * exponential_weights(nodes, -ch)
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=sigma[1:] / sigma[:-1] * kept,
    history=alpha[1:, None] * weights,
    noise=sigma[1:] * fresh,
  )


def _published(nodes: np.ndarray, ch: float) -> np.ndarray:
  """Returns the weights with half of the second derivative, f64[3]."""
  r0, r1 = -nodes[1], nodes[1] - nodes[2]
  first = np.asarray([1.0, -1.0, 0.0]) / r0
  bend = (first - np.asarray([0.0, 1.0, -1.0]) / r1) / (r0 + r1)
  slope = first + r0 * bend
  z = -ch
  return -np.expm1(z) * np.eye(3)[0] - z * (
    phi(2, z) * slope + phi(3, z) * bend
  )

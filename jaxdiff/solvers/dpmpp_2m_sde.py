r"""DPM-Solver++(2M) SDE: x0 extrapolated as in 2M, fresh noise at every step.

With h = lambda' - lambda and c = 1 + eta the reverse SDE whose noise has eta
times the variance of the forward one's is solved exactly but for x0(lambda):

  x' = (sigma'/sigma) e^{-eta h} x + alpha' c int_0^h e^{-c (h - u)} x0 du
       + sigma' sqrt(1 - e^{-2 eta h}) z.

x0 is the line through the last two calls, either frozen at the middle of the
step ("midpoint") or integrated exactly ("heun", the names of the public code;
it is no Heun method):

  midpoint:  -alpha' expm1(-c h) (x0_i + r D),       r = h / (2 h_last),
  heun:      -alpha' expm1(-c h) x0_i + alpha' (1 - phi_1(-c h)) 2 r D,

D = x0_i - x0_{i-1}. eta = 0 is 2M, eta = 1 the usual reverse SDE. For data at
one point the marginals are exact at every number of steps. Mean and variance
converge at second order for Gaussian data: the noise that the step's own x0
has not seen yet is made up for by the last step's, which the extrapolation
counts half a time too often.

Reference: Lu et al. (2022), https://arxiv.org/abs/2211.01095, appendix A, and
k-diffusion's sample_dpmpp_2m_sde, whose eta it is.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import renewal
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def dpmpp_2m_sde(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  eta: float = 1.0,
  solver_type: str = "midpoint",
) -> Tableau:
  """Returns the table of DPM-Solver++(2M) SDE on `grid`: n calls, K = 2.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    eta: variance of the noise in units of the forward SDE's; 0 is the ODE.
    solver_type: "midpoint" or "heun", how the line is integrated.

  Raises:
    ValueError: for a negative eta or another solver_type.
  """
  checks.one_of(solver_type, ("midpoint", "heun"), "solver_type")
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  kept, fresh = renewal(eta, h)
  ch = (1.0 + eta) * h
  r = np.zeros_like(h)
  r[1:] = h[1:] / (2.0 * h[:-1])
  gain = -alpha[1:] * np.expm1(-ch)
  if solver_type == "heun":
    r *= 2.0 * ch * phi(2, -ch) / -np.expm1(-ch)
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=sigma[1:] / sigma[:-1] * kept,
    history=np.stack([gain * (1.0 + r), -gain * r], axis=-1),
    noise=sigma[1:] * fresh,
  )

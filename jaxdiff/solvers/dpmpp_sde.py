r"""DPM-Solver++ SDE (2S): second order in mean and variance, two calls a step.

With c = 1 + eta, a stage at r h and the end of the step share one Brownian
path W:

  u  = (sigma_r / sigma) e^{-eta r h} (x + W_r) - alpha_r expm1(-c r h) x0,
  x' = (sigma' / sigma) e^{-eta h} (x + W_1)
       - alpha' expm1(-c h) (x0 + (x0_u - x0) / (2 r)),
  Var W_rho = sigma^2 expm1(2 eta rho h).

It is SEEDS-2 in x0, the two having been found independently, and is taken from
there; eta = 0 is DPM-Solver++(2S). Reference: k-diffusion's sample_dpmpp_sde,
the same at eta = 1 when its noise sampler is this W, whose clock is
(alpha / sigma)^2; theirs counts in sigma, which gives the two noises another
correlation. At other eta theirs renews noise as DDIM does (`ddim`).
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.seeds import seeds
from jaxdiff.tableau import Tableau


@solver
def dpmpp_sde(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  eta: float = 1.0,
  r: float = 0.5,
) -> Tableau:
  """Returns the table of DPM-Solver++ SDE on `grid`: 2n calls, K = 2.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    eta: variance of the noise in units of the forward SDE's; 0 is the ODE.
    r: place of the stage, in (0, 1).

  Raises:
    ValueError: for a negative eta or another r.
  """
  return seeds.build(process, grid, order=2, eta=eta, output="x0", r=r)

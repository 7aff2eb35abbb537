r"""DPM-Solver++(2S) ancestral: an ODE step past the target, then new noise.

Each step goes by DPM-Solver++(2S) not to the noise level s' = sigma' / alpha'
but to s_down below it, and adds the difference:

  s_up = eta s' sqrt(1 - e^{-2h}),   s_down^2 = s'^2 - s_up^2,
  k = log(s / s_down) = h - log(q),  q^2 = 1 - eta^2 (1 - e^{-2h}),
  u  = (sigma_m / sigma) x - alpha_m expm1(-k/2) x0,    lambda_m = lambda + k/2,
  x' = (sigma' q / sigma) x - alpha' expm1(-k) x0_u + alpha' s_up z,

in coordinates x / alpha for a process whose alpha varies. eta = 0 is
DPM-Solver++(2S); at eta = 1 the stage falls on the end of the step. `output =
"eps"` takes the ODE step by DPM-Solver-2 instead (k-diffusion's
dpm_2_ancestral, diffusers' KDPM2Ancestral). `down="flow"` goes past the target
by the rule of `euler_ancestral_rf`, which gives another q: ComfyUI's
dpmpp_2s_ancestral of flows (but for its first step, of two calls).

The marginals converge at second order, being those of the ODE step and exact
noise; the law of a path, started elsewhere, at first order. Reference:
k-diffusion's sample_dpmpp_2s_ancestral.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.euler_ancestral_rf import kept
from jaxdiff.tableau import Tableau


@solver
def dpmpp_2s_ancestral(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  eta: float = 1.0,
  output: str = "x0",
  down: str = "noise_level",
) -> Tableau:
  """Returns the table of DPM-Solver++(2S) ancestral on `grid`: 2n calls.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    eta: share of the noise that is renewed, in [0, 1].
    output: "x0", or "eps" for the ancestral DPM-Solver-2.
    down: "noise_level" or "flow", the rule of s_down.

  Raises:
    ValueError: if eta is outside of [0, 1], or for another output or rule.
  """
  checks.one_of(output, ("x0", "eps"), "output")
  checks.one_of(down, ("noise_level", "flow"), "down")
  if not 0 <= eta <= 1:
    raise ValueError(
      "an ancestral step renews a share eta of the noise, from 0 (the"
      f" deterministic ODE) to 1; got eta={eta}"
    )
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  if down == "flow":
    q = kept(alpha, sigma, eta)
    log_q, up = np.log(q), sigma[1:] * np.sqrt((1.0 - q) * (1.0 + q))
  else:
    log_q = 0.5 * np.log1p(eta**2 * np.expm1(-2.0 * h))
    up = eta * sigma[1:] * np.sqrt(-np.expm1(-2.0 * h))
  k = h - log_q
  middle = process.log_snr_inverse(lam[:-1] + k / 2)
  alpha_m, sigma_m, _ = coefficients(process, middle)
  rows = []
  for i in range(len(h)):
    if output == "x0":
      stage = (sigma_m[i] / sigma[i], -alpha_m[i] * np.expm1(-k[i] / 2))
      q = np.exp(log_q[i])
      end = (sigma[i + 1] / sigma[i] * q, -alpha[i + 1] * np.expm1(-k[i]))
    else:
      reached = sigma[i + 1] * np.exp(log_q[i])
      stage = (alpha_m[i] / alpha[i], -sigma_m[i] * np.expm1(k[i] / 2))
      end = (alpha[i + 1] / alpha[i], -reached * np.expm1(k[i]))
    rows.append(tables.row(grid[i], output, y=(0.0, *stage), a=(0.0, 1.0)))
    rows.append(
      tables.row(middle[i], output, y=(0.0, *end), noise=(0.0, up[i], up[i]))
    )
  return tables.concat(*rows)

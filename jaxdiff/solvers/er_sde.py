r"""ER-SDE-Solver: any reverse SDE of the same marginals, by its noise scale.

In u = x / alpha and s = sigma / alpha every reverse SDE with the right
marginals has, for some phi with phi(s) / s not falling, the solution

  u' = rho u + phi(s') int_{s'}^{s} phi_v / phi^2 x0(v) dv
       + s' sqrt(1 - (rho s / s')^2) z,            rho = phi(s') / phi(s).

Order k takes for x0(v) the polynomial through the last k calls; its moments are

  m_0 = 1 - rho,
  m_j = (s' - s)^j + j phi(s') int_{s'}^{s} (v - s)^{j-1} / phi(v) dv.

phi = s is the ODE (order 1 is DDIM), s^2 the usual reverse SDE (order 1 is
DDPM), s^(1 + eta) the SDE forms of DPM-Solver++ at order 1. The authors'
favourite, "er_sde_5", is s (exp(s^0.3) + 10): little noise at the end, more at
the start. Mean and variance converge at first order for k = 1, second for the
others.

Reference: Cui et al. (2023), https://arxiv.org/abs/2309.06169, Algorithms 1 to
3 and appendix A.8. `published=True` reproduces their code: left Riemann sums of
100 points, and at order 3 a slope at s that lacks its own correction.
"""

from collections.abc import Callable

import numpy as np

from jaxdiff import checks
from jaxdiff.numerics import gauss_legendre
from jaxdiff.numerics import vandermonde_weights
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau

NOISE_SCALES = {
  "ode": lambda s: s,
  "sde": lambda s: s**2,
  "er_sde_1": lambda s: s * (np.exp(-1.0 / s) + 10.0),
  "er_sde_2": lambda s: s**1.5,
  "er_sde_3": lambda s: s**2.5,
  "er_sde_4": lambda s: s**0.9 * np.log10(1.0 + 100.0 * s**1.5),
  "er_sde_5": lambda s: s * (np.exp(s**0.3) + 10.0),
}


@solver
def er_sde(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | None = None,
  phi: str | Callable[[np.ndarray], np.ndarray] = "er_sde_5",
  published: bool = False,
) -> Tableau:
  """Returns the table of ER-SDE-Solver on `grid`: n calls, K = order.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: 1..4; None is 3, or what fewer steps allow.
    phi: noise scale, a name of `NOISE_SCALES` or a function of the noise level
      sigma / alpha, f64[m] -> f64[m].
    published: whether to reproduce the coefficients of the public code.

  Raises:
    ValueError: for other orders or names, or a phi with phi(s) / s falling.
  """
  n = len(grid) - 1
  highest = 3 if published or order is None else 4
  order = checks.order(order, n, highest, "er_sde")
  if not callable(phi):
    checks.one_of(phi, tuple(NOISE_SCALES), "phi")
    phi = NOISE_SCALES[phi]
  alpha, sigma, _ = coefficients(process, grid)
  s = sigma / alpha
  with np.errstate(over="ignore"):
    scale = np.asarray(phi(s), np.float64)
  rho = scale[1:] / scale[:-1]
  log_kept = np.log(rho * s[:-1] / s[1:])
  wrong = ~(log_kept <= 1e-9)
  if wrong.any():
    i = int(np.flatnonzero(wrong)[0])
    raise ValueError(
      "phi(s) / s must not fall with the noise level s, or the noise of a"
      f" step would have a negative variance; between s = {s[i]:.4g} and"
      f" {s[i + 1]:.4g} phi goes from {scale[i]:.4g} to {scale[i + 1]:.4g}"
    )
  history = np.zeros((n, order))
  for i in range(n):
    nodes = i - np.arange(min(order, i + 1))
    integral = _riemann if published else gauss_legendre
    moments = [1.0 - rho[i]]
    for j in range(1, len(nodes)):
      f = lambda v, i=i, j=j: (v - s[i]) ** (j - 1) / phi(v)
      rest = scale[i + 1] * integral(f, s[i + 1], s[i])
      moments.append((s[i + 1] - s[i]) ** j + j * rest)
    if published:
      history[i, : len(nodes)] = _published(s[nodes], moments)
    else:  # in units of the step, for a well-posed system
      unit = s[i] - s[i + 1]
      scaled = np.asarray(moments) / unit ** np.arange(len(nodes))
      places = (s[nodes] - s[i]) / unit
      history[i, : len(nodes)] = vandermonde_weights(places, scaled)
  kept = np.where(log_kept < -1e-14, log_kept, 0.0)  # else its rounding
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=alpha[1:] / alpha[:-1] * rho,
    history=alpha[1:, None] * history,
    noise=sigma[1:] * np.sqrt(-np.expm1(2.0 * kept)),
  )


def _riemann(f, low, high, n=100):
  """The authors' integral: a sum of n left ends."""
  width = (high - low) / n
  return np.sum(f(low + width * np.arange(n))) * width


def _published(s, moments):
  """Returns their weights of the calls at the noise levels s, newest first."""
  weights = np.zeros(len(s))
  weights[0] = moments[0]
  if len(s) == 1:
    return weights
  slope = np.zeros(len(s))
  slope[:2] = np.asarray([1.0, -1.0]) / (s[0] - s[1])
  weights += moments[1] * slope
  if len(s) > 2:
    older = np.asarray([0.0, 1.0, -1.0]) / (s[1] - s[2])
    weights += moments[2] * (slope - older) / (s[0] - s[2])
  return weights

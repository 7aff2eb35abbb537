r"""SEEDS-1, 2 and 3: exponential Runge-Kutta for the reverse SDE, singlestep.

The reverse SDE with noise of eta times the forward variance, c = 1 + eta, is
linear but for the network's output. With rho the place in a step of length h
in lambda, its exact solution from the step's start a is

  output "x0":   x(rho) = (sigma_rho / sigma) e^{-eta rho h} (a + W(rho))
                          + alpha_rho c int_0^{rho h} e^{-c(rho h - u)} x0 du,
                 Var W(rho) = sigma^2 expm1(2 eta rho h),
  output "eps":  x(rho) = (alpha_rho / alpha) (a + W(rho))
                          - sigma_rho c int_0^{rho h} e^{rho h - u} eps du,
                 Var W(rho) = -eta sigma^2 expm1(-2 rho h),

W being ONE Brownian motion: the noise of a stage is part of that of all later
ones, which therefore start from that stage, its outputs taken off again; the
anchor stays where the step began. With z = -c h ("x0") or h ("eps"), e(rho) =
expm1(rho z) and psi(rho) = rho z phi_2(rho z), in units of -alpha ("x0") or
-c sigma ("eps"), the outputs N enter as

  order 1:  e(1) N_0
  order 2:  stage r:  e(r) N_0;     end:  e(1) (N_0 + (N_r - N_0) / (2 r))
  order 3:  stage r1: e(r1) N_0;    stage r2: e(r2) N_0 + (r2/r1) psi(r2) D_1;
            end: e(1) N_0 + psi(1) / r2 D_2,        D_k = N_k - N_0,

r = 1/2, r1 = 1/3, r2 = 2/3. eta = 0 is DPM-Solver ("eps") and DPM-Solver++
("x0"), singlestep, of that order. Mean and variance converge at order 1 for
SEEDS-1 and at order 2 for the others; the mean alone at the solver's order.

Reference: Gonzalez et al. (2023), https://arxiv.org/abs/2305.14267, Algorithms
1 to 4, where eta = 1. Their code differs in SEEDS-3: it takes r1 for r2 in
psi(r2) and, for "eps", the scale of the wrong stage for some noises.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import check_eta
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver
def seeds(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int = 2,
  eta: float = 1.0,
  output: str = "x0",
  r: float = 0.5,
) -> Tableau:
  """Returns the table of SEEDS on `grid`, f64[n + 1]: order * n calls.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: 1, 2 or 3, the number of stages.
    eta: variance of the noise in units of the forward SDE's; 0 is the ODE.
    output: "x0" or "eps", what is extrapolated.
    r: place of the stage of order 2, in (0, 1).

  Raises:
    ValueError: for other choices.
  """
  checks.one_of(order, (1, 2, 3), "the order of seeds")
  checks.one_of(output, ("x0", "eps"), "output")
  check_eta(eta)
  if not 0 < r < 1:
    raise ValueError(f"r is a place inside the step, in (0, 1); got r={r}")
  places = {1: [], 2: [r], 3: [1 / 3, 2 / 3]}[order]
  rows = []
  for t, t_next in zip(grid[:-1], grid[1:], strict=True):
    rows += _step(process, t, t_next, places, eta, output)
  return tables.concat(*rows)


def _step(process, t, t_next, places, eta, output):
  """Returns the rows of one step with stages at `places`."""
  start, end = process.log_snr(np.asarray([t, t_next]))
  inner = process.log_snr_inverse(start + np.asarray(places) * (end - start))
  times = np.concatenate([[t], inner, [t_next]])
  alpha, sigma, lam = coefficients(process, times)
  place = lam - lam[0]  # rho h of every stage
  if output == "x0":
    carry = sigma / sigma[0] * np.exp(-eta * place)
    z, unit = -(1.0 + eta) * place, -alpha
    variance = np.exp(2.0 * eta * place[:-1]) * np.expm1(
      2.0 * eta * np.diff(place)
    )
  else:
    carry = alpha / alpha[0]
    z, unit = place, -(1.0 + eta) * sigma
    variance = (
      -eta * np.exp(-2.0 * place[:-1]) * np.expm1(-2.0 * np.diff(place))
    )
  new = sigma[0] * np.sqrt(variance)  # of W between the stages
  weights = [unit[k] * w for k, w in _weights(z, places)]
  rows = []
  for k, weight in enumerate(weights):
    last = k == len(weights) - 1
    start, mix = (0.0, carry[1]), np.array(weight)
    if k and not eta:
      start = (0.0, carry[k + 1])
    elif k:  # (a + W) of the stage before: y without its outputs, scaled
      ratio = carry[k + 1] / carry[k]
      start = (ratio, 0.0)
      mix[:k] -= ratio * weights[k - 1]
    y = (*start, *mix[::-1])  # outputs are newest first
    noise = carry[k + 1] * new[k]
    rows.append(
      tables.row(
        times[k],
        output,
        y,
        a=None if last else (0.0, 1.0),
        noise=(0.0, noise, noise if last else 0.0),
      )
    )
  return rows


def _weights(z, places):
  """Yields (stage, weights of N_0, N_1, ... in it), the end being the last."""
  e = np.expm1(z)
  psi = z * phi(2, z)
  yield 1, np.asarray([e[1]])
  if len(places) == 1:
    bend = e[2] / (2.0 * places[0])
    yield 2, np.asarray([e[2] - bend, bend])
  if len(places) == 2:
    bend = places[1] / places[0] * psi[2]
    yield 2, np.asarray([e[2] - bend, bend])
    bend = psi[3] / places[1]
    yield 3, np.asarray([e[3] - bend, 0.0, bend])

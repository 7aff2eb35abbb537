r"""DPM-Solver++(2M): second order, one call per step, deterministic.

With lambda = log(alpha / sigma) and h = lambda_{i+1} - lambda_i the
probability-flow ODE is solved exactly but for x0(lambda), which is extrapolated
linearly through the last two calls and frozen at the middle of the step:

  x_{i+1} = sigma_{i+1} / sigma_i x_i
            - alpha_{i+1} expm1(-h_i) ((1 + r) x0_i - r x0_{i-1}),
  r = h_i / (2 h_{i-1}).

First order on the first step. solver_type="heun" (the authors' "taylor") does
not freeze the line but integrates it, 2 r phi_2(-h) / phi_1(-h) for r: that is
`exponential_ab` of order 2. `dpm_solver_2m` is the same in eps, DPM-Solver's
multistep form. Reference: Lu et al. (2022), https://arxiv.org/abs/2211.01095,
Algorithm 2.

`res_multistep` is ComfyUI's and RES4LYF's name of the form "heun": RES in its
multistep variant (Zhang et al. (2023), https://arxiv.org/abs/2308.02157). For a
flow ComfyUI takes -log(u), u = sigma / (alpha + sigma), for lambda there, which
is finite where alpha = 0; with alpha + sigma for alpha the formula is the same.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def dpmpp_2m(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  solver_type: str = "midpoint",
  lower_order_final: bool = False,
) -> Tableau:
  """Returns the table of DPM-Solver++(2M) on `grid`, f64[n + 1]: n calls.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    solver_type: "midpoint" or "heun".
    lower_order_final: whether the last step is of first order; the authors
      advise it for fewer than 15 steps. A last step into sigma = 0 always is,
      and the one before it is not lowered unless this says so.

  Raises:
    ValueError: for another solver_type.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.karras(process, 10)
    >>> table = jd.dpmpp_2m(process, grid)
    >>> table.nfe, table.memory
    (10, 2)
    >>> print(table.history[1, 0].round(3))  # weights of the last two x0
    [ 0.712 -0.251]
  """
  return _two_steps(process, grid, "x0", solver_type, lower_order_final)


@solver
def dpm_solver_2m(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  solver_type: str = "midpoint",
  lower_order_final: bool = False,
) -> Tableau:
  """Returns the table of multistep DPM-Solver-2 in eps; as `dpmpp_2m`."""
  return _two_steps(process, grid, "eps", solver_type, lower_order_final)


@solver(starts_at_zero_alpha=True)
def res_multistep(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  clock: str = "log_snr",
  solver_type: str = "heun",
) -> Tableau:
  """Returns the table of multistep RES on `grid`, f64[n + 1]: n calls, K = 2.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    clock: "log_snr", what `dpmpp_2m` takes x0 for a line in, or "flow", -log(u)
      as ComfyUI does for flows.
    solver_type: "heun", or "midpoint" for ComfyUI's dpmpp_2m of a flow.

  Raises:
    ValueError: for another clock or solver_type.
  """
  checks.one_of(clock, ("log_snr", "flow"), "clock")
  return _two_steps(process, grid, "x0", solver_type, False, clock)


def _two_steps(
  process, grid, output, solver_type, lower_order_final, clock="log_snr"
):
  checks.one_of(solver_type, ("midpoint", "heun"), "solver_type")
  alpha, sigma, place = coefficients(process, grid)
  if clock == "flow":
    alpha = alpha + sigma
    place = np.log(alpha / sigma)
  h = np.diff(place)  # infinite in a step out of alpha = 0
  z, scale = (-h, alpha[1:]) if output == "x0" else (h, sigma[1:])
  gain = -scale * np.expm1(z)
  if solver_type == "midpoint":
    slope = gain[1:] / 2
  else:
    slope = -scale[1:] * z[1:] * phi(2, z[1:])
  bend = np.zeros_like(h)
  bend[1:] = slope * h[1:] / h[:-1]
  if lower_order_final:
    bend[-1] = 0.0
  return multistep(
    t=grid[:-1],
    output=output,
    carry=forms.carry(output, process, grid[:-1], grid[1:]),
    history=np.stack([gain + bend, -bend], axis=-1),
  )

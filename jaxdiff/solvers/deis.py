r"""DEIS: exponential integrators that extrapolate eps by polynomials.

In v = x / alpha and rho = sigma / alpha the probability-flow ODE is dv/drho =
eps. AB variants extrapolate eps by the polynomial through the last r + 1 calls
and take one call per step, order r + 1:

  x' = (alpha' / alpha) x + sum_j C_j eps_{i-j},
  C_j = alpha' int_rho^rho' L_j drho.

| variant     | L_j is a polynomial of | also known as                         |
|-------------|------------------------|---------------------------------------|
| "t_ab"      | VP time                | tAB-DEIS, the paper's best            |
| "rho_ab"    | rho                    | LMS of k-diffusion (`lms`), `ipndm_v` |
| "lambda_ab" | lambda = -log(rho)     | DPM-Solver multistep, exactly         |

VP time is the process's own where it preserves variance (alpha^2 + sigma^2 =
1), else that of the VP-linear process of the same noise levels
(`grids.vp_clock`), as in the method's ports to EDM: in EDM's own t = sigma
"t_ab" would be "rho_ab". All are `exponential_ab` with output="eps". Order 1 is
DDIM. The first steps have lower orders, which caps the order at 2 from a cold
start, and so do steps whose weights would enlarge errors: polynomials in t
cannot be trusted where the steps in t grow from alpha = 0. `deis_rk` is
rhoRK-DEIS, an explicit Runge-Kutta method on dv/drho: with two stages it is the
Heun method of EDM in x / alpha.

Reference: Zhang and Chen (2023), https://arxiv.org/abs/2204.13902, eq. 14-15.
Their code sums 10,000 points to the left instead of the integral, with relative
errors of 1e-4.
"""

from collections.abc import Sequence

import numpy as np

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import step_orders
from jaxdiff.solvers.exponential_ab import exponential_ab
from jaxdiff.solvers.runge_kutta import runge_kutta
from jaxdiff.tableau import Tableau

VARIANTS = ("t_ab", "rho_ab", "lambda_ab")


@solver
def deis(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  order: int | Sequence[int] | None = None,
  variant: str = "t_ab",
  clock: GaussianProcess | None = None,
) -> Tableau:
  """Returns the table of AB-DEIS on `grid`, f64[n + 1]: n calls, K = order.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    order: r + 1, 1..4, or one for each step; None is 4, or what fewer steps
      allow.
    variant: "t_ab", "rho_ab" or "lambda_ab".
    clock: the process in whose time "t_ab" takes eps for a polynomial, matched
      by noise level; VP time by default.

  Raises:
    ValueError: for another variant, a clock that it does not use, an order
      outside of 1..4, or one that exceeds the steps.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.vp_linear()
    >>> grid = jd.grids.quadratic(process, 10)
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> for variant in "t_ab", "rho_ab", "lambda_ab":
    ...   table = jd.deis(process, grid, order=3, variant=variant)
    ...   _, variance = jd.oracles.propagate(table, process, data)
    ...   print(variant, table.nfe, round(float(variance[0]) ** 0.5, 3))
    t_ab 10 0.486
    rho_ab 10 0.475
    lambda_ab 10 0.5
  """
  checks.one_of(variant, VARIANTS, "variant")
  if clock is not None and variant != "t_ab":
    raise ValueError(
      f"clock is the process in whose time eps is taken for a polynomial, but"
      f" variant={variant!r} takes no time; drop one of them"
    )
  orders = step_orders(order, len(grid) - 1, 4, "deis")
  variable = {
    "t_ab": _vp_time(process) if clock is None else clock,
    "rho_ab": "own",
    "lambda_ab": "log_snr",
  }[variant]
  return exponential_ab.build(
    process, grid, order=orders, output="eps", variable=variable
  )


def _vp_time(process: GaussianProcess) -> GaussianProcess:
  """Returns the process itself if it preserves variance, else its VP clock."""
  t = np.linspace(process.t_min, process.t_max, 9)
  size = np.hypot(process.alpha(t), process.sigma(t))
  return process if np.allclose(size, 1.0) else grids.vp_clock(process)


@solver
def deis_rk(
  process: GaussianProcess, grid: np.ndarray, *, method: str = "kutta3"
) -> Tableau:
  """Returns the table of rhoRK-DEIS on `grid`, f64[n + 1].

  Args:
    process: the forward process.
    grid: f64[n + 1].
    method: method of `runge_kutta.METHODS`: "heun" (rho2Heun), "kutta3"
      (rho3Kutta), "rk4" (rho4RK), "midpoint", ...

  Raises:
    ValueError: for an unknown method.
  """
  return runge_kutta.build(process, grid, method=method, output="eps")

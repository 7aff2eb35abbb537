"""DEIS on exact mixtures: the error of DDIM after a fraction of its calls.

VP-linear from t = 1 to 1e-3 on the quadratic grid of the paper, 256 noises,
exact eps. All is deterministic but the noises, which the seed draws.
"""

from jaxdiff import grids
from jaxdiff import solvers

from . import _flows
from . import report

TITLE = "DEIS"
CLAIM = (
  "Integrating the linear part exactly and extrapolating eps by a polynomial"
  " cuts the number of calls: third order at 10 calls beats DDIM at 30."
)
PAPER = "https://arxiv.org/abs/2204.13902"
SEEDS = (0, 1, 2)
BARS = (
  report.at_most("g2_10", 0.2, "tAB3 over DDIM, 10 calls, 2 dimensions: error"),
  report.at_most("g16_10", 0.3, "the same in 16 dimensions"),
  report.at_most("g2_20", 0.1, "tAB3 over DDIM, 20 calls, 2 dimensions"),
  report.at_most("g16_20", 0.1, "the same in 16 dimensions"),
  report.at_most("g2_10_30", 1.0, "tAB3 at 10 calls over DDIM at 30, 2 dim."),
  report.at_most("g16_10_30", 1.0, "the same in 16 dimensions"),
)
REPORTED = (
  report.reported("g2_rho_10", "rhoAB3 on rho^(1/7), over DDIM, 10 calls"),
  report.reported("g16_rho_10", "the same in 16 dimensions"),
  report.reported("g2_rk_9", "rho3Kutta (9 calls) over DDIM at 9"),
  report.reported("g16_rk_9", "the same in 16 dimensions"),
)
LIMITS = (
  "FID of CIFAR-10 needs the published checkpoint and Inception; here the"
  " error to the converged ODE of exact mixtures stands for it."
)


def measure(seed: int) -> dict[str, float]:
  """Returns the ratios of median errors on both mixtures."""
  values = {}
  for name in ("g2", "g16"):
    on = _flows.flow(name, seed)
    process = on.process
    quadratic = lambda n, p=process: grids.quadratic(p, n)
    at = lambda table, on=on: _flows.error(on, table)
    ddim = {n: at(solvers.ddim(process, quadratic(n))) for n in (9, 10, 20, 30)}
    tab = {
      n: at(solvers.deis(process, quadratic(n), order=4)) for n in (10, 20)
    }
    rho = at(
      solvers.deis(
        process, grids.karras(process, 10), order=4, variant="rho_ab"
      )
    )
    rk = at(solvers.deis_rk(process, quadratic(3), method="kutta3"))
    values |= {
      f"{name}_10": tab[10] / ddim[10],
      f"{name}_20": tab[20] / ddim[20],
      f"{name}_10_30": tab[10] / ddim[30],
      f"{name}_rho_10": rho / ddim[10],
      f"{name}_rk_9": rk / ddim[9],
    }
  return values

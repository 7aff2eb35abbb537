"""DPM-Solver's family on exact mixtures, at equal numbers of calls.

VP-linear from t = 1 to 1e-3 on the grid uniform in log-SNR, 256 noises, exact
models. The seed draws the noises.
"""

from jaxdiff import grids
from jaxdiff import solvers

from . import _flows
from . import report

TITLE = "DPM-Solver, DPM-Solver++, UniPC"
CLAIM = (
  "The exact linear part and the variable log-SNR give solvers of order 2 and 3"
  " that need a fraction of DDIM's calls, and a corrector adds accuracy at no"
  " more calls."
)
PAPER = "https://arxiv.org/abs/2206.00927"
SEEDS = (0, 1, 2)
_NAMES = {"g2": "2 dimensions", "g16": "16 dimensions"}
BARS = tuple(
  bar
  for name, where in _NAMES.items()
  for bar in (
    report.at_most(
      f"{name}_2m_20", 0.25, f"2M over DDIM at 20 calls, {where}: error"
    ),
    report.at_most(
      f"{name}_unipc_20", 0.12, f"UniPC-2 over DDIM at 20 calls, {where}"
    ),
    report.at_most(
      f"{name}_unipc_2m_20", 0.75, f"UniPC-2 over 2M at 20 calls, {where}"
    ),
    report.at_most(
      f"{name}_unipc_2m_10", 0.75, f"UniPC-2 over 2M at 10 calls, {where}"
    ),
    report.at_most(
      f"{name}_best_10",
      1.0,
      "the worse of 2M and UniPC-2 over the better of DDIM and Heun at 10"
      f" calls, {where}",
    ),
  )
)
REPORTED = tuple(
  line
  for name, where in _NAMES.items()
  for line in (
    report.reported(
      f"{name}_fast_10", f"DPM-Solver-fast over DDIM at 10 calls, {where}"
    ),
    report.reported(f"{name}_3m_20", f"3M over DDIM at 20 calls, {where}"),
    report.reported(
      f"{name}_unipc3_20", f"UniPC-3 over DDIM at 20 calls, {where}"
    ),
  )
)
LIMITS = (
  "FID of CIFAR-10 needs the published checkpoint and Inception; here the"
  " error to the converged ODE of exact mixtures stands for it. The gain of ++"
  " at large guidance is not among the bars."
)


def measure(seed: int) -> dict[str, float]:
  """Returns the ratios of median errors on both mixtures."""
  values = {}
  for name in _NAMES:
    on = _flows.flow(name, seed)
    process = on.process
    grid = {n: grids.log_snr(process, n) for n in (5, 10, 20)}
    run = lambda build, n, on=on, grid=grid, **options: _flows.error(
      on, build(on.process, grid[n], **options)
    )
    ddim = {n: run(solvers.ddim, n) for n in (10, 20)}
    two = {n: run(solvers.dpmpp_2m, n) for n in (10, 20)}
    unipc = {n: run(solvers.unipc, n, order=2) for n in (10, 20)}
    heun = run(solvers.heun, 5)
    orders = solvers.orders_for_budget(10)
    fast = _flows.error(
      on,
      solvers.dpm_solver(
        process, grids.log_snr(process, len(orders)), order=orders
      ),
    )
    values |= {
      f"{name}_2m_20": two[20] / ddim[20],
      f"{name}_unipc_20": unipc[20] / ddim[20],
      f"{name}_unipc_2m_20": unipc[20] / two[20],
      f"{name}_unipc_2m_10": unipc[10] / two[10],
      f"{name}_best_10": max(two[10], unipc[10]) / min(ddim[10], heun),
      f"{name}_fast_10": fast / ddim[10],
      f"{name}_3m_20": run(solvers.dpmpp_3m, 20) / ddim[20],
      f"{name}_unipc3_20": run(solvers.unipc, 20, order=3) / ddim[20],
    }
  return values

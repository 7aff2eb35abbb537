"""A search for 8 calls on the 64-dimensional mixture of digits, EDM noise.

  python -m experiments.search --config=experiments/configs/search_mixture.py

About two minutes on two cores for 1,000 candidates on 256 noises.
"""

import ml_collections

from jaxdiff import grids
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff.solvers import specs

_CHOSEN = (
  "euler",
  "heun",
  "midpoint",
  "rk4",
  "ddim",
  "adams_bashforth(order=2)",
  "adams_bashforth(order=3)",
  "runge_kutta(method=kutta3)",
  "runge_kutta(method=midpoint, output=v)",
  "dpm_solver(order=2)",
  "dpm_solver(order=3)",
  "dpm_solver(order=2, output=x0)",
  "dpm_solver(order=3, output=x0)",
  "exponential_rk(method=res_2s)",
  "exponential_rk(method=krogstad_4)",
  "exponential_rk(method=hochbruck_4)",
  "dpm_solver_2m",
  "dpm_solver_3m",
  "dpmpp_2m",
  "dpmpp_3m",
  "exponential_ab(order=3, output=v)",
  "exponential_ab(order=4)",
  "unic(predictor=dpmpp_2m)",
  "unic(predictor=deis(order=3))",
  "angular_adams(order=2)",
  "balanced_adams(order=2)",
  "balanced_adams(order=2, corrector=False)",
  "balanced_adams(order=3, corrector=False, slope=0.15)",
  "angular_adams(order=4)",
  "angular_adams(order=3, corrector=False)",
  "unipc(order=2, corrector=False)",
  "unipc(order=1)",
  "unipc(order=2)",
  "unipc(order=3)",
  "unipc(order=3, variant=bh1)",
  "unipc(order=2, output=eps)",
  "deis(order=2)",
  "deis(order=3)",
  "deis(order=4)",
  "deis(order=3, variant=rho_ab)",
  "deis_rk",
  "lms",
  "ipndm_v",
  "ipndm_v(published=True)",
  "ipndm(order=2)",
  "ipndm(order=3)",
  "ipndm(order=4)",
  "s_pndm",
  "plms",
  "pndm",
  "res_multistep",
  "res_multistep(clock=flow)",
  "gradient_estimation",
  "gradient_estimation(output=flow)",
  "heunpp2",
  "heunpp2(output=flow)",
  "rex(method=heun)",
  "rex(method=rk4)",
  "pfdiff",
  "pfdiff(skip=3, ahead=2)",
  "pfdiff(skip=2)",
  "rx_dpm",
  "cab",
  "cab(order=3)",
  "stork",
  "stork(derivatives=1, output=eps)",
  "dc_solver(order=3, lower_order_final=False)",
)

# It has a grid of its own; without noise they are another solver.
_LEFT_OUT = ("default", "heun_churn", "restart")


def known() -> tuple[str, ...]:
  """Returns the specs above, and every other deterministic solver by name."""
  process = processes.edm()
  grid = grids.karras(process, 4)
  listed = {spec.partition("(")[0] for spec in _CHOSEN}
  others = []
  for name, solver in specs.named().items():
    options = specs.options(solver).values()
    needs = any(p.default is p.empty for p in options)
    if name in listed or name in _LEFT_OUT or needs:
      continue
    if not solvers.from_spec(name)(process, grid).stochastic:
      others.append(name)
  return (*_CHOSEN, *others)


def get_config() -> ml_collections.ConfigDict:
  """Returns the config; every field can be overridden on the command line."""
  return ml_collections.ConfigDict(
    dict(
      target="digits_mixture",  # an oracle, or the folder of a trained run
      data="",  # of a trained run; "": the run's own
      process="edm",  # edm, vp, flow, ve, sub_vp
      method="s3",  # s3 (guided), evolution, times, gits
      solvers=known(),  # what the winner is compared with, on every grid
      calls=8,
      budget=1000,  # candidates, each run on all noises
      noises=256,  # that the search sees
      held_out=2048,  # that it does not see
      reference_steps=200,  # of RK4
      chunk=0,  # candidates at once; 0: what suits the device
      seed=0,
      float64=False,
      out="runs/search_mixture",
      title="64-dimensional mixture of digits, EDM noise, 8 calls",
    )
  )

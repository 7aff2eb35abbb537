"""Schedulers of diffusers (Apache-2.0), driven by hand in float64.

diffusers makes its grids from integer time steps and rounds to float32 in
places. Here its schedulers get our grid: `sigmas` (sigma / alpha, in float64)
and `timesteps` (their indices) are set on the instance, and the name
`torch.float32` that a scheduler's module casts to means float64 while it runs.
Nothing else of theirs is touched.
"""

import contextlib
import importlib
import unittest.mock
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdiff import predictions
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff.solvers.exponential_rk import METHODS
from jaxdiff.solvers.exponential_rk import step
from jaxdiff.solvers.exponential_rk import three_stages
from jaxdiff.solvers.exponential_rk import two_stages

from . import Pair
from . import peer
from . import Problem


class _Wide:
  """torch, but that its float32 is float64."""

  def __init__(self):
    import torch

    self._torch = torch

  def __getattr__(self, name):
    return (
      self._torch.float64 if name == "float32" else getattr(self._torch, name)
    )


@contextlib.contextmanager
def scheduler(module: str, name: str, problem: Problem, **options: Any):
  """Yields a scheduler that walks the problem's grid in float64."""
  import torch

  code = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
  n = len(problem.grid) - 1
  with unittest.mock.patch.object(code, "torch", _Wide()):
    made = getattr(code, name)(**options)
    made.set_timesteps(n)
    made.sigmas = torch.tensor(problem.levels)
    made.timesteps = torch.arange(n, dtype=torch.float64)
    made.num_inference_steps = n
    if hasattr(made, "set_begin_index"):  # PNDM counts for itself
      made.set_begin_index(0)
    yield made


def walk(
  made: Any,
  problem: Problem,
  predict: Callable[[Problem, np.ndarray, int], np.ndarray],
  places: Any = None,
) -> np.ndarray:
  """Returns where their loop ends: a model call, then scheduler.step.

  Args:
    made: the scheduler.
    problem: the problem of whose grid `places` are the indices that are asked.
    predict: (problem, x, i) -> what their model would return.
    places: indices into the grid; 0..n - 1 by default.
  """
  import torch

  x = torch.tensor(problem.x)
  places = range(len(problem.grid) - 1) if places is None else places
  for i, place in enumerate(places):
    output = torch.tensor(predict(problem, x.numpy(), place))
    x = made.step(output, made.timesteps[i], x, return_dict=False)[0]
  return x.numpy()


def eps(problem: Problem, x: np.ndarray, i: int) -> np.ndarray:
  """What a noise-predicting network answers at grid[i]."""
  return problem.answer(x, problem.grid[i])[1]


def _dpm(solver, build, note="", differs=False, single=False, **options):
  """Registers a case of the DPM-Solver schedulers."""
  kind = "Singlestep" if single else "Multistep"
  told = ", ".join(
    str(v) if k != "solver_order" else f"order {v}"
    for k, v in options.items()
    if k != "lower_order_final"
  )
  told += ", lower_order_final" if options.get("lower_order_final") else ""

  @peer(
    solver,
    "diffusers",
    f"DPMSolver{kind}Scheduler: {told}",
    note=note,
    differs=differs,
  )
  def _(problem):
    with scheduler(
      f"dpmsolver_{kind.lower()}",
      f"DPMSolver{kind}Scheduler",
      problem,
      **{
        "final_sigmas_type": "sigma_min",
        "lower_order_final": False,
        **options,
      },
    ) as made:
      theirs = walk(made, problem, eps)
    return Pair(build(problem.process, problem.grid), theirs)


def _with(build, **options):
  return lambda process, grid: build(process, grid, **options)


_2M, _3M = solvers.dpmpp_2m, solvers.dpmpp_3m
_2M_EPS, _3M_EPS = solvers.dpm_solver_2m, solvers.dpm_solver_3m
_X0, _EPS = dict(algorithm_type="dpmsolver++"), dict(algorithm_type="dpmsolver")
for _order, _one, _other in ((2, _2M, _2M_EPS), (3, _3M, _3M_EPS)):
  for _build, _kind in ((_one, _X0), (_other, _EPS)):
    _name = _build.__name__
    for _final in (False, True):
      _opts = dict(lower_order_final=_final)
      _how = _opts | (dict(published=True) if _order == 3 else {})
      _dpm(
        _name,
        _with(_build, **_how),
        "with `published=True`" if _order == 3 else "",
        solver_order=_order,
        **_kind,
        **_opts,
      )
    if _order == 2:
      _dpm(
        _name,
        _with(_build, solver_type="heun"),
        solver_order=2,
        **_kind,
        solver_type="heun",
      )
_dpm(
  "dpmpp_3m",
  _3M,
  "our default: the second divided difference has its factor 2, without which"
  " the method is of second order",
  differs=True,
  solver_order=3,
  **_X0,
)


def _on_grid_points(orders, kind, output):
  """Returns diffusers' singlestep: stages at the grid's own points.

  A block of order k takes k of the grid's steps. Its stages lie where those
  steps end, not at r = 1/2 or 1/3, 2/3 of the log-SNR, and the last stage is
  reached by the method of one order less.
  """

  def build(process, grid):
    rows, i = [], 0
    for order in orders:
      lam = process.log_snr(grid[i : i + order + 1])
      r = ((lam - lam[0]) / (lam[-1] - lam[0]))[1:-1]
      method = METHODS["euler"]
      if order == 2:
        method = two_stages(r[0], kind)
      if order == 3:
        stage = two_stages(r[0] / r[1], kind)
        method = three_stages(*r, kind)

        def stages(z, method=method, stage=stage, c=r[1]):
          return [method.stages(z)[0], c * np.asarray(stage.weights(c * z))]

        method = method._replace(stages=stages)
      rows.append(step(process, grid[i], grid[i + order], method, output))
      i += order
    return tables.concat(*rows)

  return build


_NODES = (
  "compared with our exponential Runge-Kutta at their nodes: they put stages at"
  " the grid's points, `dpm_solver` at fixed parts of the log-SNR step, as the"
  " paper does"
)
for _output, _kind in (("x0", _X0), ("eps", _EPS)):
  for _type in ("midpoint", "heun"):
    _dpm(
      f"dpm_solver ({_output})",
      _on_grid_points((2,) * 5, _type, _output),
      _NODES,
      single=True,
      solver_order=2,
      **_kind,
      solver_type=_type,
    )
    _dpm(
      f"dpm_solver ({_output})",
      _on_grid_points((3, 3, 3, 1), _type, _output),
      _NODES,
      single=True,
      solver_order=3,
      **_kind,
      solver_type=_type,
      lower_order_final=True,
    )


def _unipc(order, variant, output, lower):
  told = ", lower_order_final" if lower else ""

  @peer(
    "unipc" if output == "x0" else "unipc (eps)",
    "diffusers",
    f"UniPCMultistepScheduler: order {order}, {variant}, {output}{told}",
  )
  def _(problem):
    with scheduler(
      "unipc_multistep",
      "UniPCMultistepScheduler",
      problem,
      solver_order=order,
      solver_type=variant,
      predict_x0=output == "x0",
      lower_order_final=lower,
      final_sigmas_type="sigma_min",
    ) as made:
      theirs = walk(made, problem, eps)
    ours = solvers.unipc(
      problem.process,
      problem.grid,
      order=order,
      variant=variant,
      output=output,
      lower_order_final=lower,
    )
    return Pair(ours, theirs)


for _order, _variant, _output, _lower in (
  (1, "bh2", "x0", True),
  (2, "bh1", "x0", True),
  (2, "bh2", "x0", True),
  (3, "bh1", "x0", True),
  (3, "bh2", "x0", True),
  (3, "bh2", "x0", False),
  (2, "bh2", "eps", True),
  (3, "bh1", "eps", True),
):
  _unipc(_order, _variant, _output, _lower)


def _deis(order):
  @peer(
    "deis (lambda_ab)",
    "diffusers",
    f"DEISMultistepScheduler: order {order}",
    note="their DEIS is the variant in log(rho), not the tAB of the paper",
  )
  def _(problem):
    with scheduler(
      "deis_multistep",
      "DEISMultistepScheduler",
      problem,
      solver_order=order,
      lower_order_final=False,
    ) as made:
      theirs = walk(made, problem, eps)
    ours = solvers.deis(
      problem.process, problem.grid, order=order, variant="lambda_ab"
    )
    return Pair(ours, theirs)


_deis(2)
_deis(3)


@peer("ipndm", "diffusers", "IPNDMScheduler", note="its network predicts v")
def _(problem):
  import torch

  with scheduler("ipndm", "IPNDMScheduler", problem) as made:
    made.betas = torch.tensor(problem.sigma)
    made.alphas = torch.tensor(problem.alpha)

    def v(problem, x, i):
      answer = problem.answer(x, problem.grid[i])
      return problem.alpha[i] * answer[1] - problem.sigma[i] * answer[0]

    theirs = walk(made, problem, v)
  return Pair(solvers.ipndm(problem.process, problem.grid), theirs)


def _pndm(solver, build, skip):
  told = "skip_prk_steps" if skip else "with Runge-Kutta"

  @peer(
    solver,
    "diffusers",
    f"PNDMScheduler: {told}",
    process="vp_uniform",
    note="alphas_cumprod holds our alpha^2 at its integer times, in float64;"
    " the last step ends at our grid's end",
  )
  def _(problem):
    import torch

    n, train = len(problem.grid) - 1, 1000
    ratio = train // n
    first, last = problem.grid[0], problem.grid[-1]
    time = lambda k: last + (first - last) * (k + ratio) / train
    with scheduler(
      "pndm",
      "PNDMScheduler",
      problem,
      skip_prk_steps=skip,
      num_train_timesteps=train,
    ) as made:
      made.set_timesteps(n)
      squares = problem.process.alpha(time(np.arange(train))) ** 2
      made.alphas_cumprod = torch.tensor(squares)
      made.final_alpha_cumprod = torch.tensor(problem.alpha[-1] ** 2)
      ask = lambda problem, x, k: problem.answer(x, time(k))[1]
      made.timesteps = [int(k) for k in made.timesteps]
      theirs = walk(made, problem, ask, made.timesteps)
    return Pair(build(problem.process, problem.grid), theirs)


_pndm("pndm", solvers.pndm, False)
_pndm("plms", solvers.plms, True)


@peer("euler", "diffusers", "EulerDiscreteScheduler", process="edm")
def _(problem):
  with scheduler("euler_discrete", "EulerDiscreteScheduler", problem) as made:
    made.is_scale_input_called = True
    theirs = walk(made, problem, eps)
  return Pair(solvers.euler(problem.process, problem.grid), theirs)


@peer("lms", "diffusers", "LMSDiscreteScheduler", process="edm")
def _(problem):
  with scheduler("lms_discrete", "LMSDiscreteScheduler", problem) as made:
    made.is_scale_input_called = True
    theirs = walk(made, problem, eps)
  return Pair(solvers.lms(problem.process, problem.grid), theirs)


@peer(
  "heun",
  "diffusers",
  "HeunDiscreteScheduler",
  process="edm",
  note="each time but the ends stands twice in its lists, as there",
)
def _(problem):
  import torch

  places = np.repeat(np.arange(len(problem.grid)), 2)[1:-1]
  with scheduler("heun_discrete", "HeunDiscreteScheduler", problem) as made:
    made.sigmas = torch.tensor(problem.levels[places])
    made.timesteps = torch.tensor(places, dtype=torch.float64)
    theirs = walk(made, problem, eps, places)
  return Pair(solvers.heun(problem.process, problem.grid), theirs)


def _preconditioned(problem: Problem, x: np.ndarray, i: int) -> np.ndarray:
  """What an EDM network of sigma_data = 1/2 answers at grid[i]."""
  return predictions.target(
    "edm",
    *problem.answer(x, problem.grid[i]),
    1.0,
    problem.grid[i],
    sigma_data=0.5,
  )


@peer("euler", "diffusers", "EDMEulerScheduler", process="edm")
def _(problem):
  with scheduler("edm_euler", "EDMEulerScheduler", problem) as made:
    made.is_scale_input_called = True
    theirs = walk(made, problem, _preconditioned)
  return Pair(solvers.euler(problem.process, problem.grid), theirs)


def _edm_dpm(solver, build, note="", **options):
  told = ", ".join(str(v) for v in options.values())

  @peer(
    solver,
    "diffusers",
    f"EDMDPMSolverMultistepScheduler: order {told}",
    process="edm",
    note=note,
  )
  def _(problem):
    with scheduler(
      "edm_dpmsolver_multistep",
      "EDMDPMSolverMultistepScheduler",
      problem,
      lower_order_final=False,
      final_sigmas_type="sigma_min",
      **options,
    ) as made:
      theirs = walk(made, problem, _preconditioned)
    return Pair(build(problem.process, problem.grid), theirs)


_edm_dpm("dpmpp_2m", _2M, solver_order=2)
_edm_dpm(
  "dpmpp_2m",
  _with(_2M, solver_type="heun"),
  solver_order=2,
  solver_type="heun",
)
_edm_dpm(
  "dpmpp_3m",
  _with(_3M, published=True),
  "with `published=True`",
  solver_order=3,
)


# --- ends at sigma = 0, their default ----------------------------------------


def _orders(p: int, n: int) -> list[int]:
  """Returns the orders of their n steps but the last, which is into zero."""
  return [min(p, i + 1, n - i) for i in range(n - 1)]


_COUNTED = (
  "their orders as a list: they count the step into sigma = 0 among those that"
  " `lower_order_final` lowers, ours does not"
)
_OURS_LOWERED = (
  "our `lower_order_final=True`, which lowers the steps before that into sigma"
  " = 0 as if they were the last"
)


def _to_zero(solver, name, build, note="", differs=False, **options):
  """Registers a multistep scheduler at its defaults, build(process, grid)."""
  order = options["solver_order"]
  module = "unipc_multistep" if "UniPC" in name else "dpmsolver_multistep"

  @peer(
    solver,
    "diffusers",
    f"{name}: order {order}, its defaults",
    process="vp to zero",
    note=note,
    differs=differs,
  )
  def _(problem):
    with scheduler(
      module, name, problem, final_sigmas_type="zero", **options
    ) as made:
      theirs = walk(made, problem, eps)
    return Pair(build(problem.process, problem.grid), theirs)


def _listed(build, p, **options):
  return lambda process, grid: build(
    process, grid, order=_orders(p, len(grid) - 1), **options
  )


_DPM, _UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
_LOWERED = dict(lower_order_final=True)
_to_zero("dpmpp_2m", _DPM, _2M, solver_order=2)
_to_zero(
  "dpmpp_3m", _DPM, _listed(_3M, 3, published=True), _COUNTED, solver_order=3
)
for _order in (2, 3):
  _to_zero(
    "unipc",
    _UNIPC,
    _listed(solvers.unipc, _order),
    _COUNTED,
    solver_order=_order,
  )
for _solver, _name, _build, _order in (
  ("dpmpp_2m", _DPM, _with(_2M, **_LOWERED), 2),
  ("dpmpp_3m", _DPM, _with(_3M, published=True, **_LOWERED), 3),
  ("unipc", _UNIPC, _with(solvers.unipc, order=2, **_LOWERED), 2),
  ("unipc", _UNIPC, _with(solvers.unipc, order=3, **_LOWERED), 3),
):
  _to_zero(_solver, _name, _build, _OURS_LOWERED, True, solver_order=_order)


@peer("euler", "diffusers", "EulerDiscreteScheduler", process="edm to zero")
def _(problem):
  with scheduler("euler_discrete", "EulerDiscreteScheduler", problem) as made:
    made.is_scale_input_called = True
    theirs = walk(made, problem, eps)
  return Pair(solvers.euler(problem.process, problem.grid), theirs)


@peer("heun", "diffusers", "HeunDiscreteScheduler", process="edm to zero")
def _(problem):
  import torch

  places = np.repeat(np.arange(len(problem.grid)), 2)[1:-1]
  with scheduler("heun_discrete", "HeunDiscreteScheduler", problem) as made:
    made.sigmas = torch.tensor(problem.levels[places])
    made.timesteps = torch.tensor(places, dtype=torch.float64)
    theirs = walk(made, problem, eps, places[:-1])
  return Pair(solvers.heun(problem.process, problem.grid), theirs)


@peer(
  "dpmpp_2m",
  "diffusers",
  "EDMDPMSolverMultistepScheduler: order 2, its defaults",
  process="edm to zero",
)
def _(problem):
  with scheduler(
    "edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler", problem
  ) as made:
    theirs = walk(made, problem, _preconditioned)
  return Pair(solvers.dpmpp_2m(problem.process, problem.grid), theirs)

"""The authors' own code, in checkouts that the user made (see __main__).

None of it is part of this project. A checkout of github.com/OWNER/NAME lies in
FOLDER/OWNER/NAME. What an import of theirs needs and the sampler does not use
(torchsde, torchvision, ...) is replaced by an empty stand-in while it loads.
"""

import contextlib
import importlib
import pathlib
import sys
import types
import unittest.mock
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdiff import grids
from jaxdiff import numerics
from jaxdiff import solvers
from jaxdiff import tableau as tables

from . import Pair
from . import peer
from . import Problem

_DPM = "LuChengTHU/dpm-solver"
_UNIPC = "wl-zhao/UniPC"
_DIFF = "zju-pi/diff-sampler"
_DEIS = "qsh-zh/deis"
_PNDM = "luping-liu/PNDM"
_K = "crowsonkb/k-diffusion"


@contextlib.contextmanager
def loaded(folder: pathlib.Path, module: str, stand_ins: tuple[str, ...] = ()):
  """Yields a module of a checkout, torch's default dtype being float64.

  Args:
    folder: that the module's name starts from.
    module: its dotted name.
    stand_ins: modules it imports and does not need.
  """
  import torch

  held = {name: unittest.mock.MagicMock() for name in stand_ins}
  parent = module.rpartition(".")[0]
  if parent in stand_ins:  # the package without what its __init__ imports
    package = types.ModuleType(parent)
    package.__path__ = [str(folder / parent)]
    held[parent] = package
  default = torch.get_default_dtype()
  sys.modules.update(held)
  sys.path.insert(0, str(folder))
  torch.set_default_dtype(torch.float64)
  try:
    yield importlib.import_module(module)
  finally:
    torch.set_default_dtype(default)
    sys.path.remove(str(folder))
    for name, one in list(sys.modules.items()):
      file = getattr(one, "__file__", None)
      theirs = isinstance(file, str) and pathlib.Path(file).is_relative_to(
        folder
      )
      if name in held or theirs:
        del sys.modules[name]


def in_torch(problem: Problem, half: int) -> Callable[..., Any]:
  """Returns x, t -> x0 (half 0) or eps (half 1) on torch tensors."""
  import torch

  def model(x, t, **unused):
    del unused
    t = float(np.asarray(t).reshape(-1)[0])
    answer = problem.answer(x.numpy().reshape(len(x), -1), t)[half]
    return torch.tensor(answer).reshape(x.shape)

  return model


def _dpm_solver(build, kind, order, differs=False, note="", **options):
  grid = options.pop("grid", "quadratic")
  skip = {"quadratic": "time_quadratic", "log_snr": "logSNR"}[grid]
  name = getattr(build, "__name__", "dpm_solver")
  told = ", ".join(
    [kind, f"order {order}", *(str(v) for v in options.values())]
  )

  @peer(
    name,
    _DPM,
    f"DPM_Solver: {told}",
    note=note,
    differs=differs,
    needs=f"{_DPM}/dpm_solver_pytorch.py",
  )
  def _(problem):
    import torch

    process, steps = problem.process, len(problem.grid) - 1
    times = getattr(grids, grid)(process, steps)
    with loaded(problem.code / _DPM, "dpm_solver_pytorch") as code:
      schedule = code.NoiseScheduleVP(
        "linear",
        continuous_beta_0=0.1,
        continuous_beta_1=20.0,
        dtype=torch.float64,
      )
      made = code.DPM_Solver(
        in_torch(problem, 1), schedule, algorithm_type=kind
      )
      theirs = made.sample(
        torch.tensor(problem.x),
        steps=order * steps if "singlestep_fixed" in told else steps,
        t_start=float(times[0]),
        t_end=float(times[-1]),
        order=order,
        skip_type=skip,
        lower_order_final=False,
        **options,
      )
    return Pair(build(process, times), theirs.numpy())


def _named(name, build, **options):
  bound = lambda process, grid: build(process, grid, **options)
  bound.__name__ = name
  return bound


for _kind, _two, _three, _output in (
  ("dpmsolver++", solvers.dpmpp_2m, solvers.dpmpp_3m, "x0"),
  ("dpmsolver", solvers.dpm_solver_2m, solvers.dpm_solver_3m, "eps"),
):
  _dpm_solver(_two, _kind, 2, method="multistep")
  _dpm_solver(
    _named(_two.__name__, _two, solver_type="heun"),
    _kind,
    2,
    method="multistep",
    solver_type="taylor",
  )
  _dpm_solver(
    _named(_three.__name__, _three, published=True),
    _kind,
    3,
    note="with `published=True`; ours by default has the factor 2 in the second"
    " divided difference",
    method="multistep",
  )
  for _order in (2, 3):
    for _type, _own in (("dpmsolver", "midpoint"), ("taylor", "heun")):
      _dpm_solver(
        _named(
          f"dpm_solver ({_output})",
          solvers.dpm_solver,
          order=_order,
          output=_output,
          solver_type=_own,
        ),
        _kind,
        _order,
        grid="log_snr",
        method="singlestep_fixed",
        solver_type=_type,
      )


def _unipc(variant, output, order):
  kind = {"x0": "data_prediction", "eps": "noise_prediction"}[output]
  note, differs, options = "", False, dict(variant=variant)
  if variant == "vary_coeff":
    note = "with `exact=True`, which solves the same systems"
    options = dict(exact=True)
    if order > 1:
      differs = True
      note = (
        "with `exact=True`; from order 2 on the last term of their corrector"
        " takes another row of the inverse than the one it is for, so theirs is"
        " not the solution of the paper's system"
      )

  @peer(
    "unipc" if output == "x0" else "unipc (eps)",
    _UNIPC,
    f"UniPC: {variant}, {kind}, order {order}",
    note=note,
    differs=differs,
    needs=f"{_UNIPC}/uni_pc.py",
  )
  def _(problem):
    import torch

    with loaded(problem.code / _UNIPC, "uni_pc") as code:
      schedule = code.NoiseScheduleVP(
        "linear",
        continuous_beta_0=0.1,
        continuous_beta_1=20.0,
        dtype=torch.float64,
      )
      made = code.UniPC(
        in_torch(problem, 1), schedule, algorithm_type=kind, variant=variant
      )
      with contextlib.redirect_stdout(None):
        theirs = made.sample(
          torch.tensor(problem.x)[:, :, None, None],
          steps=len(problem.grid) - 1,
          t_start=float(problem.grid[0]),
          t_end=float(problem.grid[-1]),
          order=order,
          skip_type="time_quadratic",
          lower_order_final=True,
        )
    ours = solvers.unipc(
      problem.process, problem.grid, order=order, output=output, **options
    )
    return Pair(ours, theirs.numpy()[:, :, 0, 0])


for _variant in ("bh1", "bh2"):
  for _output in ("x0", "eps"):
    for _order in (2, 3):
      _unipc(_variant, _output, _order)
_unipc("vary_coeff", "x0", 1)
_unipc("vary_coeff", "x0", 3)


def _diff_sampler(name, build, sampler, note="", differs=False, **options):
  told = ", ".join(f"{k}={v}" for k, v in options.items())

  @peer(
    name,
    _DIFF,
    f"{sampler}: {told}" if told else sampler,
    process="edm",
    note=note,
    differs=differs,
    needs=f"{_DIFF}/diff-solvers-main/solvers.py",
  )
  def _(problem):
    import torch

    grid = torch.tensor(problem.grid)
    folder = problem.code / _DIFF / "diff-solvers-main"
    with loaded(folder, "solvers") as code:
      more = dict(options)
      if sampler == "deis_sampler":
        helper = importlib.import_module("solver_utils")
        mode = more.pop("deis_mode")
        more["coeff_list"] = helper.get_deis_coeff_list(
          grid, more["max_order"] - (mode == "rhoab"), deis_mode=mode
        )
      theirs = getattr(code, sampler)(
        in_torch(problem, 0),
        torch.tensor(problem.x) / problem.grid[0],
        num_steps=len(grid),
        t_steps=grid,
        **more,
      )
    return Pair(build(problem.process, problem.grid), theirs.numpy())


for _order in (2, 3, 4):
  _diff_sampler(
    "ipndm",
    _named("ipndm", solvers.ipndm, order=_order),
    "ipndm_sampler",
    max_order=_order,
  )
  _diff_sampler(
    "ipndm_v",
    _named("ipndm_v", solvers.ipndm_v, order=_order, published=True),
    "ipndm_v_sampler",
    note="with `published=True`" if _order > 2 else "",
    max_order=_order,
  )
_diff_sampler(
  "ipndm_v",
  solvers.ipndm_v,
  "ipndm_v_sampler",
  note="our default: their weights of the orders 3 and 4 are not those of"
  " Adams-Bashforth (see `ipndm_v`)",
  differs=True,
  max_order=4,
)
for _order in (2, 3, 4):
  _diff_sampler(
    "deis (rho_ab)",
    _named("deis", solvers.deis, order=_order, variant="rho_ab"),
    "deis_sampler",
    max_order=_order,
    deis_mode="rhoab",
  )
_diff_sampler(
  "dpm_solver (eps)",
  _named("dpm_solver", solvers.exponential_rk, method="dpm_2", output="eps"),
  "dpm_2_sampler",
)
_diff_sampler("heun", solvers.heun, "heun_sampler")


def _first_call_free(problem):
  """Returns iPNDM with the analytical first step, their afs=True."""
  table = solvers.ipndm(problem.process, problem.grid)
  return solvers.analytical_first_step(table, problem.process)


@peer(
  "analytical_first_step",
  _DIFF,
  "ipndm_sampler: max_order=4, afs=True",
  process="edm",
  needs=f"{_DIFF}/diff-solvers-main/solvers.py",
)
def _(problem):
  import torch

  ours, scale = _first_call_free(problem)
  folder = problem.code / _DIFF / "diff-solvers-main"
  with loaded(folder, "solvers") as code:
    theirs = code.ipndm_sampler(
      in_torch(problem, 0),
      torch.tensor(problem.x) / problem.grid[0],
      num_steps=len(problem.grid),
      t_steps=torch.tensor(problem.grid),
      max_order=4,
      afs=True,
    )
  return Pair(ours, theirs.numpy(), scale)


def _deis(name, build, method, grid, note="", differs=False, **options):
  power = {"quadratic": 2, "uniform": 1}[grid]
  told = ", ".join(f"{k}={v}" for k, v in options.items())

  @peer(
    name,
    _DEIS,
    f"get_sampler: {method}, {told}" if told else f"get_sampler: {method}",
    process={2: "vp", 1: "vp_uniform"}[power],
    note=note,
    differs=differs,
    needs=f"{_DEIS}/th_deis/sampler.py",
  )
  def _(problem):
    import jax
    import torch

    promote = "_promote_dtypes_inexact"  # of jax itself, gone since
    with (
      unittest.mock.patch.object(
        jax._src.numpy.lax_numpy, promote, None, create=True
      ),
      loaded(problem.code / _DEIS, "th_deis") as code,
    ):
      fns = code.get_linear_alpha_fns(0.1, 20.0)
      ends = float(problem.grid[-1]), float(problem.grid[0])
      sde = code.VPSDE(*fns, *ends)
      sampler = code.get_sampler(
        sde,
        in_torch(problem, 1),
        ts_phase="t",
        ts_order=power,
        num_step=len(problem.grid) - 1,
        method=method,
        **options,
      )
      theirs = sampler(torch.tensor(problem.x))
    return Pair(build(problem.process, problem.grid), theirs.numpy())


def _left_sums(process, grid, order, variant):
  """Returns DEIS with their quadrature: 10,000 points to the left."""
  n, points = len(grid) - 1, 10_000
  history = np.zeros((n, order))
  for i in range(n):
    at, (start, end) = grid[i - np.arange(min(order, i + 1))], grid[i : i + 2]
    if variant == "rho_ab":
      at = process.noise_level(at)
      start, end = process.noise_level(np.asarray([start, end]))
    places = np.linspace(start, end, points, endpoint=False)
    rate = np.ones(points)
    if variant == "t_ab":
      alpha, rates = process.alpha(places), process.rates(places)
      rate = (rates[1] - process.noise_level(places) * rates[0]) / alpha
    sums = (numerics.lagrange(at, places) * rate).mean(-1) * (end - start)
    history[i, : len(at)] = process.alpha(grid[i + 1]) * sums
  alpha = process.alpha(grid)
  return tables.multistep(grid[:-1], "eps", alpha[1:] / alpha[:-1], history)


for _variant in ("t_ab", "rho_ab"):
  for _order in (1, 2, 3):
    _deis(
      f"deis ({_variant})",
      _named("deis", _left_sums, order=_order + 1, variant=_variant),
      _variant,
      "quadratic",
      note="with their quadrature, left sums of 10,000 points, in our table",
      ab_order=_order,
    )
  _deis(
    f"deis ({_variant})",
    _named("deis", solvers.deis, order=4, variant=_variant),
    _variant,
    "quadratic",
    note="our default integrates to rounding by Gauss-Legendre: the difference"
    " is the error of their left sums",
    differs=True,
    ab_order=3,
  )
for _theirs, _own in (
  ("2heun", "heun"),
  ("3kutta", "kutta3"),
  ("3ral", "ralston3"),
  ("3heun", "heun3"),
  ("3ssprk", "ssp3"),
  ("4rk", "rk4"),
):
  _deis(
    "deis_rk",
    _named("deis_rk", solvers.deis_rk, method=_own),
    "rho_rk",
    "quadratic",
    rk_method=_theirs,
  )
_deis("ipndm", solvers.ipndm, "ipndm", "uniform")


def _pndm(name, build, method):
  @peer(
    name,
    _PNDM,
    f"choose_method('{method}')",
    process="vp_uniform",
    note="alphas_cump holds our alpha^2 at integer times, in float64",
    needs=f"{_PNDM}/runner/method.py",
  )
  def _(problem):
    import torch

    n = len(problem.grid) - 1
    each = 100  # of their integer times to a step
    k = np.arange(each * n + 1)[::-1]
    first, last = problem.grid[0], problem.grid[-1]
    time = lambda k: last + (first - last) * k / (each * n)
    squares = problem.process.alpha(time(k)) ** 2
    table = torch.tensor(np.append(1.0, squares[::-1]))  # theirs starts at -1
    eps = lambda x, t: torch.tensor(
      problem.answer(x.numpy()[:, :, 0, 0], time(float(t[0])))[1]
    )[:, :, None, None]
    x, kept = torch.tensor(problem.x)[:, :, None, None], []
    with loaded(problem.code / _PNDM / "runner", "method") as code:
      advance = code.choose_method(method)
      for i in range(n, 0, -1):
        t = torch.full((len(x),), float(each * i))
        x = advance(x, t, t - each, eps, table, kept)
    ours = build(problem.process, problem.grid)
    return Pair(ours, x.numpy()[:, :, 0, 0])


_pndm("ddim", solvers.ddim, "DDIM")
_pndm("s_pndm", solvers.s_pndm, "S-PNDM")
_pndm("pndm", solvers.pndm, "F-PNDM")


def _k_diffusion(name, build, sampler):
  @peer(
    name,
    _K,
    sampler,
    process="edm",
    needs=f"{_K}/k_diffusion/sampling.py",
  )
  def _(problem):
    import torch

    away = (
      "k_diffusion",
      "torchdiffeq",
      "torchsde",
      "torchvision",
      "torchvision.transforms",
    )
    with loaded(problem.code / _K, "k_diffusion.sampling", away) as code:
      theirs = getattr(code, sampler)(
        in_torch(problem, 0),
        torch.tensor(problem.x),
        torch.tensor(problem.grid),
        disable=True,
      )
    return Pair(build(problem.process, problem.grid), theirs.numpy())


_k_diffusion("euler", solvers.euler, "sample_euler")
_k_diffusion("heun", solvers.heun, "sample_heun")
_k_diffusion("lms", solvers.lms, "sample_lms")
_k_diffusion("dpmpp_2m", solvers.dpmpp_2m, "sample_dpmpp_2m")
_k_diffusion(
  "dpm_solver (eps)",
  _named("dpm_solver", solvers.dpm_solver, order=2),
  "sample_dpm_2",
)

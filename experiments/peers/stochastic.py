"""Stochastic samplers and DPM-Solver-v3: theirs are given the noise of ours.

Our loop draws a step's noise from (key, row, tag); `draws` draws the same, and
their generators are replaced by a list of them.
"""

import contextlib
import importlib
import io
import pathlib
import sys
import tempfile
import unittest.mock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tree

from . import Pair
from . import peer
from . import Problem
from .diffusers_schedulers import eps
from .diffusers_schedulers import scheduler
from .diffusers_schedulers import walk
from .published_code import in_torch
from .published_code import loaded

_SA = "scxue/SA-Solver"
_ER = "QinpengCui/ER-SDE-Solver"
_SEEDS = "nfsrules/SEEDS"
_RESTART = "Newbeeer/diffusion_restart_sampling"
_V3 = "thu-ml/DPM-Solver-v3"
_K = "crowsonkb/k-diffusion"


def draws(problem: Problem, row: int, tag: int = 1) -> np.ndarray:
  """Returns what `sample` with key 0 draws in a row: tag 0 before the call."""
  key = jax.random.fold_in(jax.random.key(0), sampling._TAG)
  key = jax.random.fold_in(jax.random.fold_in(key, row), tag)
  return np.array(tree.normal(key, jnp.asarray(problem.x)))


def _in_turn(noises):
  """Returns a stand-in for randn_like and others: one noise after another."""
  import torch

  rest = iter(noises)

  def randn(like, *unused, **named):
    del unused, named
    z = torch.tensor(next(rest))
    return z.reshape(like.shape) if hasattr(like, "shape") else z.reshape(like)

  return randn


@contextlib.contextmanager
def _drawing(name: str, noises):
  """Makes a scheduler of diffusers draw these noises."""
  code = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
  with unittest.mock.patch.object(code, "randn_tensor", _in_turn(noises)):
    yield


def _all(problem: Problem, rows: int) -> list[np.ndarray]:
  return [draws(problem, i) for i in range(rows)]


# --- diffusers ---------------------------------------------------------------


def _multistep(name, build, order, kind, note="", differs=False, **options):
  told = "".join(f", {k}={v}" for k, v in options.items())

  @peer(
    name,
    "diffusers",
    f"DPMSolverMultistep(order={order}, {kind}{told})",
    note=note,
    differs=differs,
  )
  def _(problem):
    n = len(problem.grid) - 1
    with (
      _drawing("dpmsolver_multistep", _all(problem, n)),
      scheduler(
        "dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        problem,
        solver_order=order,
        algorithm_type=kind,
        final_sigmas_type="sigma_min",
        lower_order_final=False,
        **options,
      ) as made,
    ):
      theirs = walk(made, problem, eps)
    return Pair(build(problem.process, problem.grid), theirs)


_multistep("ddpm", solvers.ddpm, 1, "sde-dpmsolver++")
_multistep(
  "seeds_1_eps",
  lambda p, g: solvers.seeds(p, g, order=1, output="eps"),
  1,
  "sde-dpmsolver",
)
for _type in ("midpoint", "heun"):
  _multistep(
    f"dpmpp_2m_sde_{_type}",
    lambda p, g, kind=_type: solvers.dpmpp_2m_sde(p, g, solver_type=kind),
    2,
    "sde-dpmsolver++",
    solver_type=_type,
  )
_multistep(
  "dpmpp_3m_sde",
  solvers.dpmpp_3m_sde,
  3,
  "sde-dpmsolver++",
  note=(
    "theirs lacks a factor 2 in the second difference and has the wrong sign"
    " in front of the 1/2 of phi_3"
  ),
  differs=True,
)


def _sa_diffusers(p, q, tau):
  @peer(
    f"sa_solver_{p}_{q}",
    "diffusers",
    f"SASolver(predictor={p}, corrector={q}, tau={tau})",
  )
  def _(problem):
    n = len(problem.grid) - 1
    with (
      _drawing("sasolver", _all(problem, n)),
      scheduler(
        "sasolver",
        "SASolverScheduler",
        problem,
        predictor_order=p,
        corrector_order=q,
        tau_func=lambda t: tau,
      ) as made,
    ):
      theirs = walk(made, problem, eps)
    ours = solvers.sa_solver(
      problem.process,
      problem.grid,
      predictor=p,
      corrector=q,
      tau=tau,
      few_steps=True,
    )
    return Pair(ours, theirs)


_sa_diffusers(2, 2, 1.0)
_sa_diffusers(3, 4, 0.6)


@peer("ddim_eta_1", "diffusers", "EulerAncestralDiscrete", process="edm")
def _(problem):
  n = len(problem.grid) - 1
  with (
    _drawing("euler_ancestral_discrete", _all(problem, n)),
    scheduler(
      "euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", problem
    ) as made,
  ):
    made.is_scale_input_called = True
    theirs = walk(made, problem, eps)
  return Pair(solvers.ddim(problem.process, problem.grid, eta=1.0), theirs)


# --- k-diffusion -------------------------------------------------------------


def _k_diffusion(name, function, build, noises=None, **options):
  """Registers a sampler of k-diffusion, on the EDM process."""
  told = "".join(f", {k}={v}" for k, v in options.items())

  @peer(
    name,
    _K,
    f"sample_{function}{told}",
    process="edm",
    needs=f"{_K}/k_diffusion/sampling.py",
  )
  def _(problem):
    import torch

    n = len(problem.grid) - 1
    given = _all(problem, n) if noises is None else noises(problem)
    next_noise = _in_turn(given)
    x = torch.tensor(problem.x)
    with loaded(
      problem.code / _K,
      "k_diffusion.sampling",
      ("k_diffusion", "k_diffusion.utils", "torchdiffeq", "torchsde"),
    ) as code:
      code.utils.append_dims = lambda v, dims: v
      theirs = getattr(code, f"sample_{function}")(
        in_torch(problem, 0),
        x,
        torch.tensor(problem.levels),
        noise_sampler=lambda *sigmas: next_noise(x),
        disable=True,
        **options,
      )
    return Pair(build(problem.process, problem.grid), theirs.numpy())


def _odd(problem):
  """Noises of the second rows of the steps."""
  return [draws(problem, 2 * i + 1) for i in range(len(problem.grid) - 1)]


def _along_path(problem):
  """The two noises of dpmpp_sde: of the stage, and of all of the step."""
  table = solvers.dpmpp_sde(problem.process, problem.grid)
  noises = []
  for i in range(len(problem.grid) - 1):
    first, second = draws(problem, 2 * i), draws(problem, 2 * i + 1)
    kept = table.state[2 * i + 1, 1, 1] * table.noise[2 * i, 2]
    fresh = table.noise[2 * i + 1, 2]
    total = (kept * first + fresh * second) / np.hypot(kept, fresh)
    noises += [first, total]
  return noises


for _eta in (1.0, 0.5):
  _k_diffusion(
    "ddim_eta",
    "euler_ancestral",
    lambda p, g, eta=_eta: solvers.ddim(p, g, eta=eta),
    eta=_eta,
  )
  _k_diffusion(
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral",
    lambda p, g, eta=_eta: solvers.dpmpp_2s_ancestral(p, g, eta=eta),
    _odd,
    eta=_eta,
  )
  _k_diffusion(
    "dpm_2_ancestral",
    "dpm_2_ancestral",
    lambda p, g, eta=_eta: solvers.dpmpp_2s_ancestral(
      p, g, eta=eta, output="eps"
    ),
    _odd,
    eta=_eta,
  )
  for _type in ("midpoint", "heun"):
    _k_diffusion(
      "dpmpp_2m_sde",
      "dpmpp_2m_sde",
      lambda p, g, eta=_eta, kind=_type: solvers.dpmpp_2m_sde(
        p, g, eta=eta, solver_type=kind
      ),
      eta=_eta,
      solver_type=_type,
    )
  _k_diffusion(
    "dpmpp_3m_sde",
    "dpmpp_3m_sde",
    lambda p, g, eta=_eta: solvers.dpmpp_3m_sde(p, g, eta=eta, published=True),
    eta=_eta,
  )
_k_diffusion("dpmpp_sde", "dpmpp_sde", solvers.dpmpp_sde, _along_path)


# --- the authors' own code ---------------------------------------------------


def _sa_authors(p, q, tau):
  @peer(
    f"sa_solver_{p}_{q}",
    _SA,
    f"sample_few_steps(predictor={p}, corrector={q}, tau={tau})",
    needs=f"{_SA}/sa_solver.py",
  )
  def _(problem):
    import torch

    n, grid = len(problem.grid) - 1, problem.grid
    noises = [np.zeros_like(problem.x), *_all(problem, n)]  # one is not used
    with loaded(problem.code / _SA, "sa_solver") as code:
      schedule = code.NoiseScheduleVP("linear", dtype=torch.float64)
      made = code.SASolver(in_torch(problem, 1), schedule)
      with unittest.mock.patch.object(torch, "randn_like", _in_turn(noises)):
        theirs = made.sample_few_steps(
          torch.tensor(problem.x),
          lambda t: torch.tensor(tau),
          steps=n,
          t_start=float(grid[0]),
          t_end=float(grid[-1]),
          skip_type="time",
          skip_order=2,
          predictor_order=p,
          corrector_order=q,
        )
    ours = solvers.sa_solver(
      problem.process,
      grid,
      predictor=p,
      corrector=q,
      tau=lambda t: tau if t > grid[-1] else 0.0,
      few_steps=True,
    )
    return Pair(ours, theirs.numpy())


_sa_authors(2, 3, 1.0)
_sa_authors(3, 4, 0.6)


def _er_sde(order):
  @peer(
    f"er_sde_{order}",
    _ER,
    f"vp_{order}_order" + ("_taylor" if order > 1 else ""),
    note="our published=True; their 100-point sums without it",
    needs=f"{_ER}/er_sde_solver.py",
  )
  def _(problem):
    import torch

    noises = _all(problem, len(problem.grid) - 1)
    with loaded(problem.code / _ER, "er_sde_solver") as code:
      made = code.ER_SDE_Solver("vp", "x_start")
      # theirs takes variances below 1e-6 for 0, and torch's numbers alone
      made.numerical_clip = lambda v: np.maximum(v, 0.0)
      suffix = "_taylor" if order > 1 else ""
      with unittest.mock.patch.object(torch, "randn_like", _in_turn(noises)):
        theirs = getattr(made, f"vp_{order}_order{suffix}")(
          in_torch(problem, 0),
          torch.tensor(problem.x),
          problem.alpha,
          problem.sigma,
          problem.grid,
        )
    ours = solvers.er_sde(
      problem.process, problem.grid, order=order, published=True
    )
    return Pair(ours, theirs.numpy())


for _order in (1, 2, 3):
  _er_sde(_order)


def _seeds(order, output, differs=False):
  @peer(
    f"seeds_{order}_{output}",
    _SEEDS,
    f"ETD_SERK_SOLVER(order={order}, noise_pred={output == 'eps'})",
    note=(
      "theirs takes r1 for r2 in psi(r2) (x0) and the scale of the wrong stage"
      " for two noises (eps)"
      if differs
      else ""
    ),
    differs=differs,
    needs=f"{_SEEDS}/seeds_lib/methods/etd_serk.py",
  )
  def _(problem):
    import torch

    process, n = problem.process, len(problem.grid) - 1
    number = lambda f: lambda t: torch.tensor(float(f(np.float64(float(t)))))
    net = lambda x, level, labels: in_torch(problem, 0)(
      x * float(process.alpha(process.time_at(float(level)))),
      process.time_at(float(level)),
    )
    for name in [m for m in sys.modules if m.startswith("seeds_lib")]:
      del sys.modules[name]  # folders without a file outlive `loaded`
    with loaded(problem.code / _SEEDS, "seeds_lib.methods.etd_serk") as code:
      made = code.ETD_SERK_SOLVER(
        net,
        number(process.log_snr),
        number(process.log_snr_inverse),
        None,
        number(process.noise_level),
        number(process.alpha),
        order,
        None,
        output == "eps",
        None,
        None,
      )
      # theirs subtracts its noises
      made.randn_like = _in_turn([-z for z in _all(problem, order * n)])
      x, t = torch.tensor(problem.x), torch.tensor(problem.grid)
      for i in range(n):
        x = made.update(x, t[i], t[i + 1], -1, i)
    ours = solvers.seeds(process, problem.grid, order=order, output=output)
    return Pair(ours, x.numpy())


for _output in ("x0", "eps"):
  for _order in (1, 2, 3):
    _seeds(_order, _output, differs=_order == 3)


@peer(
  "restart",
  _RESTART,
  "restart_sampler",
  process="edm",
  needs=f"{_RESTART}/benchmarks/generate_restart.py",
)
def _(problem):
  import torch

  process, n = problem.process, len(problem.grid) - 1
  grid = grids.karras(process, n, to_zero=True)
  at, high, steps, times = 6, 3.0, 3, 2
  ours = solvers.restart(
    process, grid, intervals=[(grid[at], high, steps, times)]
  )
  rows = [2 * at + 2 * steps * k for k in range(times)]
  noises = [np.zeros_like(problem.x)] * 100  # scaled by 0, but for these
  for k, row in enumerate(rows):
    noises[at + k * (steps + 1)] = draws(problem, row, tag=0)
  net = unittest.mock.MagicMock()
  net.sigma_min, net.sigma_max = process.t_min, process.t_max
  net.round_sigma.side_effect = torch.as_tensor
  net.side_effect = lambda x, t, labels: in_torch(problem, 0)(x, t)
  away = ("click", "tqdm", "PIL", "PIL.Image", "dnnlib", "torchvision")
  away += ("torchvision.utils", "torch_utils")
  away += ("torch_utils.distributed", "torch_utils.misc")
  folder = problem.code / _RESTART / "benchmarks"
  with (
    loaded(folder, "generate_restart", away) as code,
    unittest.mock.patch.object(torch, "randn_like", _in_turn(noises)),
  ):
    theirs = code.restart_sampler(
      net,
      torch.tensor(problem.x) / process.t_max,
      randn_like=torch.randn_like,
      num_steps=n,
      S_noise=1,
      restart_info=f'{{"0": [{steps + 1}, {times}, {grid[at]}, {high}]}}',
    )
  return Pair(ours, theirs.numpy())


def _statistics(process, d=16, m=48001):
  """Smooth curves by coordinate; nodes enough for their trapezoids."""
  gaussian = solvers.v3_statistics.of_gaussian(
    process, variance=np.linspace(0.1, 4.0, d), m=m
  )
  return gaussian._replace(s=-0.3 * gaussian.l * np.linspace(0.0, 1.0, d))


def _v3(order, corrector, pseudo=False, **ours: Any):
  @peer(
    f"dpm_solver_v3_{order}",
    _V3,
    f"DPM_Solver_v3(order={order}, use_corrector={corrector},"
    f" p_pseudo={pseudo})",
    process="edm",
    note=(
      "statistics of 48,001 nodes, for theirs integrates by trapezoids; b = 0,"
      " which asks for `recentred`"
    ),
    needs=f"{_V3}/codebases/edm/samplers/dpm_solver_v3.py",
  )
  def _(problem):
    import torch

    process, n = problem.process, len(problem.grid) - 1
    grid = grids.log_snr(process, n)
    statistics = _statistics(process)
    image = lambda v: v[:, :, None, None]
    with (
      tempfile.TemporaryDirectory() as folder,
      contextlib.redirect_stdout(io.StringIO()),  # it prints its grid
      unittest.mock.patch.object(torch.Tensor, "cuda", lambda self: self),
      unittest.mock.patch.object(torch, "FloatTensor", torch.DoubleTensor),
      loaded(
        problem.code / _V3 / "codebases" / "edm" / "samplers", "dpm_solver_v3"
      ) as code,
      loaded(
        problem.code / _V3 / "codebases" / "edm" / "samplers", "utils"
      ) as utils,
    ):
      where = pathlib.Path(folder)
      np.savez(where / "l.npz", l=image(statistics.l))
      s, b = image(statistics.s), image(statistics.b)
      np.savez(where / "sb.npz", s=s, b=0.0 * b)
      made = code.DPM_Solver_v3(
        folder,
        utils.NoiseScheduleEDM(),
        steps=n,
        t_start=float(grid[0]),
        t_end=float(grid[-1]),
        device="cpu",
      )
      x = torch.tensor(problem.x)[:, :, None, None]
      theirs = made.sample(
        in_torch(problem, 1), x, order, pseudo, corrector, True, True
      )
    table = solvers.dpm_solver_v3(
      process,
      grid,
      statistics,
      order=order,
      corrector=corrector,
      pseudo=pseudo,
      **ours,
    )
    return Pair(table, theirs.numpy()[:, :, 0, 0])


_v3(1, False)
_v3(2, False)
_v3(2, True)
_v3(3, False)
_v3(3, True)
_v3(3, True, pseudo=True)

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

from experiments.peers import Pair
from experiments.peers import peer
from experiments.peers import Problem
from jaxdiff import solvers


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
    problem: of whose grid `places` are the indices that are asked.
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


def _multistep(solver, build, order, kind, note="", differs=False, **options):
  """Registers a case of DPMSolverMultistepScheduler."""
  told = "".join(f", {k}={v}" for k, v in options.items())

  @peer(
    solver,
    "diffusers",
    f"DPMSolverMultistep(order={order}, {kind}{told})",
    note=note,
    differs=differs,
  )
  def _(problem):
    with scheduler(
      "dpmsolver_multistep",
      "DPMSolverMultistepScheduler",
      problem,
      solver_order=order,
      algorithm_type=kind,
      final_sigmas_type="sigma_min",
      **({"lower_order_final": False} | options),
    ) as made:
      theirs = walk(made, problem, eps)
    return Pair(build(problem.process, problem.grid), theirs)


_multistep("dpmpp_2m", solvers.dpmpp_2m, 2, "dpmsolver++")

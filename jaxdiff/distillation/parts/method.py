"""Method: the players of a distillation, and the models they look at.

A builder, one for each method, takes a teacher and a student and returns a
`Method`. The rest is the same for all of them:

  method = distillation.dmd(teacher, student, optimizer=optax.adam(1e-4))
  state = distillation.init_state(key, method)
  update = distillation.make_update(method)
  state = training.train(state, update, batches, steps=...)
  student = method.finished(state)

What a player's loss finds in `nets`: "teacher", a model; "student" and the
other players' parameters by name; "ema", the student's averaged parameters;
"step"; "memory". A batch is a dict with "image" f[batch, ...], "index"
i32[batch] and, for conditional models, "label".
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff import data
from jaxdiff import grids
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import training
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import jumps
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.training import alternating
from jaxdiff.training import ema as emas
from jaxdiff.types import PyTree


@dataclasses.dataclass(frozen=True)
class Method:
  """A method of distillation, ready to be trained.

  Attributes:
    student: the model that is trained, with its initial parameters.
    players: `training.Player`s by name, in the order in which they move; the
      one called "student" trains the student.
    params: initial parameters of the other players.
    frozen: what is looked at alone: the teacher.
    memory: numbers that are remembered from update to update.
    remember: how, as in `training.alternating.make_update`.
    ema: decay of the student's average, or a profile of `training.ema`.
    gamma: gamma of the student's own sampler, `solvers.gamma_sampling`.

  Raises:
    ValueError: if teacher and student are of different processes.
  """

  student: Denoiser
  players: Mapping[str, training.Player]
  params: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)
  frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  memory: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  remember: Callable[..., Mapping] | None = None
  ema: float | emas.Profile = 0.999
  gamma: float = 1.0

  def __post_init__(self):
    if getattr(self.student, "time", None) != "none":  # asked at no time
      looked_at = {k: self.frozen.get(k) for k in ("teacher", "reference")}
      agreement.check_models("distillation", **looked_at, student=self.student)

  def finished(self, state: training.TrainState, ema: bool = True) -> Any:
    """Returns the student with the parameters of a state, averaged or last."""
    params = state.params
    if ema:
      params = emas.parameters(state.ema_params, params)
    return dataclasses.replace(self.student, params=params)


@checks.door
def init_state(
  key: jax.Array, method: Method, *, averages: int = 0
) -> training.TrainState:
  """Returns the state before the first update.

  Args:
    key: PRNG key of the run.
    method: what is to be trained.
    averages: how many further averages of the student are kept.
  """
  return alternating.init_state(
    key,
    method.players,
    {"student": method.student.params, **method.params},
    memory=method.memory,
    averages=averages,
  )


@checks.door
def make_update(
  method: Method,
  *,
  averages: tuple[emas.Profile, ...] = (),
  shardings: tuple[PyTree, PyTree] | None = None,
  axis_name: str | None = None,
) -> alternating.Update:
  """Returns update(state, batch) -> (state, metrics), one jitted program.

  All inner steps, all optimizers and the averages are in it; the state is
  donated. See `training.alternating.make_update` for metrics and arguments.
  """
  return alternating.make_update(
    method.players,
    frozen=method.frozen,
    ema=method.ema,
    averages=averages,
    remember=method.remember,
    prepare=data.scaled,  # bytes become numbers on the device
    shardings=shardings,
    axis_name=axis_name,
  )


@checks.door
def few_step_grid(
  process: GaussianProcess,
  calls: int,
  *,
  start: float | None = None,
  lowest: float | None = None,
  to_zero: bool = True,
) -> np.ndarray:
  """Returns the times of a student's few calls, f64[calls + 1].

  Karras's grid of so many steps to t_min, whose last time is t_zero if
  `to_zero`: no call is spent where there is no noise left to remove.

  Args:
    process: process of the student.
    calls: network calls.
    start: sigma / alpha that it begins at; None is t_max.
    lowest: sigma / alpha of the last call, for a student whose last call is to
      do more than the finest details; None is where Karras's grid has it.
    to_zero: whether the last call answers for clean data, as those of
      distribution matching do; consistency models and jumps end at t_min.
  """
  first = None if start is None else float(process.time_at(start))
  if lowest is None or calls == 1:
    grid = np.array(grids.karras(process, calls, start=first))
  else:
    above = dataclasses.replace(process, t_min=float(process.time_at(lowest)))
    inner = grids.karras(above, calls - 1, start=first)
    grid = np.append(inner, process.t_min)
  if to_zero and np.isfinite(process.t_zero):
    grid[-1] = process.t_zero
  return grid


@checks.door
def sampler(
  student: Denoiser, grid: np.ndarray, *, gamma: float = 1.0
) -> tuple[Any, tables.Tableau]:
  """Returns (model, table) with which `sampling.sample` draws from a student.

  One call for each step of the grid. A student that jumps is bound to the
  jumps that the table makes; every other one is an ordinary model already.

  Args:
    student: a Denoiser.
    grid: f64[n + 1], such as `few_step_grid`'s.
    gamma: gamma of `solvers.gamma_sampling`: 1 renoises (consistency models and
      distribution matching), 0 jumps from time to time.
  """
  checks.process(student.process, "sampler(student, grid)")
  table = solvers.gamma_sampling(student.process, grid, gamma=gamma)
  if getattr(student, "jumps", False):
    student = jumps.along(student, student.process, grid, gamma=gamma)
  return student, table

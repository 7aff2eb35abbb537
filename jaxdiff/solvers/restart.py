r"""Restart: forward noise and the ODE again, over chosen intervals.

An ODE solver runs from noise to data. Where it has reached the noise level
`low` of an interval, this is done `times` times over: as much fresh noise as
the forward process adds from `low` up to `high`,

  x_high = (alpha_high / alpha_low) x_low
           + alpha_high sqrt(s_high^2 - s_low^2) z,      s = sigma / alpha,

and a run of the same solver from there back to `low` in `steps` steps. The
noise contracts the errors that the solver has gathered, as an SDE does, while
the steps stay those of an ODE.

Restart is table algebra: the repeated stretch is the solver's own table, whose
first row draws the noise before its call, and the whole is a concatenation.
Calls are counted by the table's shape. With an exact solver all marginals are
kept; with a solver of order k they converge at order k.

Reference: Xu et al. (2023), https://arxiv.org/abs/2306.14878, Algorithm 2;
Heun's steps, on Karras grids.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import tableau as tables
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import Solver
from jaxdiff.solvers.heun import heun
from jaxdiff.tableau import Tableau


class Interval(NamedTuple):
  """A stretch of noise levels that is walked again.

  Attributes:
    low: noise level sigma / alpha where the noise is added; moved to the
      nearest one of the grid.
    high: noise level that it is raised to.
    steps: steps of the solver from high to low.
    times: how often.
  """

  low: float
  high: float
  steps: int = 3
  times: int = 1


@checks.door(host=True)
def restart(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  intervals: Sequence[Interval | tuple] = (),
  solver: Solver = heun,
  stretch: Callable[..., np.ndarray] = grids.karras,
  s_noise: float = 1.0,
) -> Tableau:
  """Returns the table of `solver` with Restart on `grid`, f64[n + 1].

  Args:
    process: the forward process.
    grid: f64[n + 1], of the main run.
    intervals: `Interval`s (low, high, steps, times); without any it is
      `solver`'s own table.
    solver: (process, grid) -> Tableau, of the main run and the repeated ones.
    stretch: grid of the repeated runs, (process, n, start=t) -> times; its
      process ends at the interval's low.
    s_noise: inflation of the new noise.

  Raises:
    ValueError: for a process or grid that the solver refuses, and an interval
      outside of the grid, of no height, or without steps.
  """
  checks.process(process, "restart(process, grid)")
  if len(intervals):
    check_normal(process, "restart")
  grid = checks.falling_grid(grid, process.t_min, process.t_max, process.t_zero)
  level = process.noise_level(grid)
  stops = {}
  for given in intervals:
    interval = Interval(*given)
    _check(interval, level)
    at = int(np.argmin(abs(level - interval.low)))
    stops.setdefault(at, []).append(interval)
  parts, begin = [], 0
  for at in sorted(stops):
    if at > begin:
      parts.append(solver(process, grid[begin : at + 1]))
      begin = at
    for interval in stops[at]:
      run = _stretch(process, grid[at], interval, stretch)
      again = solver(process, run)
      ratio = process.alpha(run[0]) / process.alpha(grid[at])
      spread = np.sqrt(process.noise_level(run[0]) ** 2 - level[at] ** 2)
      scale = float(s_noise * process.alpha(run[0]) * spread)
      for _ in range(interval.times):
        parts[-1] = _rescaled(parts[-1], ratio)
        parts.append(_noised(again, scale))
  if begin < len(grid) - 1:
    parts.append(solver(process, grid[begin:]))
  return tables.validate(tables.concat(*parts))


def _check(interval, level):
  if interval.steps < 1 or interval.times < 1:
    raise ValueError(
      f"an interval takes steps >= 1 and times >= 1, got {interval}"
    )
  low, high = level[level > 0][-1], level[0]
  if not low * (1.0 - 1e-9) <= interval.low < interval.high <= high:
    raise ValueError(
      "an interval (low, high) of noise levels lies inside of the grid's,"
      f" [{low:.4g}, {high:.4g}], low below high; got {interval}"
    )


def _stretch(process, t_low, interval, stretch):
  """Returns the times of one repeated run, from high to low."""
  low, high = float(process.noise_level(t_low)), interval.high
  if not low < high:
    raise ValueError(
      f"the grid's noise level nearest to low = {interval.low:.4g} is"
      f" {low:.4g}, not below high = {high:.4g}; take a finer grid"
    )
  part = dataclasses.replace(process, t_min=float(t_low))
  run = stretch(part, interval.steps, start=float(process.time_at(high)))
  run[-1] = t_low
  return run


def _noised(table, scale):
  """Returns the table with noise of this scale before its first call.

  At a step's start y = a, so what the first row takes from a it takes from y,
  which alone has the noise.
  """
  state, noise = table.state.copy(), table.noise.copy()
  state[0, :, 0] += state[0, :, 1]
  state[0, :, 1] = 0.0
  noise[0, 0] = np.hypot(noise[0, 0], scale)
  return table._replace(state=state, noise=noise)


def _rescaled(table, ratio):
  """Returns the table whose last y is scaled; the accepted sample is not."""
  state, history = table.state.copy(), table.history.copy()
  noise = table.noise.copy()
  state[-1, 0] *= ratio
  history[-1, 0] *= ratio
  noise[-1, 1] *= ratio
  return table._replace(state=state, history=history, noise=noise)

r"""Teacher steps: any table, from times that differ between samples.

Distillation along trajectories asks for single steps t_i -> t_{i+1} of a solver
with another i for every sample. The tables of all intervals of a grid are made
on the host, as always, and stacked; a step gathers every sample's own rows.
Each step begins without memory: one-step solvers keep their order (Euler, DDIM,
Heun, RK4, DPM-Solver-2), multistep ones fall to their first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import control
from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import DTypeLike


def falling(process: GaussianProcess, grid: int | np.ndarray) -> np.ndarray:
  """Returns the grid of a trajectory, f64[n + 1], from noise to t_min.

  Args:
    process: the forward process.
    grid: n, for `grids.karras` from t_max to t_min, or the times themselves.

  Raises:
    ValueError: if the times do not fall, leave the process, or end elsewhere.
  """
  if isinstance(grid, (int, np.integer)):
    return grids.karras(process, int(grid))
  grid = grids.from_times(process, grid)
  if not np.isclose(grid[-1], process.t_min, rtol=1e-9, atol=0.0):
    raise ValueError(
      f"the grid ends at {grid[-1]:.6g}, but trajectories end at the process's"
      f" t_min = {process.t_min:.6g}, where a consistency model is x itself;"
      " end it there (to_zero=False), or give the process another t_min"
    )
  return grid


def at(grid: np.ndarray, i: jax.Array, dtype: DTypeLike) -> jax.Array:
  """Returns the times of the grid at places i, in what x of dtype computes."""
  return jnp.asarray(grid, tree.compute_dtype(dtype))[i]


def of(
  solver: Any, process: GaussianProcess, grid: np.ndarray
) -> tables.Tableau:
  """Returns one table for every interval of the grid: leaves [n, rows, ...].

  Args:
    solver: a solver or its text: "heun", "ddim", "dpm_solver(order=2)".
    process: the forward process.
    grid: f64[n + 1].

  Raises:
    ValueError: for text that names no solver, or one that draws noise.
  """
  if isinstance(solver, str):
    solver = solvers.from_spec(solver)
  each = [solver(process, grid[i : i + 2]) for i in range(len(grid) - 1)]
  if any(table.stochastic for table in each):
    raise ValueError(
      "a teacher's steps follow the probability-flow ODE, but this solver draws"
      " noise; take a deterministic one, such as 'heun' or 'ddim'"
    )
  stacked, _ = tables.stack(each)
  return stacked


def walk(
  teacher: Callable,
  steps: tables.Tableau,
  x: jax.Array,
  first: jax.Array,
  count: Any = 1,
  labels: tuple = (),
) -> jax.Array:
  """Returns where the teacher takes x in `count` steps, like x.

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    steps: as `of` makes them.
    x: [batch, ...], sample b at the first time of interval first[b].
    first: i32[batch].
    count: how many steps, one number for all; it may be traced, and there are
      no gradients then.
    labels: labels of the samples, as `generators.label` returns them.
  """
  dtype = tree.compute_dtype(x.dtype)
  advance = sampling.table_advance(lambda y, t: teacher(y, t, *labels), first)
  trailing = (1,) * (x.ndim - 1)

  def own(leaf, at):
    """Returns the samples' rows, [rows, ..., batch, 1, ...]."""
    leaf = jnp.moveaxis(jnp.asarray(leaf, dtype)[at], 0, -1)
    return leaf if leaf.ndim == 2 else leaf.reshape(leaf.shape + trailing)

  def step(k, x):
    table = tables.Tableau(*(own(leaf, first + k) for leaf in steps))
    # zeros that are known while compiling: no noise is drawn, nor asked for
    table = table._replace(noise=np.zeros((table.nfe, 3)))
    rows = sampling.rows_of(table, dtype)
    state = sampling.initial_state(x, table.memory)
    for i in range(table.nfe):  # deterministic: the key is never looked at
      row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
      state, _ = advance(jax.random.key(0), row, state)
    return state.a.astype(x.dtype)

  if isinstance(count, int) and count == 1:
    return step(0, x)
  return control.fori_loop(0, count, step, x)

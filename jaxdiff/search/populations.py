r"""Many candidate tables on one model and the same noises, in one program.

A solver is a table of numbers, so a population of solvers is one table with a
leading axis. The program below maps over it: `chunk` candidates at a time under
vmap, one chunk after the other inside the program, so that memory is bounded
and nothing returns to Python between candidates. The number of chunks is
traced: populations of 1,000 and of 700 run the same program.

What a candidate changes from call to call besides its row (which blocks of the
network are skipped, a guidance scale) is a *setting*: `bind(model, setting)` is
the model of that call.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.search import fitness as fitnesses
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import Model

_CACHED = 4096  # values of a chunk's samples that a CPU handles best
Bind = Callable[[Any, Any], sampling.Model]


class Problem(NamedTuple):
  """What every candidate is judged on: one model, the same noises, a fitness.

  Attributes:
    key: PRNG key of the noise that stochastic tables draw on the way.
    model: model(x, t) -> Prediction, or what `bind` makes models of.
    start: f[batch, ...], where all candidates start from.
    fitness: samples f[batch, ...] -> scalar, the smaller the better; a pytree,
      as those of `fitness` are, or a plain function.
    index: i32[batch], the numbers of the noises; those of the problem that a
      winner is reported on must be others.
  """

  key: jax.Array
  model: Model
  start: Array
  fitness: Callable[[Array], Array]
  index: Array


@checks.door
def converged(
  key: jax.Array,
  model: sampling.Model,
  process: GaussianProcess,
  shape: Sequence[int],
  index: ArrayLike,
  *,
  steps: int = 200,
  dtype: DTypeLike = jnp.float32,
) -> Problem:
  """Returns the problem: be near to where the ODE itself takes these noises.

  Args:
    key: PRNG key of the noises. Noise i depends on the key and on i alone.
    model: the model.
    process: its forward process.
    shape: shape of one sample.
    index: numbers of the noises, such as range(256); a count is that range.
    steps: steps of the teacher, RK4 on the Karras grid: 4 calls each.
    dtype: dtype of the noises, and of the arithmetic if it is wider than
      float32.
  """
  index = _numbers(index)
  start = process.prior(key, (len(index), *shape), index=index, dtype=dtype)
  teacher = solvers.rk4(process, grids.karras(process, steps))
  target = sampling.sample(key, model, teacher, start, index=index)
  return Problem(key, model, start, fitnesses.Rmse(target), index)


@checks.door
def held_out(
  problem: Problem, process: GaussianProcess, index: ArrayLike, fitness: Any
) -> Problem:
  """Returns the same problem on other noises, for an honest report.

  Args:
    problem: that was searched on.
    process: the forward process that both start from.
    index: numbers of noises that the search did not see.
    fitness: another one is best: what was optimized flatters.

  Raises:
    ValueError: if a noise is in both.
  """
  index = _numbers(index)
  like = problem.start
  shape = (len(index), *like.shape[1:])
  start = process.prior(problem.key, shape, index=index, dtype=like.dtype)
  other = problem._replace(start=start, fitness=fitness, index=index)
  check_apart(problem, other)
  return other


@checks.door
def check_apart(searched: Problem, reported: Problem) -> None:
  """Raises a ValueError if two problems share a noise."""
  keys = [jax.random.key_data(p.key) for p in (searched, reported)]
  if not np.array_equal(*keys):
    return
  common = np.intersect1d(searched.index, reported.index)
  if len(common):
    raise ValueError(
      "search and evaluation noises must differ, but both problems hold"
      f" {len(common)} of them, number {common[0]} first; give the report"
      " another range of index (or another key)"
    )


@checks.door
def evaluate(
  problem: Problem,
  population: Sequence[tables.Tableau] | tables.Tableau,
  *,
  scale: ArrayLike | None = None,
  settings: Any = None,
  bind: Bind | None = None,
  chunk: int | None = None,
) -> np.ndarray:
  """Returns the fitness of every candidate, f[m]; one compiled program.

  A table that is shorter than another is padded by rows that change nothing,
  and pays for them: keep populations of one length. Nothing recompiles for
  other tables, noises, parameters or sizes m (up to the next power of two of
  chunks).

  Args:
    problem: what they are judged on.
    population: tables, or a stack of them (`tableau.stack`).
    scale: f[m], factors of the start, for candidates that start elsewhere.
    settings: tree of [m, n, ...], what changes from call to call.
    bind: (model, setting) -> model; needed with settings. One function object
      is one program.
    chunk: candidates that run at once, 64 by default on an accelerator and, on
      a CPU, as many as stay in its caches.

  Returns:
    The fitnesses; inf where one is not finite, with a warning.

  Raises:
    ValueError: for an empty population, settings without bind, or tables of
      another process than the model's.
  """
  if (settings is None) != (bind is None):
    raise ValueError(
      "settings and bind belong together: bind(model, setting) makes the model"
      " of a call"
    )
  stacked = population
  if not isinstance(population, tables.Tableau):
    stacked, _ = tables.stack(population)
  agreement.check(problem.model, stacked, None, "evaluate")
  size = tree.batch_size(stacked)
  if chunk is None:
    chunk = 64
    if jax.default_backend() == "cpu":
      chunk = int(np.clip(_CACHED // problem.start.size, 1, 16))
  chunks = -(-size // chunk)
  capacity = chunk * 2 ** (chunks - 1).bit_length()
  scale = np.ones(size) if scale is None else np.asarray(scale)
  filled = np.minimum(np.arange(capacity), size - 1)
  noisy = bool(np.any(np.asarray(stacked.noise)))
  block = lambda leaf: np.asarray(leaf)[filled].reshape(
    (capacity // chunk, chunk, *np.shape(leaf)[1:])
  )
  candidates = jax.tree.map(block, (stacked, scale, settings))
  arrays, static = tree.partition((problem.model, problem.fitness))
  values = _program(
    problem.key,
    arrays,
    problem.start,
    problem.index,
    candidates,
    chunks,
    static=static,
    bind=bind,
    noisy=noisy,
  )
  values = np.asarray(values).reshape(-1)[:size]
  bad = ~np.isfinite(values)
  if bad.any():
    warnings.warn(
      f"{bad.sum()} of {size} candidates gave no finite fitness, number"
      f" {int(bad.argmax())} first; they count as infinitely bad",
      stacklevel=2,
    )
  return np.where(bad, np.inf, values)


_traced = []  # an entry for every program; jit's own cache forgets some


def compilations() -> int:
  """Returns how many programs `evaluate` has made."""
  return len(_traced)


@functools.partial(jax.jit, static_argnames=("static", "bind", "noisy"))
def _program(
  key, arrays, start, index, candidates, chunks, *, static, bind, noisy
):
  """Evaluates [capacity / chunk, chunk] candidates, the first `chunks` rows."""
  _traced.append(None)
  model, fitness = tree.combine(arrays, static)
  dtype = tree.compute_dtype(start.dtype)

  def one(candidate):
    table, scale, settings = candidate
    if not noisy:  # under vmap a condition draws both ways, so say it here
      table = table._replace(noise=np.zeros(table.noise.shape))
    x = (scale.astype(dtype) * start).astype(start.dtype)
    if bind is None:
      return fitness(sampling.sample(key, model, table, x, index=index))
    rows = (sampling.rows_of(table, dtype), settings)

    def advance(key, row, state):
      row, setting = row
      bound = bind(model, setting)
      return sampling.table_advance(bound, index)(key, row, state)

    state = sampling.initial_state(x, table.memory)
    end, _ = sampling.run(key, advance, rows, state)
    return fitness(end.a.astype(start.dtype))

  shape = jax.tree.leaves(candidates)[0].shape[:2]

  def step(i, values):
    at = jax.tree.map(lambda leaf: leaf[i], candidates)
    if shape[1] == 1:  # matrix products without a batch axis are faster
      new = one(jax.tree.map(lambda leaf: leaf[0], at))[None]
    else:
      new = jax.vmap(one)(at)
    return values.at[i].set(new.astype(dtype))

  return control.fori_loop(0, chunks, step, jnp.full(shape, jnp.inf, dtype))


def _numbers(index: ArrayLike) -> np.ndarray:
  """Returns numbers of noises; a count stands for its range."""
  if isinstance(index, (int, np.integer)):
    index = np.arange(index)
  return np.asarray(index, np.int32)

r"""AutoDiffusion: which K of T time steps, and which blocks to skip at each.

A candidate is a *set* of rungs of a ladder of T times and, for each of them, a
set of residual blocks that are passed by. It is sampled by DDIM (or any other
solver) on these times and on to sigma = 0; the network is told the ladder's own
times. Its cost is the number of blocks that it computes,

  sum_i (L - |skip_i|) <= B,

so that skipping blocks pays for further steps. Evolution: the best are parents
of mutations and crossovers, some candidates are drawn afresh, and nothing is
evaluated twice. The joint search looks for steps alone first, then lets the
share of skipped blocks grow from epoch to epoch.

The fitness, a Frechet distance as a rule, is taken from fixed noises and
flatters the winner: report on other noises and another metric.
Reference: Li et al. (2023), https://arxiv.org/abs/2309.10438, sections 3.2-3.4.
(In their public code the mutation of a single layer compares where it should
assign; here it assigns.)
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.search import populations
from jaxdiff.solvers.building import Solver
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike

Fitness = Callable[[Sequence["Candidate"]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A set of steps with what each of them skips; kept noisiest first.

  Attributes:
    steps: different rungs of the ladder, 0 the least noisy.
    skips: the blocks that each step skips; empty for none at any.
  """

  steps: tuple[int, ...]
  skips: tuple[frozenset[int], ...] = ()

  def __post_init__(self):
    steps = [int(s) for s in self.steps]
    repeated = sorted({s for s in steps if steps.count(s) > 1})
    if repeated or not steps:
      raise ValueError(
        "a candidate is a set of different steps, at least one; got"
        f" {tuple(steps)}"
        + (f", where {repeated} are repeated" if repeated else "")
      )
    skips = [frozenset(s) for s in self.skips] or [frozenset()] * len(steps)
    if len(skips) != len(steps):
      raise ValueError(
        f"{len(steps)} steps need as many sets of skipped blocks (or none at"
        f" all), got {len(skips)}"
      )
    order = np.argsort(steps)[::-1]
    object.__setattr__(self, "steps", tuple(steps[i] for i in order))
    skips = tuple(skips[i] for i in order)
    object.__setattr__(self, "skips", skips if any(skips) else ())


@dataclasses.dataclass(frozen=True)
class Config:
  """The evolution; defaults are the paper's.

  Attributes:
    population: candidates of an epoch, the first one's too.
    parents: number of the best that others are bred from.
    n_mutate: mutations per epoch.
    n_cross: crossovers per epoch; the rest of it is drawn afresh.
    epochs: number of epochs, 15 for the joint search.
    p_mutate: probability that a step, or a block of it, is drawn anew.
    max_prune: largest share of the blocks that a step skips, in the end.
    patience: epochs of steps alone in the joint search, at most; it ends
      earlier when the best candidate no longer changes.
  """

  population: int = 50
  parents: int = 10
  n_mutate: int = 25
  n_cross: int = 15
  epochs: int = 10
  p_mutate: float = 0.25
  max_prune: float = 0.1
  patience: int = 4


class Result(NamedTuple):
  """What a search found.

  Attributes:
    best: the fittest candidate.
    score: its fitness.
    visited: {candidate: fitness} of all that were evaluated, in order.
  """

  best: Candidate
  score: float
  visited: dict[Candidate, float]


@checks.door
def ladder(process: GaussianProcess, size: int = 1000) -> np.ndarray:
  """Returns the times of T rungs, f64[T], rising: equal steps in t.

  For `vp_linear` these are the T steps of DDPM's linear schedule. A process
  without a bounded clock (EDM) is better served by the times of another grid,
  reversed.
  """
  return np.linspace(process.t_min, process.t_max, size)


@checks.door
def table(
  candidate: Candidate,
  process: GaussianProcess,
  times: ArrayLike,
  *,
  solver: Solver = solvers.ddim,
) -> tables.Tableau:
  """Returns the solver's table on a candidate's times and on to sigma = 0.

  Args:
    candidate: K steps.
    process: the forward process, with a time without noise.
    times: f64[T], the ladder, rising.
    solver: (process, grid) -> Tableau with one call a step.

  Raises:
    ValueError: for steps that are not on the ladder, which are listed, or a
      solver of more calls.
  """
  times = np.asarray(times, np.float64)
  outside = [s for s in candidate.steps if not 0 <= s < len(times)]
  if outside:
    raise ValueError(
      f"the ladder has the steps 0..{len(times) - 1}, the candidate also"
      f" {outside}"
    )
  grid = np.append(times[list(candidate.steps)], process.t_zero)
  made = solver(process, grid)
  if made.nfe != len(candidate.steps):
    raise ValueError(
      f"the solver takes {made.nfe} calls for {len(candidate.steps)} steps;"
      " AutoDiffusion searches solvers of one call a step"
    )
  return made


@checks.door
def start_scale(process: GaussianProcess, t: ArrayLike) -> Array:
  """Returns the scale of x at t relative to t_max, for data of unit scale.

  A candidate that begins below t_max begins from the same noise; for
  variance-preserving processes this is 1.
  """
  size = lambda t: np.hypot(process.alpha(t), process.sigma(t))
  return size(np.asarray(t)) / size(process.t_max)


@checks.door
def masks(candidate: Candidate, n_blocks: int, rows: int) -> np.ndarray:
  """Returns which blocks each call keeps, b[rows, n_blocks].

  Raises:
    ValueError: for a block that the network does not have.
  """
  kept = np.ones((rows, n_blocks), bool)
  for i, skip in enumerate(candidate.skips):
    wrong = [b for b in skip if not 0 <= b < n_blocks]
    if wrong:
      raise ValueError(
        f"step {candidate.steps[i]} skips the blocks {wrong}, but the network"
        f" has 0..{n_blocks - 1}"
      )
    kept[i, list(skip)] = False
  return kept


@checks.door
def cost(candidate: Candidate, n_blocks: int) -> int:
  """Returns the number of blocks that are computed, for one sample."""
  skipped = sum(len(skip) for skip in candidate.skips)
  return len(candidate.steps) * n_blocks - skipped


@checks.door
def fitness(
  problem: populations.Problem,
  process: GaussianProcess,
  times: ArrayLike,
  *,
  solver: Solver = solvers.ddim,
  bind: populations.Bind | None = None,
  n_blocks: int = 0,
  rows: int | None = None,
  chunk: int | None = None,
) -> Fitness:
  """Returns the fitness of candidates, a population at a time.

  Args:
    problem: model, noises and fitness.
    process: the forward process.
    times: f64[T], the ladder.
    solver: as in `table`.
    bind: (model, mask) -> model, such as `skipping.with_mask`, if blocks are
      skipped.
    n_blocks: number of blocks of the network, with `bind`.
    rows: steps to pad all candidates to, so that those of a joint search share
      one program; by default the most of a population.
    chunk: see `populations.evaluate`.
  """

  def evaluate(candidates):
    made = [table(c, process, times, solver=solver) for c in candidates]
    length = max([rows or 0, *(t.nfe for t in made)])
    scale = start_scale(process, np.asarray([t.t[0] for t in made]))
    made = [tables.pad(t, length) for t in made]
    settings = None
    if bind is not None:
      settings = np.stack([masks(c, n_blocks, length) for c in candidates])
    return populations.evaluate(
      problem, made, scale=scale, settings=settings, bind=bind, chunk=chunk
    )

  return evaluate


@checks.door
def uniform(size: int, steps: int) -> Candidate:
  """Returns K steps at equal strides T / K of a ladder of T."""
  return Candidate(tuple(int(i * size / steps) for i in range(steps)))


@checks.door
def linspace(size: int, steps: int) -> Candidate:
  """Returns K steps at equal distances from the first rung to the last."""
  return Candidate(
    tuple(int(v) for v in np.round(np.linspace(0, size - 1, steps)))
  )


@checks.door
def search_steps(
  key: jax.Array,
  fitness: Fitness,
  size: int,
  steps: int,
  config: Config | None = None,
  *,
  budget: int | None = None,
  progress: Any = None,
) -> Result:
  """Returns the best set of K = `steps` rungs of a ladder of T = `size`.

  Args:
    key: PRNG key of the search.
    fitness: candidates -> f[m], the lower the better, from fixed noises.
    size: T.
    steps: K.
    config: the evolution.
    budget: number of evaluations; epochs * population by default.
    progress: called with the result after every epoch.

  Raises:
    ValueError: if K is not within 1..T.
    TypeError: if the fitness of one candidate changes from call to call.
  """
  config = Config() if config is None else config
  _check_steps(size, steps)
  space = _Space(steps, 0, 0)
  return _evolve(key, fitness, size, config, space, budget, progress)


@checks.door
def search_joint(
  key: jax.Array,
  fitness: Fitness,
  size: int,
  budget: int,
  n_blocks: int,
  config: Config | None = None,
  *,
  evaluations: int | None = None,
  progress: Any = None,
) -> Result:
  """Returns the best candidate whose cost is at most `budget` blocks.

  Args:
    key: PRNG key of the search.
    fitness: candidates -> f[m].
    size: T.
    budget: B, in evaluations of a block.
    n_blocks: L.
    config: the evolution; 15 epochs by default.
    evaluations: number of evaluations; epochs * population by default.
    progress: called with the result after every epoch.

  Raises:
    ValueError: if the budget does not pay for one whole step.
    TypeError: if the fitness of one candidate changes from call to call.
  """
  config = Config(epochs=15) if config is None else config
  steps = budget // n_blocks
  if steps < 1:
    raise ValueError(
      f"a budget of {budget} block evaluations is below one step of"
      f" {n_blocks} blocks; allow at least {n_blocks}"
    )
  _check_steps(size, steps)
  space = _Space(steps, n_blocks, budget)
  if not _allowed(config.max_prune, space):
    raise ValueError(
      f"max_prune={config.max_prune} of {n_blocks} blocks is less than one"
      f" block: nothing would be skipped; raise it to {1 / n_blocks:.3g}"
    )
  return _evolve(key, fitness, size, config, space, evaluations, progress)


class _Space(NamedTuple):
  """K steps, or with `blocks` any number that costs at most `budget`."""

  steps: int
  blocks: int
  budget: int


def _evolve(key, fitness, size, config, space, budget, progress):
  """Runs the epochs."""
  start = [uniform(size, space.steps), linspace(size, space.steps)]
  start = list(dict.fromkeys(start))  # one, if they are the same
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  budget = config.epochs * config.population if budget is None else budget
  visited = {}

  def evaluate(candidates):
    scores = np.asarray(fitness(candidates), np.float64)
    visited.update(zip(candidates, scores.tolist()))

  limit, quiet, epoch = 0, 0, 0
  repeatable = float(np.asarray(fitness(start[:1]))[0])
  while len(visited) < budget:
    room = min(config.population, budget - len(visited))
    before = min(visited, key=visited.get) if visited else None
    born = _epoch(rng, visited, start, size, config, space, limit, room)
    if not born:
      break  # nothing is left that was not tried
    evaluate(born)
    if epoch == 0 and not np.isclose(visited[start[0]], repeatable, rtol=1e-3):
      raise TypeError(
        "the fitness of one candidate changed from call to call"
        f" ({repeatable:.6g}, then {visited[start[0]]:.6g}); it must use the"
        " same noises for all candidates"
      )
    best = min(visited, key=visited.get)
    quiet = quiet + 1 if best == before else 0
    if space.blocks and (limit or quiet or epoch >= config.patience):
      limit = min(limit + config.max_prune / 5, config.max_prune)
    epoch += 1
    if progress is not None:
      progress(Result(best, visited[best], visited))
  best = min(visited, key=visited.get)
  return Result(best, visited[best], visited)


def _epoch(rng, visited, start, size, config, space, limit, room):
  """Returns the candidates of an epoch, none of them visited.

  Ten tries for each place; a space that is nearly used up is then listed.
  """
  born = {}
  listed = not space.blocks and math.comb(size, space.steps) <= 10_000

  def slot(make):
    for _ in range(10):
      child = make()
      if child not in visited and child not in born:
        born[child] = None
        return
    rest = itertools.combinations(range(size), space.steps) if listed else ()
    for child in map(Candidate, rest):
      if child not in visited and child not in born:
        born[child] = None
        return

  fresh = lambda: Candidate(
    tuple(rng.choice(size, space.steps, replace=False).tolist())
  )
  mutate = lambda parent: _mutate(rng, parent, size, config, space, limit)
  if not visited:
    born.update((c, None) for c in start[:room])
    while len(born) < room:
      had = len(born)
      slot(lambda: mutate(start[0]))
      if len(born) == had:
        break
    return list(born)
  parents = sorted(visited, key=visited.get)[: config.parents]
  parents = [p for p in parents if np.isfinite(visited[p])] or start
  pick = lambda: parents[rng.integers(len(parents))]
  for i in range(room):
    if i < config.n_mutate:
      slot(lambda: mutate(pick()))
    elif i < config.n_mutate + config.n_cross:
      slot(lambda: _cross(rng, pick(), pick(), space, limit))
    else:
      slot(fresh)
  return list(born)


def _mutate(rng, parent, size, config, space, limit):
  """Draws steps, and blocks of steps, anew."""
  plan = dict(_pairs(parent))
  for step in list(plan):
    if rng.random() < config.p_mutate:
      other = int(rng.integers(size))
      if other not in plan:
        plan[other] = plan.pop(step)
  allowed = _allowed(limit, space)
  if allowed:
    for step in plan:
      drawn = rng.random(space.blocks) < config.p_mutate
      anew = rng.random(space.blocks) < allowed / space.blocks
      old = plan[step]
      plan[step] = frozenset(
        b for b in range(space.blocks) if (anew[b] if drawn[b] else b in old)
      )
    if rng.random() < 0.5:  # what was saved may pay for another step
      other = int(rng.integers(size))
      plan.setdefault(other, frozenset())
  return _afford(rng, plan, space, allowed)


def _cross(rng, one, other, space, limit):
  """Takes each position from either parent."""
  plan = dict(_pairs(one))
  for mine, theirs in zip(_pairs(one), _pairs(other)):
    if rng.random() < 0.5 and theirs[0] not in plan:
      del plan[mine[0]]
      plan[theirs[0]] = theirs[1]
  return _afford(rng, plan, space, _allowed(limit, space))


def _afford(rng, plan, space, allowed):
  """Returns the candidate after skipping, or dropping, what is too much."""
  for step, skip in plan.items():
    if len(skip) > allowed:
      kept = rng.permutation(sorted(skip))[:allowed]
      plan[step] = frozenset(kept.tolist())
  while space.blocks:
    spent = sum(space.blocks - len(skip) for skip in plan.values())
    if spent <= space.budget:
      break
    open_ = [s for s in plan if len(plan[s]) < allowed]
    if open_:
      step = open_[rng.integers(len(open_))]
      free = sorted(set(range(space.blocks)) - plan[step])
      plan[step] = plan[step] | {free[rng.integers(len(free))]}
    else:
      del plan[list(plan)[rng.integers(len(plan))]]
  return Candidate(tuple(plan), tuple(plan.values()))


def _allowed(limit, space):
  """Returns how many blocks a step may skip."""
  return int(limit * space.blocks + 1e-9)


def _pairs(candidate):
  skips = candidate.skips or (frozenset(),) * len(candidate.steps)
  return list(zip(candidate.steps, skips))


def _check_steps(size, steps):
  if not 1 <= steps <= size:
    raise ValueError(
      f"a ladder of {size} steps holds sets of 1..{size} of them, not of"
      f" {steps}"
    )

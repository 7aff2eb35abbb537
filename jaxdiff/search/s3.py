r"""S^3: a search over solver schedules that a learned predictor guides.

The space is that of `usf`: log-SNRs, Taylor orders, kinds, difference nodes,
scales and correctors of every step. A generation is bred from the best known
schedules by crossover and mutation; what breaks a rule is repaired. Without a
predictor each child is evaluated (plain evolution). With it, evolution runs for
several generations on *predicted* scores, and only the most promising are
evaluated; they join the table, the predictor is trained anew, and so on.

Scores are optimized on the noises of the problem and flatter the winner: report
on `populations.held_out`. Reference: Liu et al. (2024),
https://arxiv.org/abs/2312.07243, section 4.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.search import populations
from jaxdiff.search import predictor as predictors
from jaxdiff.search import usf
from jaxdiff.search.usf import Schedule
from jaxdiff.search.usf import StepChoice


@dataclasses.dataclass(frozen=True)
class Config:
  """The space and the search; defaults after the published configuration.

  Attributes:
    calls: network calls of every candidate, at least 2.
    orders: Taylor orders and their probabilities, in turn.
    kinds: what may be expanded.
    scales: scales of the first derivative; "free" is 1 + a h.
    correctors: correctors of "none", "pseudo" and "implicit".
    firsts: "network", and "zero" for an analytic first step.
    times_only: whether the solver is left alone and its times are searched.
    parents: number of the best schedules that children are bred from.
    generation: children per generation.
    p_cross: probability of a second parent.
    p_mutate: probability that an attribute is drawn anew.
    relax_sd: standard deviation of a in the scale 1 + a h.
    time_sd: standard deviation of a time's shift, at most, in units of the
      steps around it.
    min_gap: smallest step in log-SNR, at most.
    inner: generations on predicted scores between two true ones. More of them
      lead to where the predictor is wrong.
    inner_size: children of each, of which a true generation is chosen.
    explore: share of a true generation that is bred without the predictor.
  """

  calls: int
  orders: tuple[float, ...] = (0.2, 0.4, 0.3, 0.1)
  kinds: tuple[str, ...] = usf.KINDS
  scales: tuple[str, ...] = (*usf.SCALES, "free")
  correctors: tuple[str, ...] = ("none", "pseudo")
  firsts: tuple[str, ...] = ("network",)
  times_only: bool = False
  parents: int = 15
  generation: int = 50
  p_cross: float = 0.3
  p_mutate: float = 0.3
  relax_sd: float = 0.03
  time_sd: float = 0.5
  min_gap: float = 1e-2
  inner: int = 1
  inner_size: int = 200
  explore: float = 0.2

  def __post_init__(self):
    if self.calls < 2:
      raise ValueError(
        f"a schedule to search has at least 2 calls, got calls={self.calls}"
      )


class Result(NamedTuple):
  """What a search found.

  Attributes:
    best: the schedule of the lowest score.
    score: its fitness on the problem's noises.
    table: its table.
    schedules: all that were evaluated, in order.
    scores: f64[m], theirs; inf where the fitness was not finite.
    tau: Kendall's tau of the predictor on the children of each generation that
      it neither chose nor was trained on; empty without a predictor.
  """

  best: Schedule
  score: float
  table: tables.Tableau
  schedules: list[Schedule]
  scores: np.ndarray
  tau: list[float]


@checks.door
def search(
  key: jax.Array,
  problem: populations.Problem,
  process: GaussianProcess,
  config: Config,
  *,
  budget: int,
  guided: bool = True,
  chunk: int | None = None,
  progress: Any = None,
  known: tuple[list[Schedule], np.ndarray] | None = None,
) -> Result:
  """Returns the best of `budget` schedules.

  Args:
    key: PRNG key of the search; the same key finds the same schedule.
    problem: what candidates are judged on.
    process: the forward process.
    config: the space and the search.
    budget: number of true evaluations.
    guided: whether a predictor chooses what is evaluated.
    chunk: see `populations.evaluate`.
    progress: called after every generation with (schedules, scores), to print
      and to keep them.
    known: schedules and scores of an interrupted search, to go on from.

  Raises:
    ValueError: for a budget that the known solvers alone exhaust, a process
      without any signal at t_max, or if no candidate has a finite fitness.
  """
  schedules = _begin(process, config, budget)
  progress = progress or (lambda schedules, scores: None)
  score = lambda some: evaluate(problem, process, some, chunk)
  if known is None:
    scores = score(schedules)
    progress(schedules, scores)
  else:
    schedules, scores = list(known[0]), np.asarray(known[1], np.float64)
  tau = []
  while len(schedules) < budget:
    # a generation's randomness depends on where it stands, not on a restart
    stage = jax.random.fold_in(key, len(schedules))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(stage)))
    size = min(config.generation, budget - len(schedules))
    predict = None
    if guided:
      predict = _predictor(stage, schedules, scores, process, config, budget)
    children = breed(rng, schedules, scores, process, config, size, predict)
    fresh = score(children)
    if guided and (wild := _wild(config, size)) > 1:
      held = predict(children[-wild:])
      tau.append(predictors.kendall(held, fresh[-wild:]))
    schedules += children
    scores = np.append(scores, fresh)
    progress(schedules, scores)
  best = int(scores.argmin())
  if not np.isfinite(scores[best]):
    raise ValueError(
      "no candidate has a finite fitness; look at the model and at the start"
    )
  return Result(
    schedules[best],
    float(scores[best]),
    usf.table(schedules[best], process),
    schedules,
    scores,
    tau,
  )


def _begin(process, config, budget):
  """Returns the known solvers, which the budget has to exceed."""
  if process.alpha(process.t_max) == 0:
    raise ValueError(
      f"alpha({process.t_max:.4g}) = 0: the log-SNR of the first step is not"
      " finite, and cannot be searched; begin a little later, with"
      " dataclasses.replace(process, t_max=0.999 * process.t_max)"
    )
  schedules = seeds(process, config)
  if budget <= len(schedules):
    raise ValueError(
      f"budget={budget} does not reach beyond the {len(schedules)} known"
      " solvers that the search starts from; give it more evaluations"
    )
  return schedules


def _predictor(key, schedules, scores, process, config, budget):
  """Returns schedules -> predicted scores, fitted to all that is known."""
  seen = lambda some: np.stack([encode(s, config, process) for s in some])
  fitted = predictors.fit(key, seen(schedules), scores, capacity=budget)
  return lambda some: predictors.predict(fitted, seen(some))


@checks.door
def evaluate(
  problem: populations.Problem,
  process: GaussianProcess,
  schedules: list[Schedule],
  chunk: int | None = None,
) -> np.ndarray:
  """Returns the fitness of every schedule, f64[m]."""
  population = [usf.table(s, process) for s in schedules]
  first = process.sigma(np.asarray([table.t[0] for table in population]))
  scale = first / process.sigma(process.t_max)  # an analytic first step
  return np.asarray(
    populations.evaluate(problem, population, scale=scale, chunk=chunk),
    np.float64,
  )


@checks.door
def seeds(process: GaussianProcess, config: Config) -> list[Schedule]:
  """Returns the known solvers on the known grids, at the budget's calls."""
  found = []
  for make in (grids.karras, grids.log_snr, grids.vp_quadratic):
    grid = make(process, config.calls)
    for name in usf.SOLVERS:
      schedule = usf.from_solver(name, process, grid)
      if config.correctors == ("none",) and name.startswith("unipc"):
        continue
      found.append(schedule)
  return list(dict.fromkeys(found))


@checks.door
def breed(
  rng: np.random.Generator,
  schedules: list[Schedule],
  scores: np.ndarray,
  process: GaussianProcess,
  config: Config,
  size: int,
  predict: Any = None,
) -> list[Schedule]:
  """Returns `size` new schedules.

  Args:
    rng: generator of crossover and mutation.
    schedules: the table.
    scores: theirs.
    process: the forward process.
    config: the search.
    size: number of children.
    predict: schedules -> f64[m], the lower the better; None evaluates what is
      bred first.
  """
  seen = set(schedules)
  order = np.argsort(scores, kind="stable")
  finite = [i for i in order if np.isfinite(scores[i])]  # inf is no parent
  parents = [schedules[i] for i in (finite or order)[: config.parents]]

  def children(parents, count):
    born = []
    for _ in range(20 * count):
      if len(born) == count:
        break
      child = parents[rng.integers(len(parents))]
      if rng.random() < config.p_cross:
        child = crossover(rng, child, parents[rng.integers(len(parents))])
      child = repair(rng, mutate(rng, child, config), process, config)
      if child not in seen:
        seen.add(child)
        born.append(child)
    return born

  if predict is None:
    return children(parents, size)
  pool, elite = [], parents
  for _ in range(config.inner):
    pool += children(elite, config.inner_size)
    order = np.argsort(predict(pool), kind="stable")
    pool = [pool[i] for i in order[: 4 * size]]
    elite = pool[: config.parents]
  wild = _wild(config, size)
  return pool[: size - wild] + children(parents, wild)


def _wild(config, size):
  """Number of a generation's children that no predictor chooses."""
  return round(config.explore * size)


@checks.door
def mutate(
  rng: np.random.Generator, schedule: Schedule, config: Config
) -> Schedule:
  """Returns a schedule with some attributes drawn anew; `repair` it."""
  lam = np.asarray(schedule.lam)
  moved = rng.random(len(lam) - 2) < config.p_mutate
  if config.times_only and not moved.any():
    moved[rng.integers(len(moved))] = True
  reach = config.time_sd * 0.5 * (lam[2:] - lam[:-2])
  reach = reach * 10.0 ** -rng.uniform(0.0, 2.0)  # coarse moves and fine ones
  lam = lam.copy()
  lam[1:-1] += moved * reach * rng.standard_normal(len(moved))
  schedule = dataclasses.replace(schedule, lam=tuple(float(v) for v in lam))
  if config.times_only:
    return schedule
  steps = [_mutate_step(rng, step, config) for step in schedule.steps]
  first = schedule.first
  if rng.random() < config.p_mutate:
    first = config.firsts[rng.integers(len(config.firsts))]
  return dataclasses.replace(schedule, steps=tuple(steps), first=first)


def _mutate_step(rng, step, config):
  """Draws each attribute of a step anew with a third of p_mutate."""
  draw = lambda: rng.random() < config.p_mutate / 3
  pick = lambda options: options[rng.integers(len(options))]

  def scale(old):
    if not draw():
      drift = config.relax_sd * rng.standard_normal()
      return old if isinstance(old, str) else old + drift
    new = pick(config.scales)
    return config.relax_sd * rng.standard_normal() if new == "free" else new

  return StepChoice(
    order=_order(rng, config) if draw() else step.order,
    kind=pick(config.kinds) if draw() else step.kind,
    nodes=pick((None, 1, 2)) if draw() else step.nodes,
    scale=scale(step.scale),
    corrector=pick(config.correctors) if draw() else step.corrector,
    corrector_scale=scale(step.corrector_scale),
  )


def _order(rng, config):
  p = np.asarray(config.orders)
  return int(rng.choice(len(p), p=p / p.sum())) + 1


@checks.door
def crossover(
  rng: np.random.Generator, one: Schedule, other: Schedule
) -> Schedule:
  """Returns a schedule with the times of one and steps of either parent.

  Of a parent with fewer steps as many are taken as there are.
  """
  theirs = (*other.steps[: len(one.steps)], *one.steps[len(other.steps) :])
  take = rng.random(len(one.steps)) < 0.5
  if rng.random() < 0.5:  # all that the other has
    take[:] = True
  steps = tuple(b if t else a for a, b, t in zip(one.steps, theirs, take))
  return dataclasses.replace(one, steps=steps)


@checks.door
def repair(
  rng: np.random.Generator,
  schedule: Schedule,
  process: GaussianProcess,
  config: Config,
) -> Schedule:
  """Returns the nearest schedule that keeps the rules and the budget.

  Times are sorted and moved apart, orders lowered to what is known, the last
  corrector dropped; steps are split or merged until the calls are the budget's.
  """
  steps = list(schedule.steps)
  lam = list(np.sort(schedule.lam))
  low, high = process.log_snr(np.asarray([process.t_max, process.t_min]))
  while True:
    steps = _lawful(steps, schedule.first)
    made = dataclasses.replace(schedule, steps=tuple(steps))
    excess = usf.nfe(made) - config.calls
    if excess == 0:
      break
    if excess > 0:
      i = int(rng.integers(1, len(steps)))
      del steps[i], lam[i]
    else:
      i = int(np.argmax(np.diff(lam)))
      lam.insert(i + 1, 0.5 * (lam[i] + lam[i + 1]))
      steps.insert(i + 1, dataclasses.replace(steps[i], corrector="none"))
  gap = min(config.min_gap, 0.5 * (high - low) / len(steps))
  lam[0], lam[-1] = low, high
  for i in range(1, len(lam) - 1):
    lam[i] = max(lam[i], lam[i - 1] + gap)
  for i in range(len(lam) - 2, 0, -1):
    lam[i] = min(lam[i], lam[i + 1] - gap)
  lam = tuple(float(v) for v in lam)
  return usf.validate(dataclasses.replace(made, lam=lam))


def _lawful(steps, first):
  """Returns the steps with orders, nodes and correctors that are allowed."""
  made = []
  for i, step in enumerate(steps):
    known = i + 1
    if first == "zero" and step.kind == "eps":
      known = max(1, i)  # the first node has no eps
    order = min(step.order, known)
    nodes = step.nodes
    if nodes is not None and nodes >= order - 1:
      nodes = None
    corrector = step.corrector
    if i == len(steps) - 1 or (i == 0 and first == "zero"):
      corrector = "none"
    made.append(
      dataclasses.replace(step, order=order, nodes=nodes, corrector=corrector)
    )
  return made


@checks.door
def encode(
  schedule: Schedule, config: Config, process: GaussianProcess
) -> np.ndarray:
  """Returns what the predictor sees of a schedule, f32[features].

  Each step's choices one-hot, its end and its length in log-SNR; steps that a
  schedule of fewer steps lacks are 0.
  """
  ends = process.log_snr(np.asarray([process.t_max, process.t_min]))
  lam = (np.asarray(schedule.lam) - ends[0]) / (ends[1] - ends[0])
  one_hot = lambda options, value: [float(value == o) for o in options]
  rows = []
  for i, s in enumerate(schedule.steps):
    row = one_hot(range(1, 5), s.order) + one_hot(usf.KINDS, s.kind)
    row += one_hot((None, 1, 2), s.nodes) + one_hot(usf.CORRECTORS, s.corrector)
    for scale in (s.scale, s.corrector_scale):
      row += one_hot(usf.SCALES, scale)
      row.append(0.0 if isinstance(scale, str) else scale / config.relax_sd)
    step = (lam[i + 1] - lam[i]) * config.calls
    rows.append([*row, 4.0 * lam[i + 1] - 2.0, step, np.log(step), 1.0])
  room = config.calls + 1  # an analytic first step makes one more
  padded = np.zeros((room, len(rows[0])), np.float32)
  padded[: len(rows)] = rows
  return np.append(padded.reshape(-1), float(schedule.first == "zero")).astype(
    np.float32
  )

r"""Gradient descent on the numbers of a table.

`build(theta) -> Tableau` says what is free: every leaf (`bns`), a grid (`ld3`),
a few numbers a step (`amed`). The loss is how far the table ends from the
teacher, on the noises of `Lessons`; its gradient goes through the sampling.

Two things make this fast enough for minutes on a laptop. The numbers of a table
act on very different scales, and nearly in the same direction; so Adam walks in
coordinates in which they do neither. With J = d end / d theta, theta = theta_0
+ P z with P^T E[w J^T J] P = 1: a step of length r in z moves the ends by r
(root mean square) wherever it points. P is computed anew each round, by forward
mode, and the length of steps is a fraction of the current error.

And a few samples near a ridge, where paths part, have errors and slopes that
drown all others. The loss is c^2 log(1 + e^2 / c^2), which counts large errors
less, with c growing from about the median error to far above all: it ends as
the mean square. In P such samples are held down by w = 1 / (1 + |J|^2 / median)
with the columns of J scaled to mean square 1.

A round that ends with a rmse a fifth above the best, on the validation noises,
is taken back and the steps are halved. The best iterate is the result.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.learning import teacher
from jaxdiff.processes import agreement
from jaxdiff.tableau import Tableau
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree

Build = Callable[[jax.Array], Tableau]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to descend.

  Attributes:
    rounds: number of rounds; each is checked on the validation noises.
    steps: gradient steps a round.
    batch: noises a step.
    rate: length of the first steps, as a fraction of the rmse.
    damping: share of the identity in the scaled metric, which bounds steps
      along directions that the ends hardly feel.
    robust: first c of the loss, as a multiple of the rmse; c grows a
      hundredfold over the run. inf is the plain mean square throughout.
    metric_batch: noises that the metric is estimated on.
  """

  rounds: int = 12
  steps: int = 100
  batch: int = 256
  rate: float = 0.2
  damping: float = 1e-3
  robust: float = 0.5
  metric_batch: int = 512

  def __post_init__(self):
    least = dict(steps=1, batch=1, metric_batch=1, damping=0)
    checks.fields(self, least=least, above=dict(rate=0))


class Progress(NamedTuple):
  """Where a descent stands after a round; all that is needed to go on.

  Attributes:
    round: number of rounds done.
    theta: f[P], the current iterate.
    best: f[P], the best one on the validation noises.
    rmse: RMSE of the current iterate on the validation noises.
    best_rmse: RMSE of the best one.
    slower: factor on the rate, from rounds that were taken back.
    seconds: spent so far.
  """

  round: int
  theta: np.ndarray
  best: np.ndarray
  rmse: float
  best_rmse: float
  slower: float
  seconds: float


@checks.door
def descend(
  key: jax.Array,
  model: sampling.Model,
  build: Build,
  theta: PyTree,
  train: teacher.Lessons,
  validation: teacher.Lessons,
  settings: Settings | None = None,
  resume: Progress | None = None,
) -> Iterator[Progress]:
  """Yields after each round; stop whenever you like and take `best`.

  Args:
    key: PRNG key of the minibatches.
    model: the model that is sampled from.
    build: theta -> Tableau, traceable by JAX.
    theta: f[P], where to start.
    train: lessons that gradients see.
    validation: lessons that choose.
    settings: how to descend.
    resume: an earlier Progress to go on from.

  Raises:
    ValueError: if the start's error is not finite, a lesson's noise is shared
      by both sets, or the table is of another process than the model.
  """
  settings = Settings() if settings is None else settings
  refuse_shared(train, validation)
  arrays, static = tree.partition(model)
  problem = _Problem(
    build, static, train.start.dtype, min(settings.batch, len(train.start))
  )
  programs = _Programs(
    *(
      jax.jit(functools.partial(part, problem))
      for part in (_square_errors, _slopes, _one_round)
    )
  )
  rmse = lambda theta: _rmse(programs, problem, theta, arrays, validation)
  begin = time.perf_counter()
  at = _start(theta, rmse) if resume is None else resume
  while at.round < settings.rounds:
    theta = _walked(key, programs, problem, settings, at, arrays, train)
    reached = rmse(theta)
    best, best_rmse, slower = at.best, at.best_rmse, at.slower
    if reached < best_rmse:
      best, best_rmse = theta, reached
    elif not reached < 1.2 * best_rmse:  # taken back
      theta, slower = best, 0.5 * slower
    seconds = at.seconds + time.perf_counter() - begin
    begin = time.perf_counter()
    at = Progress(
      at.round + 1, theta, best, reached, best_rmse, slower, seconds
    )
    yield at


class _Problem(NamedTuple):
  """What does not change over a descent, and is no array."""

  build: Build
  static: Any  # of the model
  dtype: DTypeLike
  batch: int


class _Programs(NamedTuple):
  """The compiled parts of a descent."""

  square_errors: Callable
  slopes: Callable
  one_round: Callable


def _start(theta, rmse):
  """Returns the progress before the first round."""
  theta = np.asarray(theta, np.float64)
  first = rmse(theta)
  if not math.isfinite(first):
    raise ValueError(
      f"the table to start from ends at an rmse of {first} from the teacher;"
      " both need the same process, the same first time and the same end"
    )
  return Progress(0, theta, theta, first, first, 1.0, 0.0)


def _walked(key, programs, problem, settings, at, arrays, train):
  """Returns where a round of steps leads from the current iterate, f64[P]."""
  own = jax.random.fold_in(key, at.round)
  # the metric of this round, on some of the noises
  some = jax.random.randint(
    jax.random.fold_in(own, 0), (settings.metric_batch,), 0, len(train.start)
  )
  theta = jnp.asarray(at.theta, problem.dtype)
  slopes = programs.slopes(theta, arrays, teacher.take(train, some))
  metric = _whiten(slopes, settings.damping)
  # its steps: a fraction of the error, falling to 0 over the whole run
  total = settings.rounds * settings.steps
  done = np.arange(settings.steps) + at.round * settings.steps
  scale = settings.rate * at.slower * at.best_rmse / math.sqrt(len(theta))
  rates = scale * 0.5 * (1.0 + np.cos(np.pi * done / total))
  # and its loss, which counts large errors more from round to round
  share = at.round / max(1, settings.rounds - 1)
  c = settings.robust * at.best_rmse * 10.0 ** (2.0 * share)
  theta = programs.one_round(
    jax.random.fold_in(own, 1),
    theta,
    jnp.asarray(metric, problem.dtype),
    jnp.asarray(rates, problem.dtype),
    jnp.asarray(min(c, 1e6), problem.dtype),
    arrays,
    train,
  )
  return np.asarray(theta, np.float64)


def _rmse(programs, problem, theta, arrays, lessons):
  """Returns the root mean square error on lessons, in chunks of 1024."""
  theta = jnp.asarray(theta, problem.dtype)
  size = tree.batch_size(lessons.start)
  chunk = math.gcd(size, 1024)
  square = [
    programs.square_errors(
      theta, arrays, teacher.take(lessons, slice(i, i + chunk))
    )
    for i in range(0, size, chunk)
  ]
  return float(jnp.sqrt(jnp.mean(jnp.concatenate(square))))


def _ends(problem, theta, arrays, lessons):
  """Returns where the table of theta ends, from the lessons' noises."""
  bound = teacher.labelled(tree.combine(arrays, problem.static), lessons)
  # what the model computed within is computed again on the way back: a third
  # of the time, since it need not travel through memory
  ask = jax.checkpoint(lambda x, t: bound(x, t))
  table = problem.build(theta)
  agreement.check(bound, table, None, "descend")
  state = sampling.initial_state(lessons.start, table.memory)
  advance = sampling.table_advance(ask, jnp.arange(len(lessons.start)))
  rows = sampling.rows_of(table, problem.dtype)
  return sampling.run(jax.random.key(0), advance, rows, state)[0].a


def _square_errors(problem, theta, arrays, lessons):
  return teacher.square_errors(_ends(problem, theta, arrays, lessons), lessons)


def _slopes(problem, theta, arrays, lessons):
  """Returns J, f[P, N, d], a few columns at a time."""
  _, push = jax.linearize(lambda v: _ends(problem, v, arrays, lessons), theta)
  eye = jnp.eye(len(theta), dtype=problem.dtype)
  j = jax.lax.map(push, eye, batch_size=8)
  return j.reshape(*j.shape[:2], -1)


def _one_round(problem, key, theta, metric, rates, c, arrays, train):
  """Returns theta after Adam's steps in z, the mean of their second half."""
  optimizer = optax.scale_by_adam(0.9, 0.99)

  def loss(z, lessons):
    square = _square_errors(problem, theta + metric @ z, arrays, lessons)
    robust = c**2 * jnp.log1p(square / c**2)
    return jnp.mean(robust)

  def step(carry, inputs):
    z, state, mean = carry
    i, rate = inputs
    pick = jax.random.randint(
      jax.random.fold_in(key, i), (problem.batch,), 0, len(train.start)
    )
    gradient = jax.grad(loss)(z, teacher.take(train, pick))
    ahead, state = optimizer.update(gradient, state)
    z = z - rate * ahead
    late = (i >= len(rates) // 2).astype(problem.dtype)
    return (z, state, mean + late * z), None

  z = jnp.zeros_like(theta)
  carry = (z, optimizer.init(z), z)
  (_, _, mean), _ = control.scan(step, carry, (jnp.arange(len(rates)), rates))
  return theta + metric @ (mean / (len(rates) - len(rates) // 2))


def refuse_shared(one: teacher.Lessons, other: teacher.Lessons) -> None:
  """Raises a ValueError if two sets of lessons share a noise."""
  flat = lambda x: np.asarray(x.start).reshape(len(x.start), -1)
  rows = lambda x: {row.tobytes() for row in flat(x)}
  shared = rows(one) & rows(other)
  if shared:
    raise ValueError(
      f"{len(shared)} noises are in both sets of lessons, so that the error on"
      " one says nothing about unseen noises; draw them from the keys of"
      " learning.split(key)"
    )


def _whiten(slopes: jax.Array, damping: float) -> np.ndarray:
  """Returns P with P^T E[w J^T J] P = 1, f64[P, P], from J f[P, N, d]."""
  j = np.asarray(slopes, np.float64)
  scale = np.sqrt(np.mean(j**2, axis=(1, 2)))
  scale = np.where(scale > 0, scale, 1.0)
  j = j / scale[:, None, None]
  steep = np.mean(j**2, axis=(0, 2))  # of each sample
  weight = 1.0 / (1.0 + steep / np.median(steep))
  flat = (j * np.sqrt(weight / weight.sum())[:, None]).reshape(len(j), -1)
  gram = flat @ flat.T / j.shape[2]
  own = np.sqrt(np.maximum(np.diag(gram), 1e-12))
  gram = gram / own[:, None] / own + damping * np.eye(len(gram))
  root = np.linalg.cholesky(gram)
  return np.linalg.inv(root).T / (scale * own)[:, None]

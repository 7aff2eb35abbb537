r"""Vanilla score: Langevin chains that start at the data and stop early.

The score of the data itself, learned without noise (`losses.implicit_score`),
is right only where there are data. Langevin chains that start anywhere else
mix between modes in exponential time, and long ones leak through regions where
the score is wrong. From training points drawn at random every mode has its
weight up to O(1 / sqrt(M)), each chain has to mix within its own mode alone,
and a few relaxation times T are enough: T = 0 returns training points, a T too
long forgets the weights. Reference: Koehler and Vuong (2023),
https://arxiv.org/abs/2310.01762.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import metrics
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.samplers.langevin import langevin
from jaxdiff.samplers.langevin import Score
from jaxdiff.types import ArrayLike


class Stopping(NamedTuple):
  """How a chain approaches the held-out data, and forgets the training set.

  Attributes:
    time: the one of `times` with the smallest distance.
    times: f64[n], in units of the Langevin time step * moves.
    distance: f64[n], sliced W_2 to the held-out data.
    memorization: f64[n], median distance to the nearest training point over
      that of the held-out data: 0 copies, 1 is fresh.
  """

  time: float
  times: np.ndarray
  distance: np.ndarray
  memorization: np.ndarray


class VanillaInfo(NamedTuple):
  """What `vanilla_sample` tells beside its samples.

  Attributes:
    time: T, as given or estimated; the chains ran it in whole moves.
    nfe: calls of the score for each sample.
    start: f[n, ...], the training points that they began at.
  """

  time: float
  nfe: int
  start: jax.Array


@checks.door(least=dict(n=1))
def data_init(
  key: jax.Array, data: ArrayLike, n: int, *, index: ArrayLike | None = None
) -> jax.Array:
  """Returns n training points drawn with replacement, [n, ...].

  Args:
    key: PRNG key; a sample's point depends on it and on the sample's index.
    data: f[M, ...], M >= 2.
    n: number of chains.
    index: i32[n], indices of the samples; 0, 1, ... by default.

  Raises:
    ValueError: for fewer than two points.
  """
  data = jnp.asarray(data)
  if data.ndim < 2 or len(data) < 2:
    raise ValueError(
      "chains start at training points f[M, ...] with M >= 2, got shape"
      f" {data.shape}"
    )
  control.check_index(index)
  index = jnp.arange(n) if index is None else jnp.asarray(index)
  pick = jax.vmap(
    lambda i: jax.random.randint(jax.random.fold_in(key, i), (), 0, len(data))
  )(index)
  return data[pick]


@checks.sampler
def vanilla_sample(
  key: jax.Array,
  score: Score,
  time: float | None,
  data: ArrayLike,
  *,
  n: int,
  step: float,
  index: ArrayLike | None = None,
) -> tuple[jax.Array, VanillaInfo]:
  """Returns (x, info): n samples by Langevin from training points.

  Args:
    key: PRNG key.
    score: x -> score at x, as for `langevin`.
    time: T = h * moves when the chains stop, rounded to whole moves; None is
      `stopping_time(data)`.
    data: f[M, ...], the training set.
    n: number of samples.
    step: h.
    index: i32[n], indices of the samples; 0, 1, ... by default.

  Raises:
    ValueError: for a negative time, or as `data_init` and `langevin` do.
  """
  time = stopping_time(data) if time is None else time
  x = data_init(jax.random.fold_in(key, 0), data, n, index=index)
  moves = _moves(time, step)
  own = jax.random.fold_in(key, 1)
  y, info = langevin(own, score, moves, x, step=step, index=index)
  return y, VanillaInfo(time, info.nfe, x)


@checks.door
def stopping_time(data: ArrayLike, neighbours: int | None = None) -> float:
  """Returns 2 / alpha: two relaxation times of the widest mode, estimated.

  alpha is the inverse of the largest variance in any direction among the
  nearest neighbours of a point, the median over points: a rule of thumb that
  takes modes of fewer points together and cuts those of more.

  Args:
    data: f[M, ...].
    neighbours: how many; max(2 d, M / 10), at most M, by default.

  Raises:
    ValueError: for fewer than two points.
  """
  x = np.asarray(data, np.float64).reshape(len(data), -1)
  if len(x) < 2:
    raise ValueError(f"a time scale needs at least two points, got {len(x)}")
  k = neighbours or min(len(x), max(2 * x.shape[1], len(x) // 10))
  some = x[np.linspace(0, len(x) - 1, min(64, len(x))).astype(int)]
  widest = []
  for point in some:
    near = x[np.argsort(np.sum((x - point) ** 2, axis=1))[:k]]
    spread = np.linalg.svd(near - near.mean(0), compute_uv=False)[0]
    widest.append(spread**2 / (k - 1))
  return 2.0 * float(np.median(widest))


@checks.door
def choose_time(
  key: jax.Array,
  score: Score,
  train: ArrayLike,
  held_out: ArrayLike,
  times: Sequence[float],
  *,
  step: float,
  chains: int | None = None,
) -> Stopping:
  """Returns when to stop: the time that brings chains closest to unseen data.

  One run of chains is looked at on its way, so that the chosen time's samples
  are those that `vanilla_sample` draws with the same key.

  Args:
    key: PRNG key.
    score: as for `langevin`.
    train: f[M, ...], where the chains start.
    held_out: f[m, ...], what they are compared with.
    times: T to try, rising.
    step: h.
    chains: how many; that of the held-out points by default.

  Raises:
    ValueError: for times that do not rise or are negative.
  """
  moves = [_moves(time, step) for time in times]
  if not moves or any(b <= a for a, b in zip(moves, moves[1:])):
    raise ValueError(
      f"times must rise by at least one step of {step} each, got {list(times)}"
    )
  held_out = jnp.asarray(held_out)
  x = data_init(jax.random.fold_in(key, 0), train, chains or len(held_out))
  states = [x] if moves[0] == 0 else []
  later = tuple(m for m in moves if m)
  if later:
    _, info = langevin(
      jax.random.fold_in(key, 1),
      score,
      later[-1],
      x,
      step=step,
      collect=after(later),
    )
    states += list(info.kept)
  directions = jax.random.fold_in(key, 2)
  distance = [
    float(metrics.sliced_wasserstein(directions, state, held_out))
    for state in states
  ]
  copies = [
    metrics.memorization_ratio(state, train, held_out) for state in states
  ]
  return Stopping(
    float(times[int(np.argmin(distance))]),
    np.asarray(times, np.float64),
    np.asarray(distance),
    np.asarray(copies),
  )


def after(moves: tuple[int, ...]) -> sampling.Collector:
  """Keeps the accepted states after these numbers of moves, [len(moves), ...].

  A move that the run does not reach leaves zeros.
  """
  last = jnp.asarray(moves, jnp.int32) - 1
  return sampling.Collector(
    tree.Bound(_init_after, (len(moves),)),
    jax.tree_util.Partial(_update_after, last),
  )


def _init_after(size, n, info):
  del n
  return jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), info.a)


def _update_after(last, kept, info):
  hit = last == info.step
  return jax.tree.map(
    lambda old, new: jnp.where(
      hit.reshape((-1,) + (1,) * new.ndim), new[None], old
    ),
    kept,
    info.a,
  )


def _moves(time: float, step: float) -> int:
  if not time >= 0:
    raise ValueError(
      f"time is how long the chains run, at least 0; got time={time}"
    )
  if not step > 0:
    raise ValueError(f"step must be positive, got {step}")
  return round(time / step)

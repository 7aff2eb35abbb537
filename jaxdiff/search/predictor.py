r"""Score predictor: a small ensemble of perceptrons that ranks candidates.

Only the order of candidates matters to a search, so pairs are ranked instead of
scores regressed: with p the prediction and s the score of two candidates,

  loss = max(0, margin - (p_a - p_b) sign(s_a - s_b)),   margin = 0.1.

The mean of the ensemble is the prediction. Tables of all sizes up to `capacity`
train in one compiled program.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from jaxdiff import checks
from jaxdiff import control
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

_MEMBERS = 3
_MARGIN = 0.1


class Predictor(NamedTuple):
  """A fitted ensemble.

  Attributes:
    params: parameters of the members, leaves [members, ...].
    center: f32[features], mean of the features.
    scale: f32[features], their standard deviation.
  """

  params: PyTree
  center: np.ndarray
  scale: np.ndarray


class _Network(nn.Module):
  """Features f32[batch, features] to scores f32[batch]."""

  width: int = 64

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.silu(nn.Dense(self.width)(x))
    return nn.Dense(1)(x)[:, 0]


_NETWORK = _Network()
_OPTIMIZER = optax.adamw(2e-3, weight_decay=1e-2)


@checks.door
def fit(
  key: jax.Array,
  features: ArrayLike,
  scores: ArrayLike,
  *,
  capacity: int | None = None,
  steps: int = 300,
  pairs: int = 64,
) -> Predictor:
  """Returns an ensemble trained on the table of (features, scores).

  Args:
    key: PRNG key.
    features: f32[m, features].
    scores: f[m], the lower the better; inf is the worst.
    capacity: rows to make room for, so that larger tables need no compiling.
    steps: updates of Adam.
    pairs: pairs of candidates in an update.
  """
  features = np.asarray(features, np.float32)
  center, scale = features.mean(0), features.std(0)
  scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
  rank = stats.rankdata(np.asarray(scores, np.float64)).astype(np.float32)
  m = len(features)
  room = max(m, capacity or m)
  pad = ((0, room - m), (0, 0))
  x = np.pad((features - center) / scale, pad)
  rank = np.pad(rank, pad[0])
  keys = jax.random.split(key, _MEMBERS)
  params = _fit(keys, x, rank, m, steps=steps, pairs=pairs)
  return Predictor(params, center, scale)


@functools.partial(jax.jit, static_argnames=("steps", "pairs"))
def _fit(keys, x, rank, m, *, steps, pairs):
  def member(key):
    params = _NETWORK.init(key, x[:1])

    def loss(params, rows):
      p = _NETWORK.apply(params, x[rows])
      sign = jnp.sign(rank[rows[:pairs]] - rank[rows[pairs:]])
      short = _MARGIN - (p[:pairs] - p[pairs:]) * sign
      return jnp.mean(jnp.maximum(0.0, short) * jnp.abs(sign))

    def update(carry, i):
      params, state = carry
      rows = jax.random.randint(jax.random.fold_in(key, i), (2 * pairs,), 0, m)
      updates, state = _OPTIMIZER.update(
        jax.grad(loss)(params, rows), state, params
      )
      return (optax.apply_updates(params, updates), state), None

    carry = (params, _OPTIMIZER.init(params))
    return control.scan(update, carry, jnp.arange(steps))[0][0]

  return jax.vmap(member)(keys)


@checks.door
def predict(predictor: Predictor, features: ArrayLike) -> np.ndarray:
  """Returns predicted scores f32[m]; only their order means anything."""
  x = (np.asarray(features, np.float32) - predictor.center) / predictor.scale
  room = 1 << (len(x) - 1).bit_length()  # few shapes, few programs
  padded = np.pad(x, ((0, room - len(x)), (0, 0)))
  return np.asarray(_predict(predictor.params, padded))[: len(x)]


@jax.jit
def _predict(params, x):
  member = lambda params: _NETWORK.apply(params, x)
  return jnp.mean(jax.vmap(member)(params), axis=0)


@checks.door
def kendall(predicted: ArrayLike, scores: ArrayLike) -> float:
  """Returns Kendall's tau, 1 for the same order; nan for fewer than two."""
  return float(stats.kendalltau(predicted, scores).statistic)

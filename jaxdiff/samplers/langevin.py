r"""Langevin dynamics on a fixed score, unadjusted or with Metropolis' test.

  x' = x + h s(x) + sqrt(2 h) z

leaves p invariant for h -> 0 if s = grad log p. On N(mu, c^2) the chain is an
AR(1) process with mean factor 1 - h / c^2 and stationary variance c^2 / (1 - h
/ (2 c^2)), stable for h < 2 c^2 alone. With `log_prob` every move is a proposal
accepted with probability

  min(1, p(x') q(x | x') / (p(x) q(x' | x))),   q(. | x) = N(x + h s(x), 2 h I),

which leaves p itself invariant (MALA; Roberts and Tweedie 1996,
https://doi.org/10.2307/3318418). One call of the score a step either way.

On the score of a model at decreasing noise levels the same moves with steps of
fixed size are a table: `solvers.annealed_langevin`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree

Score = Callable[[PyTree], PyTree]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelScore:
  """The score -eps(x, t) / sigma(t) of a model at one noise level; a pytree.

  Attributes:
    model: model(x, t) -> Prediction.
    t: the time; the score is that of p_t, in the scale of x_t.
    process: the forward process; its noise is normal.

  Raises:
    ValueError: if it is not: -eps / sigma is no score then; or if the model is
      of another process.
  """

  model: Model
  t: Array
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __post_init__(self):
    check_normal(self.process, "ModelScore", "score", _EXACT_SCORE)
    agreement.check(self.model, None, self.process, "ModelScore")

  def __call__(self, x: PyTree) -> PyTree:
    """Returns the score at x, shaped like x."""
    dtype = tree.compute_dtype(jax.tree.leaves(x)[0].dtype)
    t = jnp.asarray(self.t, dtype)
    sigma = self.process.sigma(t)
    return jax.tree.map(lambda e: -e / sigma, ask(self.model, x, t).eps)


_EXACT_SCORE = (
  "give a function of x that is the score itself, or take pfgmpp(None), the"
  " limit of normal noise"
)


class ChainInfo(NamedTuple):
  """What a collector may look at after a move.

  Attributes:
    step: i32[], index of the move.
    a: the state of the chains after it.
    accept: f[batch], probability with which it was accepted; 1 if unadjusted.
  """

  step: jax.Array
  a: PyTree
  accept: jax.Array


class LangevinInfo(NamedTuple):
  """What `langevin` tells beside where the chains are.

  Attributes:
    nfe: calls of the score for each chain: one a move, and of an adjusted chain
      one at its start.
    acceptance: f[batch], mean probability with which a chain's moves were
      accepted; 1 if unadjusted.
    kept: what `collect` kept of the moves; None without one.
  """

  nfe: int
  acceptance: jax.Array
  kept: PyTree = None


@checks.sampler
def langevin(
  key: jax.Array,
  score: Score,
  steps: int,
  x: PyTree,
  *,
  step: ArrayLike,
  log_prob: Callable[[PyTree], jax.Array] | None = None,
  index: ArrayLike | None = None,
  collect: sampling.Collector | None = None,
  check_finite: bool = False,
) -> tuple[PyTree, LangevinInfo]:
  """Returns (x, info) after moves of Langevin dynamics, one chain a sample.

  Args:
    key: PRNG key; a chain's noise depends on it and on the chain's index.
    score: x -> score at x. If it is a pytree, as `ModelScore` is, its arrays
      are arguments of the compiled program; keep one object of a function.
    steps: number of moves, at least 0.
    x: where the chains begin, [batch, ...], an array or a tree.
    step: h, a scalar or f[steps]; another value compiles nothing.
    log_prob: x -> log p(x) f[batch] up to a constant: adjusts the chain.
    index: i32[batch], indices of the chains; 0, 1, ... by default.
    collect: what to keep of the moves (`ChainInfo`), as `info.kept`.
    check_finite: whether to look for NaN and infinities, and to raise.

  Raises:
    ValueError: for h <= 0 or not one h for each step, or a score that is not
      shaped like x.
    FloatingPointError: with check_finite, naming the step and h.
  """
  x = jax.tree.map(jnp.asarray, x)
  tree.batch_size(x)
  index = control.numbers(x, index)
  if not isinstance(steps, (int, np.integer)) or steps < 0:
    raise ValueError(f"steps is a number of moves, at least 0; got {steps!r}")
  if np.shape(step) not in ((), (steps,)):
    raise ValueError(
      f"step is one size for all moves or one for each of the {steps}, got"
      f" shape {np.shape(step)}"
    )
  if checks.concrete(step) and not np.all(np.asarray(step) > 0):
    raise ValueError(
      f"Langevin dynamics takes steps of a positive size h, got step={step};"
      " h below a quarter of the smallest variance is a good start"
    )
  if steps == 0:
    if collect is not None:
      raise ValueError(
        "steps=0 returns x as it is: there is no move to collect"
      )
    return x, LangevinInfo(0, jnp.ones_like(index, _dtype(x)))
  # a step may be too small for a bfloat16 state to see
  wide = jax.tree.map(lambda v: v.astype(tree.compute_dtype(v.dtype)), x)
  arrays, static = tree.partition((score, log_prob, collect))
  h = jnp.broadcast_to(jnp.asarray(step, jnp.result_type(float)), (steps,))
  end, (kept, (bad, accepted)) = _program(
    key, arrays, wide, h, index, static=static
  )
  x = jax.tree.map(lambda v, old: v.astype(old.dtype), end, x)
  if check_finite:
    bad = int(bad)
    if bad < steps:
      raise FloatingPointError(
        f"chains hold NaN or infinity since move {bad} of {steps}, with step h"
        f" = {float(h[bad]):.4g}; the dynamics is stable for h below twice the"
        " smallest variance of p: take a smaller step"
      )
  nfe = steps if log_prob is None else steps + 1
  return x, LangevinInfo(nfe, accepted / steps, kept)


def move(x: PyTree, score: PyTree, h: ArrayLike, z: PyTree) -> PyTree:
  """Returns x + h s + sqrt(2 h) z; h scalar or [batch]."""

  def one(v, s, e):
    wide = tree.expand(h, v)
    return (v + wide * s + jnp.sqrt(2.0 * wide) * e).astype(v.dtype)

  return jax.tree.map(one, x, score, z)


def _langevin(key, arrays, x, h, index, *, static):
  """The compiled part of `langevin`."""
  score, log_prob, collect = tree.combine(arrays, static)
  key = jax.random.fold_in(key, _TAG)  # apart from the caller's own draws
  checks.same_structure(jax.eval_shape(score, x), x, "the score", "the state")
  rows = (jnp.arange(h.shape[0], dtype=jnp.int32), h)
  keep = sampling.both(
    _NOTHING if collect is None else collect,
    sampling.both(sampling.first_nonfinite, _ACCEPTED),
  )
  if log_prob is None:

    def advance(key, row, x):
      i, h = row
      x = move(x, score(x), h.astype(_dtype(x)), tree.normal(key, x, index))
      return x, ChainInfo(i, x, jnp.ones_like(index, _dtype(x)))

    return sampling.run(key, advance, rows, x, collect=keep)

  def adjusted(key, row, state):
    (i, h), (x, s, log_p) = row, state
    h = h.astype(_dtype(x))
    y = move(x, s, h, tree.normal(key, x, index))
    s_y, log_p_y = score(y), log_prob(y)
    back, forth = _residual(x, y, s_y, h), _residual(y, x, s, h)
    log_ratio = log_p_y - log_p - (back - forth) / (4.0 * h)
    accept = jnp.exp(jnp.minimum(log_ratio, 0.0))
    draw = jax.vmap(
      lambda j: jax.random.uniform(_uniform_key(key, j), (), accept.dtype)
    )(index)
    keep_it = draw < accept  # False for NaN: such a proposal is refused
    state = jax.tree.map(
      lambda new, old: jnp.where(tree.expand(keep_it, new), new, old),
      (y, s_y, log_p_y),
      (x, s, log_p),
    )
    return state, ChainInfo(i, state[0], accept)

  start = (x, score(x), log_prob(x))
  (x, _, _), kept = sampling.run(key, adjusted, rows, start, collect=keep)
  return x, kept


def _residual(to, start, score, h):
  """Returns |to - start - h s(start)|^2 of every chain, f[batch]."""
  squares = jax.tree.map(
    lambda a, b, s: jnp.sum(
      jnp.square(a - b - h * s).reshape(a.shape[0], -1), axis=1
    ),
    to,
    start,
    score,
  )
  return sum(jax.tree.leaves(squares))


def _dtype(x):
  return tree.compute_dtype(jax.tree.leaves(x)[0].dtype)


def _uniform_key(key, j):
  return jax.random.fold_in(jax.random.fold_in(key, _ACCEPT), j)


_TAG = 0x6C616E67
_ACCEPT = 2**31 - 2  # no chain has this index: apart from the noise of any
_NOTHING = sampling.Collector(lambda n, info: None, lambda kept, info: None)
_ACCEPTED = sampling.Collector(
  lambda n, info: control.full(info.accept, 0),
  lambda total, info: total + info.accept,
)
_program = jax.jit(_langevin, static_argnames="static")

r"""Picard iteration: all steps of a window in parallel, until they agree.

A one-step table is a chain x_{i+1} = Phi_i(x_i, z_i). For any guess of the
whole path the network can be asked at all of its points in parallel; the path
is then summed anew from the steps that these answers make (Picard iteration):

  x_{i+1} <- x_i + Phi_i(old x_i, z_i) - old x_i,    i = 0, 1, ...

whose fixed point is the sequential path. Every round makes at least one more
point exact, so n rounds always suffice; usually far fewer do, at more calls.
The noise z_i is fixed in advance: it is `sampling.sample`'s of the same key.

Only a window of points is held. It slides on over the points that moved by less
than `tolerance` times the noise of their step,

  rms(x_{i+1} - old x_{i+1}) <= tolerance sigma' sqrt(1 - e^{-2h}),

each sample at its own pace, so that a sample's result does not depend on the
others; new points start from the window's last. Tolerance 0 waits until nothing
moves.

Carrying a table's linear part exactly instead, x_{i+1} <- c_i x_i + ..., looks
more natural and is worse: where x0 follows x (little noise) a change then
travels a few steps a round only, in moves so small that they pass for settled.
Reference: Shih et al. (2023), ParaDiGMS, algorithm 1, https://arxiv.org/abs/
2305.16317.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import sampling
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree


class PicardInfo(NamedTuple):
  """What `picard` tells beside its samples; counts are of single samples.

  Attributes:
    rounds: i32[batch], parallel network calls that each waited for.
    nfe: i32[batch], network calls whose answers it used, over all rounds.
    batch_rounds: i32[], rounds made for the whole batch.
    batch_calls: i32[], points of one sample asked in them, unused ones too.
  """

  rounds: jax.Array
  nfe: jax.Array
  batch_rounds: jax.Array
  batch_calls: jax.Array


class _Carry(NamedTuple):
  """The loop's state.

  Attributes:
    path: leaves [window + 1, batch, ...], each sample's points from `first`.
    first: i32[batch], index of the last point that is settled.
    rounds: i32[batch].
    nfe: i32[batch].
    turns: i32[], rounds of the batch.
  """

  path: PyTree
  first: jax.Array
  rounds: jax.Array
  nfe: jax.Array
  turns: jax.Array


@checks.sampler
def picard(
  key: jax.Array,
  model: sampling.Model,
  tableau: tables.Tableau,
  x: PyTree,
  *,
  process: GaussianProcess,
  window: int | None = None,
  tolerance: float = 0.1,
  index: ArrayLike | None = None,
) -> tuple[PyTree, PicardInfo]:
  """Returns (x, info): samples of a one-step table, its steps in parallel.

  Args:
    key: PRNG key; the noise is that of `sampling.sample` with this key.
    model: model(x, t) -> Prediction with t[batch]; mapped over the window.
    tableau: tableau of a one-step method: ddim, ddpm, euler, reverse_diffusion,
      ...
    x: where to start, [batch, ...] at tableau.t[0], or a shape.
    process: the forward process, the scale of the tolerance.
    window: points asked at once; all n by default.
    tolerance: tolerance of a point's move against its step's noise; 0 is exact.
    index: i32[batch], indices of the samples; 0, 1, ... by default.

  Raises:
    ValueError: for a table with memory, stages or noise before its calls, a
      window outside of 1..n, a negative tolerance, or a model or a table of
      another process.
    TypeError: for swapped arguments or a traced table.
  """
  checks.process(process, "picard(..., process=...)")
  if not isinstance(tableau, tables.Tableau):
    raise TypeError(
      "picard(key, model, tableau, x) takes a Tableau third, got"
      f" {type(tableau).__name__}; build one with a solver, as in"
      " ddim(process, grid)"
    )
  sampling.check_concrete(tableau, "the tableau")
  tables.validate(tableau)
  if not tableau.one_step or np.any(tableau.noise[:, 0]):
    raise ValueError(
      "picard runs one-step tables, in which a row is a function of the sample"
      " alone: ddim, ddpm, euler, reverse_diffusion, euler_maruyama; a row of"
      " this one remembers outputs, is a stage, or adds noise before its call"
    )
  if any(np.ndim(leaf) != d for leaf, d in zip(tableau, (1, 2, 3, 3, 2))):
    raise ValueError(
      "picard runs tables without data dimensions; this one's leaves have"
      f" shapes {[np.shape(leaf) for leaf in tableau]}"
    )
  agreement.check(model, tableau, process, "picard")
  n = tableau.nfe
  window = n if window is None else window
  if not 1 <= window <= n:
    raise ValueError(
      f"window is a number of steps within 1..{n}, the rows of the tableau;"
      f" got {window}"
    )
  if checks.concrete(tolerance) and not tolerance >= 0:
    raise ValueError(f"tolerance must be at least 0, got {tolerance}")
  x, index = sampling.begin(key, x, process, tableau.t[0], index)
  arrays, static = tree.partition(model)
  return _program(
    key,
    x,
    arrays,
    tableau._replace(history=tableau.history[:, :, :1]),
    _step_noise(process, tableau.t),
    tolerance,
    index,
    static=static,
    window=window,
  )


def _step_noise(process, t):
  """Returns the posterior's standard deviation of every step, f64[n].

  The last step, whose end is not known here (and often free of noise), is given
  that of the step before.
  """
  if len(t) == 1:
    return np.asarray([process.sigma(t[0])])
  h = abs(np.diff(process.log_snr(t)))
  noise = process.sigma(t[1:]) * np.sqrt(-np.expm1(-2.0 * h))
  return np.append(noise, noise[-1])


class _Rules(NamedTuple):
  """What does not change from round to round: the model and the table.

  Attributes:
    model: model(x, t) -> Prediction.
    key: the key that `sampling.sample` walks the table with.
    index: i32[batch], the samples' indices.
    like: ShapeDtypeStructs of the state, [batch, ...].
    window: points asked at once.
    t: f[n], times of the calls.
    output: f[n, 2], the combination of x0 and eps that the table takes.
    carry: f[n], weight of the state.
    weight: f[n], weight of the output.
    scale: f[n], of the noise.
    allowed: f[n], how far a settled point may move.
  """

  model: Model
  key: jax.Array
  index: jax.Array
  like: PyTree
  window: int
  t: jax.Array
  output: jax.Array
  carry: jax.Array
  weight: jax.Array
  scale: jax.Array
  allowed: jax.Array

  @property
  def n(self) -> int:
    """Number of rows."""
    return self.t.shape[0]


def _parallel(
  key,
  x,
  arrays,
  tableau,
  step_noise,
  tolerance,
  index,
  *,
  static,
  window,
):
  """The compiled part of `picard`."""
  start = sampling.initial_state(x, 1).y
  dtype = jnp.result_type(*jax.tree.leaves(start))
  cast = lambda v: jnp.asarray(v, dtype)
  rules = _Rules(
    model=tree.combine(arrays, static),
    key=sampling.stream(key),
    index=index,
    like=jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), start),
    window=window,
    t=cast(tableau.t),
    output=cast(tableau.output),
    carry=cast(tableau.state[:, 0, 0]),
    weight=cast(tableau.history[:, 0, 0]),
    scale=cast(tableau.noise[:, 1]),
    allowed=tolerance * cast(step_noise),
  )
  # every point of the first guess is the start
  zero = control.full(index, 0)
  path = jax.tree.map(
    lambda v: jnp.broadcast_to(v, (window + 1, *v.shape)), start
  )
  c = control.while_loop(
    lambda c: jnp.any(c.first < rules.n),
    functools.partial(_round, rules),
    _Carry(path, zero, zero, zero, jnp.zeros((), jnp.int32)),
  )
  info = PicardInfo(
    rounds=c.rounds,
    nfe=c.nfe,
    batch_rounds=c.turns,
    batch_calls=c.turns * window,
  )
  return jax.tree.map(lambda v, o: v[0].astype(o.dtype), c.path, x), info


def _round(rules, c):
  """One round: the window asked, summed anew, and slid on."""
  going = c.first < rules.n
  steps, new = _swept(rules, c.path, c.first)
  stride = _settled(rules, steps, c.path, new, c.first)
  stride = jnp.where(going, stride, 0)
  moved = _slid(rules, new, stride)
  # a sample that has arrived stays as it is while the others go on
  keep = lambda a, b: jnp.where(_spread(going[None], a), a, b)
  used = jnp.where(going, jnp.minimum(rules.window, rules.n - c.first), 0)
  return _Carry(
    path=jax.tree.map(keep, moved, c.path),
    first=c.first + stride,
    rounds=c.rounds + going,
    nfe=c.nfe + used,
    turns=c.turns + 1,
  )


def _swept(rules, path, first):
  """Returns the steps of the window, and the path summed from its answers."""
  offsets = jnp.arange(rules.window)
  steps = jnp.minimum(first + offsets[:, None], rules.n - 1)  # [window, batch]
  old = jax.tree.map(lambda v: v[:-1], path)
  of = lambda leaf: control.rows_at(leaf, steps)
  answer = ask(jax.vmap(rules.model), old, of(rules.t))
  c, w, o, s = map(of, (rules.carry, rules.weight, rules.output, rules.scale))
  z = control.cond(
    jnp.any(rules.scale != 0),
    lambda: _noise(rules, steps),
    lambda: jax.tree.map(jnp.zeros_like, old),
  )

  def leaf(v, x0, eps, e, whole):
    at = lambda q: _spread(q, v)
    f = (at(o[..., 0]) * x0 + at(o[..., 1]) * eps).astype(v.dtype)
    moves = (at(c) - 1.0) * v + at(w) * f + at(s) * e
    sums = whole[:1] + jnp.cumsum(moves, axis=0)
    return jnp.concatenate([whole[:1], sums.astype(v.dtype)])

  return steps, jax.tree.map(leaf, old, answer.x0, answer.eps, z, path)


def _noise(rules, steps):
  """Returns z of each step [window, batch] as `sampling.sample` draws it."""
  single = jax.tree.map(
    lambda v: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype), rules.like
  )

  def one(step, i):
    own = jax.random.fold_in(jax.random.fold_in(rules.key, step), 1)
    z = tree.normal(own, single, i[None])
    return jax.tree.map(lambda v: v[0], z)

  return jax.vmap(jax.vmap(one), in_axes=(0, None))(steps, rules.index)


def _settled(rules, steps, old, new, first):
  """Returns how far the window may slide on, i32[batch]."""
  square = lambda a, b: jnp.sum(
    jnp.square(a[1:] - b[1:]), axis=tuple(range(2, a.ndim))
  )
  total = sum(jax.tree.leaves(jax.tree.map(square, new, old)))
  count = sum(math.prod(v.shape[1:]) for v in jax.tree.leaves(rules.like))
  moved = jnp.sqrt(total / count)  # [window, batch]
  allowed = control.rows_at(rules.allowed, steps)
  still = jnp.cumprod(moved <= allowed, axis=0).sum(0, jnp.int32)
  # the first new point follows from a settled one and is exact
  return jnp.minimum(jnp.maximum(still, 1), rules.n - first)


def _slid(rules, path, stride):
  """Returns each sample's path from `stride` on; new points are its last."""
  at = jnp.arange(rules.window + 1)[:, None] + stride
  at = jnp.minimum(at, rules.window)
  return jax.tree.map(
    lambda v: jnp.take_along_axis(v, _spread(at, v), axis=0), path
  )


def _spread(v, leaf):
  """Returns [window, batch] against a leaf of the path, with its data axes."""
  return v.reshape(v.shape + (1,) * (leaf.ndim - v.ndim))


_program = jax.jit(_parallel, static_argnames=("static", "window"))

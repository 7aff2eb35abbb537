r"""The loop that runs every table, and `sample` around it.

`run` is the only fixed-grid loop of the library: it folds the step index into
the key, walks over rows, and keeps only what a `Collector` keeps. `advance`
makes the step that a `Tableau` row describes; a method that is no table brings
an `advance` of its own.

Nothing of the trajectory is kept unless asked. A collector is a fold: `init`
makes an accumulator, `update` is given every step's `StepInfo`.
"""

import contextlib
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import predictions
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree

Model = Callable[[Any, jax.Array], predictions.Prediction]


class State(NamedTuple):
  """What a table carries between calls; y and a are trees like x.

  Attributes:
    y: where the network is asked next.
    a: the anchor, the last accepted sample.
    h: the last K outputs in a ring, leaves [K, batch, ...]: the output of call
      i lies in slot i % K, so that a new one overwrites the oldest in place.
  """

  y: PyTree
  a: PyTree
  h: PyTree


class Pair(NamedTuple):
  """Both states of a table, to begin or to go on from; trees of one kind.

  `sample` returns one where it is given one.

  Attributes:
    y: where the network is asked next.
    a: the anchor, the last accepted sample.
  """

  y: PyTree
  a: PyTree


class StepInfo(NamedTuple):
  """What a collector may look at after a step.

  Attributes:
    step: i32[], index of the row.
    t: time of the call.
    y: the state that the network was asked at.
    a: the sample accepted last: at the time of the next call where this one
      ended a step, else at that of the step's start (see `tableau`).
    prediction: what the network answered.
  """

  step: jax.Array
  t: jax.Array
  y: PyTree
  a: PyTree
  prediction: predictions.Prediction


class WalkInfo(NamedTuple):
  """What a sampler that walks a fixed number of steps tells beside its samples.

  Attributes:
    nfe: network calls for each sample.
    kept: what `collect` kept of the steps; None without one.
  """

  nfe: int
  kept: PyTree = None


class Collector(NamedTuple):
  """A fold over the steps of a run.

  As a model it travels into the compiled program: what is a pytree of its two
  functions (`jax.tree_util.Partial`) gives its arrays as arguments, a plain
  function is part of the key.

  Attributes:
    init: (n, info) -> accumulator, where n is the number of rows and info a
      `StepInfo` of ShapeDtypeStructs.
    update: (accumulator, info) -> accumulator.
  """

  init: Callable[[int, StepInfo], PyTree]
  update: Callable[[PyTree, StepInfo], PyTree]


def accepted(info: StepInfo) -> PyTree:
  """Returns the sample that was accepted last; for `every`.

  After a call that ends a step it is at the time of the next call; of a
  predictor-corrector it is the prediction, as the next call meets it.
  """
  return info.a


def denoised(info: StepInfo) -> PyTree:
  """Returns the clean sample that the network saw in it; for `every`."""
  return info.prediction.x0


def every(
  k: int = 1, what: Callable[[StepInfo], PyTree] = accepted
) -> Collector:
  """Keeps what(info) of the last of every k calls: leaves [ceil(n / k), ...].

  `every(k, denoised)` keeps the previews, `every(k)` the accepted samples; with
  k = calls per step these are the ends of all steps. The last call is always
  kept. Calls that a run of shorter `length` does not make stay zero. Keep one
  function object `what`: a new one is a new program.
  """
  if not isinstance(k, int) or isinstance(k, bool) or k < 1:
    raise ValueError(
      f"every(k, what) needs an integer k >= 1, got k={k!r}; every(1, what)"
      " keeps all"
    )
  k = min(k, np.iinfo(np.int32).max)  # as steps are numbered: keeps the last
  return Collector(
    tree.Bound(_init_every, (k, what)), tree.Bound(_update_every, (k, what))
  )


def _init_every(k, what, n, info):
  picked = jax.eval_shape(what, info)
  return jax.tree.map(lambda s: control.full(s, 0, lead=(-(-n // k),)), picked)


def _update_every(k, what, kept, info):
  at = info.step // k  # of k writes to one place the last one stays
  write = lambda old, new: control.set_row(old, new, at)
  return jax.tree.map(write, kept, what(info))


def _init_nonfinite(n, info):
  del info
  return jnp.asarray(n, jnp.int32)


def _update_nonfinite(first, info):
  finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(info.a)]
  bad = ~jnp.stack(finite).all()
  step = jnp.asarray(info.step, first.dtype)
  return jnp.where(bad, jnp.minimum(first, step), first)


first_nonfinite = Collector(_init_nonfinite, _update_nonfinite)
"""Keeps the first step that accepted a NaN or an infinity; n if none did."""


def _init_nonfinite_since(n, info):
  return jnp.full_like(control.numbers(info.a), n)


def _update_nonfinite_since(since, info):
  size = since.shape[0]
  finite = [
    jnp.isfinite(leaf).reshape(size, -1).all(1)
    for leaf in jax.tree.leaves(info.a)
  ]
  bad = ~jnp.stack(finite).all(0)
  step = jnp.asarray(info.step, since.dtype)
  return jnp.where(bad, jnp.minimum(since, step), since)


nonfinite_since = Collector(_init_nonfinite_since, _update_nonfinite_since)
"""Keeps it of every sample, i32[batch]; `raise_nonfinite` reads it."""


def both(one: Collector, other: Collector) -> Collector:
  """Keeps what two collectors keep, as a pair."""
  return Collector(
    jax.tree_util.Partial(_init_both, one.init, other.init),
    jax.tree_util.Partial(_update_both, one.update, other.update),
  )


def _init_both(one, other, n, info):
  return one(n, info), other(n, info)


def _update_both(one, other, kept, info):
  return one(kept[0], info), other(kept[1], info)


@checks.door
def run(
  key: jax.Array,
  advance: Callable[[jax.Array, PyTree, PyTree], tuple[PyTree, Any]],
  rows: PyTree,
  state: PyTree,
  *,
  length: jax.Array | int | None = None,
  collect: Collector | None = None,
  remat: bool = False,
) -> tuple[PyTree, PyTree]:
  """Walks over rows: the one loop under every sampler.

  Args:
    key: PRNG key; step i is given fold_in(key, i).
    advance: (key, row, state) -> (state, info), one step.
    rows: tree with a leading axis of n steps.
    state: tree, the carry.
    length: number of rows to walk, possibly traced: a run of any length then
      shares one compiled program, without reverse-mode gradients. None walks
      them all in a scan, with gradients.
    collect: what to keep of the infos, if anything.
    remat: whether a gradient computes the inside of a step again, instead of
      keeping it: the memory of one step and n states, for one more call of
      the model in each step.

  Returns:
    (state, collected): `collected` is None without a collector.

  Raises:
    ValueError: for remat with a length, which has no gradient to save memory
      of.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> def advance(key, row, state):
    ...   state = row * state
    ...   return state, state
    >>> rows = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    >>> state, _ = jd.run(jax.random.key(0), advance, rows, jnp.ones(()))
    >>> float(state)
    24.0
  """
  _check_remat(remat, length)
  n = tree.batch_size(rows)
  rows = jax.tree.map(jnp.asarray, rows)
  at = lambda i: jax.tree.map(lambda leaf: leaf[i], rows)
  kept = None
  if collect is not None:
    first = lambda key, rows, state: advance(
      key, jax.tree.map(lambda leaf: leaf[0], rows), state
    )
    after, info = jax.eval_shape(first, key, rows, state)
    checks.same_types(after, state, "advance", "the state")
    kept = collect.init(n, info)
    updated = jax.eval_shape(collect.update, kept, info)
    checks.same_types(updated, kept, "collect.update", "what collect.init made")

  def step(i, row, carry):
    state, kept = carry
    state, info = advance(jax.random.fold_in(key, i), row, state)
    if collect is not None:
      kept = collect.update(kept, info)
    return state, kept

  if length is None:
    body = lambda carry, xs: (step(*xs, carry), None)
    if remat:
      body = jax.checkpoint(body, prevent_cse=False)  # a scan repeats nothing
    steps = jnp.arange(n, dtype=jnp.int32)
    return control.scan(body, (state, kept), (steps, rows))[0]
  body = lambda i, carry: step(i, at(i), carry)
  return control.fori_loop(0, length, body, (state, kept))


def _check_remat(remat, length):
  if remat and length is not None:
    raise ValueError(
      "remat saves memory of a reverse-mode gradient, which a run of a given"
      " length does not have; leave length out (tableau.take(table,"
      " slice(length)) shortens a table), or remat"
    )


class Draws(NamedTuple):
  """Noise that somebody else drew, standard normal; trees of [n, batch, ...].

  Row i of a table of n rows adds noise[i, 0] times `before[i]` to y before its
  call, and noise[i, 1] and noise[i, 2] times `after[i]` to y and a after it.

  Attributes:
    before: the first draw of every row, of tables with churn; or None.
    after: the second, of all other stochastic tables; or None.
  """

  before: PyTree = None
  after: PyTree = None


class Row(NamedTuple):
  """One row of a table as the loop walks it; the history follows the ring."""

  step: jax.Array
  slot: jax.Array
  t: jax.Array
  output: jax.Array
  state: jax.Array
  history: jax.Array
  noise: jax.Array | None  # None where it is known that no row draws any
  draws: Draws = Draws()


def rows_of(tableau: tables.Tableau, dtype: DTypeLike, first: int = 0) -> Row:
  """Returns the table in the compute dtype, its history in the ring's order.

  Rows of a table that is known to draw no noise have none: the program that
  walks them holds no branch that draws. Where its scales are traced the program
  decides at every row.

  Args:
    tableau: n rows.
    dtype: that the solver's arithmetic runs in.
    first: index of the first row in the whole table, where a run is resumed.
  """
  n, memory = tableau.nfe, tableau.memory
  call = np.arange(first, first + n)
  ago = (call[:, None] - np.arange(memory)[None, :]) % memory  # of each slot
  ago = ago.reshape((n, 1, memory) + (1,) * (np.ndim(tableau.history) - 3))
  cast = lambda leaf: jnp.asarray(leaf, dtype)
  return Row(
    step=jnp.asarray(call, jnp.int32),
    slot=jnp.asarray(call % memory, jnp.int32),
    t=cast(tableau.t),
    output=cast(tableau.output),
    state=cast(tableau.state),
    history=jnp.take_along_axis(cast(tableau.history), ago, axis=2),
    noise=None if _quiet(tableau.noise) else cast(tableau.noise),
  )


def _quiet(noise):
  """Returns whether no row draws noise, as far as it is known on the host."""
  if noise is None:
    return True
  return checks.concrete(noise) and not np.any(np.asarray(noise))


def simplest(
  tableau: tables.Tableau,
  length: int | jax.Array | None = None,
  *,
  pair: bool = False,
) -> tables.Tableau:
  """Returns the table without what it is known not to need.

  What is left out is out of its structure, so that the compiled program is
  without it too. A table that draws no noise has none. If moreover all its rows
  end a step, a = y all the time, and the weights of y' do for both: state
  [n, 1, 1] and history [n, 1, K].

  Args:
    tableau: the solver; what is traced of it stays.
    length: as given to `sample`. Tables that are run to some length share a
      program, so that all of them keep an anchor.
    pair: whether it starts from two states, which may differ.
  """
  if not _quiet(tableau.noise):
    return tableau
  tableau = tableau._replace(noise=None)
  known = checks.concrete(tableau.state) and checks.concrete(tableau.history)
  if pair or length is not None or not known:
    return tableau
  history = np.asarray(tableau.history)
  state = np.sum(np.asarray(tableau.state), axis=2, keepdims=True)  # as a = y
  apart = [np.any(leaf[:, 0] != leaf[:, 1]) for leaf in (state, history)]
  if any(apart):
    return tableau
  return tableau._replace(state=state[:, :1], history=history[:, :1])


def initial_state(x: PyTree, memory: int) -> State:
  """Returns the state at the first call, an empty history.

  y = a = x, or what a `Pair` gives to them.
  """
  wide = jax.tree.map(lambda v: v.astype(tree.compute_dtype(v.dtype)), x)
  y, a = wide if isinstance(x, Pair) else (wide, wide)
  ring = jax.tree.map(lambda v: control.full(v, 0, lead=(memory,)), y)
  return State(y=y, a=a, h=ring)


def table_advance(
  model: Model, index: jax.Array
) -> Callable[[jax.Array, Row, State], tuple[State, StepInfo]]:
  """Returns the step that a row describes: one network call, one pass.

  Args:
    model: model(x, t) -> Prediction.
    index: i32[batch], the samples' indices, which name their noise.
  """

  def advance(key, row, state):
    y = state.y
    if row.noise is not None:
      scale, given = row.noise[0:1], row.draws.before
      (y,) = _add_noise(key, index, 0, (y,), scale, given)
    answer = predictions.ask(model, y, row.t)
    memory = row.history.shape[1]

    def combine(y, a, x0, eps, ring):
      x0, eps = x0.astype(y.dtype), eps.astype(y.dtype)
      f = (row.output[0] * x0 + row.output[1] * eps).astype(y.dtype)
      ring = control.set_row(ring, f, row.slot)
      if row.state.shape[0] == 1:  # y = a, after the call as before it
        new = [row.state[0, 0] * y]
      else:
        new = [row.state[j, 0] * y + row.state[j, 1] * a for j in (0, 1)]
      for k in range(memory):
        new = [v + row.history[j, k] * ring[k] for j, v in enumerate(new)]
      new = [v.astype(y.dtype) for v in new]
      return new[0], new[-1], ring

    combined = jax.tree.map(combine, y, state.a, answer.x0, answer.eps, state.h)
    pick = lambda i: jax.tree.map(lambda _, parts: parts[i], y, combined)
    new_y, new_a = pick(0), pick(1)
    if row.noise is not None:
      scales, given = row.noise[1:3], row.draws.after
      new_y, new_a = _add_noise(key, index, 1, (new_y, new_a), scales, given)
    new = State(new_y, new_a, pick(2))
    return new, StepInfo(row.step, row.t, y, new_a, answer)

  return advance


def _add_noise(key, index, tag, trees, scales, given):
  """Adds scales[j] z to each tree, the same z; draws only if it is needed."""

  def add(trees):
    z = given
    if given is None:
      z = tree.normal(jax.random.fold_in(key, tag), trees[0], index)
    return tuple(
      jax.tree.map(lambda v, e, s=scale: (v + s * e).astype(v.dtype), x, z)
      for x, scale in zip(trees, scales, strict=True)
    )

  return control.cond(jnp.any(scales != 0), add, lambda trees: trees, trees)


@checks.door
def sample(
  key: jax.Array,
  model: Model,
  tableau: tables.Tableau,
  x: PyTree,
  *,
  process: GaussianProcess | None = None,
  length: int | jax.Array | None = None,
  index: ArrayLike | None = None,
  noise: PyTree | Draws | None = None,
  collect: Collector | None = None,
  check_finite: bool = False,
  progress: bool = False,
  sharding: Any = None,
  donate: bool = False,
  remat: bool = False,
) -> Any:
  """Runs a solver's table: returns samples, [batch, ...].

  Compiled once for each combination of shapes and model structure: a table of
  the same shape (another solver or grid) and other parameters or guidance
  scales reuse the program. Pad the tables and give `length` to change the
  number of calls too. Tables that draw noise share one program, whatever their
  eta or churn, and those that draw none another, which holds no noise: a sweep
  over both is two programs.

  Args:
    key: PRNG key. A sample's noise depends on it and on the sample's index.
    model: model(x, t) -> Prediction with t a scalar. If it is a pytree, as
      `Denoiser` and the oracles are, its arrays are arguments of the compiled
      program; a plain function is part of the key, so keep one function object.
    tableau: the solver.
    x: where to start: an array (or tree) [batch, ...] at time tableau.t[0], or
      a shape (batch, ...), for which noise is drawn from `process`'s prior. A
      warning tells if an array cannot be noise there, by its scale. A `Pair`
      gives the two states of a table that needs both, and a Pair is returned.
    process: the forward process, needed with a shape alone. It is compared with
      those of the model and of the table.
    length: number of rows to run, of a padded table. Without it all are run.
      A run of a given length has no reverse-mode gradient.
    index: i32[batch], indices of the samples; 0, 1, ... by default.
    noise: what somebody else drew for a stochastic table, to compare with
      another library, or `processes.path_noise`: standard normal, like x with
      a leading axis of the table's rows, added after every call;
      `Draws(before, after)` where the table draws before a call (churn). None
      draws it from the key.
    collect: what to keep of the steps; the result is then (samples, kept).
    check_finite: whether to look for NaN and infinities, and to raise.
    progress: whether to show a progress bar, one tick a network call.
    sharding: a jax.sharding.Sharding of the batch axis to run under.
    donate: whether x's buffer may be reused (x is then consumed).
    remat: whether a gradient through the samples computes the inside of every
      step again, instead of keeping it; see `run`.

  Returns:
    samples in x's dtype; the solver's arithmetic runs in float32 or wider.

  Raises:
    ValueError: for a malformed table, a shape without a process, mismatched
      shapes or trees (the leaf is named), a length outside of 1..n, a table and
      a model of different processes.
    TypeError: for swapped arguments, integer samples, a model that returns no
      pair, and for progress or check_finite inside a transformation.
    FloatingPointError: with check_finite, naming the sample and the step where
      it began.

  Example:
    >>> import jax
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> model = jd.exact(jd.oracles.gaussian([3.0], 0.25), process)
    >>> table = jd.default(process, 5)
    >>> key = jax.random.key(0)
    >>> x = jd.sample(key, model, table, (256, 1), process=process)
    >>> print(x.shape, round(float(x.mean())))
    (256, 1) 3
  """
  _check_kinds(x, sharding, remat, length, tableau, process)
  known = agreement.check(model, tableau, process)
  if checks.is_shape(x):
    x, scale, law = _drawn_start(x, tableau, process)
  else:
    x, scale, law = _checked_start(x), 1.0, None
    if not donate:  # a look at it would keep the buffer
      agreement.check_start(x, known, tableau.t[0])
  index = checked_index(index, x)
  draws = _checked_draws(noise, x, tableau)
  given = jax.tree.leaves((key, x, tableau, draws))
  traced = not all(map(checks.concrete, given))
  tableau = simplest(tableau, length, pair=isinstance(x, Pair))
  _check_watched(progress or check_finite, traced, length)
  length = _checked_length(length, tableau.nfe)
  arrays, static = tree.partition((model, collect))
  shape = x if isinstance(x, jax.ShapeDtypeStruct) else None
  if sharding is not None and not traced:
    x, index = _laid_out(x, index, sharding)
  start = scale if shape is not None else x
  program = _donating if donate and _is_own(x) else _program
  with _progress_bar(tableau.nfe if length is None else length, progress):
    result, (kept, since) = program(
      start,
      key,
      arrays,
      tableau,
      index,
      length,
      draws,
      static=static,
      shape=shape,
      noise=law,
      check_finite=check_finite,
      progress=progress,
      sharding=sharding,
      remat=remat,
    )
    if progress:
      _await(result)
  if check_finite:
    raise_nonfinite(since, tableau, index, length=length)
  return result if collect is None else (result, kept)


def _check_kinds(x, sharding, remat, length, tableau, process):
  """Refuses arguments that are none of their kind, before others are read."""
  checks.samples(x)
  checks.sharding(sharding)
  _check_remat(remat, length)
  tables.validate(tableau)
  if process is not None:
    checks.process(process, "sample(..., process=...)")


def _drawn_start(shape, tableau, process):
  """Returns (x, scale, law) of noise that the program draws: x is its shape."""
  if process is None:
    raise ValueError(
      f"x={tuple(shape)} is a shape: the scale of the initial noise is the"
      " process's; pass process=..., or pass the initial noise itself"
    )
  _check_concrete_t(tableau)
  t = float(np.asarray(tableau.t[0]))
  _check_mostly_noise(process, t)
  x = jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(float))
  return x, float(process.sigma(t)), process.noise


def _checked_start(x):
  """Returns x as arrays, after a look at their dtypes and structures."""
  x = jax.tree.map(jnp.asarray, x)
  _check_floating(x)
  if isinstance(x, Pair):
    checks.same_structure(x.a, x.y, "the pair's a", "its y")
  return x


def _is_own(x):
  """Returns whether x's buffers can be given up, each of them once.

  The states of a pair may be one buffer.
  """
  return not isinstance(x, Pair | jax.ShapeDtypeStruct)


def _await(result):
  """Waits for a result, and for the ticks of its progress bar."""
  jax.block_until_ready(result)
  jax.effects_barrier()


def _check_watched(watched, traced, length):
  """Refuses to look at values that are traced."""
  if watched and (traced or not checks.concrete(length)):
    raise TypeError(
      "progress and check_finite look at values while the program runs, which"
      " cannot be done inside jit, grad or vmap; use"
      " collect=sampling.first_nonfinite there and look at it outside"
    )


def _laid_out(x, index, sharding):
  """Returns x and its index on the devices of an Explicit mesh.

  A program finds there by its arguments; those of an Auto mesh are found by
  what constrains them.
  """
  if not control.is_explicit(sharding):
    return x, index
  batch = jax.NamedSharding(sharding.mesh, jax.P(*sharding.spec[:1]))
  if not isinstance(x, jax.ShapeDtypeStruct):
    x = jax.device_put(x, sharding)
  return x, jax.device_put(index, batch)


def checked_index(index: ArrayLike, x: PyTree) -> jax.Array:
  """Returns the indices of x's samples, i32[batch], laid out as x is.

  None is 0, 1, ..., counted through the whole batch inside `shard_map`.

  Raises:
    TypeError: for indices that are no integers.
    ValueError: if there is not one for each sample, or one is no int32.
  """
  size = tree.batch_size(x)
  if index is None:
    return control.numbers(x)
  control.check_index(index)
  index = jnp.asarray(index)
  if not jnp.issubdtype(index.dtype, jnp.integer):
    raise TypeError(f"index numbers the samples, got dtype {index.dtype}")
  if index.shape != (size,):
    raise ValueError(
      f"index must give every sample its number, shape ({size},), got"
      f" {index.shape}"
    )
  return control.numbers(x, index)


def begin(
  key: jax.Array | None,
  x: PyTree,
  process: GaussianProcess,
  t: ArrayLike,
  index: ArrayLike,
) -> tuple[PyTree, jax.Array]:
  """Returns where a sampler starts and the samples' indices.

  Args:
    key: PRNG key of the initial noise; None will do if x is no shape.
    x: a tree of [batch, ...], or a shape for which noise of the process is
      drawn, the same that `sampling.sample` draws.
    process: the forward process.
    t: where the sampler starts.
    index: i32[batch] or None, the samples' indices.

  Raises:
    TypeError: for integer samples, indices that are no integers, or a shape
      without a key.
    ValueError: for indices of another shape, a shape where the signal exceeds
      the noise, or an x without batch.
  """
  checks.samples(x)
  if checks.is_shape(x):
    if key is None:
      raise TypeError(
        f"x={tuple(x)} is a shape, for which noise is drawn: that needs a PRNG"
        " key, jax.random.key(0), in front; or pass the noise itself"
      )
    _check_mostly_noise(process, t)
    like = jax.ShapeDtypeStruct(tuple(x), jnp.result_type(float))
  else:
    like = x = jax.tree.map(jnp.asarray, x)
  _check_floating(like)
  index = checked_index(index, like)
  agreement.check_start(x, process, t)
  if like is not x:
    noise = initial_noise(key, process.noise, like, index)
    x = float(process.sigma(t)) * noise
  return x, index


def _check_mostly_noise(process: GaussianProcess, t: ArrayLike) -> None:
  if process.log_snr(t) > 0:
    raise ValueError(
      f"sampling begins at t = {float(t):.4g}, where the signal exceeds the"
      " noise; pure noise is no place to start from there: pass x ="
      " process.perturb(key, data, t)[0] (image to image)"
    )


def _check_floating(x: PyTree) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(x):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise TypeError(
        f"leaf {jax.tree_util.keystr(path) or 'x'} has dtype {leaf.dtype};"
        " samples are floating point: convert integer pixels with"
        " likelihood.dequantize, or x / 127.5 - 1"
      )


def check_concrete(value: PyTree, name: str) -> None:
  """Raises a TypeError if any array in value is traced."""
  if not all(map(checks.concrete, jax.tree.leaves(value))):
    raise TypeError(
      f"{name} is traced, but it is read on the host; build it outside of jit"
      " and close over it"
    )


def raise_nonfinite(
  since: ArrayLike,
  tableau: tables.Tableau,
  index: ArrayLike,
  length: ArrayLike | None = None,
) -> None:
  """Refuses samples in which `nonfinite_since` found a NaN or an infinity.

  Args:
    since: i32[batch], what the collector kept.
    tableau: the solver's table.
    index: i32[batch], the samples' indices.
    length: number of its rows that were run; all of them by default.

  Raises:
    FloatingPointError: naming the sample that broke first, the step and time.
  """
  n = tableau.nfe if length is None else int(length)
  since = np.asarray(since)
  bad = since < n
  if not bad.any():
    return
  first = int(since.argmin())
  step = int(since[first])
  t = float(np.asarray(tableau.t)[step])
  others = int(bad.sum()) - 1
  more = f" (and {others} more of {len(since)})" if others else ""
  raise FloatingPointError(
    f"sample {int(np.asarray(index)[first])}{more} holds NaN or infinity since"
    f" step {step} of {n} (the call at t = {t:.6g}); look at the model's answer"
    " there, e.g. with collect=sampling.every(1, sampling.denoised)"
  )


def stream(key: jax.Array) -> jax.Array:
  """Returns the key that `sample` walks a table with.

  split(key)[i] and fold_in(key, i) are one key: without a tag of its own a
  caller who drew data from such a key would meet it again as a step's noise.
  """
  return jax.random.fold_in(key, _TAG)


def initial_noise(
  key: jax.Array, noise: ArrayLike, like: PyTree, index: ArrayLike
) -> PyTree:
  """Returns the noise of unit scale that `sample` starts a shape from.

  Args:
    key: as given to `sample`.
    noise: the process's law of noise, `process.noise`.
    like: array or ShapeDtypeStruct of the batch.
    index: i32[batch], the samples' indices.
  """
  return noise.draw(jax.random.fold_in(stream(key), _PRIOR), like, index)


_traced = []  # an entry for every program; jit's own cache forgets some


def compilations() -> int:
  """Returns how many programs `sample` has made, those within others too."""
  return len(_traced)


def _sample(
  x,
  key,
  arrays,
  tableau,
  index,
  length,
  draws,
  *,
  static,
  shape,
  noise,
  check_finite,
  progress,
  sharding,
  remat,
):
  """The compiled part of `sample`."""
  _traced.append(None)
  model, collect = tree.combine(arrays, static)
  if shape is not None:
    x = x * initial_noise(key, noise, shape, index)
  key = stream(key)
  if sharding is not None:
    x = control.constrain(x, sharding)
    index = control.numbers(x, index)
  state = initial_state(x, tableau.memory)
  rows = rows_of(tableau, jnp.result_type(*jax.tree.leaves(state.y)))
  rows = rows._replace(draws=draws)
  advance = table_advance(model, index)
  if progress:
    advance = _ticking(advance)
  keep = _NOTHING if collect is None else collect
  keep = both(keep, nonfinite_since if check_finite else _NOTHING)
  state, kept = run(
    key, advance, rows, state, length=length, collect=keep, remat=remat
  )
  end = Pair(state.y, state.a) if isinstance(x, Pair) else state.a
  return jax.tree.map(lambda v, o: v.astype(o.dtype), end, x), kept


_STATICS = (
  "static",
  "shape",
  "noise",
  "check_finite",
  "progress",
  "sharding",
  "remat",
)
_program = jax.jit(_sample, static_argnames=_STATICS)
_donating = jax.jit(_sample, static_argnames=_STATICS, donate_argnums=0)
_NOTHING = Collector(lambda n, info: None, lambda kept, info: None)
_TAG = 0x73616D70
_PRIOR = 2**31 - 1  # no step has this index


def _checked_draws(noise, x, tableau):
  """Returns the noise given as Draws, once it has the shapes of every draw."""
  if noise is None:
    return Draws()
  draws = noise if isinstance(noise, Draws) else Draws(after=noise)
  n = tableau.nfe
  like = jax.tree.map(
    lambda v: jax.ShapeDtypeStruct((n, *v.shape), v.dtype),
    x.y if isinstance(x, Pair) else x,
  )
  used = (tableau.noise[:, :1], tableau.noise[:, 1:])
  for name, given, scale in zip(Draws._fields, draws, used, strict=True):
    if given is not None:
      checks.same_structure(
        given, like, f"the noise {name} the calls", f"x, in {n} rows,"
      )
      for leaf in jax.tree.leaves(given):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
          raise TypeError(
            f"noise is standard normal, of a floating dtype; got {leaf.dtype}"
          )
    if checks.concrete(scale) and np.any(scale) != (given is not None):
      with_or_not = "draws" if given is None else "draws no"
      raise ValueError(
        f"this table {with_or_not} noise {name} its calls, but noise= gives"
        f" {'none' if given is None else 'some'} there; an array is that after"
        " the calls, sampling.Draws(before=..., after=...) says both, and a"
        " deterministic table takes none"
      )
  return jax.tree.map(jnp.asarray, draws)


def _check_concrete_t(tableau):
  if not checks.concrete(tableau.t):
    raise TypeError(
      "with a shape the initial noise is scaled by the process at"
      " tableau.t[0], which is traced here; pass the initial noise itself:"
      " process.prior(key, shape)"
    )


def _checked_length(length, n):
  """Returns the length as i32[] or None; checked, or clipped if traced."""
  if length is None:
    return None
  if not checks.concrete(length):
    return jnp.clip(jnp.asarray(length, jnp.int32), 0, n)
  try:
    value = operator.index(length)
  except TypeError as error:
    raise TypeError(
      f"length is a number of rows, an integer; got {length!r}"
    ) from error
  if not 1 <= value <= n:
    raise ValueError(
      f"length must be within 1..{n}, the rows of the tableau, got {value}"
    )
  return jnp.asarray(value, jnp.int32)


_bars = []  # open progress bars; a compiled program can hold no bar of its own


def _tick(step):
  del step
  if _bars:
    _bars[-1].update()


def _ticking(advance):
  def ticking(key, row, state):
    jax.debug.callback(_tick, row.step)
    return advance(key, row, state)

  return ticking


@contextlib.contextmanager
def _progress_bar(total, shown):
  if not shown:
    yield
    return
  from tqdm import auto

  _bars.append(auto.tqdm(total=int(total), desc="sampling", unit="call"))
  try:
    yield
  finally:
    _bars.pop().close()

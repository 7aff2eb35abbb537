r"""Calls of one step that do not need each other, made in one batch.

A step of `epd` or `adasde` asks once at its beginning and then at J places that
this answer alone finds. The table makes J + 1 calls one after the other; here
they are two rounds, the second a batch of J, for the same samples: what the
step does is linear in y, a and the answers,

  place_j = P_j . (y, a, F_0),     (y', a') = Q (y, a, F_0, F_1, ..., F_J),

so P and Q follow from the rows. A device that is not full with one sample's
call takes 2 / (J + 1) of the time. Reference: Zhu et al. (2025),
https://arxiv.org/abs/2507.14797, section 3.2.
"""

import functools
from typing import Any, NamedTuple

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
from jaxdiff.tableau import Tableau
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


class SideBySideInfo(NamedTuple):
  """What `side_by_side` tells beside its samples.

  Attributes:
    rounds: network calls that a sample waited for, one after the other.
    nfe: network calls for each sample, the rows of the table.
  """

  rounds: int
  nfe: int


class _Step(NamedTuple):
  """One step as the loop walks it: a call, then w calls side by side.

  Attributes:
    call: i32[], index of the first row in the table.
    t: f[1 + w], times of the calls.
    output: f[1 + w, 2], what each answer is remembered as.
    places: f[w, 3], where the later calls are made, from y, a and F_0.
    ends: f[2, 3 + w], y' and a' from y, a, F_0, ..., F_w.
    noise: f[3], scales before the first call, in y' and in a'.
  """

  call: Any
  t: Array
  output: PyTree
  places: Array
  ends: Any
  noise: Array


@checks.sampler
def side_by_side(
  key: jax.Array,
  model: sampling.Model,
  tableau: Tableau,
  x: PyTree,
  *,
  process: GaussianProcess,
  index: ArrayLike | None = None,
) -> tuple[PyTree, SideBySideInfo]:
  """Returns (x, info): what `sample` returns, the calls of a step in a batch.

  Args:
    key: PRNG key; noise is that of `sampling.sample` with this key.
    model: model(x, t) -> Prediction with t a scalar; mapped over the places.
    tableau: table of `epd` or `adasde`, or another whose steps ask first once
      and then at places that do not need each other's answers.
    x: where to start, [batch, ...] at tableau.t[0], or a shape.
    process: the forward process.
    index: i32[batch], indices of the samples; 0, 1, ... by default.

  Raises:
    ValueError: for a table of other steps, or with data dimensions, or of
      another process than the model.
    TypeError: for swapped arguments or a traced table.
  """
  checks.process(process, "side_by_side(..., process=...)")
  if not isinstance(tableau, Tableau):
    raise TypeError(
      "side_by_side(key, model, tableau, x) takes a Tableau third, got"
      f" {checks.given(tableau)}; build one with a solver, as in"
      " solvers.epd(process, grid)"
    )
  sampling.check_concrete(tableau, "the tableau")
  tables.validate(tableau)
  if any(np.ndim(leaf) != d for leaf, d in zip(tableau, (1, 2, 3, 3, 2))):
    raise ValueError(
      "side_by_side runs tables without data dimensions; this one's leaves have"
      f" shapes {[np.shape(leaf) for leaf in tableau]}"
    )
  agreement.check(model, tableau, process, "side_by_side")
  first, steps = _steps(tableau)
  count, width = steps.places.shape[:2]
  last = first + count * (1 + width)
  parts = [tables.take(tableau, s) for s in (slice(first), slice(last, None))]
  for part in parts:
    if part.history[:, :, 1:].any():
      raise ValueError(_OTHER)
  x, index = sampling.begin(key, x, process, tableau.t[0], index)
  arrays, static = tree.partition(model)
  before, after = (
    part._replace(history=part.history[:, :, :1]) for part in parts
  )
  end = _program(
    key, x, arrays, before, steps, after, index, static=static, last=last
  )
  rounds = before.nfe + 2 * count + after.nfe
  return end, SideBySideInfo(rounds, tableau.nfe)


_OTHER = (
  "side_by_side runs tables whose steps ask once and then at two or more places"
  " that need no answer but the first, all steps at as many and none looking"
  " back at another: solvers.epd and solvers.adasde with points of 2 and more;"
  " run any other with sampling.sample"
)


def _steps(tableau):
  """Returns (first, steps): the row where the steps begin, and all of them."""
  # a place that does not hold the answer just before it needs none of its round
  free = np.append(tableau.history[:-1, 0, 0] == 0, False)
  starts = np.flatnonzero(free & ~np.append(False, free[:-1]))  # of rounds
  if not len(starts) or starts[0] == 0:
    raise ValueError(_OTHER)
  stops = np.flatnonzero(~free & np.append(False, free[:-1])) + 1
  width = stops[0] - starts[0]
  begin = starts - 1  # each round's first call
  if (stops - starts != width).any() or (np.diff(begin) != 1 + width).any():
    raise ValueError(_OTHER)
  made = [_step(tableau, int(i), int(width)) for i in begin]
  return int(begin[0]), _Step(*map(np.stack, zip(*made, strict=True)))


def _step(tableau, i, width):
  """Returns the step of the rows i, ..., i + width, as numbers."""
  basis = np.eye(3 + width)
  y, a = basis[:2]
  places = []
  for j in range(1 + width):
    if j:
      places.append(y)
    weights = tableau.history[i + j]
    within = weights[:, : j + 1]
    answers = basis[2 : 3 + j][::-1][: within.shape[1]]
    quiet = j == 0 or not tableau.noise[i + j, 0]
    quiet &= j == width or not tableau.noise[i + j, 1:].any()
    if weights[:, j + 1 :].any() or not quiet:
      raise ValueError(_OTHER)
    y, a = tableau.state[i + j] @ np.stack([y, a]) + within @ answers
  places = np.stack(places)
  if places[:, 3:].any():
    raise ValueError(_OTHER)
  rows = slice(i, i + 1 + width)
  noise = np.append(tableau.noise[i, :1], tableau.noise[i + width, 1:])
  return _Step(
    call=np.int32(i),
    t=tableau.t[rows],
    output=tableau.output[rows],
    places=places[:, :3],
    ends=np.stack([y, a]),
    noise=noise,
  )


@functools.partial(jax.jit, static_argnames=("static", "last"))
def _program(key, x, arrays, before, steps, after, index, *, static, last):
  """The compiled part of `side_by_side`."""
  model = tree.combine(arrays, static)
  key = sampling.stream(key)
  state = sampling.initial_state(x, 1)
  dtype = jnp.result_type(*jax.tree.leaves(state.y))
  one = sampling.table_advance(model, index)
  # noise is named by the call, wherever a part begins
  alone = lambda _, row, state: one(
    jax.random.fold_in(key, row.step), row, state
  )
  if before.nfe:
    rows = sampling.rows_of(before, dtype)
    state, _ = sampling.run(key, alone, rows, state)
  cast = lambda leaf: jnp.asarray(leaf, dtype)
  rows = jax.tree.map(cast, steps)._replace(call=jnp.asarray(steps.call))
  advance = functools.partial(_advance, model, key, index)
  (y, a), _ = sampling.run(key, advance, rows, (state.y, state.a))
  if after.nfe:
    rows = sampling.rows_of(after, dtype, last)
    state, _ = sampling.run(key, alone, rows, state._replace(y=y, a=a))
    a = state.a
  return jax.tree.map(lambda v, o: v.astype(o.dtype), a, x)


def _advance(model, key, index, _, row, state):
  """One step: a call, its places in one batch, and the end of both."""
  y, a = state
  width = row.places.shape[0]
  z = lambda call, tag: tree.normal(
    jax.random.fold_in(jax.random.fold_in(key, call), tag), y, index
  )
  add = lambda x, scale, noise: jax.tree.map(
    lambda v, e: (v + scale * e).astype(v.dtype), x, noise
  )
  drawn = lambda scales, call, tag: control.cond(
    jnp.any(scales != 0),
    lambda: z(call, tag),
    lambda: jax.tree.map(jnp.zeros_like, y),
  )
  y = add(y, row.noise[0], drawn(row.noise[:1], row.call, 0))
  mix = lambda weights, *parts: jax.tree.map(
    lambda like, *v: sum(w * p for w, p in zip(weights, v, strict=True)).astype(
      like.dtype
    ),
    y,
    *parts,
  )
  f = lambda output, answer: mix(output, answer.x0, answer.eps)
  begun = f(row.output[0], ask(model, y, row.t[0]))
  ask_at = lambda weights, t, output: f(
    output, ask(model, mix(weights, y, a, begun), t)
  )
  found = jax.vmap(ask_at)(row.places, row.t[1:], row.output[1:])
  answers = [jax.tree.map(lambda v, j=j: v[j], found) for j in range(width)]
  new = [mix(w, y, a, begun, *answers) for w in row.ends]
  noise = drawn(row.noise[1:], row.call + width, 1)
  new = [add(v, s, noise) for v, s in zip(new, row.noise[1:], strict=True)]
  return tuple(new), None

r"""Predictor-corrector sampling: any table, Langevin steps between its steps.

At the time t of every accepted sample, `corrector_steps` times

  e = 2 a (snr |z| / |score|)^2,   x <- x + e score + sqrt(2 e) z,

then the predictor's own step. In eps = -sigma score, with q = snr |z| / |eps|:

  x <- x - 2 a sigma q^2 eps + 2 sqrt(a) sigma q z,

finite for every sigma. a is (alpha / alpha')^2 for the step that follows, 1 -
beta_i in the paper, 1 for VE.

The norms are of one sample each; norm="batch" takes their means over the batch
as the paper's code does, and a sample then depends on who is sampled with it.
In images |eps| hardly varies. In a few dimensions it comes near 0, the steps of
single samples explode and bias them: take norm="batch" there, or steps of fixed
size, which are a table (`solvers.with_langevin`).

The corrector's law at a finite snr is not the marginal: a large snr biases. At
equal calls the predictor alone on a grid twice as fine may be better; measure.
Reference: Song et al. (2021), algorithms 4 and 5, https://arxiv.org/abs/
2011.13456.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import numerics
from jaxdiff import sampling
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree

Project = Callable[[jax.Array, PyTree, jax.Array, jax.Array], PyTree]


class _Row(NamedTuple):
  """A row of the table, and the corrector in front of it.

  Attributes:
    table: the row.
    begins: whether the state before it is an accepted sample.
    ends: whether the state after it is one.
    sigma: sigma of the process, at the row's time.
    damping: a.
    t_next: time of the next row's call, or the end.
  """

  table: sampling.Row
  begins: jax.Array
  ends: jax.Array
  sigma: jax.Array
  damping: jax.Array
  t_next: jax.Array


class _Rules(NamedTuple):
  """What does not change from step to step; `_Row` is what does."""

  model: Model
  project: Project
  index: jax.Array
  snr: jax.Array
  corrector_steps: int
  norm: str
  axis_name: str | None


@checks.sampler
def predictor_corrector(
  key: jax.Array,
  model: sampling.Model,
  tableau: tables.Tableau,
  x: PyTree,
  *,
  process: GaussianProcess,
  snr: float = 0.16,
  corrector_steps: int = 1,
  norm: str = "sample",
  project: Project | None = None,
  denoise: bool = True,
  t_end: float | None = None,
  index: ArrayLike | None = None,
  axis_name: str | None = None,
  collect: sampling.Collector | None = None,
) -> tuple[PyTree, sampling.WalkInfo]:
  """Returns (x, info): samples, [batch, ...], and the calls and what was kept.

  Costs `calls(tableau, corrector_steps)`. Without corrector steps the samples
  are `sampling.sample`'s of the same key.

  Args:
    key: PRNG key. A sample's noise depends on it and on the sample's index.
    model: model(x, t) -> Prediction.
    tableau: the predictor: any table whose steps end with a = y, such as
      `solvers.reverse_diffusion`, `ddpm` (ancestral) or `heun`.
    x: where to start, [batch, ...] at tableau.t[0], or a shape.
    process: the forward process.
    snr: signal-to-noise ratio of the corrector, in (0, 1].
    corrector_steps: Langevin steps, network calls, in front of each step.
    norm: "sample", or "batch" for the paper's mean over the batch.
    project: (key, x, t, index) -> x, applied to the initial noise and after
      every corrector and predictor step, t being the time of x; see
      `replacement`.
    denoise: whether the last row leaves its noise out.
    t_end: the time the table ends at; by default the time without noise for a
      last row that forgets its state, else the process's t_min.
    index: i32[batch], indices of the samples; 0, 1, ... by default.
    axis_name: with norm="batch" inside shard_map or pmap, the axis of the
      batch; under jit with a sharded batch the mean is global by itself.
    collect: what to keep of the steps, as `info.kept`.

  Raises:
    ValueError: for an snr outside of (0, 1], a table whose steps do not end
      with a = y (UniPC), another norm, a process of another noise than the
      normal, or a model or a table of another process.
    TypeError: for swapped arguments or a traced table.
  """
  _check(process, snr, corrector_steps, norm)
  begins, ends = _steps(tableau)
  agreement.check(model, tableau, process, "predictor_corrector")
  agreement.check_models(
    "predictor_corrector", process=process, projection=project
  )
  if tableau.nfe > 1 and corrector_steps and not begins[1:].any():
    raise ValueError(
      "no step of this table ends with a = y before its last, so that a"
      " corrector has no accepted sample to move; take a one-step, a multistep"
      " or a Runge-Kutta table"
    )
  x, index = sampling.begin(key, x, process, tableau.t[0], index)
  dtype = jnp.result_type(*map(_compute_dtype, jax.tree.leaves(x)))
  arrays, static = tree.partition((model, project, collect))
  result, kept = _program(
    key,
    x,
    arrays,
    _rows(tableau, process, begins, ends, t_end, denoise, dtype),
    index,
    jnp.asarray(snr, dtype),
    memory=tableau.memory,
    static=static,
    corrector_steps=corrector_steps,
    norm=norm,
    axis_name=axis_name,
  )
  nfe = tableau.nfe + corrector_steps * int(begins.sum())
  return result, sampling.WalkInfo(nfe, kept)


def _check(process, snr, corrector_steps, norm):
  checks.process(process, "predictor_corrector(..., process=...)")
  if corrector_steps:
    check_normal(
      process,
      "predictor_corrector",
      "score",
      "use corrector_steps=0, or the limit of normal noise, pfgmpp(None)",
    )
  checks.one_of(norm, ("sample", "batch"), "norm")
  if checks.concrete(snr) and not 0 < snr <= 1:
    raise ValueError(
      f"snr is a ratio within (0, 1], 0.05 to 0.2 as a rule; got snr={snr}"
    )
  if corrector_steps < 0:
    raise ValueError(
      f"corrector_steps must be at least 0, got {corrector_steps}"
    )


def _rows(tableau, process, begins, ends, t_end, denoise, dtype):
  """Returns the rows of the table, and what the corrector needs at each."""
  if t_end is None:
    clean = not np.any(tableau.state[-1]) and not np.isnan(process.t_zero)
    t_end = process.t_zero if clean else process.t_min
  t_next = np.append(tableau.t[1:], t_end)
  alpha, alpha_next = process.alpha(tableau.t), process.alpha(t_next)
  if denoise:
    noise = np.array(tableau.noise)
    noise[-1, 1:] = 0.0
    tableau = tableau._replace(noise=noise)
  return _Row(
    sampling.rows_of(tableau, dtype),
    jnp.asarray(begins),
    jnp.asarray(ends),
    jnp.asarray(process.sigma(tableau.t), dtype),
    jnp.asarray(np.minimum(alpha / alpha_next, 1.0) ** 2, dtype),
    jnp.asarray(t_next, dtype),
  )


def calls(tableau: tables.Tableau, corrector_steps: int = 1) -> int:
  """Returns the network calls of `predictor_corrector` with this table."""
  return tableau.nfe + corrector_steps * int(_steps(tableau)[0].sum())


def _steps(tableau):
  """Returns which rows begin and which end a step, bool[n] each."""
  if not isinstance(tableau, tables.Tableau):
    raise TypeError(
      "predictor_corrector(key, model, tableau, x) takes a Tableau third, got"
      f" {type(tableau).__name__}; build one with a solver, as in"
      " reverse_diffusion(process, grid)"
    )
  sampling.check_concrete(tableau, "the tableau")
  tables.validate(tableau)
  same = lambda leaf, i, j: np.all(
    np.equal(leaf[:, i], leaf[:, j]).reshape(tableau.nfe, -1), axis=1
  )
  ends = (
    same(tableau.state, 0, 1)
    & same(tableau.history, 0, 1)
    & same(tableau.noise, 1, 2)
  )
  ends[-1] = True
  return np.append(True, ends[:-1]), ends


def _compute_dtype(leaf):
  return tree.compute_dtype(leaf.dtype)


def _sample(
  key,
  x,
  arrays,
  rows,
  index,
  snr,
  *,
  memory,
  static,
  corrector_steps,
  norm,
  axis_name,
):
  """The compiled part of `predictor_corrector`."""
  model, project, collect = tree.combine(arrays, static)
  if project is None:
    project = lambda key, x, t, index: x
  rules = _Rules(model, project, index, snr, corrector_steps, norm, axis_name)
  key = sampling.stream(key)
  state = sampling.initial_state(x, memory)
  first = jax.random.fold_in(key, _FIRST)
  t = jax.tree.map(lambda r: r[0], rows.table.t)
  start = _projected(rules, first, state.y, t)
  state, kept = sampling.run(
    key,
    functools.partial(_advance, rules),
    rows,
    state._replace(y=start, a=start),
    collect=collect,
  )
  return jax.tree.map(lambda v, o: v.astype(o.dtype), state.a, x), kept


def _advance(rules, key, row, state):
  """One row of the table: the corrector in front of a step, then the row."""
  if rules.corrector_steps:
    own = jax.random.fold_in(key, 2)
    state = control.cond(
      row.begins,
      lambda s: _accepting(s, _corrected(rules, own, row, s.y)),
      lambda s: s,
      state,
    )
  predict = sampling.table_advance(rules.model, rules.index)
  state, info = predict(key, row.table, state)
  own = jax.random.fold_in(key, 3)
  state = control.cond(
    row.ends,
    # from a: of the last row only a is accepted
    lambda s: _accepting(s, _projected(rules, own, s.a, row.t_next)),
    lambda s: s,
    state,
  )
  return state, info._replace(a=state.a)


def _accepting(state, y):
  """Returns the state in which y is the accepted sample."""
  return state._replace(y=y, a=y)


def _projected(rules, key, x, t):
  """Returns x projected, in its own dtype."""
  new = rules.project(key, x, t, rules.index)
  return jax.tree.map(lambda n, o: n.astype(o.dtype), new, x)


def _corrected(rules, key, row, y):
  """Returns y after the corrector's steps at the row's time."""
  step = lambda j, y: _langevin_step(rules, jax.random.fold_in(key, j), row, y)
  return control.fori_loop(0, rules.corrector_steps, step, y)


def _langevin_step(rules, key, row, y):
  z = tree.normal(jax.random.fold_in(key, 0), y, rules.index)
  eps = ask(rules.model, y, row.table.t).eps
  # the step's size from the norms: q = snr |z| / |eps|
  q = rules.snr * numerics.safe_divide(
    _norm(z, rules.norm, rules.axis_name),
    _norm(eps, rules.norm, rules.axis_name),
  )
  pull = 2.0 * row.damping * row.sigma * q**2
  push = 2.0 * jnp.sqrt(row.damping) * row.sigma * q

  def move(v, e, n):
    new = v - tree.expand(pull, v) * e + tree.expand(push, v) * n
    return new.astype(v.dtype)

  y = jax.tree.map(move, y, eps, z)
  return _projected(rules, jax.random.fold_in(key, 1), y, row.table.t)


_program = jax.jit(
  _sample,
  static_argnames=(
    "memory",
    "static",
    "corrector_steps",
    "norm",
    "axis_name",
  ),
)
_FIRST = 2**31 - 2  # no step has this index


def _norm(v, norm, axis_name):
  """Returns the norm of each sample, f[batch], or their mean, f[]."""
  square = lambda leaf: jnp.sum(
    jnp.square(leaf), axis=tuple(range(1, leaf.ndim))
  )
  each = jnp.sqrt(sum(map(square, jax.tree.leaves(v))))
  if norm == "sample":
    return each
  mean = jnp.mean(each)
  return mean if axis_name is None else jax.lax.pmean(mean, axis_name)

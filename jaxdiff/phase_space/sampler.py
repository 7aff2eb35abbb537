r"""SSCS: the reverse of critically damped Langevin diffusion, split in two.

With w = v / sqrt(M), s the score in w, and the clock u run back, the reverse is

  dx = -w du,   dw = (x - 2 w) du + 2 dW   +   4 (w + s) du.
  ------------------- A -----------------      ------ S ----

A is a linear SDE that keeps N(0, 1) and is solved exactly; S moves w alone. One
step of length h is A for h / 2, S for h with the score at the middle time, A
for h / 2. S is taken by one Euler step as in the paper (one call, first order
in law) or by the midpoint rule (two calls, second order).

The state is a pair (x, v), so this is no table: it brings its own `advance` to
the loop of `sampling.run`.

Reference: Dockhorn et al. (2022), https://arxiv.org/abs/2112.07068, section 4
and appendix D.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.phase_space.process import CriticallyDamped
from jaxdiff.phase_space.process import Phase
from jaxdiff.phase_space.process import transition_covariance
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree


class Row(NamedTuple):
  """One step: f64[n] each, but `half` f64[n, 4] and `root` f64[n, 3].

  Attributes:
    t: time of the call(s), the middle of the step.
    h: length of the step in the clock.
    l_ww: turns eps_w into the score, s = -eps_w / l_ww.
    half: (x from x, x from w, w from x, w from w) of A for h / 2.
    root: (xx, wx, ww) of the Cholesky factor of its noise.
  """

  t: Array
  h: Array
  l_ww: Array
  half: Array
  root: Array


def rows(process: CriticallyDamped, grid: ArrayLike) -> Row:
  """Returns what every step of the grid needs, in float64 on the host.

  Raises:
    ValueError: for a grid that does not fall or leaves the process's times.
  """
  grid = checks.falling_grid(grid, process.t_min, process.t_max, math.nan)
  middle = 0.5 * (grid[:-1] + grid[1:])
  h = -np.diff(process.clock(grid))
  u, decay = 0.5 * h, np.exp(-0.5 * h)
  q_xx, q_xw, q_ww = transition_covariance(u)
  l_xx = np.sqrt(q_xx)
  l_wx = -q_xw / l_xx  # time runs back: w has the other sign
  return Row(
    t=middle,
    h=h,
    l_ww=process.kernel(middle).l_ww,
    half=np.stack([1.0 + u, -u, u, 1.0 - u], axis=-1) * decay[:, None],
    root=np.stack([l_xx, l_wx, np.sqrt(q_ww - l_wx**2)], axis=-1),
  )


@checks.sampler
def sample(
  key: jax.Array,
  model: Model,
  grid: ArrayLike,
  start: PyTree,
  *,
  process: CriticallyDamped,
  stages: int = 1,
  index: ArrayLike | None = None,
  collect: sampling.Collector | None = None,
) -> tuple[Phase, sampling.WalkInfo]:
  """Returns (state, info): state.x are the samples, state.v their velocities.

  Compiled once for each number of steps and structure of the model.

  Args:
    key: PRNG key. A sample's noise depends on it and on the sample's index.
    model: model(state, t) -> eps_w, as `phase_space.PhaseField` or
      `phase_space.exact_phase`; arrays in it are arguments of the program.
    grid: f64[n + 1], falling within [t_min, t_max].
    start: a `Phase` [batch, ...] at grid[0], or a shape, for which the prior is
      drawn.
    process: the forward process.
    stages: 1, one call a step, or 2.
    index: i32[batch], indices of the samples; 0, 1, ... by default.
    collect: what to keep of the steps, as `info.kept`, given
      `sampling.StepInfo` with the state as y and a.

  Raises:
    ValueError: for another grid, number of stages, or start, a shape where the
      signal exceeds the noise, or a model of another process.
    TypeError: for an integer state, or another kind of process.
  """
  checks.one_of(stages, (1, 2), "stages")
  _check_process(model, process)
  steps = rows(process, grid)
  if not isinstance(start, Phase):
    try:
      shape = tuple(int(n) for n in start)
    except (TypeError, ValueError) as error:
      raise ValueError(
        "start is a Phase(x, v) at the first time of the grid, or a shape"
        f" (batch, ...); got {type(start).__name__}"
      ) from error
    first = process.kernel(float(np.asarray(grid)[0]))
    if first.mean_x > first.l_xx:
      raise ValueError(
        f"sampling begins at t = {float(np.asarray(grid)[0]):.4g}, where the"
        " signal exceeds the noise; the prior is no place to start from there:"
        " pass start = process.perturb(key, data, t)[0]"
      )
    start = process.prior(jax.random.fold_in(key, _PRIOR), shape, index)
  checks.same_structure(start.v, start.x, "the velocity", "x")
  for leaf in jax.tree.leaves(start):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise TypeError(
        f"the state has dtype {leaf.dtype}; samples are floating point: convert"
        " integer pixels with likelihood.dequantize, or x / 127.5 - 1"
      )
  tree.batch_size(start)
  index = control.numbers(start, index)
  arrays, static = tree.partition((model, collect))
  end, kept = _program(
    key,
    arrays,
    steps,
    start,
    index,
    math.sqrt(process.mass),
    static=static,
    stages=stages,
  )
  return end, sampling.WalkInfo(stages * len(steps.t), kept)


def _check_process(model, process):
  own = getattr(model, "process", None)
  if not isinstance(own, CriticallyDamped):
    return
  ends = dict(t_min=process.t_min, t_max=process.t_max)
  if dataclasses.replace(own, **ends) != process:
    raise ValueError(
      f"the model is of {own}, but process is {process}: the same times and"
      " velocities mean another noise; pass model.process"
    )


_PRIOR = 2**31 - 1  # no step has this index


@functools.partial(jax.jit, static_argnames=("static", "stages"))
def _program(key, arrays, steps, start, index, root_mass, *, static, stages):
  model, collect = tree.combine(arrays, static)
  dtype = tree.compute_dtype(jax.tree.leaves(start)[0].dtype)
  steps = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), steps)
  numbered = (jnp.arange(len(steps.t), dtype=jnp.int32), steps)

  def advance(key, numbered, state):
    step, row = numbered

    def langevin(tag, state):
      z = tree.normal(jax.random.fold_in(key, tag), state, index)
      a, b, c, d = row.half
      l_xx, l_wx, l_ww = row.root
      x = jax.tree.map(
        lambda x, w, e: a * x + b * w + l_xx * e, state.x, state.v, z.x
      )
      w = jax.tree.map(
        lambda x, w, e, f: c * x + d * w + l_wx * e + l_ww * f,
        *(state.x, state.v, z.x, z.v),
      )
      return Phase(x, w)

    def push(state, at, length):
      v = jax.tree.map(lambda w: root_mass * w, at.v)
      eps = model(Phase(at.x, v), row.t)
      checks.same_structure(eps, at.x, "the model's eps_w", "x")
      move = lambda w, here, e: w + 4.0 * length * (here - e / row.l_ww)
      return Phase(state.x, jax.tree.map(move, state.v, at.v, eps)), eps

    state = middle = langevin(0, state)
    if stages == 2:
      middle, _ = push(state, state, 0.5 * row.h)
    state, eps = push(state, middle, row.h)
    state = langevin(1, state)
    seen = Phase(state.x, jax.tree.map(lambda w: root_mass * w, state.v))
    return state, sampling.StepInfo(step, row.t, seen, seen, eps)

  wide = jax.tree.map(lambda leaf: leaf.astype(dtype), start)
  state = Phase(wide.x, jax.tree.map(lambda v: v / root_mass, wide.v))
  state, kept = sampling.run(key, advance, numbered, state, collect=collect)
  state = Phase(state.x, jax.tree.map(lambda w: root_mass * w, state.v))
  return jax.tree.map(lambda a, b: a.astype(b.dtype), state, start), kept

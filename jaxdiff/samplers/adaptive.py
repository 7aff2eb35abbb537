r"""The probability-flow ODE with adaptive steps, in both directions.

An embedded pair (`embedded_pairs`) takes a step of length h and estimates its
error;

  E = rms(error / max(atol, rtol max(|x|, |x'|)))

over the values of a sample (the largest over the leaves of a tree). A step is
accepted if E <= 1, and the next one is longer or shorter by

  safety E_n^{-(i + p) / k} E_{n-1}^{p / k},   k = lower order + 1,

within [shrink, grow]: p = 0 is the usual (I) controller, p > 0 a PI controller,
steadier where the steps are bound by stability.

By default every sample has a step size of its own and gets the same result
alone and in any batch; the network is asked at times t[batch]. `nfe` counts the
calls whose answers a sample used, `calls` those that were made for the whole
batch. With per_sample=False there is one step size, the worst sample's, and
scalar times.

References: Hairer, Norsett and Wanner, II.4; Lu et al. (2022), appendix C, for
E, https://arxiv.org/abs/2206.00927; Soderlind (2003) for PI.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import numerics
from jaxdiff import predictions
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.samplers import embedded_pairs
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree


class Controller(NamedTuple):
  """How the step size follows the error; numbers, traced or not.

  Attributes:
    integral: i, the weight of the last error.
    proportional: p, the weight of its change.
    safety: factor on every proposal.
    shrink: least factor from one step to the next.
    grow: largest one.
  """

  integral: float = 1.0
  proportional: float = 0.0
  safety: float = 0.9
  shrink: float = 0.2
  grow: float = 5.0


PI = Controller(integral=0.3, proportional=0.4)


class AdaptiveInfo(NamedTuple):
  """What an adaptive solve tells; counts are of single samples.

  Attributes:
    t: f[batch], the time that each has reached.
    done: bool[batch], whether that is the end.
    nfe: i32[batch], network calls whose answers the sample used.
    accepted: i32[batch], accepted steps.
    rejected: i32[batch], rejected steps.
    calls: i32[], network calls made for the whole batch.
    times: f[keep, batch], the ends of the first accepted steps, then NaN.
  """

  t: jax.Array
  done: jax.Array
  nfe: jax.Array
  accepted: jax.Array
  rejected: jax.Array
  calls: jax.Array
  times: jax.Array


class _Carry(NamedTuple):
  """The loop's state; `at`, `h` and what is counted are [] or [batch]."""

  x: PyTree
  at: jax.Array
  t: jax.Array
  h: jax.Array
  first: PyTree  # F at x
  known: jax.Array  # whether it has been asked for
  error: jax.Array  # E of the last accepted step
  done: jax.Array
  stalled: jax.Array
  nfe: jax.Array
  accepted: jax.Array
  rejected: jax.Array
  calls: jax.Array
  times: jax.Array


@checks.sampler
def adaptive(
  key: jax.Array | None,
  model: sampling.Model,
  span: tuple[float, float] | None,
  x: PyTree,
  *,
  process: GaussianProcess,
  method: str = "bogacki_shampine",
  clock: str = "lambda",
  rtol: float = 1e-3,
  atol: float = 1e-3,
  controller: Controller = Controller(),  # noqa: B008, a tuple of numbers
  first_step: float | None = None,
  per_sample: bool = True,
  max_calls: int = 10_000,
  keep: int = 0,
  check: bool = True,
  index: ArrayLike | None = None,
) -> tuple[PyTree, AdaptiveInfo]:
  """Solves the probability-flow ODE from one time to another: (x, info).

  From t_max to t_min it samples; `adaptive(None, model, (process.t_min,
  process.t_max), data, process=process)` encodes. Tolerances and the controller
  are arguments of one compiled program.

  Args:
    key: PRNG key of the noise that a shape x stands for; None will do for an
      array, as the ODE itself draws nothing.
    model: model(x, t) -> Prediction; with per_sample, t is [batch].
    span: first and last time, in either order; None is (t_max, t_min).
    x: where to start: a tree of [batch, ...] at the first time, or a shape.
    process: the forward process.
    method: "bogacki_shampine" 3(2), "dormand_prince" 5(4), "dpm_solver_12",
      "dpm_solver_23", or their data prediction forms "dpmpp_12", "dpmpp_23".
    clock: what the steps are taken in, "lambda" (log-SNR), "sigma" (sigma /
      alpha) or "t"; exponential methods know "lambda" alone.
    rtol: relative tolerance of a step. The papers' choices: 1e-5 for both
      (score SDE), rtol 0.05 and atol 0.0078 (DPM-Solver).
    atol: absolute tolerance of a step, in units of x.
    controller: see `Controller`; `PI` is another.
    first_step: length of the first attempt in the clock; a hundredth of the
      way by default (0.05 in DPM-Solver).
    per_sample: whether every sample has its own step size.
    max_calls: budget of network calls for the batch.
    keep: how many accepted times to keep for each sample.
    check: whether to raise if a sample has not arrived, where values can be
      looked at (not inside jit).
    index: i32[batch], indices of the samples that a shape x stands for; 0, 1,
      ... by default.

  Raises:
    ValueError: for tolerances that are not positive, times outside of the
      process, an unknown method or clock, or a clock that has no value at the
      start (alpha = 0), or a model of another process.
    RuntimeError: with `check`, if the budget was too small or a step size
      vanished; it says for how many samples and where.
  """
  checks.process(process, "adaptive(..., process=...)")
  agreement.check(model, None, process, "adaptive")
  checks.one_of(method, tuple(embedded_pairs.PAIRS), "method")
  checks.one_of(
    clock, embedded_pairs.PAIRS[method].clocks, f"the clock of {method}"
  )
  start, end = (process.t_max, process.t_min) if span is None else span
  _check_span(process, start, end, clock)
  for name, value in (("rtol", rtol), ("atol", atol)):
    if checks.concrete(value) and not value > 0:
      raise ValueError(f"{name} must be positive, got {value}")
  x, _ = sampling.begin(key, x, process, start, index)
  ends = [float(_to_clock(process, clock, t)) for t in (start, end)]
  step = abs(ends[1] - ends[0]) / 100 if first_step is None else first_step
  if checks.concrete(step) and not step > 0:
    raise ValueError(f"first_step is a length, positive; got {first_step}")
  arrays, static = tree.partition(model)
  x, info = _program(
    x,
    arrays,
    np.asarray([start, end]),
    np.asarray(ends),
    step,
    (rtol, atol),
    controller,
    max_calls,
    static=static,
    process=process,
    method=method,
    clock=clock,
    per_sample=per_sample,
    keep=keep,
  )
  if check and checks.concrete(info.done):
    _raise_unfinished(info, end, method, max_calls)
  return x, info


def _check_span(process, start, end, clock):
  low, high = process.t_min, process.t_max
  slack = 1e-9 * max(abs(low), abs(high))
  for name, t in (("the first time", start), ("the last time", end)):
    if not low - slack <= t <= high + slack:
      raise ValueError(
        f"{name}, {t}, is outside of the process's times [{low}, {high}]; give"
        " the process a wider range, as in dataclasses.replace(process,"
        " t_min=...)"
      )
    if clock != "t" and process.alpha(t) == 0:
      raise ValueError(
        f"alpha = 0 at {name}, {t:.4g}, where the clock {clock!r} is infinite;"
        " use a Runge-Kutta method with clock='t', or a smaller time"
      )
  if start == end:
    raise ValueError(f"the span begins and ends at the same time, {start}")


def _to_clock(process, clock, t):
  if clock == "t":
    return t
  lam = process.log_snr(t)
  return lam if clock == "lambda" else numerics.namespace(lam).exp(-lam)


def _from_clock(process, clock, at):
  if clock == "t":
    return at
  return (
    process.log_snr_inverse(at) if clock == "lambda" else process.time_at(at)
  )


def _raise_unfinished(info, end, method, max_calls):
  done = np.asarray(info.done)
  if done.all():
    return
  t = np.asarray(info.t)[~done]
  spent = int(info.calls)
  reason = (
    f"the step size vanished after {spent} calls: the model's answer there is"
    " not finite, or jumps"
    if spent + len(embedded_pairs.PAIRS[method].places) <= max_calls
    else f"the budget of max_calls = {max_calls} is spent; raise it, or rtol"
    " and atol (in float32 hardly below 1e-5)"
  )
  raise RuntimeError(
    f"{(~done).sum()} of {done.size} samples have not arrived at t ="
    f" {end:.6g}, they stand between t = {t.min():.6g} and {t.max():.6g};"
    f" {reason}. check=False returns them as they are"
  )


class _Rules(NamedTuple):
  """What does not change from attempt to attempt."""

  model: Model
  process: GaussianProcess
  pair: Any  # of `embedded_pairs`
  clock: str
  times: jax.Array  # f[2], where the walk begins and ends
  final: jax.Array  # the end on the clock
  rtol: jax.Array
  atol: jax.Array
  controller: Controller
  max_calls: Any
  per_sample: bool
  keep: int
  dtype: DTypeLike

  @property
  def stages(self) -> int:
    """Calls of an attempt."""
    return len(self.pair.places)


class _Attempt(NamedTuple):
  """One step that was tried, by those samples that are still on the way."""

  going: jax.Array
  missing: jax.Array  # whose first call was not known yet
  ends_here: jax.Array
  h: jax.Array
  t_end: jax.Array
  outputs: Any  # leaves [stages, ...]
  new: PyTree
  error: jax.Array  # at most 1 is accepted


def _solve(
  x,
  arrays,
  times,
  ends,
  step,
  tolerances,
  controller,
  max_calls,
  *,
  static,
  process,
  method,
  clock,
  per_sample,
  keep,
):
  """The compiled part of `adaptive`."""
  size = tree.batch_size(x)
  wide = sampling.initial_state(x, 1).y
  dtype = jnp.result_type(*jax.tree.leaves(wide))
  cast = lambda v: jnp.asarray(v, dtype)
  times, (begin, final) = cast(times), cast(ends)
  rtol, atol = map(cast, tolerances)
  rules = _Rules(
    model=tree.combine(arrays, static),
    process=process,
    pair=embedded_pairs.PAIRS[method],
    clock=clock,
    times=times,
    final=final,
    rtol=rtol,
    atol=atol,
    controller=Controller(*map(cast, controller)),
    max_calls=max_calls,
    per_sample=per_sample,
    keep=keep,
    dtype=dtype,
  )
  step = jnp.sign(final - begin) * cast(step)
  start = _begun(rules, wide, begin, step, (size,) if per_sample else ())
  c = control.while_loop(
    functools.partial(_more, rules), functools.partial(_try, rules), start
  )
  each = lambda v: jnp.broadcast_to(v, (size,))
  info = AdaptiveInfo(
    t=each(c.t),
    done=each(c.done),
    nfe=each(c.nfe),
    accepted=each(c.accepted),
    rejected=each(c.rejected),
    calls=c.calls,
    times=jnp.broadcast_to(
      c.times if per_sample else c.times[:, None], (keep, size)
    ),
  )
  return jax.tree.map(lambda v, o: v.astype(o.dtype), c.x, x), info


def _begun(rules, x, begin, step, shape):
  """Returns the carry before the first attempt."""
  split = (lambda v: control.along_batch(v, x)) if shape else lambda v: v
  zero = split(jnp.zeros(shape, jnp.int32))
  false = split(jnp.zeros(shape, bool))
  full = lambda v: split(jnp.full(shape, v, rules.dtype))
  return _Carry(
    x=x,
    at=full(begin),
    t=full(rules.times[0]),
    h=full(step),
    first=jax.tree.map(lambda v: control.full(v, 0), x),
    known=false,
    error=full(1.0),
    done=false,
    stalled=false,
    nfe=zero,
    accepted=zero,
    rejected=zero,
    calls=jnp.zeros((), jnp.int32),
    times=jnp.full((rules.keep, *shape), jnp.nan, rules.dtype),
  )


def _active(c):
  return ~(c.done | c.stalled)


def _more(rules, c):
  """Returns whether a sample is on the way, and the budget has an attempt."""
  return jnp.any(_active(c)) & (c.calls + rules.stages <= rules.max_calls)


def _try(rules, c):
  """One attempt: the body of the loop."""
  return _judged(rules, c, _attempt(rules, c))


def _attempt(rules, c):
  """Returns a step of every sample from where it is, and the step's error."""
  pair, stages = rules.pair, rules.stages
  going = _active(c)
  missing = going & ~c.known
  left = rules.final - c.at
  ends_here = abs(c.h) >= abs(left) * (1 - 1e-3)  # no crumb is left behind
  h = jnp.where(ends_here, left, c.h)

  # the times of all calls, and the numbers of the step
  nodes = (*pair.places[1:], 1.0)
  places = jnp.asarray(nodes, rules.dtype)
  t = _time_of(rules, c.at + places.reshape((-1,) + (1,) * h.ndim) * h)
  t_end = jnp.where(ends_here, rules.times[1], t[-1])
  t = [c.t, *(t_end if r == 1.0 else u for r, u in zip(nodes, t))][:stages]
  plan = pair.step(rules.process, [*t, t_end], h)
  carry, weights, wrong = _stacked(plan, h)
  t = jnp.stack(t)

  def stage(i, outputs):
    y = _combined(carry[i], weights[i], c.x, outputs)
    old = jax.tree.map(lambda f: f[i], outputs)
    new = _select(missing | (i > 0), _ask(rules, y, t[i]), old)
    return jax.tree.map(lambda f, n: control.set_row(f, n, i), outputs, new)

  # one loop over the places, so that the network is in the program once; the
  # first place is skipped if nobody needs it
  outputs = jax.tree.map(
    lambda f: control.set_row(control.full(f, 0, lead=(stages,)), f, 0), c.first
  )
  first = jnp.where(jnp.any(missing), 0, 1)
  outputs = control.fori_loop(first, stages, stage, outputs)
  new = _combined(carry[-1], weights[-1], c.x, outputs)
  wrong = _combined(0.0 * h, wrong, c.x, outputs)
  error = _error(rules, c.x, new, wrong)
  return _Attempt(going, missing, ends_here, h, t_end, outputs, new, error)


def _judged(rules, c, a):
  """Returns the carry after an attempt: accepted, or to be tried shorter."""
  pair, later = rules.pair, rules.stages - 1
  accept = a.going & (a.error <= 1.0)
  floor = jnp.maximum(a.error, 1e-10)
  factor = _factor(rules, c, a.error, floor)
  # after a short last attempt the controller speaks of that one's length
  longer = a.h * jnp.where(accept, factor, jnp.minimum(factor, 1.0))
  at = jnp.where(accept, c.at + a.h, c.at)
  tiny = 4 * jnp.finfo(rules.dtype).eps
  count = lambda old, what: old + jnp.where(a.going, what, 0)
  place = lambda i: jax.tree.map(lambda f: f[i], a.outputs)
  times = c.times
  if rules.keep:
    slot = jnp.where(accept, c.accepted, rules.keep)  # beyond them: dropped
    there = (slot, jnp.arange(len(slot))) if rules.per_sample else (slot,)
    times = times.at[there].set(a.t_end, mode="drop")
  return _Carry(
    x=_select(accept, a.new, c.x),
    at=at,
    t=jnp.where(accept, a.t_end, c.t),
    h=jnp.where(a.going, longer, c.h),
    first=_select(accept & pair.last_is_first, place(-1), place(0)),
    known=jnp.where(accept, pair.last_is_first, c.known | a.missing),
    error=jnp.where(accept, floor, c.error),
    done=c.done | (accept & a.ends_here),
    stalled=c.stalled | (a.going & (abs(longer) <= tiny * abs(at))),
    nfe=count(c.nfe, later + a.missing),
    accepted=count(c.accepted, accept),
    rejected=count(c.rejected, ~accept),
    calls=c.calls + later + jnp.any(a.missing),
    times=times,
  )


def _factor(rules, c, error, floor):
  """Returns how much longer the next step is: the PI controller."""
  controller, k = rules.controller, rules.pair.lower + 1
  factor = (
    controller.safety
    * floor ** (-(controller.integral + controller.proportional) / k)
    * c.error ** (controller.proportional / k)
  )
  factor = jnp.clip(factor, controller.shrink, controller.grow)
  return jnp.where(jnp.isfinite(error), factor, controller.shrink)


def _time_of(rules, at):
  """Returns the times of places on the clock, within the walk."""
  t = _from_clock(rules.process, rules.clock, at)
  return jnp.clip(t, rules.times.min(), rules.times.max())


def _ask(rules, y, t):
  """Returns the slope at y: the pair in the combination that the method has."""
  w = rules.pair.output(rules.process, rules.clock, t)
  return jax.tree.map(
    lambda x0, eps, v: (
      tree.expand(w[0], v) * x0.astype(v.dtype)
      + tree.expand(w[1], v) * eps.astype(v.dtype)
    ).astype(v.dtype),
    *predictions.ask(rules.model, y, t),
    y,
  )


def _combined(carry, weights, y, outputs):
  """Returns carry y + weights . outputs; weights [s] or [s, batch]."""

  def leaf(v, f):
    new = tree.expand(carry, v) * v
    for j in range(len(weights)):
      new = new + tree.expand(weights[j], v) * f[j]
    return new.astype(v.dtype)

  return jax.tree.map(leaf, y, outputs)


def _error(rules, y, new, wrong):
  """Returns the error over the tolerance, of each sample or the worst."""

  def leaf(v, n, e):
    size = jnp.maximum(abs(v), abs(n))
    scale = jnp.maximum(rules.atol, rules.rtol * size)
    square = jnp.square(e / scale)
    return jnp.sqrt(jnp.mean(square, axis=tuple(range(1, v.ndim))))

  each = jax.tree.leaves(jax.tree.map(leaf, y, new, wrong))
  worst = jnp.max(jnp.stack(each), axis=0)
  return worst if rules.per_sample else jnp.max(worst)


def _select(mask, new, old):
  return jax.tree.map(
    lambda n, o: jnp.where(tree.expand(mask, n), n, o), new, old
  )


def _stacked(plan, like):
  """Returns a step's numbers as arrays: [s + 1], [s + 1, s] and [s].

  The first row is the place where the step begins, y_0 = x.
  """
  stages = len(plan.error)
  zero = jnp.zeros_like(like)
  row = lambda w: jnp.stack([zero + v for v in w] + [zero] * (stages - len(w)))
  carry = jnp.stack([zero + v for v in (1.0, *plan.carry)])
  weights = jnp.stack([row(w) for w in ((), *plan.weights)])
  return carry, weights, row(plan.error)


_program = jax.jit(
  _solve,
  static_argnames=(
    "static",
    "process",
    "method",
    "clock",
    "per_sample",
    "keep",
  ),
)

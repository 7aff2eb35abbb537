r"""Phased DMD: distribution matching with one expert for each noise range.

An expert G_k for each phase k goes from t_{k-1} to t_k by DDIM, and what it
makes is not a clean sample but x_s at s = t_k. With a = alpha_t / alpha_s and
b^2 = sigma_t^2 - a^2 sigma_s^2 it is noised further, t in (s, t_max],

  x_t = a x_s + b e,

and both laws are compared there, as in `dmd`. The fake denoiser cannot be told
x_0, which nobody knows. But E[-e / b | x_t] is the score of x_t, whatever x_s
is, hence the unbiased target, as a pair,

  eps* = (sigma_t / b) e,
  x0*  = x_s / alpha_s - (alpha_t sigma_s^2 / (alpha_s^2 b)) e

with alpha_t x0* + sigma_t eps* = x_t, in the place of (x_0, eps); its velocity
eps* - x0* is the paper's. At s = 0 it is (x_0, e). Its variance grows as 1 /
b^2, so that the loss is weighted by min(1, clamp b^2 / sigma_t^2); the student
moves by the gradient of KL in x_s,

  a (score_fake - score_teacher) = w (v_teacher - v_fake),
  w = alpha_t a / (sigma_t (alpha_t + sigma_t)),

of which `dmd` keeps the direction: g = (D_fake - D_teacher) / mean |x_0 -
D_teacher| with the expert's own x_0. With one phase of one step this is `dmd`.

Phases are trained one after the other for `updates` each, expert and fake score
both beginning as the teacher; a phase of several steps stops at a random one,
earlier ones without gradients. Students are `Experts`, which DDIM samples:
`sampler(student, grid, gamma=0)`. Reference: Fan et al. (2025),
https://arxiv.org/abs/2510.27684. Departures: b^2 is relative to sigma_t^2 in
the weight, so that it knows no schedule (the paper's is of flows), and DMD's
normalisation is in the student's gradient.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import numerics
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.denoisers import Experts
from jaxdiff.distillation.dmd import check_matching
from jaxdiff.distillation.dmd import direction
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.experts import one_by_one
from jaxdiff.distillation.parts.jumps import jump
from jaxdiff.distillation.parts.method import few_step_grid
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree
from jaxdiff.types import Times

_CLIP = 10.0  # of the log-SNR, as in `losses.times`


@checks.door
def phased_dmd(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  grid: int | np.ndarray,
  phases: int = 2,
  updates: int = 1000,
  fake_optimizer: optax.GradientTransformation | None = None,
  fake_steps: int = 5,
  times: Times | None = None,
  clamp: float = 10.0,
  margin: float = 0.05,
  ema: float = 0.999,
) -> Method:
  """Trains one expert for each range of noise, by distribution matching.

  The student is `Experts`.

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    student: a Denoiser, which every expert and fake score begins as.
    optimizer: optimizer of every expert for itself: a schedule is that of one
      phase.
    grid: n, the calls of `few_step_grid`, or the times f64[n + 1], of the
      student's sampler; n / phases steps in each phase.
    phases: how many.
    updates: updates of each phase; the last goes on if there are more.
    fake_optimizer: optimizer of every fake score; by default the student's.
    fake_steps: steps of the fake score for each step of the student.
    times: times of x_t over the whole range, a sampler of `losses.times`; a
      phase's are these, squeezed in log-SNR to what lies above its end. By
      default log-uniform in sigma / alpha.
    clamp: clamp of the fake score's weight near the end of a phase.
    margin: nearest log(sigma / alpha) of x_t above that of the phase's end.
    ema: decay of the students' average, which later phases begin from.

  Raises:
    ValueError: for a grid that does not fall, has noise alone at the end of a
      phase, or is not parted by the number of phases, and noise that is not
      normal.
  """
  process = student.process
  check_matching(process, "phased_dmd")
  if isinstance(grid, (int, np.integer)):
    grid = few_step_grid(process, int(grid))
  grid = checks.falling_grid(grid, process.t_min, process.t_max, process.t_zero)
  each, ends = _parted(process, grid, phases)
  rules = _Rules(
    student=student,
    grid=grid,
    phases=phases,
    each=each,
    updates=updates,
    times=times or losses.times.uniform_log_snr(process),
    low=_lowest(process, ends[1:], margin),
    clamp=clamp,
  )
  stacked = jax.tree.map(lambda p: jnp.stack([p] * phases), student.params)
  return Method(
    student=Experts(
      stacked, with_params(student, None), bounds=tuple(ends.tolist())
    ),
    players={
      "fake": training.Player(
        functools.partial(_fake_loss, rules),
        one_by_one(fake_optimizer or optimizer),
        steps=fake_steps,
      ),
      "student": training.Player(
        functools.partial(_loss, rules), one_by_one(optimizer)
      ),
    },
    params={"fake": stacked},
    frozen={"teacher": teacher},
    ema=ema,
    gamma=0.0,
  )


class _Rules(NamedTuple):
  """What no update changes: arguments of `phased_dmd`, `each` and `low`.

  Attributes:
    grid: f64[n + 1].
    each: steps of a phase.
    low: largest log-SNR of x_t in each phase, f64[phases].
  """

  student: Denoiser
  grid: np.ndarray
  phases: int
  each: int
  updates: int
  times: Times
  low: np.ndarray
  clamp: float

  def now(self, step: jax.Array) -> jax.Array:
    """Returns the phase of an update, i32[]."""
    return jnp.minimum(step // self.updates, self.phases - 1)

  def expert(self, params: PyTree, k: jax.Array) -> Any:
    """Returns the model of phase k."""
    return with_params(self.student, jax.tree.map(lambda p: p[k], params))


def _loss(rules, key, params, nets, batch):
  process = rules.student.process
  draw_key, match_key = jax.random.split(key)
  time_key, noise_key = jax.random.split(match_key)
  k = rules.now(nets["step"])
  x, x0, s = _roll_out(rules, draw_key, params, nets["ema"], k, batch)
  t = control.own_rows(lambda n: _draw_times(rules, time_key, n, k), x)
  made = jax.lax.stop_gradient(x)
  e = process.noise.draw(noise_key, made, batch.get("index"))
  x_t = further(process, made, e, s, t)
  labels = generators.label(batch)
  gradient = direction(
    jax.lax.stop_gradient(x0),
    ask(nets["teacher"], x_t, t, *labels).x0,
    ask(rules.expert(nets["fake"], k), x_t, t, *labels).x0,
  )
  aim = jax.lax.stop_gradient(made - gradient)
  return 0.5 * jnp.mean(jnp.square(x - aim)), {"phase": k}


def _fake_loss(rules, key, params, nets, batch):
  process = rules.student.process
  draw_key, match_key = jax.random.split(key)
  time_key, noise_key, _ = jax.random.split(match_key, 3)
  k = rules.now(nets["step"])
  x, _, s = _roll_out(rules, draw_key, nets["student"], nets["ema"], k, batch)
  x = jax.lax.stop_gradient(x)
  t = control.own_rows(lambda n: _draw_times(rules, time_key, n, k), x)
  e = process.noise.draw(noise_key, x)
  x_t = further(process, x, e, s, t)
  aim = unbiased(process, x, e, s, t)
  answer = rules.expert(params, k)(x_t, t, *generators.label(batch))
  error = losses.error(rules.student, answer, *aim, t)
  _, b = bridge(process, s, t)
  weight = jnp.minimum(1.0, rules.clamp * (b / process.sigma(t)) ** 2)
  return jnp.mean(weight * error), {}


def _roll_out(rules, key, params, averages, k, batch):
  """Returns (x_s, the x_0 it was made of, s), s the end of phase k."""
  process, each = rules.student.process, rules.each
  labels = generators.label(batch)
  when = jnp.asarray(rules.grid, batch["image"].dtype)
  # earlier phases by their averages, this one by its own parameters
  others = jax.lax.stop_gradient(
    jax.tree.map(lambda e, p: e.at[k].set(p[k]), averages, params)
    if each > 1
    else averages
  )

  def step(i, x):
    predicted = rules.expert(others, i // each)(x, when[i], *labels)
    return jump(process, predicted, x, when[i], when[i + 1])

  last = k * each
  if each > 1:
    last += jax.random.randint(jax.random.fold_in(key, 1), (), 0, each)
  scale = float(process.sigma(rules.grid[0]))
  start = scale * generators.noise(key, batch, process)
  x = control.fori_loop(0, last, step, start)
  # only the step that the phase stops at has gradients
  predicted = rules.expert(params, k)(x, when[last], *labels)
  end = when[(k + 1) * each]
  return jump(process, predicted, x, when[last], end), predicted.x0, end


def _draw_times(rules, key, n, k):
  """Returns times of x_t in phase k, f[n]: `times`, squeezed above its end."""
  process, low = rules.student.process, rules.low
  t = rules.times(key, n)
  first = max(float(process.log_snr(process.t_max)), -_CLIP)
  lam = process.log_snr(t)
  share = jnp.asarray((low - first) / (low[-1] - first), lam.dtype)[k]
  squeezed = process.log_snr_inverse(first + share * (lam - first))
  return jnp.where(share == 1.0, t, squeezed)


def bridge(
  process: GaussianProcess, s: ArrayLike, t: ArrayLike
) -> tuple[Any, Any]:
  """Returns (a, b) with x_t = a x_s + b e, s < t.

  Args:
    process: the forward process.
    s: scalar or f[batch], where alpha > 0; sigma may be 0.
    t: scalar or f[batch].

  Raises:
    ValueError: if alpha(s) = 0, or not s < t, as far as they can be read.
  """
  if checks.concrete(s) and checks.concrete(t):
    if np.any(np.asarray(process.alpha(s)) <= 0):
      raise ValueError(
        f"a phase cannot end at pure noise, got s = {s}, where alpha = 0: what"
        " is made there is not compared with anything; end it below t_max"
      )
    if not np.all(np.asarray(s) < np.asarray(t)):
      raise ValueError(
        f"x_t is noisier than x_s: need s < t, got s = {s} and t = {t}, where"
        " b^2 is 0 and the target is infinite; keep a margin above s"
      )
  xp = numerics.namespace(s, t)
  # b^2 = sigma_t^2 - a^2 sigma_s^2 without the difference
  ratio = 2.0 * (process.log_snr(t) - process.log_snr(s))
  b = process.sigma(t) * xp.sqrt(-xp.expm1(ratio))
  return process.alpha(t) / process.alpha(s), b


def further(
  process: GaussianProcess, x: PyTree, e: ArrayLike, s: ArrayLike, t: ArrayLike
) -> Any:
  """Returns x_t = a x_s + b e, like x [batch, ...]; see `bridge`."""
  a, b = (tree.expand(v, x) for v in bridge(process, s, t))
  return a * x + b * e


def unbiased(
  process: GaussianProcess, x: PyTree, e: ArrayLike, s: ArrayLike, t: ArrayLike
) -> Prediction:
  """Returns the target (x0*, eps*), whose mean given x_t is that of (x0, eps).

  Args:
    process: the forward process.
    x: x_s, [batch, ...].
    e: the noise of `further`, like x.
    s: scalar or f[batch].
    t: scalar or f[batch].

  Raises:
    ValueError: as `bridge` does.
  """
  _, b = bridge(process, s, t)
  gain = process.alpha(t) * (process.sigma(s) / process.alpha(s)) ** 2 / b
  eps = tree.expand(process.sigma(t) / b, x) * e
  return Prediction(
    x / tree.expand(process.alpha(s), x) - tree.expand(gain, x) * e, eps
  )


def _parted(process, grid, phases):
  """Returns (steps of a phase, the K + 1 bounds of phases)."""
  n = len(grid) - 1
  if phases < 1 or n % phases:
    raise ValueError(
      f"a grid of {n} steps is not parted by phases={phases}; every phase has"
      " as many steps as the others"
    )
  ends = grid[:: n // phases]
  bridge(process, ends[1:], process.t_max)
  return n // phases, ends


def _lowest(process, ends, margin):
  """Returns the largest log-SNR of x_t in each phase, f64[K]."""
  most = min(float(process.log_snr(process.t_min)), _CLIP)
  return np.minimum(process.log_snr(ends) - margin, most)

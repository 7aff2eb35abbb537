r"""Consistency trajectory models: one network for every jump, and the score.

The student jumps from any t to any s <= t, G(x, t, s) of `jumps`, and g(x, t)
= x0 at s = t is a denoiser. With u between, s <= u < t, and x_u by h steps of
the teacher from x_t, both ways to s are compared as clean samples,

  est = G_ema(G(x_t, t, s), s, t_min),
  aim = G_ema(G_target(x_u, u, s), s, t_min),
  loss = E d(est, sg aim) + a_D E_edm |g(x_t, t) - x0|^2 + a_G GAN(est),

gradients passing through the frozen G_ema of est. On a grid of n intervals h
has the probability ~ h of 1..max_steps, one draw for a batch, t any grid time
with h steps below it, s any from u down to t_min. Where the last layer's
gradients are g, a = |g_CTM| / |g_own|, which makes every term pull alike, at
most 1e4 for the denoising term and within [0.01, 10] for the adversarial one; a
number in place of "adaptive" is a itself.

The denoising term has the noise of its data, the first term none: of 25 modes'
samples by one call 63 % are in a mode with a_D = .5 (one seed), 87 % with .05.

until="end" and max_steps=1 are consistency distillation, loss and gradient.
Without a teacher x_u is made with the average's own denoiser. A student is
sampled by `solvers.gamma_sampling`, gamma = 0 deterministic, and its x0 without
`until` is an ordinary model: for any solver, and for `likelihood`.

Departures: the critic reads noised samples by a denoiser's features, it and the
student move in every update, and the ratio of gradients is not damped by 1e-4.
Reference: Kim et al. (2024), https://arxiv.org/abs/2310.02279, sections 3 and
4; target="student" as in the authors' code, "ema" as in the paper.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import training
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import consistency
from jaxdiff.distillation.parts import critic as critics
from jaxdiff.distillation.parts import fake_score
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import jumps
from jaxdiff.distillation.parts import teacher_steps
from jaxdiff.distillation.parts.balance import balance
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.types import Model
from jaxdiff.types import Times

UNTIL = ("uniform", "end")
BOUNDS = {"dsm": (0.0, 1e4), "gan": (0.01, 10.0)}  # of adaptive weights


@checks.door
def ctm(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  grid: int | np.ndarray = 17,
  solver: Any = "heun",
  max_steps: int | None = None,
  until: str = "uniform",
  target: str = "student",
  huber: float | None = None,
  dsm: float | str = "adaptive",
  dsm_times: Times | None = None,
  gan: float | str = 0.0,
  critic: critics.Critic | None = None,
  critic_optimizer: optax.GradientTransformation | None = None,
  gan_start: int = 0,
  last: str = "out",
  ema: float = 0.999,
) -> Method:
  """Trains a student of every jump from t to s, and of the score (CTM).

  Args:
    teacher: model(x, t[, label]) -> Prediction; None trains from scratch.
    student: a Denoiser that jumps, as `student_of(..., jumps=True)` makes it.
    optimizer: any optax transformation.
    grid: n, the intervals of a Karras grid, or the times f64[n + 1].
    solver: solver of the teacher's steps: itself, or text for
      `solvers.from_spec`.
    max_steps: largest number of the teacher's steps; None is n.
    until: where jumps end: "uniform" on the grid, or at its "end" alone.
    target: whose jump from x_u is aimed at, "student" or "ema".
    huber: huber of `consistency.distance`; None is the squared distance.
    dsm: weight of the denoising term, or "adaptive"; 0 leaves it out.
    dsm_times: its times; by default a half EDM's log-normal, a half the Karras
      clock but for its lowest 30 %.
    gan: weight of the adversarial term, or "adaptive"; 0 leaves it out.
    critic: critic of `critic.make`, for the adversarial term.
    critic_optimizer: by default the student's.
    gan_start: update in which the adversarial term begins.
    last: name of the network's last layer, for "adaptive".
    ema: decay of the average.

  Raises:
    ValueError: for a student that does not jump, a grid that does not fall to
      t_min, more steps than it has, an adversarial term without a critic, a
      last layer that there is not, or an unknown choice.
  """
  checks.one_of(until, UNTIL, "until")
  checks.one_of(target, consistency.TARGETS, "target")
  process = student.process
  grid = teacher_steps.falling(process, grid)
  n = len(grid) - 1
  max_steps = n if max_steps is None else max_steps
  weights = {"dsm": dsm, "gan": gan}
  _check(student, weights, critic, last, max_steps, n)
  rules = _Rules(
    student=student,
    grid=grid,
    steps=teacher_steps.of(solver, process, grid),
    max_steps=max_steps,
    until=until,
    target=target,
    huber=huber,
    denoising=fake_score.denoising(
      student, times=dsm_times or half_log_normal(process)
    ),
    weights=weights,
    critic=critic,
    gan_start=gan_start,
    last=last,
  )
  frozen = {} if teacher is None else {"teacher": teacher}
  if gan:
    frozen["critic_network"] = critic.network
  return Method(
    student=student,
    players=_players(rules, optimizer, critic_optimizer or optimizer),
    params={"critic": critic.params} if gan else {},
    frozen=frozen,
    ema=ema,
    gamma=0.0,
  )


class _Rules(NamedTuple):
  """What no update changes; the fields are arguments of `ctm`, but for these.

  Attributes:
    grid: f64[n + 1].
    steps: the teacher's steps, of `teacher_steps.of`.
    denoising: loss(key, params, batch) of the denoising term.
    weights: {"dsm": weight, "gan": weight}, numbers or "adaptive".
  """

  student: Denoiser
  grid: np.ndarray
  steps: Any
  max_steps: int
  until: str
  target: str
  huber: float | None
  denoising: Callable
  weights: dict[str, float | str]
  critic: critics.Critic | None
  gan_start: int
  last: str

  def time(self, i: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the times of the grid's places i, in the dtype of x."""
    return teacher_steps.at(self.grid, i, x.dtype)


def _players(rules, optimizer, critic_optimizer):
  """Returns the players, in the order in which they move."""
  student = training.Player(functools.partial(_loss, rules), optimizer)
  if not rules.weights["gan"]:
    return {"student": student}
  judge = critics.player(
    rules.critic,
    functools.partial(_samples, rules),
    critic_optimizer,
    when=lambda step: step >= rules.gan_start,
  )
  return {"critic": judge, "student": student}


def _draw(rules, key, batch):
  """Returns (x at t = grid[i], i, j of s = grid[j], h): i, j i[batch]."""
  i_key, x_key, h_key, j_key = (
    jax.random.fold_in(key, k) for k in (0, 1, 3, 4)
  )
  n, most = len(rules.grid) - 1, rules.max_steps
  x0 = batch["image"]
  odds = jnp.log(jnp.arange(1.0, most + 1.0))
  h = 1 + jax.random.categorical(h_key, odds) if most > 1 else 1
  i = control.own_rows(
    lambda rows: jax.random.randint(i_key, (rows,), 0, n - h + 1), x0
  )
  j = jnp.full_like(i, n)
  if rules.until == "uniform":
    j = jax.random.randint(j_key, i.shape, i + h, n + 1)
  x, _ = rules.student.process.perturb(
    x_key, x0, rules.time(i, x0), batch.get("index")
  )
  return x, i, j, h


def _estimate(rules, key, params, nets, labels, x, i, j):
  """Returns G_ema(G(x, t, s), s, t_min); one mask of dropout for both."""
  student = rules.student
  options = consistency.dropout(student, jax.random.fold_in(key, 2))
  model, outer = (with_params(student, p) for p in (params, nets["ema"]))
  t, s = rules.time(i, x), rules.time(j, x)
  there = jumps.flow_map(model, x, t, s, *labels, **options)
  return consistency.function(outer, there, s, *labels, **options)


def _samples(rules, key, nets, batch):
  """Returns what the critic looks at, like batch["image"]."""
  x, i, j, _ = _draw(rules, key, batch)
  labels = generators.label(batch)
  return _estimate(rules, key, nets["student"], nets, labels, x, i, j)


def _loss(rules, key, params, nets, batch):
  x, i, j, h = _draw(rules, key, batch)
  labels = generators.label(batch)
  guide = nets.get("teacher", with_params(rules.student, nets["ema"]))
  x_u = teacher_steps.walk(guide, rules.steps, x, i, h, labels)
  own = consistency.aimed_at(rules.target, params, nets)
  aim = _estimate(rules, key, own, nets, labels, x_u, i + h, j)

  def terms(params):
    est = _estimate(rules, key, params, nets, labels, x, i, j)
    return _terms(rules, key, params, nets, batch, est, aim)

  values = terms(params)
  weights = rules.weights
  bounds = {k: BOUNDS[k] for k in values if weights.get(k) == "adaptive"}
  found = balance(terms, params, rules.last, "ctm", bounds) if bounds else {}
  a = {k: found.get(k, weights.get(k, 1.0)) for k in values}
  if weights["gan"]:
    a["gan"] = jnp.where(nets["step"] >= rules.gan_start, a["gan"], 0.0)
  said = values | {f"{k}_weight": v for k, v in found.items()}
  return sum(a[k] * values[k] for k in values), said


def _terms(rules, key, params, nets, batch, est, aim):
  """Returns the terms of the loss that have a weight, by name, f[] each."""
  values = {"ctm": consistency.distance(est, aim, rules.huber).mean()}
  if rules.weights["dsm"]:
    denoising_key = jax.random.fold_in(key, 5)
    values["dsm"] = rules.denoising(denoising_key, params, batch)[0]
  if rules.weights["gan"]:
    judge = dataclasses.replace(rules.critic, network=nets["critic_network"])
    parts = judge.parts(nets["critic"])
    seen = critics.logits(jax.random.fold_in(key, 6), judge, *parts, est, batch)
    values["gan"] = critics.generator_loss(rules.critic.kind, seen)
  return values


def half_log_normal(process: Any, share: float = 0.7) -> Callable:
  """Returns times of which a half is EDM's log-normal, for the details.

  The other half is uniform on the noisiest `share` of the Karras clock: without
  it the student's first step would be learned from few samples.
  """
  usual = losses.times.log_normal(process)
  _, time = consistency.karras_clock(process)

  def times(key, n):
    keys = jax.random.split(key, 3)
    high = time(1.0 - share * jax.random.uniform(keys[0], (n,)))
    return jnp.where(
      jax.random.bernoulli(keys[1], 0.5, (n,)), usual(keys[2], n), high
    )

  return times


def _check(student, weights, critic, last, max_steps, n):
  if not getattr(student, "jumps", False):
    raise ValueError(
      "a trajectory model is told where to jump, but this student is told one"
      " time alone; make it with distillation.student_of(key, teacher, shape,"
      " jumps=True)"
    )
  if not 1 <= max_steps <= n:
    raise ValueError(
      f"the teacher takes 1..{n} steps on a grid of {n} intervals, got"
      f" max_steps={max_steps}"
    )
  for name, weight in weights.items():
    if weight != "adaptive" and (isinstance(weight, str) or weight < 0):
      raise ValueError(
        f"{name} is the weight of a term, at least 0, or 'adaptive', got"
        f" {weight!r}"
      )
  if weights["gan"] and critic is None:
    raise ValueError(
      f"gan={weights['gan']!r} asks for an adversarial term, which needs a"
      " critic; make one with critic.make(key, network, layer, shape), or set"
      " gan=0"
    )
  if "adaptive" in weights.values() and last not in student.params:
    raise ValueError(
      f"the network has no layer {last!r} whose gradients could be compared;"
      f" it has {', '.join(student.params)}: name its last one, or give"
      " weights as numbers"
    )

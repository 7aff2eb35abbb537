r"""rCM: continuous-time consistency, regularised by the scores of its samples.

sCM matches the teacher's trajectories on noised data (a forward divergence,
which covers modes), and what its derivative lacks in precision adds up toward
the noisy end. Distribution matching looks at the samples that the student makes
(a reverse divergence, which seeks modes), and corrects where they end:

  loss = scm_weight L_sCM(theta) + dmd_weight L_DMD(x),   x = G_theta(z),

with L_sCM of `scm`, L_DMD of `dmd` (with its 1/2, hence twice the paper's
lambda = 0.01), and the fake score of `fake_score`. Both gradients make one step
of one optimizer. In the first `warmup` updates, in which sCM's tangent grows,
there is no L_DMD and the fake score rests; after it the fake score moves
`fake_steps` times for every step of the student.

The samples are simulated backwards at random times (`random_simulation`): n of
1..calls, x at t_max, then the times of n - 1 further calls, each the smaller of
a draw and the time before. So the student is trained for any short grid. dmd_
weight = 0 is sCM, scm_weight = 0 is DMD on those samples. Guidance goes around
the teacher and holds for both terms.

Reference: Zheng et al. (2025), https://arxiv.org/abs/2510.08431, algorithm 1.
Departures: the number of calls is drawn rather than counted, and r multiplies
the whole second part of the tangent, as in sCM (their code keeps more of it in
the warm-up; the same at r = 1).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.dmd import check_matching
from jaxdiff.distillation.dmd import matching as dmd_loss
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import trigflow
from jaxdiff.distillation.parts.fake_score import fake_score
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.distillation.scm import tangent_errors
from jaxdiff.predictions import ask
from jaxdiff.processes import GaussianProcess
from jaxdiff.training import ema as emas
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import Times

EMA = emas.power(0.1)


@checks.door
def rcm(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  scm_weight: float = 1.0,
  dmd_weight: float = 0.02,
  times: Times | None = None,
  dmd_times: Times | None = None,
  warmup: int = 1000,
  c: float = 0.1,
  jvp: Any = "exact",
  fake: Model | None = None,
  fake_optimizer: optax.GradientTransformation | None = None,
  fake_steps: int = 4,
  generator: generators.Generator | None = None,
  calls: int = 4,
  data: ArrayLike | None = None,
  ema: float | emas.Profile = EMA,
) -> Method:
  """Trains a consistency model by sCM and by the scores of its own samples.

  Args:
    teacher: model(x, t[, label]) -> Prediction, guided if it is to be.
    student: a Denoiser, which begins as a copy of the teacher.
    optimizer: optimizer of the student; AdamW with b1=0 in the paper.
    scm_weight: weight of the consistency.
    dmd_weight: weight of the distribution matching; at 0 there is no fake
      score.
    times: times of the consistency; by default log tan a ~ N(-0.8, 1.6^2).
    dmd_times: times of the matching, the fake score and the simulated calls; by
      default log tan a ~ N(0, 1.6^2).
    warmup: updates before the matching begins, in which the tangent grows.
    c: time condition of the tangent's normalisation.
    jvp: "exact", "finite_difference", or a function like `jax.jvp`.
    fake: the fake denoiser before the first step; by default a copy of the
      student.
    fake_optimizer: its optimizer; by default the student's.
    fake_steps: steps of the fake score for each step of the student.
    generator: how the student is asked; by default `random_simulation`.
    calls: the most calls of the simulation.
    data: f[n, ...], a sample that the student's sigma_data is compared with.
    ema: decay of the student's average, or a profile of `training.ema`.

  Raises:
    ValueError: for a negative weight, no calls, a sigma_data that is not the
      data's, or matching under noise that is not normal.
  """
  _check_weights(scm_weight, dmd_weight)
  if data is not None:
    trigflow.check_sigma_data(data, student.sigma_data)
  process = student.process
  if dmd_weight > 0:
    check_matching(process, "the distribution matching of rcm")
  shift = math.log(student.sigma_data)
  drawn = lambda mean: losses.times.log_normal(process, mean + shift, 1.6)
  times = times or drawn(-0.8)
  dmd_times = dmd_times or drawn(0.0)
  rules = _Rules(
    student=student,
    fake=student if fake is None else fake,
    generator=generator or random_simulation(process, dmd_times, calls),
    errors=tangent_errors(student, times=times, warmup=warmup, c=c, jvp=jvp),
    scm_weight=scm_weight,
    dmd_weight=dmd_weight,
    dmd_times=dmd_times,
    warmup=warmup,
  )
  loss = functools.partial(_loss, rules)
  players = {"student": training.Player(loss, optimizer)}
  if dmd_weight > 0:
    fake_player = training.Player(
      fake_score(rules.fake, student, rules.generator, times=dmd_times),
      fake_optimizer or optimizer,
      steps=fake_steps,
      when=lambda step: step >= warmup,
    )
    players = {"fake": fake_player, **players}
  return Method(
    student=student,
    players=players,
    params={"fake": rules.fake.params} if dmd_weight > 0 else {},
    frozen={"teacher": teacher},
    ema=ema,
  )


class _Rules(NamedTuple):
  """What no update changes: arguments of `rcm`, and `errors`.

  Attributes:
    errors: errors(key, params, nets, batch) of `scm.tangent_errors`.
  """

  student: Denoiser
  fake: Model
  generator: generators.Generator
  errors: Any
  scm_weight: float
  dmd_weight: float
  dmd_times: Times
  warmup: int


def _loss(rules, key, params, nets, batch):
  value, metrics = jnp.zeros(()), {}
  if rules.scm_weight > 0:
    error, _, metrics = rules.errors(key, params, nets, batch)
    value = rules.scm_weight * error.mean()
    metrics = metrics | dict(scm=error.mean())
  if rules.dmd_weight > 0:
    own_key = jax.random.fold_in(key, 2)
    match = lambda p: _matching(rules, own_key, p, nets, batch)
    kept = jax.eval_shape(match, params)
    rest = lambda p: jnp.zeros(kept.shape, kept.dtype)
    begun = nets["step"] >= rules.warmup
    other = control.cond(begun, match, rest, params)
    value = value + rules.dmd_weight * other
    metrics = metrics | dict(dmd=other)
  return value, metrics


def _matching(rules, key, params, nets, batch):
  """Returns the loss of distribution matching on the student's samples, f[]."""
  draw_key, match_key = jax.random.split(key)
  x = rules.generator(draw_key, with_params(rules.student, params), batch)
  other = with_params(rules.fake, nets["fake"])
  return dmd_loss(match_key, x, nets["teacher"], other, rules.dmd_times, batch)


def _check_weights(scm_weight, dmd_weight):
  if min(scm_weight, dmd_weight) < 0 or max(scm_weight, dmd_weight) == 0:
    raise ValueError(
      "the weights are at least 0 and one of them is positive, got"
      f" scm_weight={scm_weight}, dmd_weight={dmd_weight}"
    )


@checks.door
def random_simulation(
  process: GaussianProcess, times: Times, calls: int = 4
) -> generators.Generator:
  """Returns x0 of the last of n calls at random falling times, n in 1..calls.

  n is one number for the batch, all equally likely, and calls before the last
  carry no gradients; only as many are made as are needed.

  Args:
    process: the forward process.
    times: sampler of `losses.times`.
    calls: the most calls.

  Raises:
    ValueError: for fewer than one call.
  """
  if calls < 1:
    raise ValueError(f"a sample takes one call or more, got calls={calls}")

  def generate(key, model, batch):
    count_key, key = jax.random.split(key)
    size = batch["image"].shape[0]
    n = jax.random.randint(count_key, (), 0, calls)
    labels = generators.label(batch)

    def further(i, carry):
      x, t = carry
      time_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
      x0 = jax.lax.stop_gradient(ask(model, x, t, *labels).x0)
      # by permutation: stratified draws of two calls would rise together
      draw = jax.random.permutation(
        jax.random.fold_in(time_key, 1), times(time_key, size)
      )
      t = jnp.minimum(t, draw.astype(t.dtype))
      alpha, sigma = (
        tree.expand(f(t), x) for f in (process.alpha, process.sigma)
      )
      noise = generators.noise(noise_key, batch, process)
      return (alpha * x0 + sigma * noise).astype(x.dtype), t

    own = jax.random.fold_in(key, calls)
    first = generators.noise(own, batch, process)
    t = jnp.full((size,), process.t_max, tree.compute_dtype(first.dtype))
    x = (process.sigma(process.t_max) * first).astype(first.dtype)
    x, t = control.fori_loop(0, n, further, (x, t))
    return ask(model, x, t, *labels).x0

  return generate

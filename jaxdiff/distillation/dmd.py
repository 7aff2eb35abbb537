r"""Distribution matching distillation.

The student's samples x = G(z) follow the gradient of KL(p_fake || p_teacher)
between the two laws noised to a random level,

  x_t = sg(alpha x + sigma eps),   g = (D_fake(x_t) - D_teacher(x_t)) / c,
  loss = 1/2 mean |x - sg(x - g)|^2,   c = mean |x - D_teacher(x_t)|,

where D_fake is the denoiser of the student's own samples, trained beside it
(`fake_score`), `fake_steps` times for every step of the student. For Gaussians
c g has the mean sigma^2 d KL / d mean. c is one number for each sample, floored
so that a perfect student does not divide by nothing.

Two choices decide how fine the student becomes. Structure of scale h is seen at
sigma below h alone: times should be there often enough. And at t_max the
teacher's denoiser, which the student begins as, is nearly constant: steps are
learned slowly there. Asked at a lower t, by noise of the data's spread
(`generators.one_step(process, t, data_std)`), it has them from the start. On 25
modes .5 apart, sigma = .3 in place of 20 and log(sigma) ~ N(-2, 1) bring the
share of samples inside of a mode from .65 to .91, by the same updates.

Two things may be added:

  regression   + w mean |G(z) - x(z)|^2 on stored pairs of noise z and the end
               x(z) of the teacher's ODE from it (DMD1 has w = 1/4, LPIPS in
               place of the square, and one fake step)
  adversary    a discriminator on the fake score's features (`dmd2`, `presto`)

Guidance goes around the teacher (`guided`), whose labels
are the batch's. Reference: Yin et al. (2024), https://arxiv.org/abs/2311.18828,
eq. 7 and 8.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import critic as critics
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.fake_score import denoising
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Model
from jaxdiff.types import Times

FLOOR = 1e-3


@checks.door
def dmd(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  fake: Model | None = None,
  fake_optimizer: optax.GradientTransformation | None = None,
  fake_steps: int = 5,
  generator: generators.Generator | None = None,
  times: Times | None = None,
  fake_times: Times | None = None,
  regression: float = 0.0,
  adversary: critics.Adversary | None = None,
  ema: float = 0.999,
) -> Method:
  """Trains a few-step student along the gradient of KL(student || teacher).

  The player "fake" trains {"score": ..., "head": ...}: the denoiser of the
  student's samples and, with an adversary, its head.

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    student: a Denoiser, which begins as a copy of the teacher.
    optimizer: optimizer of the student; Adam with b1=0 is usual.
    fake: the fake denoiser before the first step; by default a copy of the
      student.
    fake_optimizer: its optimizer, which should not be slower than the
      student's; by default the same.
    fake_steps: steps of the fake score for each step of the student.
    generator: how the student is asked; by default one step from t_max.
    times: times of x_t, a sampler of `losses.times`; by default log-uniform in
      sigma / alpha.
    fake_times: those that the fake score is trained at; by default the same.
    regression: weight of the regression on pairs: the batch carries "noise",
      x at t_max, and "end", where the teacher's ODE takes it.
    adversary: settings of the adversarial term, if there is one.
    ema: decay of the student's average.

  Raises:
    ValueError: for noise that is not normal.
  """
  fake = student if fake is None else fake
  check_matching(fake.process, "dmd")
  times = times or losses.times.uniform_log_snr(student.process)
  rules = _Rules(
    student=student,
    fake=fake,
    generator=generator or generators.one_step(student.process),
    times=times,
    denoise=denoising(fake, times=fake_times or times),
    regression=regression,
    adversary=adversary,
  )
  params = {"score": fake.params}
  if adversary is not None:
    params["head"] = critics.head_params(
      jax.random.key(0), fake, adversary.layer, adversary.shape, adversary.width
    )
  return Method(
    student=student,
    players={
      "fake": training.Player(
        functools.partial(_fake_loss, rules),
        fake_optimizer or optimizer,
        steps=fake_steps,
      ),
      "student": training.Player(functools.partial(_loss, rules), optimizer),
    },
    params={"fake": params},
    frozen={"teacher": teacher},
    ema=ema,
  )


class _Rules(NamedTuple):
  """What no update changes: arguments of `dmd`, and `denoise`.

  Attributes:
    denoise: loss(key, params, batch) of the fake score.
  """

  student: Denoiser
  fake: Model
  generator: generators.Generator
  times: Times
  denoise: Callable
  regression: float
  adversary: critics.Adversary | None


def _loss(rules, key, params, nets, batch):
  draw_key, match_key, gan_key = _keys(key)
  model = with_params(rules.student, params)
  others = jax.lax.stop_gradient(nets["fake"])
  other = with_params(rules.fake, others["score"])
  x = rules.generator(draw_key, model, batch)
  value = matching(match_key, x, nets["teacher"], other, rules.times, batch)
  said = {"matching": value}
  if rules.regression:
    said["regression"] = pairs(model, batch)
    value = value + rules.regression * said["regression"]
  if rules.adversary is not None:
    said["adversarial"] = critics.generator_term(
      gan_key, rules.adversary, other, others["head"], x, batch
    )
    value = value + said["adversarial"]
  return value, said


def _fake_loss(rules, key, params, nets, batch):
  draw_key, noise_key, gan_key = _keys(key)
  model = with_params(rules.student, nets["student"])
  x = jax.lax.stop_gradient(rules.generator(draw_key, model, batch))
  value, _ = rules.denoise(noise_key, params["score"], {**batch, "image": x})
  said = {"denoising": value}
  if rules.adversary is not None:
    score = with_params(rules.fake, params["score"])
    said["critic"] = critics.critic_term(
      gan_key, rules.adversary, score, params["head"], x, batch
    )
    value = value + said["critic"]
  return value, said


def check_matching(process: GaussianProcess, name: str) -> None:
  """Raises a ValueError unless the direction of DMD is a process's score.

  Args:
    process: that the samples are noised by.
    name: name of the method.
  """
  check_normal(
    process,
    name,
    "takes the difference of denoisers for that of scores, whose direction"
    " lessens the KL divergence; it is one under normal noise alone",
    "match the denoisers themselves (sid, sim) or follow the ODE"
    " (consistency_distillation, mean_flow, reflow, progressive), which is"
    " right for any noise",
  )


@checks.door
def matching(
  key: jax.Array,
  x: jax.Array,
  teacher: Callable,
  fake: Model,
  times: Times,
  batch: dict,
) -> jax.Array:
  """Returns the loss whose gradient in x is DMD's, f[].

  Args:
    key: PRNG key.
    x: the generator's samples, like batch["image"].
    teacher: model(x, t[, label]) -> Prediction, guided if it is to be.
    fake: a Denoiser of the generator's samples.
    times: sampler of `losses.times`.
    batch: labels and index of the samples.
  """
  time_key, noise_key = jax.random.split(key)
  t = control.own_rows(lambda n: times(time_key, n), x)
  clean = jax.lax.stop_gradient(x)
  x_t, _ = fake.process.perturb(noise_key, clean, t, batch.get("index"))
  labels = generators.label(batch)
  gradient = direction(
    clean, ask(teacher, x_t, t, *labels).x0, ask(fake, x_t, t, *labels).x0
  )
  aim = jax.lax.stop_gradient(clean - gradient)
  return 0.5 * jnp.mean(jnp.square(x - aim))


def direction(
  x: jax.Array,
  teacher_x0: jax.Array,
  fake_x0: jax.Array,
  floor: float = FLOOR,
) -> jax.Array:
  """Returns g = (D_fake - D_teacher) / max(mean |x - D_teacher|, floor).

  The mean is over the values of a sample. Samples whose g is not finite get 0.
  """
  axes = tuple(range(1, x.ndim))
  scale = jnp.mean(abs(x - teacher_x0), axis=axes)
  gradient = (fake_x0 - teacher_x0) / tree.expand(jnp.maximum(scale, floor), x)
  finite = jnp.isfinite(gradient).all(axis=axes, keepdims=True)
  return jnp.where(finite, gradient, 0.0)


def pairs(model: Model, batch: dict) -> jax.Array:
  """Returns the mean square error of a model on the batch's pairs, f[].

  Raises:
    ValueError: if the batch has none.
  """
  missing = [name for name in ("noise", "end") if name not in batch]
  if missing:
    raise ValueError(
      f"regression needs pairs: the batch lacks {', '.join(missing)}. Store"
      ' "noise", draws of process.prior, and "end", what the teacher\'s ODE'
      " makes of them (sampling.sample with solvers.heun), or set regression=0"
    )
  labels = generators.label(batch)
  x = ask(model, batch["noise"], model.process.t_max, *labels).x0
  return jnp.mean(jnp.square(x - batch["end"]))


def _keys(key):
  """Returns keys of the draw, of the noise, and of the adversarial term."""
  draw_key, noise_key = jax.random.split(key)
  return draw_key, noise_key, jax.random.fold_in(key, 2)

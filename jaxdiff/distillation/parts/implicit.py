r"""Implicit matching: gradients of divergences through the noised samples.

Let p_t be the law of x_t = alpha x0 + sigma eps with x0 = G(z), s its score. A
divergence E_pi d(s - s_teacher) asks for d s / d theta, which nobody knows. For
any field u the projection identity

  E u(x_t) . (s(x_t) - grad log p(x_t | x0)) = 0

holds for every theta; its derivative trades the one unknown for another that is
known, with the fake score in the place of s, and pi = p_t held fixed:

  E u . ds/dtheta = - d/dtheta E u(x_t) . (s_fake(x_t) - grad log p(x_t | x0)).

The parameters of u and s_fake are held fixed, but x_t is not: gradients run
through teacher and fake into x_t and x0 (in DMD they do not). With denoisers,
s = (alpha D - x) / sigma^2, and

  delta = D_teacher(x_t) - D_fake(x_t),   s_fake - s_teacher = - alpha delta /
  sigma^2,   s_fake - grad log p(x_t | x0) = alpha (D_fake - x0) / sigma^2.

Neither the identity nor its derivative asks for the law of eps: x_t carries it.
Under noise that is not normal delta is not of scores, but of denoisers all the
same, and the divergence E_pi d(delta) that is lessened vanishes where they, and
so the two ODEs, agree.

`matching` makes such a loss of an objective(x0, teacher_x0, fake_x0, lam) ->
f[n] of the clean samples, of what either model answers at x_t, and of the
log-SNR; `method` is the rest of a method around it. SIM and SiD are two
objectives. Reference: Luo et al. (2024), https://arxiv.org/abs/2410.16794,
theorem 3.1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.fake_score import fake_score
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.types import Model
from jaxdiff.types import Times

Objective = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

Weighting = str | Callable[[jax.Array], jax.Array]

WEIGHTINGS = ("uniform", "adaptive")
SIGMA_INIT = 2.5
_FLOOR = 1e-5  # under the adaptive weight, that of SiD's authors


def matching(
  key: jax.Array,
  x0: jax.Array,
  teacher: Callable,
  fake: Model,
  times: Times,
  batch: dict,
  objective: Objective,
) -> tuple[jax.Array, dict]:
  """Returns (loss f[], metrics) of the generator's samples, with gradients.

  The metric "delta" is the mean |D_teacher - D_fake|, which says more than the
  loss: that one falls below zero when the fake score lags behind.

  Args:
    key: PRNG key.
    x0: the generator's samples, like batch["image"].
    teacher: model(x, t[, label]) -> Prediction, guided if it is to be.
    fake: a Denoiser of the generator's samples.
    times: sampler of `losses.times`.
    batch: labels and index of the samples.
    objective: objective(x0, teacher_x0, fake_x0, lam) -> f[batch].
  """
  time_key, noise_key = jax.random.split(key)
  t = control.own_rows(lambda n: times(time_key, n), x0)
  x_t, _ = fake.process.perturb(noise_key, x0, t, batch.get("index"))
  labels = generators.label(batch)
  teacher_x0, fake_x0 = (
    ask(model, x_t, t, *labels).x0 for model in (teacher, fake)
  )
  lam = fake.process.log_snr(t)
  value = jnp.mean(objective(x0, teacher_x0, fake_x0, lam))
  return value, dict(delta=jnp.mean(abs(teacher_x0 - fake_x0)))


def method(
  teacher: Model,
  student: Denoiser,
  objective: Objective,
  *,
  optimizer: optax.GradientTransformation,
  fake: Model | None = None,
  fake_optimizer: optax.GradientTransformation | None = None,
  fake_steps: int = 1,
  sigma_init: float = SIGMA_INIT,
  generator: generators.Generator | None = None,
  times: Times | None = None,
  fake_times: Times | None = None,
  ema: float = 0.999,
) -> Method:
  """Trains a student by an implicit objective; arguments as in `sim`."""
  fake = student if fake is None else fake
  if generator is None:
    generator = generators.one_step(student.process, start(student, sigma_init))
  times = times or losses.times.uniform_log_snr(student.process)

  def loss(key, params, nets, batch):
    draw_key, match_key = jax.random.split(key)
    x0 = generator(draw_key, with_params(student, params), batch)
    other = with_params(fake, nets["fake"])
    return matching(
      match_key, x0, nets["teacher"], other, times, batch, objective
    )

  fake_loss = fake_score(fake, student, generator, times=fake_times)
  return Method(
    student=student,
    players={
      "fake": training.Player(
        fake_loss, fake_optimizer or optimizer, steps=fake_steps
      ),
      "student": training.Player(loss, optimizer),
    },
    params={"fake": fake.params},
    frozen={"teacher": teacher},
    ema=ema,
  )


def start(student: Denoiser, sigma_init: float = SIGMA_INIT) -> float:
  """Returns the time at which sigma / alpha is `sigma_init`.

  Raises:
    ValueError: if the student's process never has so much or so little noise.
  """
  process = student.process
  low, high = (
    float(process.noise_level(t)) for t in (process.t_min, process.t_max)
  )
  if not low <= sigma_init <= high:
    raise ValueError(
      f"sigma_init={sigma_init} is outside of the noise levels [{low:.3g},"
      f" {high:.3g}] of the process, where a student that begins as its teacher"
      " knows nothing; choose one inside, 2.5 is usual"
    )
  return float(process.time_at(sigma_init))


def weight(
  kind: Weighting, x0: jax.Array, teacher_x0: jax.Array, lam: jax.Array
) -> jax.Array | float:
  """Returns what a sample counts, f[batch], without gradients.

  Args:
    kind: "uniform" is 1; "adaptive", of SiD, 1 / mean |x0 - D_teacher|, which
      evens out the noise levels; or a function of the log-SNR.
    x0: clean samples, [batch, ...].
    teacher_x0: what the teacher takes them for.
    lam: f[batch], log(alpha / sigma).

  Raises:
    ValueError: for an unknown kind.
  """
  check_weighting(kind)
  if callable(kind):
    return kind(lam)
  if kind == "uniform":
    return 1.0
  apart = jnp.mean(abs(x0 - teacher_x0), axis=tuple(range(1, x0.ndim)))
  return 1.0 / jax.lax.stop_gradient(jnp.maximum(apart, _FLOOR))


def check_weighting(kind: Weighting) -> None:
  """Raises ValueError unless `weight` knows the kind."""
  if not callable(kind):
    checks.one_of(kind, WEIGHTINGS, "weighting")


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a . b for every sample, f[batch], in float32 or wider."""
  wide = tree.compute_dtype(a.dtype)
  product = a.astype(wide) * b.astype(wide)
  return jnp.sum(product, axis=tuple(range(1, a.ndim)))

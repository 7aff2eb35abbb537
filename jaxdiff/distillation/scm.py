r"""sCM: continuous-time consistency models, distilled or trained.

The student's x0 is to be the end of the trajectory that it is asked on, hence
constant along it. In TrigFlow (`trigflow`), in units of d = sigma_data, y = x /
S, F = V / d,

  f = x0 / d = cos a y - sin a F,
  g = cos a df / da = -cos^2 a (F - F_T) - r (cos a sin a y + dF / du),

with the teacher's velocity F_T and dF / du = cos a sin a dF / da the derivative
along its trajectory per unit of u = log(sigma / alpha): one `jax.jvp` in the
student's own coordinates (`tangents`). r grows from 0 (the student learns F_T:
it stays the teacher) to 1 in `warmup` updates. Normalised, the tangent is what
is added to the student's own answer to make its target:

  loss = E |F - sg(F + g / (|g| + c))|^2 / D,   |g| over all D values.

The loss itself is |g|^2 / (|g| + c)^2 and says little; its gradient is -2 g.
With velocity="data" F_T is cos a eps - sin a x0 / d, whose mean given x it is:
consistency training. With adaptive=True a function of the noise level is
learned beside and divides the loss (`losses.uncertainty`), by a player of its
own, who computes a tangent again. Samples whose tangent is not finite get 0.

The defaults of `times` are the paper's for CIFAR-10. There log(sigma / alpha)
is normal with mean -1 (algorithm 1: a = arctan(e^tau / d)), not log tan a.

Reference: Lu and Song (2024), https://arxiv.org/abs/2410.11081, eq. 6 to 8 and
algorithm 1; the warm-up stops r at 1 as there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import predictions
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import tangents
from jaxdiff.distillation.parts import trigflow
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.losses import uncertainty
from jaxdiff.predictions import Prediction
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import Times


@checks.door
def scm(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  velocity: str = "teacher",
  times: Times | None = None,
  warmup: int = 10000,
  c: float = 0.1,
  jvp: Any = "exact",
  adaptive: bool = False,
  data: ArrayLike | None = None,
  ema: float = 0.999,
) -> Method:
  """Trains a continuous-time consistency model, from a teacher or from data.

  Args:
    teacher: model(x, t[, label]) -> Prediction, guided if it is to be; None
      with velocity="data".
    student: a Denoiser, which begins as a copy of the teacher.
    optimizer: any optax transformation.
    velocity: "teacher" distils, "data" trains without a teacher.
    times: sampler of `losses.times`; by default log(sigma / alpha) ~ N(-1,
      1.4^2).
    warmup: updates in which the tangent grows to the whole.
    c: time condition of the normalisation.
    jvp: "exact", "finite_difference", or a function like `jax.jvp`.
    adaptive: whether the weight of the noise levels is learned.
    data: f[n, ...], a sample that the student's sigma_data is compared with.
    ema: decay of the student's average.

  Raises:
    ValueError: for an unknown option, or a sigma_data that is not the data's.
  """
  frozen = tangents.frozen_teacher(velocity, teacher)
  if data is not None:
    trigflow.check_sigma_data(data, student.sigma_data)
  errors = tangent_errors(
    student, velocity=velocity, times=times, warmup=warmup, c=c, jvp=jvp
  )

  def loss(key, params, nets, batch):
    error, log_noise, metrics = errors(key, params, nets, batch)
    if adaptive:
      error = error * jnp.exp(-_log_loss(nets["weight"], log_noise))
    return error.mean(), metrics

  def weight_loss(key, params, nets, batch):
    error, log_noise, _ = errors(key, nets["student"], nets, batch)
    u = _log_loss(params, log_noise)
    return jnp.mean(error * jnp.exp(-u) + u), {}

  players = {"student": training.Player(loss, optimizer)}
  if adaptive:
    players["weight"] = training.Player(weight_loss, optax.adam(1e-2))
  return Method(
    student=student,
    players=players,
    params={"weight": uncertainty.init()} if adaptive else {},
    frozen=frozen,
    ema=ema,
  )


def tangent_errors(
  student: Denoiser,
  *,
  velocity: str = "teacher",
  times: Times | None = None,
  warmup: int = 10000,
  c: float = 0.1,
  jvp: Any = "exact",
) -> Callable[..., tuple]:
  """Returns errors(key, params, nets, batch) -> (error, log noise, metrics).

  The errors f[batch] are those of the module docstring, the log noise f[batch]
  is log(sigma / alpha), the metrics are "tangent" (mean |g|) and "warmup" (r).
  Arguments as in `scm`.
  """
  process = student.process
  times = times or losses.times.log_normal(process, -1.0, 1.4)

  def errors(key, params, nets, batch):
    time_key, noise_key = jax.random.split(key)
    x0 = batch["image"]
    t = control.own_rows(lambda n: times(time_key, n), x0)
    trigflow.floating(t, "a time of training")
    x, eps = process.perturb(noise_key, x0, t, batch.get("index"))
    labels = generators.label(batch)
    pair = tangents.velocity_of(
      velocity, nets.get("teacher"), x, t, labels, Prediction(x0, eps)
    )
    r = jnp.minimum(1.0, (nets["step"] + 1.0) / max(warmup, 1))
    model = with_params(student, params)
    own, g = tangent(model, x, t, pair, labels, r=r, jvp=jvp)
    norm = jnp.sqrt(tree.squared_norm(g))
    finite = jnp.isfinite(norm)
    step = jnp.where(tree.expand(finite, g), g / tree.expand(norm + c, g), 0.0)
    answer = field(model, *labels)(x, t)
    square = jnp.square(answer - jax.lax.stop_gradient(own + step))
    error = jnp.mean(square.reshape(square.shape[0], -1), axis=1)
    mean = jnp.mean(jnp.where(finite, norm, 0.0))
    metrics = dict(tangent=mean, warmup=r)
    return error, -process.log_snr(t), metrics

  return errors


def tangent(
  model: Model,
  x: jax.Array,
  t: jax.Array,
  pair: Prediction,
  labels: tuple = (),
  *,
  r: ArrayLike = 1.0,
  jvp: Any = "exact",
) -> tuple[jax.Array, jax.Array]:
  """Returns (F, g) of the module docstring, without gradients, like x.

  Args:
    model: a Denoiser, under any process.
    x: [batch, ...], in its coordinates.
    t: f[batch], its times.
    pair: the velocity at x, as (x0, eps): F_T.
    labels: labels of the samples.
    r: share of the tangent that is taken, in [0, 1].
    jvp: as in `scm`.
  """
  process, scale = model.process, model.sigma_data
  own, rise = tangents.along_ode(
    field(jax.lax.stop_gradient(model), *labels),
    process,
    x,
    t,
    pair,
    tangents.log_noise_rate(process, t),
    jvp,
  )
  aim = trigflow.velocity(process, pair, t, scale) / scale
  alpha, sigma = process.alpha(t), process.sigma(t)
  y = x * tree.expand(predictions.input_scale(alpha, sigma, scale), x)
  cos, sin = (tree.expand(v, x) for v in trigflow.turn(process, t, scale))
  g = -(cos**2) * (own - aim) - r * (cos * sin * y + rise)
  return own, jax.lax.stop_gradient(g)


def field(model: Model, *labels: Any) -> Callable[..., jax.Array]:
  """Returns F(x, t) = V / d of a Denoiser, in its own coordinates."""
  process, scale = model.process, model.sigma_data
  return lambda x, t: (
    trigflow.velocity(process, model(x, t, *labels), t, scale) / scale
  )


def _log_loss(params, log_noise):
  return uncertainty.log_loss(params, 0.25 * jnp.clip(log_noise, -20.0, 20.0))

r"""MeanFlow: the mean velocity between two times.

On the straight-path coordinates of any process, tau = sigma / (alpha + sigma)
and z = x / (alpha + sigma), a jump from t to s is z_s = z_t - (tau_t - tau_s) u
with u = eps - x0 of the student's pair (`jumps`, prediction "flow"). u is the
mean of the velocity v on the way if and only if

  u(z_t, s, t) = v(z_t, t) - (tau_t - tau_s) du / dtau_t,

where du / dtau = v . grad_z u + du / dtau_t along the ODE with s fixed: one
`jax.jvp` (`tangents`). The right-hand side, without gradients, is what the
student learns, with Delta the difference,

  loss = E sg(|Delta|^2 + floor)^{-power} |Delta|^2.

v is the teacher's, or with velocity="data" eps - x0 of the data themselves, as
in the paper, which trains without a teacher. `share` of the samples have s = t,
where the loss is flow matching exactly; no derivative is computed for them. For
the others t and s are the larger and the smaller of two draws.

A student under a rectified flow with t_max = 1 is best told t itself (Denoiser
(time="t")): the derivative of log(sigma / alpha) is not bounded there.
Reference: Geng et al. (2025), https://arxiv.org/abs/2505.13447, eq. 6 to 11,
22, algorithm 1; guidance goes around the teacher here, not into v.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import tangents
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import must_jump
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.types import Model
from jaxdiff.types import Times


@checks.door
def mean_flow(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  velocity: str = "teacher",
  times: Times | None = None,
  share: float = 0.75,
  power: float = 1.0,
  floor: float = 1e-3,
  jvp: Any = "exact",
  ema: float = 0.999,
) -> Method:
  """Trains the mean velocity between two times, from a teacher or from data.

  Args:
    teacher: model(x, t[, label]) -> Prediction; None with velocity="data".
    student: a Denoiser that jumps.
    optimizer: any optax transformation.
    velocity: "teacher" distils, "data" trains without a teacher.
    times: sampler of `losses.times`; by default log(sigma / alpha) ~ N(-0.4,
      1), the logit-normal of the paper.
    share: share of the samples with s = t, in [0, 1].
    power: power of the adaptive weight; 0 is the plain squared error.
    floor: in the adaptive weight.
    jvp: "exact", "finite_difference", or a function like `jax.jvp`.
    ema: decay of the student's average.

  Raises:
    ValueError: for a student that does not jump, a share outside of [0, 1], or
      an unknown velocity.
  """
  must_jump(student, "mean_flow")
  frozen = tangents.frozen_teacher(velocity, teacher)
  if not 0.0 <= share <= 1.0:
    raise ValueError(f"share is a part of the batch, in [0, 1], got {share}")
  process = student.process
  times = times or losses.times.log_normal(process, -0.4, 1.0)

  def loss(key, params, nets, batch):
    keys = jax.random.split(key, 5)
    x0 = batch["image"]
    size = x0.shape[0]
    jumping = round((1.0 - share) * size)
    one = times(keys[0], jumping)
    # by permutation: stratified draws of both would rise together
    other = jax.random.permutation(keys[1], times(keys[2], jumping))
    still = times(keys[3], size - jumping)
    t = jnp.concatenate([jnp.maximum(one, other), still])
    s = jnp.concatenate([jnp.minimum(one, other), still])
    x, eps = process.perturb(keys[4], x0, t, batch.get("index"))
    labels = generators.label(batch)
    pair = tangents.velocity_of(
      velocity, nets.get("teacher"), x, t, labels, Prediction(x0, eps)
    )
    model = with_params(student, params)
    first = lambda v: jax.tree.map(lambda leaf: leaf[:jumping], v)
    aim = pair.eps - pair.x0
    if jumping:
      less = correction(model, *first((x, t, s, pair, labels)), jvp=jvp)
      aim = jnp.concatenate([aim[:jumping] - less, aim[jumping:]])
    delta = mean_velocity(model, x, t, s, labels) - jax.lax.stop_gradient(aim)
    square = tree.squared_norm(delta)
    weight = jax.lax.stop_gradient((square + floor) ** -power)
    return jnp.mean(weight * square), dict(square=square.mean())

  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    frozen=frozen,
    ema=ema,
    gamma=0.0,
  )


def mean_velocity(
  model: Model, x: jax.Array, t: jax.Array, s: jax.Array, labels: tuple = ()
) -> jax.Array:
  """Returns u(z_t, s, t) of a Denoiser that jumps, like x."""
  predicted = ask(model, x, t, *labels, until=s)
  return predicted.eps - predicted.x0


def correction(
  model: Model,
  x: jax.Array,
  t: jax.Array,
  s: jax.Array,
  pair: Prediction,
  labels: tuple = (),
  *,
  jvp: Any = "exact",
) -> jax.Array:
  """Returns (tau_t - tau_s) du / dtau along the ODE, without gradients.

  Args:
    model: a Denoiser that jumps.
    x: [batch, ...].
    t: f[batch], where x is.
    s: f[batch], where the jump goes.
    pair: the velocity at x, as (x0, eps).
    labels: labels of the samples.
    jvp: as in `mean_flow`.
  """
  still, process = jax.lax.stop_gradient(model), model.process
  span = tangents.flow_time(process, t) - tangents.flow_time(process, s)
  _, less = tangents.along_ode(
    lambda x, t: mean_velocity(still, x, t, s, labels),
    process,
    x,
    t,
    pair,
    span * tangents.flow_rate(process, t),
    jvp,
  )
  return less

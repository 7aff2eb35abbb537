r"""Shortcut models: one long jump is two short ones.

A student that jumps is told how far, on the coordinates of rectified flow (tau
= sigma / (alpha + sigma), `mean_flow`). Part of a batch learns the velocity of
the ODE, the jump of no length; the rest learns that a jump from t to s is what
two jumps of half the length are,

  u(x_t, t, s) = (u(x_t, t, m) + u(x_m, m, s)) / 2,   tau_m = (tau_t + tau_s)/2,

with x_m where the first of them arrives, all asked of the student's average.
Lengths are 1, 1/2, ..., 2^{1 - levels} of the way from t_max to t_min, all
equally likely, and begin at multiples of themselves. The halves of the shortest
are jumps of no length: Euler steps of the velocity.

With velocity="data" the velocity is eps - x0 of the data, as in the paper,
which trains without a teacher. Reference: Frans et al. (2024),
https://arxiv.org/abs/2410.12557, eq. 4 and 5, algorithm 1. The ends of the way
are those of the process, whose noise levels need not reach 0 and infinity.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff import numerics
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.mean_flow import mean_velocity
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import jumps
from jaxdiff.distillation.parts import tangents
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import must_jump
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Model
from jaxdiff.types import Times


@checks.door
def shortcut(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  velocity: str = "teacher",
  times: Times | None = None,
  share: float = 0.25,
  levels: int = 7,
  ema: float = 0.999,
) -> Method:
  """Trains a student of any jump length, by the velocity and by its own halves.

  Args:
    teacher: model(x, t[, label]) -> Prediction; None with velocity="data".
    student: a Denoiser that jumps.
    optimizer: any optax transformation.
    velocity: "teacher" distils, "data" trains without a teacher.
    times: times of the velocity, a sampler of `losses.times`; by default
      uniform in tau.
    share: share of the samples that learn from two halves, in (0, 1).
    levels: how many lengths there are, 7 for 1 to 1/64 with halves of 1/128.
    ema: decay of the student's average, which makes the targets.

  Raises:
    ValueError: for a student that does not jump, a share outside of (0, 1), no
      levels, or an unknown velocity.
  """
  must_jump(student, "shortcut")
  frozen = tangents.frozen_teacher(velocity, teacher)
  if not 0.0 < share < 1.0:
    raise ValueError(f"share is a part of the batch, in (0, 1), got {share}")
  if levels < 1:
    raise ValueError(
      f"levels counts the lengths of jumps, got {levels}; 7 has 1 to 1/64"
    )
  process = student.process
  times = times or flow_uniform(process)

  def loss(key, params, nets, batch):
    keys = jax.random.split(key, 3)
    x0 = batch["image"]
    size = x0.shape[0]
    halved = max(1, round(share * size))
    t, m, s, last = lengths(keys[0], process, halved, levels)
    plain = times(keys[1], size - halved)
    t = jnp.concatenate([t, plain])
    s = jnp.concatenate([s, plain])
    x, eps = process.perturb(keys[2], x0, t, batch.get("index"))
    labels = generators.label(batch)
    average = with_params(student, nets["ema"])
    first = lambda v: jax.tree.map(lambda leaf: leaf[:halved], v)
    rest = lambda v: jax.tree.map(lambda leaf: leaf[halved:], v)
    aim = two_halves(average, *first((x, t)), m, *first((s, labels)), last=last)
    pair = tangents.velocity_of(
      velocity, nets.get("teacher"), *rest((x, t, labels, Prediction(x0, eps)))
    )
    aim = jnp.concatenate([aim, pair.eps - pair.x0])
    model = with_params(student, params)
    delta = mean_velocity(model, x, t, s, labels) - jax.lax.stop_gradient(aim)
    square = tree.squared_norm(delta) / tree.sample_size(delta)
    return square.mean(), dict(
      flow=square[halved:].mean(), consistency=square[:halved].mean()
    )

  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    frozen=frozen,
    ema=ema,
    gamma=0.0,
  )


def two_halves(
  model: Model,
  x: jax.Array,
  t: jax.Array,
  m: jax.Array,
  s: jax.Array,
  labels: tuple = (),
  *,
  last: Any = False,
) -> jax.Array:
  """Returns the mean velocity of the jumps t to m to s, without gradients.

  Args:
    model: a Denoiser that jumps.
    x: [batch, ...].
    t: f[batch], where x is.
    m: f[batch], half way.
    s: f[batch], the end.
    labels: labels of the samples.
    last: bool[batch], where a half is a step of the velocity.
  """
  process = model.process
  one = ask(model, x, t, *labels, until=jnp.where(last, t, m))
  there = jumps.jump(process, one, x, t, m)
  two = ask(model, there, m, *labels, until=jnp.where(last, m, s))
  mean = 0.5 * (one.eps - one.x0 + two.eps - two.x0)
  return jax.lax.stop_gradient(mean)


def lengths(
  key: jax.Array, process: GaussianProcess, n: int, levels: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns beginnings, middles and ends of jumps f[n], and the shortest."""
  level_key, place_key = jax.random.split(key)
  level = jax.random.randint(level_key, (n,), 0, levels)
  length = 0.5**level
  u = jax.random.uniform(place_key, (n,))
  end = jnp.floor(u / length) * length
  t, m, s = (
    at_flow_time(process, end + part * length) for part in (1.0, 0.5, 0.0)
  )
  return t, m, s, level == levels - 1


def at_flow_time(process: GaussianProcess, place: Any) -> Any:
  """Returns the time at a place of [0, 1] between t_min and t_max in tau."""
  low, high = (
    tangents.flow_time(process, end) for end in (process.t_min, process.t_max)
  )
  t = process.log_snr_inverse(-numerics.logit(low + (high - low) * place))
  return numerics.namespace(t).clip(t, process.t_min, process.t_max)


def flow_uniform(process: GaussianProcess) -> losses.times.Times:
  """Returns a sampler of times uniform in tau, stratified."""

  def times(key: jax.Array, n: int) -> jax.Array:
    u = jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1.0)
    return at_flow_time(process, u)

  return times

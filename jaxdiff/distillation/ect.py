r"""ECT: easy consistency tuning, of a denoiser, on continuous pairs t > r.

`consistency.training_loss` where the ratio r / t grows from 0, at which the
loss is that of denoising, toward 1, where the model is consistent:

  r / t = 1 - (1 + k sigmoid(-b t)) / q^a   (at least t_min / t),
  a = 1 + floor(step / every),   log(t) ~ N(-1.1, 2^2),
  loss = E (sqrt(|f(x_t, t) - sg f(x_r, r)|^2 + c^2) - c) / (t - r).

A denoiser is where the schedule begins, so that tuning goes on from the
teacher's parameters. t is sigma / alpha, and so are r and the weight, for any
process. Departure: r ends at t_min, where f is x, and not at 0. Reference:
Geng et al. (2025), https://arxiv.org/abs/2406.14548, section 3 and algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff import training
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import consistency
from jaxdiff.distillation.parts.method import Method


@checks.door
def ect(
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  every: int,
  q: float = 2.0,
  k: float = 8.0,
  b: float = 1.0,
  mean: float = -1.1,
  std: float = 2.0,
  huber: float = 0.0,
  ema: float = 0.999,
) -> Method:
  """Tunes a denoiser into a consistency model on continuous pairs (ECT).

  Args:
    student: a Denoiser, with a teacher's parameters.
    optimizer: any optax transformation.
    every: updates until 1 - r / t is divided by q; an eighth of the training.
    q: by how much.
    k: how much further apart pairs of low noise are.
    b: per unit of sigma / alpha, where noise is low.
    mean: mean of log(sigma / alpha).
    std: standard deviation of it.
    huber: c / sqrt(d); 0 is the norm itself.
    ema: decay of the average.

  Raises:
    ValueError: if the pairs do not close.
  """
  if not (every >= 1 and q > 1 and k >= 0):
    raise ValueError(
      "pairs close by the factor q > 1 in every >= 1 updates, with k >= 0, got"
      f" q={q}, every={every}, k={k}"
    )
  process = student.process
  lowest = float(process.noise_level(process.t_min))
  times = losses.times.log_normal(process, mean, std)

  def pairs(key, n, step):
    t = times(key, n)
    level = process.noise_level(t)
    gap = (1.0 + k * jax.nn.sigmoid(-b * level)) / q ** (1.0 + step // every)
    r = process.time_at(jnp.maximum(level * (1.0 - gap), lowest))
    return t, jnp.clip(r, process.t_min, process.t_max)

  def weight(t, r):
    # at t_min both ends are one place, whose distance is 0
    gap = process.noise_level(t) - process.noise_level(r)
    return 1.0 / jnp.maximum(gap, 1e-4 * lowest)

  loss = consistency.training_loss(student, pairs, weight=weight, huber=huber)
  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    ema=ema,
  )

r"""iCT: improved consistency training.

`consistency.training_loss` with neighbours t > s of a Karras grid that doubles,

  loss = E d(f(x_t, t), sg f(x_s, s)) / (t - s),
  d = sqrt(|x - y|^2 + c^2) - c,   c = 0.00054 sqrt(d),

no average in the target, and intervals drawn with the probability that
log(sigma) ~ N(-1.1, 2^2) gives them: a normal draw, cut to the process's range,
falls into its interval. Update k of K has min(s0 2^floor(k / K'), s1)
intervals, K' = floor(K / (log2(s1 / s0) + 1)). t stands for sigma / alpha, and
weights are those of that scale, for any process. Reference: Song and Dhariwal
(2024), https://arxiv.org/abs/2310.14189, table 1 and section 3.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff import training
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import consistency
from jaxdiff.distillation.parts.method import Method


@checks.door
def ict(
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  updates: int,
  first: int = 10,
  last: int = 1280,
  mean: float = -1.1,
  std: float = 2.0,
  huber: float = 0.00054,
  ema: float = 0.999,
) -> Method:
  """Trains a consistency model from data alone, by iCT's schedules.

  Args:
    student: a Denoiser, from scratch or not.
    optimizer: any optax transformation.
    updates: K, of the whole training.
    first: s0, intervals at the beginning.
    last: s1, intervals at the end.
    mean: mean of log(sigma / alpha).
    std: standard deviation of it.
    huber: c / sqrt(d).
    ema: decay of the average that is sampled.

  Raises:
    ValueError: if the schedule does not grow.
  """
  doubled = intervals(updates, first, last)
  process = student.process
  place, time = consistency.karras_clock(process)
  times = losses.times.log_normal(process, mean, std)

  def pairs(key, n, step):
    return consistency.neighbours(place(times(key, n)), doubled(step), time)

  def weight(t, s):
    return 1.0 / (process.noise_level(t) - process.noise_level(s))

  loss = consistency.training_loss(student, pairs, weight=weight, huber=huber)
  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    ema=ema,
  )


def intervals(updates: int, first: int = 10, last: int = 1280) -> Any:
  """Returns step -> number of intervals, f[]: doubled at equal times.

  Raises:
    ValueError: if it does not grow.
  """
  consistency.check_growth(updates, first, last)
  each = max(updates // (int(np.log2(last // first)) + 1), 1)
  return lambda step: jnp.minimum(first * 2.0 ** (step // each), last)

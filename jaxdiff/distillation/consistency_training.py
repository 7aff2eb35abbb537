r"""Consistency training (CT): a consistency model without a teacher.

`consistency`'s loss for neighbours t > s of a Karras grid with x_t and x_s of
the same x0 and eps. The grid is refined as it goes: in update k of K it has

  N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1)

intervals, and the average that is aimed at the decay exp(s0 log(mu0) / (N(k) +
1)). `ict` and `ect` are better. Reference: Song et al. (2023),
https://arxiv.org/abs/2303.01469, algorithm 3 and appendix C.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import training
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import consistency
from jaxdiff.distillation.parts.method import Method


@checks.door
def consistency_training(
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  updates: int,
  first: int = 2,
  last: int = 150,
  target: str = "ema",
  huber: float | None = None,
  ema: float = 0.9,
) -> Method:
  """Trains a consistency model from data alone, on pairs of one noise (CT).

  Args:
    student: a Denoiser, from scratch or not.
    optimizer: any optax transformation.
    updates: K, of the whole training.
    first: s0, times of the first grid: s0 - 1 intervals.
    last: s1, intervals at the end.
    target: whose f is aimed at, "ema" or "student".
    huber: c / sqrt(d) of the distance; None is the squared distance.
    ema: mu0. The average that is sampled may be another one, of
      `make_update(averages=...)`.

  Raises:
    ValueError: for an unknown target, or a schedule that does not grow.
  """
  consistency.check_growth(updates, first, last)

  def intervals(step):
    share = jnp.clip(step / updates, 0.0, 1.0)
    square = share * ((last + 1.0) ** 2 - first**2) + first**2
    return jnp.ceil(jnp.sqrt(square) - 1.0).clip(1.0)

  def rest(k):  # 1 - mu(k)
    return -jnp.expm1(first * np.log(ema) / (intervals(k - 1.0) + 1.0))

  _, time = consistency.karras_clock(student.process)

  def pairs(key, n, step):
    return consistency.neighbours(
      jax.random.uniform(key, (n,)), intervals(step), time
    )

  loss = consistency.training_loss(student, pairs, target=target, huber=huber)
  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    ema=training.ema.Shares(rest),
  )

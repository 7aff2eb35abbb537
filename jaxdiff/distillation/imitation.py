r"""Imitation: regression of a network on another model's answers.

  E w |x0_student(x_t, t) - x0_teacher(x_t, t)|^2

The regression that begins most trainings here: of a student whose teacher is an
exact oracle or a network of another shape. Its minimiser is the teacher itself,
with less noise in the gradient than denoising has.
"""

from typing import Any

import jax
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import training
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.types import Model
from jaxdiff.types import Times


@checks.door
def imitation(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  times: Times | None = None,
  weighting: Any = "edm",
  ema: float = 0.999,
) -> Method:
  """Trains a network to give the answers of another model.

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    student: a Denoiser.
    optimizer: any optax transformation.
    times: sampler of `losses.times`; by default EDM's log-normal.
    weighting: weighting of the squared error in x0, as in `losses.denoising`.
    ema: decay of the average.
  """
  process = student.process
  times = times or losses.times.log_normal(process)

  def loss(key, params, nets, batch):
    time_key, noise_key = jax.random.split(key)
    x0 = batch["image"]
    t = control.own_rows(lambda n: times(time_key, n), x0)
    x, _ = process.perturb(noise_key, x0, t, batch.get("index"))
    labels = generators.label(batch)
    aim = ask(nets["teacher"], x, t, *labels)
    answer = with_params(student, params)(x, t, *labels)
    error = losses.error(student, answer, aim.x0, aim.eps, t, weighting)
    return error.mean(), {}

  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    frozen={"teacher": teacher},
    ema=ema,
  )

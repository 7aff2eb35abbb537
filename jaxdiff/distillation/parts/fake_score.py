r"""Fake score: a denoiser of the generator's current samples.

It is trained by ordinary denoising on the generator's samples: the density of a
generator is not known, but the score of its noised samples can be learned.

  loss = E lambda(sigma) |D_fake(sg(x) + sigma eps, sigma) - sg(x)|^2,  x = G(z)
"""

from typing import Any

import jax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts.generators import Generator
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.training import alternating
from jaxdiff.types import Model
from jaxdiff.types import Times


def denoising(
  fake: Model, *, times: Times | None = None, weighting: Any = "edm"
) -> Any:
  """Returns loss(key, params, batch) of denoising batch["image"].

  As `losses.denoising` makes it, without dropped labels and new statistics.

  Args:
    fake: a Denoiser; its parameters are those that are trained.
    times: sampler of `losses.times`; by default EDM's log-normal.
    weighting: as in `losses.denoising`.
  """
  module = getattr(fake.apply, "module", None)

  def loss(key, params, batch):
    # what does not say how many classes it knows is told the batch's labels
    classes = getattr(module, "num_classes", int("label" in batch))
    denoise = losses.denoising(
      fake,
      times=times,
      weighting=weighting,
      num_classes=classes,
      label_dropout=0.0,
      update_state=False,
    )
    return denoise(key, params, batch)

  return loss


@checks.door
def fake_score(
  fake: Model,
  student: Denoiser,
  generator: Generator,
  *,
  times: Times | None = None,
  weighting: Any = "edm",
) -> alternating.Loss:
  """Returns loss(key, params, nets, batch) of the fake denoiser.

  Args:
    fake: a Denoiser; its parameters are those that are trained.
    student: the student, whose parameters are nets["student"].
    generator: how it is asked, of `generators`.
    times: sampler of `losses.times`; by default EDM's log-normal.
    weighting: as in `losses.denoising`.
  """
  denoise = denoising(fake, times=times, weighting=weighting)

  def loss(key, params, nets, batch):
    draw_key, noise_key = jax.random.split(key)
    model = with_params(student, nets["student"])
    x = jax.lax.stop_gradient(generator(draw_key, model, batch))
    value, _ = denoise(noise_key, params, {**batch, "image": x})
    return value, {}

  return loss

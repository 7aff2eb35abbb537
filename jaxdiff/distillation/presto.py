r"""Presto: DMD for the EDM family, with four noise distributions.

`dmd` with a least-squares discriminator, where DMD2's discrete times become
four distributions of the noise:

  input_times   s of the student's input x_data + s eps      p_gen
  times         of the matching of the two laws              p_dmd
  fake_times    of the fake score's training                 p_dsm
  gan_times     of what the discriminator sees               p_gan

By default p_gen is Karras's curve, the law of an endless grid of inference, and
the others are the teacher's training law. The student is asked at continuous s:
one student serves every number of steps, without backward simulation, and is
sampled by renoising (`sampler` with gamma = 1). Guidance is around the teacher
alone: the fake score is not guided. This is Presto-S.

`presto_ls` does it for a student whose layers are dropped (`layer_dropping`,
Presto-L, which it begins from), with the teacher and the fake score at full
depth, since their difference is the gradient. Reference: Novack et al. (2024),
https://arxiv.org/abs/2410.05167, section 3. Departure: the weights of the
adversarial terms are DMD2's, since the paper's are not known.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.dmd2 import dmd2
from jaxdiff.distillation.layer_dropping import at_budget
from jaxdiff.distillation.layer_dropping import self_teacher as own_depth
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.guided import guided
from jaxdiff.distillation.parts.method import Method
from jaxdiff.types import Model
from jaxdiff.types import Times


@checks.door
def presto(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  shape: tuple[int, ...],
  layer: str,
  input_times: Times | None = None,
  times: Times | None = None,
  fake_times: Times | None = None,
  gan_times: Times | None = None,
  kind: str = "least_squares",
  guidance: float = 1.0,
  null: int | None = None,
  **options: Any,
) -> Method:
  """Trains a few-step student by DMD with EDM's four noise distributions.

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    student: a Denoiser of a Linen module.
    optimizer: optimizer of the student.
    shape: shape of one sample.
    layer: layer of the fake score's network, whose features the discriminator
      reads.
    input_times: p_gen, a sampler of `losses.times`; by default Karras's curve.
    times: p_dmd; this and the next two are EDM's log-normal by default.
    fake_times: p_dsm.
    gan_times: p_gan.
    kind: kind of the adversarial loss.
    guidance: scale of the guidance of the teacher; 1 is none.
    null: the label that stands for none; by default what its network says.
    **options: options of `dmd2` and `dmd`: weights, fake_steps, fake, ema, ...

  Raises:
    ValueError: if times lie outside of the process, or a teacher is to be
      guided that knows no null label.
  """
  process = student.process
  trained = losses.times.log_normal(process)
  laws = dict(
    input_times=input_times or losses.times.karras(process),
    times=times or trained,
    fake_times=fake_times or trained,
    gan_times=gan_times or trained,
  )
  for name, law in laws.items():
    _check_times(name, law, process)
  generator = generators.noised_data(process, laws.pop("input_times"))
  return dmd2(
    guided(teacher, guidance, null),
    student,
    optimizer=optimizer,
    shape=shape,
    layer=layer,
    kind=kind,
    generator=generator,
    **laws,
    **options,
  )


@checks.door
def presto_ls(
  teacher: Model,
  student: Denoiser,
  *,
  self_teacher: float = 0.1,
  fake: Model | None = None,
  input_times: Times | None = None,
  **options: Any,
) -> Method:
  """Returns `presto` of a student whose layers are dropped.

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    student: as `layer_dropping.drop_layers` makes it, best trained by
      `layer_dropping` already.
    self_teacher: weight of the distance to the student's own full depth.
    fake: the fake denoiser; by default the student at full depth.
    input_times: p_gen, as in `presto`.
    **options: options of `presto`.
  """
  process = student.process
  input_times = input_times or losses.times.karras(process)
  method = presto(
    teacher,
    student,
    fake=at_budget(student, 0) if fake is None else fake,
    input_times=input_times,
    **options,
  )
  full = own_depth(student, input_times)
  player = method.players["student"]

  def loss(key, params, nets, batch):
    own_key = jax.random.fold_in(key, 3)
    value, said = player.loss(key, params, nets, batch)
    own = full(own_key, params, batch)
    return value + self_teacher * own, {**said, "self_teacher": own}

  both = {**method.players, "student": dataclasses.replace(player, loss=loss)}
  return dataclasses.replace(method, players=both)


def _check_times(name, law, process):
  """Refuses a law whose draws leave the times of the process."""
  with jax.ensure_compile_time_eval():
    t = law(jax.random.key(0), 1024)
    low, high = float(jnp.min(t)), float(jnp.max(t))
  slack = 1e-6 * (process.t_max - process.t_min)
  if low < process.t_min - slack or high > process.t_max + slack:
    raise ValueError(
      f"{name} draws times from {low:.4g} to {high:.4g}, outside of those of"
      f" the process, {process.t_min:.4g} to {process.t_max:.4g}; make it with"
      " losses.times of the student's process, which cuts it to them"
    )

r"""DMD2: distribution matching with a discriminator, in one step or several.

`dmd` without pairs, with 5 fake steps (the two-time-scale rule that lets the
regression go) and a discriminator on the fake score's features, so that the
student also learns from data what the teacher does not know:

  student   L_dmd + w L_G,        fake   L_denoising + w' L_D.

A student of several steps renoises between them, as `solvers.gamma_sampling`
does. It is trained on its own samples at a random call of its sampler, earlier
calls without gradients (`generators.backward_simulation`): what the paper calls
backward simulation, later papers stochastic gradient truncation.

Reference: Yin et al. (2024), https://arxiv.org/abs/2405.14867, sections 4.2 to
4.5. Departure: the head is two layers on averaged features.
"""

from typing import Any

import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.dmd import dmd
from jaxdiff.distillation.parts import critic
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.method import Method
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import Times


@checks.door
def dmd2(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  shape: tuple[int, ...],
  layer: str,
  grid: ArrayLike | None = None,
  kind: str = "softplus",
  weight: float = 3e-3,
  critic_weight: float = 1e-2,
  gan_times: Times | None = None,
  **options: Any,
) -> Method:
  """Trains a few-step student by DMD with a discriminator, without pairs.

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    student: a Denoiser of a Linen module.
    optimizer: optimizer of the student.
    shape: shape of one sample.
    layer: layer of the network, whose features the head reads, "Dense_2" of an
      MLP.
    grid: f64[n + 1], of the sampler of a student of n steps; None is one step.
    kind: kind of the adversarial loss, one of `critic.KINDS`.
    weight: weight of the generator's adversarial loss.
    critic_weight: weight of the discriminator's.
    gan_times: times of what it sees, a sampler of `losses.times`; by default
      log-uniform in sigma / alpha.
    **options: options of `dmd`.
  """
  process = student.process
  if grid is not None:
    grid = np.asarray(grid, np.float64)
    options["generator"] = generators.backward_simulation(process, grid)
  return dmd(
    teacher,
    student,
    optimizer=optimizer,
    adversary=critic.Adversary(
      shape=tuple(shape),
      layer=layer,
      times=gan_times or losses.times.uniform_log_snr(process),
      kind=kind,
      weight=weight,
      critic_weight=critic_weight,
    ),
    **options,
  )

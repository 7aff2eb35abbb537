r"""Presto-L: layer dropping by noise level; the last layer always runs.

Of L residual blocks m(sigma) are skipped, more where there is more noise; with
quantiles of the training law of sigma as the edges every budget is used equally
often. Early exit skips the last ones; here the last one stays and those before
it go, since it changes the scale of the stream most, which the output layers
were trained with (`networks.LayerDropped`). The network is told its budget, and
is its own teacher at full depth:

  E lambda (|D_drop - D_teacher|^2 + w |D_drop - sg(D_full)|^2).

w is small: the full depth has no term of its own, except where the budget is 0,
and drifts with the shared weights. (On 25 modes the error of a network of half
the depth was .019 with w = 0 and 0.1, .037 with 1, .028 by early exit, on one
seed.)

Training computes all blocks and masks them, sample by sample. `compiled` is for
use: a call at one time runs the program of its budget, in which the skipped
blocks are not. Reference: Novack et al. (2024),
https://arxiv.org/abs/2410.05167, section 3.2. Departures: both terms have
EDM's weight, and the first is to the teacher's answer; without a teacher it is
to the data, as in the paper, whose minimiser is the same.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import training
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import grafted
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.networks import layer_dropping as dropping
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import Times

_STRATA = 4096  # of the training law, whose quantiles are the edges


@checks.door
def layer_dropping(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  times: Times | None = None,
  self_teacher: float = 0.1,
  ema: float = 0.999,
) -> Method:
  """Trains a network that skips layers, the more of them the more noise.

  Args:
    teacher: model(x, t[, label]) -> Prediction; None learns from the data.
    student: as `drop_layers` makes it.
    optimizer: any optax transformation.
    times: sampler of `losses.times`; by default EDM's log-normal.
    self_teacher: weight of the distance to the student's own full depth.
    ema: decay of the average.
  """
  process = student.process
  times = times or losses.times.log_normal(process)
  own_error = _own_error(student)

  def loss(key, params, nets, batch):
    x0, x, eps, t, labels = _noised(key, process, times, batch)
    aim = Prediction(x0, eps)
    if teacher is not None:
      aim = ask(nets["teacher"], x, t, *labels)
    answer = with_params(student, params)(x, t, *labels)
    said = {
      "teacher": losses.error(student, answer, *aim, t).mean(),
      "self_teacher": own_error(params, answer, x, t, labels),
    }
    return said["teacher"] + self_teacher * said["self_teacher"], said

  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    frozen={} if teacher is None else {"teacher": teacher},
    ema=ema,
  )


def self_teacher(student: Denoiser, times: Times) -> Callable[..., jax.Array]:
  """Returns loss(key, params, batch), the distance to the student's own depth.

  Args:
    student: as `drop_layers` makes it.
    times: sampler of `losses.times`.
  """
  own_error = _own_error(student)

  def loss(key, params, batch):
    _, x, _, t, labels = _noised(key, student.process, times, batch)
    answer = with_params(student, params)(x, t, *labels)
    return own_error(params, answer, x, t, labels)

  return loss


@checks.door
def drop_layers(
  teacher: denoisers.Denoiser,
  shape: tuple[int, ...],
  *,
  budgets: tuple[int, ...],
  times: Times | None = None,
  keep_last: bool = True,
  told: bool = True,
) -> denoisers.Denoiser:
  """Returns a student that skips blocks, with the teacher's parameters.

  Args:
    teacher: a Denoiser of a `ResidualMLP` or a `DiT`.
    shape: shape of one sample.
    budgets: how many blocks are skipped in each of equally likely ranges of the
      noise, the cleanest first: (0, 6, 10, 14) of 24 blocks.
    times: the training law whose quantiles part the ranges, a sampler of
      `losses.times`; by default EDM's log-normal.
    keep_last: whether the last block is always run; False is early exit.
    told: whether the network is told its budget; a `DiT` cannot be.

  Raises:
    TypeError: for another network.
    ValueError: for a budget that is negative, or skips the first or last block.
  """
  module = getattr(getattr(teacher, "apply", None), "module", None)
  name = dropping.name_of(module)
  if name is None:
    raise TypeError(
      "layers are dropped from a Denoiser of a ResidualMLP or a DiT, got one of"
      f" {type(module or teacher).__name__}"
    )
  times = times or losses.times.log_normal(teacher.process)
  t = times(jax.random.key(0), _STRATA)
  _, c = teacher.inputs(jnp.zeros((_STRATA, *shape)), t)[:2]
  n = len(budgets)
  edges = np.quantile(np.asarray(c, np.float64), np.arange(1, n) / n)
  fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module)}
  for other in ("parent", "name", "num_classes"):
    fields.pop(other)
  dropped = networks.LayerDropped(
    network=name,
    options=fields,
    num_classes=module.num_classes,
    edges=tuple(edges.tolist()),
    budgets=tuple(budgets),
    keep_last=keep_last,
    told=told,
  )
  x, c = jnp.zeros((1, *shape)), jnp.zeros(1)
  # all that the teacher lacks is the matrix of zeros that tells the budget
  shapes = jax.eval_shape(dropped.init, jax.random.key(0), x, c)["params"]
  fresh = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  params = grafted(fresh, jax.tree.map(jnp.copy, teacher.params))
  return dataclasses.replace(
    teacher, params=params, apply=denoisers.LinenApply(dropped)
  )


def at_budget(student: denoisers.Denoiser, budget: int) -> denoisers.Denoiser:
  """Returns the student with `budget` blocks left out at every time.

  Raises:
    ValueError: in its call, for a budget that does not fit its depth.
  """
  module = student.apply.module.clone(budget=budget)
  return dataclasses.replace(student, apply=denoisers.LinenApply(module))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Compiled:
  """A student that runs the blocks of its budget alone; a model.

  Attributes:
    student: as `drop_layers` makes it.
  """

  student: denoisers.Denoiser

  def __call__(
    self, x: jax.Array, t: jax.Array, label: ArrayLike | None = None
  ) -> Prediction:
    """Returns (x0, eps) for noisy x [batch, ...] at t, a scalar.

    Raises:
      ValueError: if t is not a scalar.
    """
    if jnp.ndim(t):
      raise ValueError(
        "the blocks that a program leaves out are left out for all samples, so"
        f" t must be a scalar, got shape {jnp.shape(t)}; call the student"
        " itself, which masks its blocks sample by sample"
      )
    module = self.student.apply.module
    c = self.student.inputs(x[:1], t)[1][0]
    programs = [
      lambda student, *args, m=m: at_budget(student, m)(*args)
      for m in module.budgets
    ]
    return control.switch(
      dropping.place(c, module.edges), programs, self.student, x, t, label
    )


@checks.door
def compiled(student: denoisers.Denoiser) -> Compiled:
  """Returns the student for use: one program for each of its budgets."""
  return Compiled(student)


def _noised(key, process, times, batch):
  """Returns (x0, x_t, eps, t, labels) of a batch."""
  time_key, noise_key = jax.random.split(key)
  x0 = batch["image"]
  t = control.own_rows(lambda n: times(time_key, n), x0)
  x, eps = process.perturb(noise_key, x0, t, batch.get("index"))
  return x0, x, eps, t, generators.label(batch)


def _own_error(student):
  """Returns the error of an answer to that of the student at full depth."""
  full = at_budget(student, 0)

  def error(params, answer, x, t, labels):
    own = jax.lax.stop_gradient(with_params(full, params)(x, t, *labels))
    return losses.error(student, answer, *own, t).mean()

  return error

r"""Reflow: a rectified flow between the two ends of a teacher's ODE.

The flow between noise and data drawn independently bends, since its paths
cross. Its ends (x_T, x_0 = ODE(x_T)) are a coupling whose paths cross less:
flow matching on the straight lines between them,

  x_t = alpha x_0 + sigma eps,   eps = (x_T - alpha_T x_0) / sigma_T,
  loss = E |v(x_t, t) - (eps - x_0)|^2,   v = eps - x0 of the student's pair,

gives a student with the same ends (in law) and straighter paths, one Euler step
of which is closer to the whole. Doing it again straightens further. On other
processes than rectified flow the line is straight in z = x / (alpha + sigma),
tau = sigma / (alpha + sigma). eps is such that the line passes through x_T also
where alpha_T is not 0.

The pairs are drawn within the loss, n calls of the teacher for each update, or
come with the batch as "noise" (x_T) beside "image" (x_0), from a bank that
`pairs` made once. `straightness` is 0 if and only if all paths are straight.
Reference: Liu et al. (2022), https://arxiv.org/abs/2209.03003, eq. 1, algorithm
1 and section 2.2 (eq. 6).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.distillation.shortcut import at_flow_time
from jaxdiff.distillation.shortcut import flow_uniform
from jaxdiff.predictions import Prediction
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Model
from jaxdiff.types import Times


@checks.door
def reflow(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  table: tables.Tableau | None = None,
  steps: int = 16,
  times: Times | None = None,
  ema: float = 0.999,
) -> Method:
  """Trains a rectified flow on the pairs that a teacher's ODE connects.

  Args:
    teacher: model(x, t[, label]) -> Prediction; None if all batches bring
      their "noise".
    student: a Denoiser.
    optimizer: any optax transformation.
    table: table of the teacher, from t_max, without noise; by default `steps`
      calls of DPM-Solver++(2M) to no noise at all, on Karras's grid.
    steps: calls of the default table.
    times: sampler of `losses.times`; by default uniform in tau.
    ema: decay of the student's average.

  Raises:
    ValueError: for a table with noise.
  """
  process = student.process
  if table is None:
    grid = grids.karras(process, steps, to_zero=True)
    table = solvers.dpmpp_2m(process, grid)
  if table.stochastic:
    raise ValueError(
      "reflow pairs noise with the end of an ODE, but this table draws noise;"
      " take a deterministic solver, solvers.heun or solvers.dpmpp_2m"
    )
  times = times or flow_uniform(process)

  def loss(key, params, nets, batch):
    keys = jax.random.split(key, 2)
    labels = generators.label(batch)
    if "noise" in batch:
      start, x0 = batch["noise"], batch["image"]
    else:
      start, x0 = ends(keys[0], nets["teacher"], process, table, batch)
    x0 = jax.lax.stop_gradient(x0)
    data = line(process, start, x0)
    t = control.own_rows(lambda n: times(keys[1], n), x0)
    alpha, sigma = (
      tree.expand(f(t), x0) for f in (process.alpha, process.sigma)
    )
    x = (alpha * data.x0 + sigma * data.eps).astype(x0.dtype)
    answer = with_params(student, params)(x, t, *labels)
    delta = (answer.eps - answer.x0) - (data.eps - data.x0)
    return jnp.mean(jnp.square(delta)), {}

  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    frozen={} if teacher is None else {"teacher": teacher},
    ema=ema,
    gamma=0.0,
  )


def ends(
  key: jax.Array,
  teacher: Model,
  process: GaussianProcess,
  table: tables.Tableau,
  batch: dict,
) -> tuple[jax.Array, jax.Array]:
  """Returns (x_T, x_0): noise like batch["image"], and where the ODE takes it.

  Args:
    key: PRNG key.
    teacher: model(x, t[, label]) -> Prediction.
    process: the forward process.
    table: deterministic, from t_max.
    batch: "image" f[batch, ...], of which the shape is used alone; "index" and
      "label" of the samples.
  """
  first = float(np.asarray(table.t)[0])
  start = generators.noise(key, batch, process)
  start = (process.sigma(first) * start).astype(start.dtype)
  labels = generators.label(batch)
  model = (lambda x, t: teacher(x, t, *labels)) if labels else teacher
  return start, sampling.sample(key, model, table, start)


@checks.door
def pairs(
  key: jax.Array,
  teacher: Model,
  process: GaussianProcess,
  table: tables.Tableau,
  batch: dict,
) -> dict[str, jax.Array]:
  """Returns a bank: the batch with "noise" x_T and "image" x_0 of `ends`."""
  start, x0 = ends(key, teacher, process, table, batch)
  return {**batch, "noise": start, "image": x0}


def line(
  process: GaussianProcess, start: jax.Array, x0: jax.Array
) -> Prediction:
  """Returns the pair (x0, eps) whose line goes through x_T = start at t_max."""
  alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
  return Prediction(x0, ((start - alpha * x0) / sigma).astype(x0.dtype))


@checks.door
def straightness(
  model: Model, process: GaussianProcess, x: jax.Array, steps: int = 64
) -> jax.Array:
  """Returns E int |v - (z_1 - z_0)|^2 along a model's own ODE, f[].

  In tau and z of the module docstring, over the way from t_max to t_min and per
  unit of it: the variance over time of the velocity v, 0 for straight paths.
  Euler's steps, uniform in tau.

  Args:
    model: model(x, t) -> Prediction.
    process: the forward process.
    x: [batch, ...] at t_max.
    steps: number of calls.
  """
  grid = np.asarray(at_flow_time(process, np.linspace(1.0, 0.0, steps + 1)))
  grid[[0, -1]] = process.t_max, process.t_min
  velocity = sampling.every(1, _velocity)
  _, v = sampling.sample(
    jax.random.key(0), model, solvers.ddim(process, grid), x, collect=velocity
  )
  square = jnp.square(v - jnp.mean(v, axis=0, keepdims=True))
  return jnp.sum(square) / (square.shape[0] * square.shape[1])


def _velocity(info):
  return info.prediction.eps - info.prediction.x0

r"""SinSR: one-step restoration by the noise of known images.

A teacher restores a degraded image y by the probability-flow ODE of ResShift
(`processes.resshift`): with r = x - y in the place of x, SinSR's deterministic
step, x' = k f + m x + j y with

  m = sqrt(eta' / eta),   j = eta' - sqrt(eta' eta),   k = 1 - j - m,

is DDIM, r' = alpha' r0 + (sigma' / sigma) (r - alpha r0). For a fixed y it is a
bijection of noise z and image, r_T = sigma_T z <-> F(z). One student learns
both directions: its pair (x0, eps) is the image at t_max, and at t = 0, where x
is the image and eps is free, the noise that the image comes from.

  loss =  |x0(r_T, t_max) - F(z)|^2                     the teacher's map
        + |sigma_T (eps(F(z), 0) - z)|^2                its inverse
        + |x0(sg(sigma_T eps(r, 0)), t_max) - r|^2      a true image comes back

The last is what the teacher cannot give: the image that y came from, r = x0 -
y, at the noise that the student itself finds for it. Every term is a mean over
values, of weight 1. Further terms compare the one-step image with the true one
(`hf_diff`).

Reference: Wang et al. (2024), https://arxiv.org/abs/2311.14760, section 4.
Departure: their network answers x_T itself at t = 0, as its x0; here the pair
keeps alpha x0 + sigma eps = x there, and the answer is its eps. So the student
predicts "edm", "v", "flow" or "eps", not "x0", whose eps is not known at t = 0.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import denoisers
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
from jaxdiff.predictions import ask
from jaxdiff.types import Model

Perceptual = Callable[
  [Mapping[str, Any], jax.Array, jax.Array], tuple[jax.Array, dict]
]


@checks.door
def sinsr(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  steps: int = 15,
  grid: np.ndarray | None = None,
  distill: float = 1.0,
  inverse: float = 1.0,
  truth: float = 1.0,
  decode: Callable[[jax.Array, dict], jax.Array] | None = None,
  perceptual: Perceptual | None = None,
  compare: str = "noise",
  frozen: Mapping[str, Any] | None = None,
  ema: float = 0.999,
) -> Method:
  """Trains a one-step restorer on the ends of a restoring teacher's ODE.

  Batches are as `residuals` makes them.

  Args:
    teacher: model(r, t, label) -> Prediction of residuals; label is y.
    student: a Denoiser, which begins as a copy of the teacher.
    optimizer: any optax transformation.
    steps: calls of the teacher, on ResShift's grid.
    grid: another grid of the teacher; its last time is without noise.
    distill: weight of the teacher's map.
    inverse: weight of its inverse.
    truth: weight of the true images.
    decode: decode(r, batch) -> the images that `perceptual` compares; y + r by
      default. An autoencoder's decoder goes here.
    perceptual: perceptual(nets, images, true images) -> (scalar, metrics), a
      further loss.
    compare: which images: those of random noise, "noise", as HF-Diff has it, or
      those of the noise that the student finds for the true ones, "truth".
    frozen: what it looks at in `nets`, beside the teacher.
    ema: decay of the student's average.

  Raises:
    ValueError: for a student whose eps is not known where there is no noise, or
      an unknown `compare`.
  """
  process = student.process
  checks.one_of(compare, ("noise", "truth"), "compare")
  if student.prediction.removeprefix("-") in ("x0", "score"):
    raise ValueError(
      "at t = 0 the student must name the noise that an image comes from, its"
      f" eps, which prediction={student.prediction!r} does not tell there; make"
      ' it with prediction="edm" (or "v", "flow", "eps")'
    )
  if grid is None:
    grid = grids.power_log(process, steps, to_zero=True)
  rules = _Rules(
    student=student,
    table=solvers.ddim(process, grid),
    ends=(float(grid[0]), float(grid[-1])),
    weights=dict(distill=distill, inverse=inverse, truth=truth),
    decode=decode or restored,
    perceptual=perceptual,
    compare=compare,
  )
  loss = functools.partial(_loss, rules)
  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    frozen={"teacher": teacher, **(frozen or {})},
    ema=ema,
  )


class _Rules(NamedTuple):
  """What no update changes; the fields are arguments of `sinsr`, but for these.

  Attributes:
    table: the teacher's steps.
    ends: first and last time of its grid.
    weights: weights of the terms, by name.
  """

  student: Denoiser
  table: tables.Tableau
  ends: tuple[float, float]
  weights: dict[str, float]
  decode: Callable
  perceptual: Perceptual | None
  compare: str


def _loss(rules, key, params, nets, batch):
  process, (first, last) = rules.student.process, rules.ends
  sigma = float(process.sigma(first))
  r, labels = batch["image"], generators.label(batch)
  model = with_params(rules.student, params)
  z = generators.noise(key, batch, process)
  aim = _rollout(nets["teacher"], rules.table, sigma * z, labels)
  answer = ask(model, sigma * z, first, *labels).x0
  back = ask(model, aim, last, *labels).eps
  encoded = sigma * jax.lax.stop_gradient(ask(model, r, last, *labels).eps)
  again = ask(model, encoded, first, *labels).x0
  square = lambda a, b: jnp.mean(jnp.square(a - b))
  said = dict(
    distill=square(answer, aim),
    inverse=sigma**2 * square(back, z),
    truth=square(again, r),
  )
  value = sum(weight * said[name] for name, weight in rules.weights.items())
  if rules.perceptual is not None:
    x = rules.decode(answer if rules.compare == "noise" else again, batch)
    more, further = rules.perceptual(nets, x, rules.decode(r, batch))
    value, said = value + more, said | further
  return value, said


@checks.door
def residuals(batch: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {"image": x0 - y, "label": y, ...} of {"image", "degraded"}.

  Raises:
    ValueError: if a part is missing or the two are not of one shape.
  """
  missing = [name for name in ("image", "degraded") if name not in batch]
  if missing:
    raise ValueError(
      'residuals are batch["image"] - batch["degraded"], but the batch has no'
      f" {', '.join(map(repr, missing))}; it has"
      f" {', '.join(map(repr, batch)) or 'nothing'}"
    )
  x, y = batch["image"], batch["degraded"]
  if x.shape != y.shape:
    raise ValueError(
      f"images of shape {x.shape} and degraded images of shape {y.shape} have"
      " no difference; bring the small ones to size with data.upsample"
    )
  rest = {n: v for n, v in batch.items() if n != "degraded"}
  return rest | {"image": x - y, "label": y}


def restored(r: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
  """Returns the images y + r of residuals."""
  return batch["label"] + r


@checks.door
def restore(
  key: jax.Array, model: Model, y: jax.Array, grid: np.ndarray | None = None
) -> jax.Array:
  """Returns restored images like y: one call, or one for each step of a grid.

  Args:
    key: PRNG key of the noise.
    model: a Denoiser of residuals.
    y: degraded images at full size, f[batch, ...].
    grid: f[n + 1] for more calls, as a teacher makes them.
  """
  process = model.process
  if grid is None:
    grid = np.asarray([process.t_max, process.t_zero])
  table = solvers.ddim(process, grid)
  bound = denoisers.with_label(model, y)
  # in the dtype of the images, not in the widest that JAX has
  like = jax.ShapeDtypeStruct(y.shape, tree.compute_dtype(y.dtype))
  noise = sampling.initial_noise(key, process.noise, like, control.numbers(y))
  start = float(process.sigma(grid[0])) * noise
  r = sampling.sample(key, bound, table, start)
  return y + r.astype(y.dtype)


def _rollout(teacher, table, x, labels):
  """Returns where the teacher's table ends, without gradients."""
  guide = lambda x, t: teacher(x, t, *labels)
  advance = sampling.table_advance(guide, control.numbers(x))
  state = sampling.initial_state(x, table.memory)
  rows = sampling.rows_of(table, state.y.dtype)
  # deterministic: the key is not used
  state, _ = sampling.run(jax.random.key(0), advance, rows, state)
  return jax.lax.stop_gradient(state.a).astype(x.dtype)

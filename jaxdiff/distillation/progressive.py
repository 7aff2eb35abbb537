r"""Progressive distillation: one student step learns two teacher steps.

On a grid t > m > s the teacher takes two DDIM steps, x_t -> x_m -> x_s. The
student's one step from t to s leads there if its x0 is

  x0 = (x_s - r x_t) / (alpha_s - r alpha_t),   r = sigma_s / sigma_t,

  loss = E w(lam) |x0_student(x_t, t) - x0|^2.

After a round of `updates` the student is the next teacher, on a grid of half as
many steps: rounds are made by the update itself, in which the teacher of the
later ones is remembered. w is

  | "snr+1"     | SNR + 1, the error of v for VP   |
  | "truncated" | max(SNR, 1)                      |

since SNR alone leaves out t_max, where the only call of a one-step student is;
students predict v or x0 (or EDM's F), not eps. A student is an ordinary model,
run by `ddim` on `student_grid`. Departure: optimizers are not begun anew, but
`annealed` brings a learning rate to 0 in every round, as in the paper.
Reference: Salimans and Ho (2022), https://arxiv.org/abs/2202.00512, algorithm 2
and appendix G, for any process and grid.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import numerics
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import jumps
from jaxdiff.distillation.parts import teacher_steps
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.types import Model

WEIGHTINGS = {
  "snr+1": lambda lam: jnp.exp(2.0 * lam) + 1.0,
  "truncated": lambda lam: jnp.maximum(jnp.exp(2.0 * lam), 1.0),
}


@checks.door
def progressive(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  updates: int,
  grid: int | np.ndarray = 32,
  rounds: int | None = None,
  weighting: str = "snr+1",
  ema: float = 0.99,
) -> Method:
  """Trains a student whose step is two of the teacher's, in halving rounds.

  A round is `updates` updates; its student is the next round's teacher.

  Args:
    teacher: model(x, t[, label]) -> Prediction, guided if it is to be.
    student: a Denoiser, which begins as a copy of the teacher.
    optimizer: any optax transformation; see `annealed`.
    updates: updates of one round.
    grid: the teacher's steps, a power of two, of `grids.cosine`; or its times,
      f64[n + 1].
    rounds: how often the steps are halved; None goes on to one step, or until
      the number is odd.
    weighting: "snr+1" or "truncated".
    ema: decay of the average.

  Raises:
    ValueError: for an unknown weighting, or a grid that cannot be halved so
      often.
  """
  checks.one_of(weighting, tuple(WEIGHTINGS), "weighting")
  process = student.process
  if isinstance(grid, (int, np.integer)):
    grid = grids.cosine(process, int(grid))
  grid = grids.from_times(process, grid)
  n = len(grid) - 1
  most = (n & -n).bit_length() - 1  # how often 2 divides n
  rounds = most if rounds is None else rounds
  if not (1 <= rounds <= most and updates >= 1):
    raise ValueError(
      f"each of rounds={rounds} halves the number of steps in updates="
      f"{updates} >= 1, but the grid's {n} steps can be halved {most} times;"
      " take a power of two"
    )

  rules = _Rules(student, grid, updates, rounds, WEIGHTINGS[weighting])
  loss = functools.partial(_loss, rules)
  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    frozen={"teacher": teacher},
    memory={"teacher": student.params},
    remember=functools.partial(_remember, updates),
    ema=ema,
    gamma=0.0,
  )


class _Rules(NamedTuple):
  """What no update changes; the fields are arguments of `progressive`."""

  student: Denoiser
  grid: np.ndarray  # f64[n + 1]
  updates: int
  rounds: int
  weighting: Callable


def _loss(rules, key, params, nets, batch):
  student, n = rules.student, len(rules.grid) - 1
  process = student.process
  place_key, noise_key = jax.random.split(key)
  x0, labels = batch["image"], generators.label(batch)
  past = jnp.minimum(nets["step"] // rules.updates, rules.rounds - 1)
  stride = 2**past
  i = control.own_rows(
    lambda rows: jax.random.randint(place_key, (rows,), 0, n // (2 * stride)),
    x0,
  )
  t, m, s = (
    teacher_steps.at(rules.grid, (2 * i + k) * stride, x0.dtype)
    for k in range(3)
  )
  x, _ = process.perturb(noise_key, x0, t, batch.get("index"))

  def two_steps(model):
    x_m = jumps.jump(process, ask(model, x, t, *labels), x, t, m)
    return jumps.jump(process, ask(model, x_m, m, *labels), x_m, m, s)

  # the teacher in the first round, later the student that ended the last one
  last = with_params(student, nets["memory"]["teacher"])
  x_s = control.cond(
    past == 0, lambda: two_steps(nets["teacher"]), lambda: two_steps(last)
  )
  aim = solved(process, x, x_s, t, s)
  alpha, sigma = (tree.expand(f(t), x) for f in (process.alpha, process.sigma))
  eps = numerics.safe_divide(x - alpha * aim, sigma)
  answer = with_params(student, params)(x, t, *labels)
  error = losses.error(student, answer, aim, eps, t, rules.weighting)
  return error.mean(), {"steps": n // (2 * stride)}


def _remember(updates, memory, metrics, nets):
  """Returns the student in the last update of a round, else what was there."""
  del metrics
  over = (nets["step"] + 1) % updates == 0
  keep = lambda new, old: jnp.where(over, new, old)
  return {"teacher": jax.tree.map(keep, nets["student"], memory["teacher"])}


def solved(
  process: Any, x: jax.Array, x_s: jax.Array, t: jax.Array, s: jax.Array
) -> jax.Array:
  """Returns the x0 whose DDIM step takes x at t to x_s at s, like x."""
  alpha, sigma, alpha_s, sigma_s = (
    tree.expand(f(v), x) for v in (t, s) for f in (process.alpha, process.sigma)
  )
  ratio = sigma_s / sigma
  return (x_s - ratio * x) / (alpha_s - ratio * alpha)


def student_grid(grid: np.ndarray, rounds: int) -> np.ndarray:
  """Returns the times that a student is run on after so many rounds."""
  return np.asarray(grid, np.float64)[:: 2**rounds]


def annealed(peak: float, updates: int) -> Callable:
  """Returns a learning rate that falls from `peak` to 0 in every round."""
  return lambda step: peak * (1.0 - (step % updates) / updates)

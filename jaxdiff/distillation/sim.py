r"""Score implicit matching: one-step students by a family of divergences.

  D = int w(t) E_{p_t} d(s_student - s_teacher) dt,   p_t held fixed,

for any distance d >= 0 that vanishes at 0 alone. By the score-gradient theorem
(`implicit`) its gradient is that of

  loss = E w d'(delta) . (D_fake(x_t) - x0),   delta = D_teacher(x_t) -
  D_fake(x_t),   x_t = alpha x0 + sigma eps,   x0 = G(z),

with gradients through x0 and x_t, and so through teacher, fake and d'. The
scores differ by - alpha delta / sigma^2, and the factor is part of d: it may be
another one at every t.

| distance    | d(y)                                | d'(y)                    |
|-------------|-------------------------------------|--------------------------|
| "squared"   | |y|^2 / 2                           | y; SiD with alpha = 1    |
| "huber"     | sqrt(|y|^2 + c^2) - c               | y / sqrt(|y|^2 + c^2)    |
| "power"     | ((|y|^2 + c^2)^{p/2} - c^p) / p     | y (|y|^2 + c^2)^{p/2-1}  |
| "l1"        | sum_i sqrt(y_i^2 + c^2) - c         | y_i / sqrt(y_i^2 + c^2)  |

The pseudo-Huber distance, power at p = 1, is the authors' choice: a step is
about as long for a sample that is far off as for one that is close. c counts in
units of the data, with |y| over all values of a sample.

The student begins as the teacher asked at sigma / alpha = 2.5, and is sampled
from there: grid = [implicit.start(student), process.t_zero]. Guidance goes
around the teacher: it enters delta alone, and the fake score is that of the
student as it is. Reference: Luo et al. (2024),
https://arxiv.org/abs/2410.16794, theorem 3.1 and algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import processes
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import implicit
from jaxdiff.distillation.parts.method import Method
from jaxdiff.oracles import exact
from jaxdiff.oracles import gaussian
from jaxdiff.predictions import ask
from jaxdiff.types import Model
from jaxdiff.types import Times

DISTANCES = ("squared", "huber", "power", "l1")


@checks.door
def score_distance(
  name: str = "huber", c: float = 0.01, power: float = 1.0
) -> tuple[Callable, Callable]:
  """Returns (d, d'): y [batch, ...] -> f[batch], and its gradient like y.

  Args:
    name: one of `DISTANCES`.
    c: where it turns from a square into a cone, in units of the data.
    power: p of "power", at least 1.

  Raises:
    ValueError: for an unknown name, c <= 0, or a power below 1.
  """
  checks.one_of(name, DISTANCES, "distance")
  if name != "squared" and not c > 0:
    raise ValueError(
      f"the distance {name!r} needs c > 0, got c={c}: without it d' jumps at"
      " y = 0, where a perfect student is; 0.01 suits points in the plane"
    )
  if not power >= 1:
    raise ValueError(
      f"power must be at least 1, got {power}: below, the distance is not"
      " convex; 1 is the pseudo-Huber distance, 2 the squared one"
    )
  if name == "l1":

    def distance(y):
      each = jnp.sqrt(y**2 + c**2) - c
      return jnp.sum(each, axis=tuple(range(1, y.ndim)))

  elif name == "squared":
    distance = lambda y: 0.5 * tree.squared_norm(y)
  else:
    p = power if name == "power" else 1.0
    distance = lambda y: ((tree.squared_norm(y) + c**2) ** (p / 2) - c**p) / p
  return distance, jax.grad(lambda y: jnp.sum(distance(y)))


def objective(
  distance: str = "huber",
  c: float = 0.01,
  power: float = 1.0,
  weighting: implicit.Weighting = "uniform",
) -> implicit.Objective:
  """Returns what `implicit.matching` makes the loss of SIM of.

  Args:
    distance: one of `DISTANCES`.
    c: as in `score_distance`.
    power: likewise.
    weighting: as in `implicit.weight`.

  Raises:
    ValueError: for an unknown distance or weighting, and for c <= 0.
  """
  _, slope = score_distance(distance, c, power)
  implicit.check_weighting(weighting)

  def value(x0, teacher_x0, fake_x0, lam) -> jax.Array:
    pull = slope(teacher_x0 - fake_x0)
    w = implicit.weight(weighting, x0, teacher_x0, lam)
    return w * implicit.inner(pull, fake_x0 - x0)

  return value


@checks.door
def sim(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  distance: str = "huber",
  c: float = 0.01,
  power: float = 1.0,
  weighting: implicit.Weighting = "uniform",
  fake: Model | None = None,
  fake_optimizer: optax.GradientTransformation | None = None,
  fake_steps: int = 1,
  sigma_init: float = implicit.SIGMA_INIT,
  generator: generators.Generator | None = None,
  times: Times | None = None,
  fake_times: Times | None = None,
  ema: float = 0.999,
) -> Method:
  """Trains a one-step student by a divergence of its score and the teacher's.

  Args:
    teacher: model(x, t[, label]) -> Prediction; gradients run through it.
    student: a Denoiser, which begins as a copy of the teacher.
    optimizer: optimizer of the student; Adam with b1=0 is usual.
    distance: one of `DISTANCES`.
    c: where it turns from a square into a cone, in units of the data.
    power: p of the distance "power".
    weighting: "uniform", "adaptive" as in SiD, or a function of the log-SNR.
    fake: the fake denoiser before the first step; by default a copy of the
      student.
    fake_optimizer: its optimizer; by default the student's.
    fake_steps: steps of the fake score for each step of the student.
    sigma_init: sigma / alpha of the noise that the student begins with.
    generator: how the student is asked; by default one step from there.
    times: times of x_t, a sampler of `losses.times`; by default log-uniform in
      sigma / alpha.
    fake_times: those that the fake score is trained at; by default EDM's
      log-normal, as its teacher was.
    ema: decay of the student's average.

  Raises:
    ValueError: for an unknown distance, c <= 0, or a sigma_init that the
      process does not have.
  """
  return implicit.method(
    teacher,
    student,
    objective(distance, c, power, weighting),
    optimizer=optimizer,
    fake=fake,
    fake_optimizer=fake_optimizer,
    fake_steps=fake_steps,
    sigma_init=sigma_init,
    generator=generator,
    times=times,
    fake_times=fake_times,
    ema=ema,
  )


@checks.door
def check_score_gradient(
  distance: str = "huber",
  c: float = 0.01,
  power: float = 1.0,
  wrap: Callable[[Any], Any] = lambda model: model,
  *,
  sigma: float = 1.3,
  rtol: float = 1e-4,
) -> dict[str, np.ndarray]:
  """Returns the two gradients of D between Gaussians after comparing them.

  The student N(m, s^2) meets the teacher N(0, 1) at one noise level, where all
  scores are known: the gradient in (m, s) of the implicit loss is that of D
  itself. By quadrature in float64: x_t is integrated over a fine line, and the
  part of (z, eps) across it, in which everything is linear, by three points.

  Args:
    distance: as in `score_distance`.
    c: likewise.
    power: likewise.
    wrap: wrap(model) -> model, what is done to a teacher before it is used. A
      teacher whose gradient does not reach x_t is found out.
    sigma: the noise level.
    rtol: largest relative difference.

  Returns:
    "implicit" and "direct", f64[2].

  Raises:
    RuntimeError: if they differ.
  """
  with jax.enable_x64(True):
    d, _ = score_distance(distance, c, power)
    value = objective(distance, c, power)
    process = processes.edm(0.5 * sigma, 2.0 * sigma)
    teacher = wrap(exact(gaussian(np.zeros(1), 1.0), process))
    now = np.asarray([0.7, 0.6])  # m and s

    def denoised(theta, x):
      m, s = theta
      return (s**2 * x + sigma**2 * m) / (s**2 + sigma**2)

    spread = np.hypot(now[1], sigma)  # of x_t = m + spread * along
    along, across, w = _pair_of_normals()

    def implicit_loss(theta):
      z = (now[1] * along - sigma * across) / spread
      eps = (sigma * along + now[1] * across) / spread
      x0 = theta[0] + theta[1] * z
      x_t = x0 + sigma * eps
      fake_x0 = denoised(now, x_t)
      return jnp.sum(
        w * value(x0, ask(teacher, x_t, sigma).x0, fake_x0, -np.log(sigma))
      )

    def direct(theta):
      x_t = now[0] + spread * along
      return jnp.sum(w * d(ask(teacher, x_t, sigma).x0 - denoised(theta, x_t)))

    pair = [
      np.asarray(jax.jit(jax.grad(f))(now)) for f in (implicit_loss, direct)
    ]
  if not np.allclose(*pair, rtol=rtol, atol=rtol * abs(pair[1]).max()):
    raise RuntimeError(
      f"the gradient of SIM's loss in (mean, std) is {pair[0]}, that of the"
      f" divergence {pair[1]}: something stops gradients on their way through"
      " x_t. Pass the teacher without stop_gradient; its parameters are never"
      " trained"
    )
  return dict(implicit=pair[0], direct=pair[1])


def _pair_of_normals():
  """Returns (u, v f64[n, 1], weights f64[n]), fine in u alone."""
  u = np.linspace(-10.0, 10.0, 8001)
  density = np.exp(-0.5 * u**2)
  v, w = np.polynomial.hermite_e.hermegauss(3)
  weights = np.outer(density / density.sum(), w / w.sum())
  u, v = np.meshgrid(u, v, indexing="ij")
  return u.reshape(-1, 1), v.reshape(-1, 1), weights.reshape(-1)

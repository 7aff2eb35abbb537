r"""InstaRevive: distribution matching for restoration, at adapted noise.

A light restorer makes z of a degraded image, which a copy of a diffusion model
enhances in one call at one fixed time, x = G(z, t_fix). It is trained by
regression on the true image g and by the direction of `dmd`, in which the
noise shrinks as x comes near: noise beyond the discrepancy erases what is right
already, and the direction then points to the mean of all that is left. With the
discrepancy

  d = mean |x - g|^2,   smoothed: d_bar <- decay d_bar + (1 - decay) d,
  c = clip(d_bar / d_0, 0, 1),   d_0 that of the first update,

times are drawn between low and near + (far - near) c^power, shares of the range
of log(sigma / alpha) (clock "log_snr") or of t ("t"), and

  loss = w_r(c) d + w_m(c) L_dmd,   w(c) = w(0) + (w(1) - w(0)) c.

With rule "level" the end is where sigma / alpha = kappa sqrt(d_bar), cut to
[near, far]. The fake score is trained over the same times but for a share
`everywhere` of them, which are drawn from the whole range, lest it forgets. No
gradient goes through c, which is that of the update before.

power = 0 and equal weights are plain `dmd` with regression. Reference: Zhu et
al. (2025), https://arxiv.org/abs/2504.15513. The two controls are theirs, but
their functions are not public: linear laws and defaults are ours. Captions are
labels; there is no LPIPS in the regression.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.dmd import check_matching
from jaxdiff.distillation.dmd import matching as dmd_loss
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.fake_score import fake_score
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree

RULES = ("linear", "level")
CLOCKS = {
  "log_snr": losses.times.uniform_log_snr,
  "t": losses.times.uniform,
}
_FLOOR = 1e-6  # of d_0


@dataclasses.dataclass(frozen=True)
class Control:
  """How times and weights follow the discrepancy.

  Attributes:
    low: where times begin, a share of the range.
    near: where they end for a perfect student.
    far: where they end for one that is as far as at first.
    power: power of c; 0 is no control of the noise.
    decay: decay of the smoothed discrepancy.
    rule: "linear" in c^power, or "level", a multiple of the discrepancy.
    kappa: that multiple.
    clock: what the shares are of, "log_snr" or "t".
    everywhere: share of the fake score's times from the whole range.
    regression: weight of the regression for a (perfect, first) student.
    matching: weight of the distribution matching likewise.
  """

  low: float = 0.02
  near: float = 0.3
  far: float = 0.98
  power: float = 1.0
  decay: float = 0.99
  rule: str = "linear"
  kappa: float = 4.0
  clock: str = "log_snr"
  everywhere: float = 0.1
  regression: tuple[float, float] = (0.25, 1.0)
  matching: tuple[float, float] = (1.0, 0.25)

  def __post_init__(self):
    if not 0.0 <= self.low < self.near <= self.far <= 1.0:
      raise ValueError(
        "low < near <= far are shares of the range of noise, inside [0, 1],"
        f" got low={self.low}, near={self.near}, far={self.far}"
      )
    if self.power < 0:
      raise ValueError(
        f"power must be at least 0, which is no control, got {self.power}"
      )
    if not 0.0 <= self.decay < 1.0:
      raise ValueError(f"decay must be inside [0, 1), got {self.decay}")
    if not 0.0 <= self.everywhere <= 1.0:
      raise ValueError(f"everywhere is a share, got {self.everywhere}")
    checks.one_of(self.rule, RULES, "the rule")
    checks.one_of(self.clock, tuple(CLOCKS), "the clock")

  def ratio(self, memory: dict) -> jax.Array:
    """Returns c, in [0, 1]."""
    ratio = memory["d_bar"] / jnp.maximum(memory["d_0"], _FLOOR)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1.0))

  def end(self, process: Any, memory: dict) -> jax.Array:
    """Returns where times end, a share of the range."""
    if self.rule == "linear":
      place = self.ratio(memory) ** self.power
      return self.near + (self.far - self.near) * place
    level = self.kappa * jnp.sqrt(jnp.maximum(memory["d_bar"], _FLOOR**2))
    ends = (process.t_min, process.t_max)
    if self.clock == "t":
      at, (low, high) = process.time_at(level), ends
    else:
      at = jnp.log(level)
      low, high = losses.times.log_noise_range(process)
    share = (jax.lax.stop_gradient(at) - low) / (high - low)
    return jnp.clip(share, self.near, self.far)

  def times(self, process: Any, memory: dict) -> Callable:
    """Returns the sampler of times of an update."""
    part = (self.low, self.end(process, memory))
    return CLOCKS[self.clock](process, part=part)

  def fake_times(self, process: Any, memory: dict) -> Callable:
    """Returns the fake score's: some of them are from the whole range."""
    inside = self.times(process, memory)
    if not self.everywhere:
      return inside
    outside = CLOCKS[self.clock](process)

    def times(key, n):
      pick, one, other = jax.random.split(key, 3)
      whole = jax.random.uniform(pick, (n,)) < self.everywhere
      return jnp.where(whole, outside(other, n), inside(one, n))

    return times

  def weights(self, memory: dict) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of regression and distribution matching."""
    c = self.ratio(memory)
    at = lambda ends: ends[0] + (ends[1] - ends[0]) * c
    return at(self.regression), at(self.matching)

  def remember(self, memory: dict, metrics: dict, nets: PyTree) -> dict:
    """Returns the memory after an update."""
    d, first = metrics["discrepancy"], nets["step"] == 0
    smoothed = self.decay * memory["d_bar"] + (1.0 - self.decay) * d
    return dict(
      d_bar=jnp.where(first, d, smoothed),
      d_0=jnp.where(first, d, memory["d_0"]),
    )


@checks.door
def instarevive(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  t: float,
  fake: Model | None = None,
  fake_optimizer: optax.GradientTransformation | None = None,
  fake_steps: int = 4,
  control: Control | None = None,
  ema: float = 0.999,
) -> Method:
  """Trains a one-step enhancer of restored images by distribution matching.

  A batch has "image", the true images, and "degraded" like them, what the light
  restorer made of the degraded ones. The student is sampled by the table of one
  step `sampler(student, [t, t_zero])` from x = batch["degraded"].

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    student: a Denoiser, which begins as a copy of the teacher.
    optimizer: optimizer of the student.
    t: the time that the student is asked at.
    fake: the fake denoiser before the first step; by default a copy of the
      student.
    fake_optimizer: its optimizer; by default the student's.
    fake_steps: steps of the fake score for each step of the student.
    control: control of noise and weights.
    ema: decay of the student's average.

  Raises:
    ValueError: for noise that is not normal.
  """
  control = Control() if control is None else control
  fake = student if fake is None else fake
  process = student.process
  check_matching(fake.process, "instarevive")
  generate = restored_at(t)

  def loss(key, params, nets, batch):
    memory = nets["memory"]
    draw_key, match_key = jax.random.split(key)
    x = generate(draw_key, with_params(student, params), batch)
    d = jnp.mean(jnp.square(x - batch["image"]))
    matching = dmd_loss(
      match_key,
      x,
      nets["teacher"],
      with_params(fake, nets["fake"]),
      control.times(process, memory),
      batch,
    )
    regress, match = control.weights(memory)
    value = regress * d + match * matching
    said = dict(
      discrepancy=d, matching=matching, end=control.end(process, memory)
    )
    return value, said

  def fake_loss(key, params, nets, batch):
    times = control.fake_times(fake.process, nets["memory"])
    own = fake_score(fake, student, generate, times=times)
    return own(key, params, nets, batch)

  return Method(
    student=student,
    players={
      "fake": training.Player(
        fake_loss, fake_optimizer or optimizer, steps=fake_steps
      ),
      "student": training.Player(loss, optimizer),
    },
    params={"fake": fake.params},
    frozen={"teacher": teacher},
    memory={"d_bar": 1.0, "d_0": 1.0},
    remember=control.remember,
    ema=ema,
  )


def restored_at(t: float) -> generators.Generator:
  """Returns the generator x0(batch["degraded"], t), which draws no noise."""

  def generate(key, model, batch):
    del key  # deterministic
    missing = [name for name in ("image", "degraded") if name not in batch]
    if missing:
      raise ValueError(
        "dynamic control needs pairs, the true image and the one to enhance,"
        f" but the batch has no {', '.join(map(repr, missing))}; it has"
        f" {', '.join(map(repr, batch))}"
      )
    return ask(model, batch["degraded"], t, *generators.label(batch)).x0

  return generate


@checks.door
def direction_cosine(
  key: jax.Array,
  law: oracles.GaussianMixture,
  variance: float,
  levels: ArrayLike,
  *,
  samples: int = 512,
  draws: int = 64,
) -> jax.Array:
  """Returns how well DMD's direction points to the truth, f[len(levels)].

  Clean x0 are of the law, the student's samples are x0 + N(0, variance I), and
  both denoisers are exact. The direction at x, D_teacher - D_fake, is averaged
  over noise of one level; returned is the mean cosine of its angle to x0 - x.

  Args:
    key: PRNG key.
    law: law of the clean data.
    variance: variance of the student's error, of each value.
    levels: f[n], noise levels sigma.
    samples: number of samples.
    draws: draws of the noise, for each.
  """
  law_key, error_key, noise_key = jax.random.split(key, 3)
  x0, _ = law.sample(law_key, samples)
  x = x0 + jnp.sqrt(variance) * tree.normal(error_key, x0)
  wider = dataclasses.replace(law, variances=law.variances + variance)
  levels = jnp.asarray(levels, x.dtype)
  top = float(levels.max())
  process = processes.edm(min(float(levels.min()), 0.5 * top), top)
  real, fake = (oracles.exact(p, process) for p in (law, wider))

  def one(level):
    def draw(i):
      noise = tree.normal(jax.random.fold_in(noise_key, i), x)
      noisy = x + level * noise
      return ask(real, noisy, level).x0 - ask(fake, noisy, level).x0

    direction = jnp.mean(jax.lax.map(draw, jnp.arange(draws)), axis=0)
    dot = jnp.sum(direction * (x0 - x), axis=-1)
    norms = jnp.linalg.norm(direction, axis=-1)
    return jnp.mean(dot / (norms * jnp.linalg.norm(x0 - x, axis=-1)))

  return jax.lax.map(one, levels)

r"""Score mismatching: a generator trained through a noise predictor (SMM).

No teacher. A network S is asked for the noise in data and in samples alike, at
a few noise levels; of samples x = G(z) it is told the wrong one:

  L_S = E |S(x_real + sigma eps) - eps|^2 + kappa E |S(x_fake + sigma eps') -
        eps''|^2,   eps'' independent of eps',
  L_G = E |S(G(z) + sigma eps) - eps|^2,   gradients through S's input into G.

The mean of eps'' is 0 whatever x is, so that with the densities p of noisy data
and samples the best S is the denoiser of the data, damped by a discriminator:

  S*(x) = p_real / (p_real + kappa p_fake) E_real[eps | x].

L_G falls where S* knows the noise: the generator is drawn to where the data's
own denoiser explains it. Where the laws agree S* = E[eps | x] / 2. Kappa = 0 is
denoising score matching, and has G climb to the modes; mismatch "none" (eps'' =
eps') makes of S the denoiser of both laws together, "opposite" takes - eps'.

It is an adversarial game, and may drop modes. R1, gamma / 2 |grad sum S|^2 at
noisy data, is added in every `r1_every`-th update, as many times as strong.
Squares are summed over values. Reference: Ye and Liu (2023),
https://arxiv.org/abs/2309.11043, and the authors' code, whose generator is a
StyleGAN2 with twice the noise draws for each sample; levels of sigma alone,
x0 + sigma eps, are theirs, and those of an EDM process here.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree

MISMATCHES = ("independent", "none", "opposite")


@checks.door
def score_mismatching(
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  score: Model | None = None,
  score_optimizer: optax.GradientTransformation | None = None,
  score_steps: int = 1,
  sigmas: Sequence[float] | None = None,
  kappa: float = 1.0,
  mismatch: str = "independent",
  r1: float = 0.01,
  r1_every: int = 16,
  generator: generators.Generator | None = None,
  ema: float = 0.999,
) -> Method:
  """Trains a one-step generator against a noise predictor, without a teacher.

  Args:
    student: a Denoiser, the generator.
    optimizer: optimizer of the student; Adam with b1=0 is usual.
    score: a Denoiser of any prediction, whose eps is S; by default a copy of
      the student.
    score_optimizer: its optimizer; by default the student's.
    score_steps: steps of S for each step of the student.
    sigmas: sigma / alpha of the noise levels; `noise_levels()` by default,
      which suit images in [-1, 1]. Points want wider ones, up to their spread.
    kappa: weight of the samples in the loss of S.
    mismatch: one of `MISMATCHES`.
    r1: gamma of R1; 0 leaves it out.
    r1_every: how many updates lie between two R1s.
    generator: how the student is asked; by default one step from t_max.
    ema: decay of the student's average.

  Raises:
    ValueError: for a negative kappa or r1, an unknown mismatch, or levels that
      are not positive.
    TypeError: if S would be a network that is told no time.
  """
  score = student if score is None else score
  sigmas = noise_levels() if sigmas is None else np.asarray(sigmas, np.float64)
  _check(score, sigmas, mismatch, dict(r1=r1, kappa=kappa))
  rules = _Rules(
    student=student,
    score=score,
    generator=generator or generators.one_step(student.process),
    levels=np.asarray(score.process.time_at(sigmas)),
    kappa=kappa,
    mismatch=mismatch,
    r1=r1,
    r1_every=r1_every,
  )
  return Method(
    student=student,
    players={
      "score": training.Player(
        functools.partial(_loss_of_score, rules),
        score_optimizer or optimizer,
        steps=score_steps,
      ),
      "student": training.Player(functools.partial(_loss, rules), optimizer),
    },
    params={"score": score.params},
    ema=ema,
  )


class _Rules(NamedTuple):
  """What no update changes: arguments of `score_mismatching`, and `levels`.

  Attributes:
    levels: times of the noise levels, f64[n].
  """

  student: Denoiser
  score: Model
  generator: generators.Generator
  levels: np.ndarray
  kappa: float
  mismatch: str
  r1: float
  r1_every: int


def _sample(rules, key, params, batch):
  """Returns the student's samples, like batch["image"]."""
  x = rules.generator(key, with_params(rules.student, params), batch)
  if x.shape != batch["image"].shape:
    raise ValueError(
      f"the generator makes samples of shape {x.shape}, but the data have"
      f" {batch['image'].shape}; one network looks at both"
    )
  return x


def _loss_of_score(rules, key, params, nets, batch):
  draw_key, loss_key = jax.random.split(key)
  fake = _sample(rules, draw_key, nets["student"], batch)
  fake = jax.lax.stop_gradient(fake)
  # R1 in every so many updates alone, as many times as strong
  every = nets["step"] % rules.r1_every == 0
  strong = rules.r1 * rules.r1_every
  return score_loss(
    loss_key,
    with_params(rules.score, params),
    fake,
    rules.levels,
    batch,
    kappa=rules.kappa,
    mismatch=rules.mismatch,
    r1=jnp.where(every, strong, 0.0) if rules.r1 else None,
  )


def _loss(rules, key, params, nets, batch):
  draw_key, loss_key = jax.random.split(key)
  x = _sample(rules, draw_key, params, batch)
  model = with_params(rules.score, nets["score"])
  return error(loss_key, model, x, rules.levels, batch), {}


def _check(score, sigmas, mismatch, weights):
  checks.one_of(mismatch, MISMATCHES, "mismatch")
  for name, value in weights.items():
    if value < 0:
      raise ValueError(
        f"{name} must be at least 0, got {value}; 0 leaves the term out"
      )
  if score.time == "none":
    raise TypeError(
      "the score network of SMM is asked at several noise levels and must be"
      ' told which, but this one has time="none"; give another one as score='
    )
  if sigmas.ndim != 1 or not len(sigmas) or not (sigmas > 0).all():
    raise ValueError(
      f"sigmas are one or more positive noise levels, got {sigmas}"
    )


def noise_levels(
  steps: int = 10, beta_min: float = 1e-4, beta_max: float = 0.02
) -> np.ndarray:
  """Returns sqrt(1 - prod(1 - beta)) of betas on a line, f64[steps].

  Raises:
    ValueError: for less than one step, or betas outside of (0, 1).
  """
  if steps < 1:
    raise ValueError(f"there must be at least one noise level, got {steps}")
  if not (0 < beta_min < 1 and 0 < beta_max < 1):
    raise ValueError(
      "betas are variances of small steps, inside of (0, 1), got"
      f" beta_min={beta_min}, beta_max={beta_max}"
    )
  betas = np.linspace(beta_min, beta_max, steps)
  return np.sqrt(-np.expm1(np.cumsum(np.log1p(-betas))))


def score_loss(
  key: jax.Array,
  score: Model,
  fake: jax.Array,
  levels: np.ndarray,
  batch: dict,
  *,
  kappa: float = 1.0,
  mismatch: str = "independent",
  r1: jax.Array | None = None,
) -> tuple[jax.Array, dict]:
  """Returns (L_S f[], metrics).

  Args:
    key: PRNG key; all noises are drawn from it.
    score: the Denoiser S.
    fake: samples like batch["image"].
    levels: f[n], times of the noise levels, all equally likely.
    batch: the data, their labels and index.
    kappa: weight of the samples.
    mismatch: one of `MISMATCHES`.
    r1: weight of R1 now, f[]; where it is 0 nothing is computed. None is never.
  """
  real_key, fake_key, other_key = jax.random.split(key, 3)
  real = error(real_key, score, batch["image"], levels, batch)
  value, metrics = real, dict(real=real)
  if kappa:
    other = generators.noise(other_key, batch, score.process)
    wrong = {
      "independent": lambda eps: other,
      "none": lambda eps: eps,
      "opposite": lambda eps: -eps,
    }[mismatch]
    metrics["fake"] = error(fake_key, score, fake, levels, batch, wrong)
    value = value + kappa * metrics["fake"]
  if r1 is not None:

    def penalty():
      x, t, _ = noised(real_key, score, batch["image"], levels, batch)
      total = lambda x: jnp.sum(ask(score, x, t, *generators.label(batch)).eps)
      return jnp.mean(tree.squared_norm(jax.grad(total)(x)))

    rest = lambda: jnp.zeros((), value.dtype)
    value = value + 0.5 * r1 * control.cond(r1 > 0, penalty, rest)
  return value, metrics


def error(
  key: jax.Array,
  score: Model,
  x0: jax.Array,
  levels: np.ndarray,
  batch: dict,
  target: PyTree = lambda eps: eps,
) -> jax.Array:
  """Returns E |S(x_t) - target(eps)|^2 over a batch x0 [batch, ...], f[]."""
  x, t, eps = noised(key, score, x0, levels, batch)
  answer = ask(score, x, t, *generators.label(batch)).eps
  return jnp.mean(tree.squared_norm(answer - target(eps)))


def noised(
  key: jax.Array, score: Model, x0: jax.Array, levels: np.ndarray, batch: dict
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (x_t, t, eps) of samples at random levels."""
  level_key, noise_key = jax.random.split(key)
  n = control.own_rows(
    lambda n: jax.random.randint(level_key, (n,), 0, len(levels)), x0
  )
  t = jnp.asarray(levels, x0.dtype)[n]
  x, eps = score.process.perturb(noise_key, x0, t, batch.get("index"))
  return x, t, eps


def optimal_score(
  x: jax.Array,
  sigma: ArrayLike,
  real: ArrayLike,
  fake: Model,
  kappa: float = 1.0,
) -> jax.Array:
  """Returns S*(x), like x, for mixtures of Gaussians.

  Args:
    x: samples with noise of standard deviation sigma, [batch, d].
    sigma: scalar or f[batch].
    real: law of the data, as of `oracles.mixture`.
    fake: law of the samples.
    kappa: weight of the samples.
  """
  odds = fake.log_prob(x, 1.0, sigma) - real.log_prob(x, 1.0, sigma)
  share = jax.nn.sigmoid(-odds - jnp.log(kappa)) if kappa else 1.0
  return tree.expand(share, x) * real.predict(x, 1.0, sigma).eps

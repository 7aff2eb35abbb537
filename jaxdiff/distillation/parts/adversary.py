r"""A discriminator on the features of the fake score, as DMD2 and Presto have.

  x_t = alpha x + sigma eps,   d(x_t) = head(features of D_fake at x_t),

on noised data and noised samples of the generator. D_fake and the head are
trained together by the critic's loss beside denoising, and the generator by its
own; see `discriminator` for the kinds of losses. Reference: Yin et al. (2024),
https://arxiv.org/abs/2405.14867, section 4.3 and appendix.
"""

import dataclasses
from typing import Any

import jax

from jaxdiff import checks
from jaxdiff.distillation.parts import discriminator


@dataclasses.dataclass(frozen=True)
class Adversary:
  """What the adversarial term is made of.

  Attributes:
    shape: of one sample.
    layer: of the fake score's network, whose features the head reads.
    times: of x_t, a sampler of `losses.times`.
    kind: one of `discriminator.KINDS`.
    weight: of the generator's adversarial loss.
    critic_weight: of the discriminator's, beside denoising.
    width: of the head.
  """

  shape: tuple[int, ...]
  layer: str
  times: Any
  kind: str = "softplus"
  weight: float = 3e-3
  critic_weight: float = 1e-2
  width: int = 64

  def __post_init__(self):
    checks.one_of(
      self.kind, discriminator.KINDS, "the kind of adversarial loss"
    )


def init(key: jax.Array, adversary: Adversary, score: Any) -> Any:
  """Returns the head's initial parameters; it answers 0.

  Args:
    key: PRNG key.
    adversary: the settings.
    score: the fake score, a Denoiser of a Linen module.

  Raises:
    ValueError: if its network has no such layer; those it has are named.
  """
  return discriminator.head_params(
    key, score, adversary.layer, adversary.shape, adversary.width
  )


def logits(
  key: jax.Array,
  adversary: Adversary,
  score: Any,
  head: Any,
  x: Any,
  batch: Any,
) -> jax.Array:
  """Returns d of noised samples, f[batch].

  Args:
    key: PRNG key.
    adversary: the settings.
    score: the fake score with the parameters to use.
    head: parameters of the head.
    x: clean data or samples, like batch["image"].
    batch: labels and index of the samples.
  """
  return discriminator.logits(
    key,
    score,
    head,
    x,
    batch,
    layer=adversary.layer,
    width=adversary.width,
    times=adversary.times,
  )


def critic_loss(
  key: jax.Array,
  adversary: Adversary,
  score: Any,
  head: Any,
  x: Any,
  batch: Any,
) -> jax.Array:
  """Returns the weighted loss that tells data from samples x, f[]."""
  keys = jax.random.split(key)
  real = logits(keys[0], adversary, score, head, batch["image"], batch)
  fake = logits(keys[1], adversary, score, head, x, batch)
  loss = discriminator.discriminator_loss(adversary.kind, real, fake)
  return adversary.critic_weight * loss


def generator_loss(
  key: jax.Array,
  adversary: Adversary,
  score: Any,
  head: Any,
  x: Any,
  batch: Any,
) -> jax.Array:
  """Returns the weighted loss of the generator's samples x, f[]."""
  fake = logits(key, adversary, score, head, x, batch)
  loss = discriminator.generator_loss(adversary.kind, fake)
  return adversary.weight * loss

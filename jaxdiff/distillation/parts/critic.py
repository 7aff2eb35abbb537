r"""A critic of samples: a head on a network's features, trained beside.

Features are read at noised samples and noised data, as `discriminator` says,
by a network that is frozen, a teacher's, or trained with the head. What it is
made of is a `Critic`; `player` trains it, `logits` asks it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff import training
from jaxdiff.distillation.parts import discriminator
from jaxdiff.distillation.parts.students import with_params

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Critic:
  """What judges samples.

  Attributes:
    network: a Denoiser whose features are read.
    layer: which, as in `discriminator.features`.
    head: the parameters of the head.
    width: of the head.
    kind: one of `discriminator.KINDS`.
    times: where features are read, a sampler of `losses.times`.
    trained: whether the network learns with the head.
  """

  network: Any
  layer: str
  head: PyTree
  width: int
  kind: str
  times: Any
  trained: bool

  @property
  def params(self) -> PyTree:
    """What is trained."""
    own = dict(network=self.network.params) if self.trained else {}
    return dict(head=self.head, **own)


def make(
  key: jax.Array,
  network: Any,
  layer: str,
  shape: tuple[int, ...],
  *,
  width: int = 64,
  kind: str = "hinge",
  times: Any = None,
  trained: bool = False,
) -> Critic:
  """Returns a critic whose head knows nothing yet: every logit is 0.

  Args:
    key: of the head's parameters.
    network: a Denoiser of a Linen module.
    layer: name of one of its submodules.
    shape: of one sample.
    width: of the head.
    kind: one of `discriminator.KINDS`.
    times: where features are read; by default EDM's log-normal.
    trained: whether the network learns with the head.

  Raises:
    ValueError: for a layer that there is not, or an unknown kind.
  """
  checks.one_of(kind, discriminator.KINDS, "the kind of adversarial loss")
  head = discriminator.head_params(key, network, layer, shape, width)
  times = times or losses.times.log_normal(network.process)
  return Critic(network, layer, head, width, kind, times, trained)


def logits(
  key: jax.Array, critic: Critic, params: PyTree, x: jax.Array, batch: Any
) -> jax.Array:
  """Returns how real samples look, f[batch].

  Args:
    key: of times and noise.
    critic: the critic.
    params: its parameters, as `critic.params`.
    x: samples, like batch["image"].
    batch: labels and index of the samples.
  """
  network = critic.network
  if critic.trained:
    network = with_params(network, params["network"])
  return discriminator.logits(
    key,
    network,
    params["head"],
    x,
    batch,
    layer=critic.layer,
    width=critic.width,
    times=critic.times,
  )


def player(
  critic: Critic,
  samples: Callable,
  optimizer: optax.GradientTransformation,
  **options: Any,
) -> training.Player:
  """Returns the player that learns to tell samples from data.

  Data and samples are seen at the same times with the same noise.

  Args:
    critic: the critic; its network's arrays are nets["critic_network"].
    samples: samples(key, nets, batch) -> x like batch["image"].
    optimizer: of its parameters.
    **options: of `training.Player`.
  """

  def loss(key, params, nets, batch):
    draw_key, look_key = jax.random.split(key)
    fake = samples(draw_key, nets, batch)
    own = dataclasses.replace(critic, network=nets["critic_network"])
    look = lambda x: logits(look_key, own, params, x, batch)
    real, fake = look(batch["image"]), look(fake)
    value = discriminator.discriminator_loss(critic.kind, real, fake)
    return value, dict(real=real.mean(), fake=fake.mean())

  return training.Player(loss, optimizer, **options)

r"""Critics: a small head on what a denoiser knows already, and its losses.

The head reads the activations of one layer of a network, averaged over
positions, at noised data and noised samples:

  x_t = alpha x + sigma eps,   d(x_t) = head(features of the network at x_t).

Noise makes the two laws overlap, and a denoiser's features tell them apart from
the first step on. The network is the fake score, which learns denoising and d
together (`Adversary`: DMD2, Presto), or one that stands beside, a frozen
teacher or a network that learns with the head (`Critic`: CTM).

| kind            | critic: real, fake              | generator            |
|-----------------|---------------------------------|----------------------|
| "softplus"      | softplus(-d_r), softplus(d_f)   | softplus(-d_f)       |
| "hinge"         | relu(1 - d_r), relu(1 + d_f)    | -d_f                 |
| "least_squares" | (1 - d_r)^2, d_f^2              | (1 - d_f)^2          |

Reference: Yin et al. (2024), https://arxiv.org/abs/2405.14867, section 4.3 and
appendix.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import losses
from jaxdiff import modules
from jaxdiff import training
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree
from jaxdiff.types import Times

KINDS = ("softplus", "hinge", "least_squares")


class Head(nn.Module):
  """Two layers from features f[batch, d] to a logit f[batch].

  Attributes:
    width: width of the hidden layer.
  """

  width: int = 64

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    h = nn.silu(nn.LayerNorm()(nn.Dense(self.width)(features)))
    return nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[:, 0]


def features(
  denoiser: Denoiser, layer: str, x: jax.Array, t: ArrayLike, *label: Any
) -> jax.Array:
  """Returns the activations of a layer, averaged over positions: f[batch, d].

  Args:
    denoiser: a Denoiser of a Linen module.
    layer: name of a submodule of it, "Dense_2" of an MLP or "middle" of a UNet.
    x: noisy samples, [batch, ...].
    t: scalar or f[batch].
    *label: the labels, if there are any.

  Raises:
    TypeError: for a network that is no Linen module.
    ValueError: if the network has no such layer; those it has are named.
  """
  if not isinstance(denoiser.apply, modules.LinenApply):
    raise TypeError(
      "features are the activations of a layer of a Linen module, which Flax"
      " hands out by its name; this network is called by"
      f" {type(denoiser.apply).__name__}, which has no names of layers. Take a"
      " method without an adversarial term, or let a Linen network be the one"
      " whose features are read"
    )
  module = denoiser.apply.module
  found = set()

  def wanted(submodule, method):
    del method
    found.add(submodule.name)
    return submodule.name == layer

  _, kept = module.apply(
    {**(denoiser.state or {}), "params": denoiser.params},
    *denoiser.inputs(x, t, *label),
    **denoiser.apply.mode(False),
    capture_intermediates=wanted,
    mutable=["intermediates"],
  )
  leaves = jax.tree.leaves(kept)
  if not leaves:
    names = sorted(name for name in found if name)
    raise ValueError(
      f"{type(module).__name__} has no layer {layer!r}; it has"
      f" {', '.join(names)}"
    )
  h = leaves[0]
  return jnp.mean(h, axis=tuple(range(1, h.ndim - 1))) if h.ndim > 2 else h


def head_params(
  key: jax.Array, network: Any, layer: str, shape: tuple[int, ...], width: int
) -> PyTree:
  """Returns the initial parameters of a head; it answers 0 to everything.

  Args:
    key: PRNG key.
    network: a Denoiser of a Linen module.
    layer: layer of it, whose features the head reads.
    shape: shape of one sample.
    width: width of the head.

  Raises:
    ValueError: if the network has no such layer; those it has are named.
  """
  read = lambda x: features(network, layer, x, network.process.t_max)
  found = jax.eval_shape(read, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  init = jax.jit(Head(width).init)
  return init(key, jnp.zeros(found.shape, found.dtype))["params"]


@dataclasses.dataclass(frozen=True)
class Adversary:
  """An adversarial term whose critic reads the fake score.

  Attributes:
    shape: shape of one sample.
    layer: name of the layer of the fake score that the head reads.
    times: times of x_t, a sampler of `losses.times`.
    kind: one of `KINDS`.
    weight: weight of the generator's loss.
    critic_weight: weight of the critic's loss, beside denoising.
    width: width of the head.
  """

  shape: tuple[int, ...]
  layer: str
  times: Times
  kind: str = "softplus"
  weight: float = 3e-3
  critic_weight: float = 1e-2
  width: int = 64

  def __post_init__(self):
    checks.one_of(self.kind, KINDS, "the kind of adversarial loss")


@dataclasses.dataclass(frozen=True)
class Critic:
  """A critic whose network stands beside the student's.

  Attributes:
    network: a Denoiser whose features are read.
    layer: name of the layer that the head reads.
    head: parameters of the head.
    width: width of the head.
    kind: one of `KINDS`.
    times: times at which features are read, a sampler of `losses.times`.
    trained: whether the network learns with the head.
  """

  network: Any
  layer: str
  head: PyTree
  width: int
  kind: str
  times: Times
  trained: bool

  @property
  def params(self) -> PyTree:
    """What is trained."""
    own = dict(network=self.network.params) if self.trained else {}
    return dict(head=self.head, **own)

  def parts(self, params: PyTree) -> tuple[Any, PyTree]:
    """Returns the network and the head with the parameters to use."""
    if not self.trained:
      return self.network, params["head"]
    return with_params(self.network, params["network"]), params["head"]


def make(
  key: jax.Array,
  network: Any,
  layer: str,
  shape: tuple[int, ...],
  *,
  width: int = 64,
  kind: str = "hinge",
  times: Times | None = None,
  trained: bool = False,
) -> Critic:
  """Returns a critic with an untrained head: every logit is 0.

  Args:
    key: PRNG key of the head's parameters.
    network: a Denoiser of a Linen module.
    layer: name of one of its submodules.
    shape: shape of one sample.
    width: width of the head.
    kind: one of `KINDS`.
    times: times at which features are read; by default EDM's log-normal.
    trained: whether the network learns with the head.

  Raises:
    ValueError: for a layer that there is not, or an unknown kind.
  """
  checks.one_of(kind, KINDS, "the kind of adversarial loss")
  head = head_params(key, network, layer, shape, width)
  times = times or losses.times.log_normal(network.process)
  return Critic(network, layer, head, width, kind, times, trained)


def logits(
  key: jax.Array,
  critic: Adversary | Critic,
  network: Any,
  head: PyTree,
  x: jax.Array,
  batch: PyTree,
) -> jax.Array:
  """Returns d of noised samples, f[batch]: large for what looks like data.

  Args:
    key: PRNG key of times and noise.
    critic: the settings: layer, width and times.
    network: a Denoiser, with the parameters to use.
    head: parameters of the head.
    x: clean data or samples, like batch["image"].
    batch: labels and index of the samples.
  """
  time_key, noise_key = jax.random.split(key)
  t = control.own_rows(lambda n: critic.times(time_key, n), x)
  noisy, _ = network.process.perturb(noise_key, x, t, batch.get("index"))
  found = features(network, critic.layer, noisy, t, *generators.label(batch))
  return Head(critic.width).apply({"params": head}, found)


def discriminator_loss(
  kind: str, real: jax.Array, fake: jax.Array
) -> jax.Array:
  """Returns the loss of logits of real data and of samples, f[].

  Raises:
    ValueError: for an unknown kind.
  """
  checks.one_of(kind, KINDS, "the kind of adversarial loss")
  if kind == "softplus":
    parts = nn.softplus(-real), nn.softplus(fake)
  elif kind == "hinge":
    parts = nn.relu(1.0 - real), nn.relu(1.0 + fake)
  else:
    parts = (1.0 - real) ** 2, fake**2
  return jnp.mean(parts[0]) + jnp.mean(parts[1])


def generator_loss(kind: str, fake: jax.Array) -> jax.Array:
  """Returns the loss of a generator whose samples have these logits, f[].

  Raises:
    ValueError: for an unknown kind.
  """
  checks.one_of(kind, KINDS, "the kind of adversarial loss")
  if kind == "softplus":
    return jnp.mean(nn.softplus(-fake))
  if kind == "hinge":
    return -jnp.mean(fake)
  return jnp.mean((1.0 - fake) ** 2)


def critic_term(
  key: jax.Array,
  adversary: Adversary,
  score: Model,
  head: PyTree,
  x: PyTree,
  batch: PyTree,
) -> jax.Array:
  """Returns the weighted loss that tells data from samples x, f[]."""
  keys = jax.random.split(key)
  real = logits(keys[0], adversary, score, head, batch["image"], batch)
  fake = logits(keys[1], adversary, score, head, x, batch)
  loss = discriminator_loss(adversary.kind, real, fake)
  return adversary.critic_weight * loss


def generator_term(
  key: jax.Array,
  adversary: Adversary,
  score: Model,
  head: PyTree,
  x: PyTree,
  batch: PyTree,
) -> jax.Array:
  """Returns the weighted loss of the generator's samples x, f[]."""
  fake = logits(key, adversary, score, head, x, batch)
  return adversary.weight * generator_loss(adversary.kind, fake)


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
    optimizer: optimizer of its parameters.
    **options: options of `training.Player`.
  """

  def loss(key, params, nets, batch):
    draw_key, look_key = jax.random.split(key)
    fake = samples(draw_key, nets, batch)
    own = dataclasses.replace(critic, network=nets["critic_network"])
    look = lambda x: logits(look_key, own, *own.parts(params), x, batch)
    real, fake = look(batch["image"]), look(fake)
    value = discriminator_loss(critic.kind, real, fake)
    return value, dict(real=real.mean(), fake=fake.mean())

  return training.Player(loss, optimizer, **options)

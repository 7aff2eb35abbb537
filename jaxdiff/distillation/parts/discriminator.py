r"""Adversarial terms: a small head on what a denoiser knows already.

The head reads the activations of one layer of a network, averaged over
positions, at noised data and noised samples: noise makes the two laws overlap,
and a denoiser's features tell them apart from the first step on. The network is
the fake score (DMD2, Presto, which train it along) or a frozen teacher.

| kind            | discriminator: real, fake       | generator            |
|-----------------|---------------------------------|----------------------|
| "softplus"      | softplus(-d_r), softplus(d_f)   | softplus(-d_f)       |
| "hinge"         | relu(1 - d_r), relu(1 + d_f)    | -d_f                 |
| "least_squares" | (1 - d_r)^2, d_f^2              | (1 - d_f)^2          |
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import modules
from jaxdiff.distillation.parts import generators

KINDS = ("softplus", "hinge", "least_squares")


class Head(nn.Module):
  """Two layers from features f[batch, d] to a logit f[batch].

  Attributes:
    width: of the hidden layer.
  """

  width: int = 64

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    h = nn.silu(nn.LayerNorm()(nn.Dense(self.width)(features)))
    return nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[:, 0]


def features(
  denoiser: Any, layer: str, x: jax.Array, t: Any, *label: Any
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
) -> Any:
  """Returns the initial parameters of a head; it answers 0 to everything.

  Args:
    key: PRNG key.
    network: a Denoiser of a Linen module.
    layer: of it, whose features the head reads.
    shape: of one sample.
    width: of the head.

  Raises:
    ValueError: if the network has no such layer; those it has are named.
  """
  read = lambda x: features(network, layer, x, network.process.t_max)
  found = jax.eval_shape(read, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  init = jax.jit(Head(width).init)
  return init(key, jnp.zeros(found.shape, found.dtype))["params"]


def logits(
  key: jax.Array,
  network: Any,
  head: Any,
  x: jax.Array,
  batch: Any,
  *,
  layer: str,
  width: int,
  times: Any,
) -> jax.Array:
  """Returns how real samples look when they are noised, f[batch].

  Args:
    key: of times and noise.
    network: a Denoiser, with the parameters to use.
    head: parameters of the head.
    x: clean samples, like batch["image"].
    batch: labels and index of the samples.
    layer: of the network, whose features the head reads.
    width: of the head.
    times: a sampler of `losses.times`.
  """
  time_key, noise_key = jax.random.split(key)
  t = control.own_rows(lambda n: times(time_key, n), x)
  noisy, _ = network.process.perturb(noise_key, x, t, batch.get("index"))
  found = features(network, layer, noisy, t, *generators.label(batch))
  return Head(width).apply({"params": head}, found)


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

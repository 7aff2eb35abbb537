r"""From a network to the model of an interpolant: model(x, t) -> (v, eta).

The pair is that of `interpolants.bridge`, v = E[dI/dt | x] and eta = E[z |
x]. One network has two heads, which may be any of

  v, or the velocity b = v + gamma' eta;   eta, or the score s = -eta / gamma,

but (v, eta) is the stable choice: the others contain gamma' or 1 / gamma, which
are infinite at the ends of a Brownian bridge. The network is given x beside
itself and answers the second head in its place, so that every network whose
output is shaped like its input serves. A model is a pytree, as a `Denoiser` is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.interpolants.bridge import Interpolant
from jaxdiff.predictions import Prediction
from jaxdiff.types import Model
from jaxdiff.types import PyTree

HEADS = (("v", "eta"), ("b", "eta"), ("b", "s"), ("v", "s"), ("v",))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fields:
  """A network, its parameters, and how to read its heads.

  The network is called as apply(params, x, t) with x [batch, ..., 2 c] for two
  heads and t f32[batch], both inside the interpolant's times.

  Attributes:
    params: parameters, a tree of arrays.
    apply: the network as a function of (params, x, t).
    interpolant: the bridge it was trained on.
    heads: one of `HEADS`; ("v",) alone without latent noise.
  """

  params: PyTree
  apply: Any = dataclasses.field(default=None, metadata={"static": True})
  interpolant: Interpolant = dataclasses.field(
    default=None, metadata={"static": True}
  )
  heads: tuple[str, ...] = dataclasses.field(
    default=("v", "eta"), metadata={"static": True}
  )

  def answer(self, x: jax.Array, t: jax.Array) -> dict[str, jax.Array]:
    """Returns the raw heads by name at x [batch, ...], t scalar or [batch].

    Raises:
      ValueError: if the network's output is not shaped like its input.
    """
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    t = jnp.broadcast_to(self.interpolant.inside(t), x.shape[:1])
    inputs = jnp.concatenate([x] * len(self.heads), axis=-1)
    output = self.apply(self.params, inputs, t)
    if output.shape != inputs.shape:
      raise ValueError(
        f"the network returned shape {output.shape} for an input of shape"
        f" {inputs.shape}; with {len(self.heads)} heads the last axis of both"
        f" is {len(self.heads)} times that of x"
      )
    parts = jnp.split(output, len(self.heads), axis=-1)
    return dict(zip(self.heads, parts, strict=True))

  def __call__(self, x: jax.Array, t: jax.Array) -> Prediction:
    """Returns (v, eta) at x [batch, ...] and t, scalar or [batch]."""
    heads = self.answer(x, t)
    t = self.interpolant.inside(jnp.asarray(t, tree.compute_dtype(x.dtype)))
    if "eta" in heads:
      eta = heads["eta"]
    elif "s" in heads:
      eta = -tree.expand(self.interpolant.gamma(t), x) * heads["s"]
    else:
      eta = jnp.zeros_like(x)
    if "v" in heads:
      return Prediction(heads["v"], eta)
    rate = tree.expand(self.interpolant.gamma_dot(t), x)
    return Prediction(heads["b"] - rate * eta, eta)


@checks.door
def from_function(
  apply: Any,
  params: PyTree,
  interpolant: Interpolant,
  heads: tuple[str, ...] = ("v", "eta"),
) -> Fields:
  """Returns a model from any function apply(params, x, t).

  Raises:
    ValueError: for other heads, or a single one where there is latent noise.
  """
  checks.one_of(tuple(heads), HEADS, "heads")
  if len(heads) == 1 and interpolant.has_score:
    raise ValueError(
      'heads=("v",) tells nothing of the latent noise of this interpolant;'
      ' use heads=("v", "eta"), or gamma="none"'
    )
  return Fields(params, apply, interpolant, tuple(heads))


@checks.door
def velocity(
  model: Callable[[Any, Any], Prediction], interpolant: Interpolant
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns b(x, t) = v + gamma' eta."""

  def b(x: jax.Array, t: jax.Array) -> jax.Array:
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    v, eta = model(x, t)
    return v + tree.expand(interpolant.gamma_dot(t), x) * eta

  return b


@checks.door
def score(
  model: Callable[[Any, Any], Prediction], interpolant: Interpolant
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns s(x, t) = -eta / gamma, t moved into [t_min, 1 - t_min].

  Raises:
    ValueError: without latent noise.
  """
  if not interpolant.has_score:
    raise ValueError(
      "an interpolant without latent noise has no score to be told from eta;"
      ' give it one, gamma="brownian"'
    )

  def s(x: jax.Array, t: jax.Array) -> jax.Array:
    t = interpolant.inside(jnp.asarray(t, tree.compute_dtype(x.dtype)))
    _, eta = model(x, t)
    return -eta / tree.expand(interpolant.gamma(t), x)

  return s


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AsDenoiser:
  """A one-sided interpolant's model as one of its Gaussian process.

  Of the two things known of x1, beta' x1 = v and beta x1 = x - gamma eta,
  neither serves at both ends; their least squares does,

    x1 = (beta' v + beta (x - gamma eta)) / (beta'^2 + beta^2).

  Attributes:
    model: model(x, t) -> (v, eta).
    interpolant: one-sided.
  """

  model: Model
  interpolant: Interpolant = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, x: jax.Array, t: jax.Array) -> Prediction:
    """Returns (x1, z) at the Gaussian process's time t, which is 1 - t here."""
    t = 1.0 - jnp.asarray(t, tree.compute_dtype(x.dtype))
    v, eta = self.model(x, t)
    beta, gamma = self.interpolant.beta(t), self.interpolant.gamma(t)
    rate = self.interpolant.path_rates(t)[1]
    beta, gamma, rate = (tree.expand(c, x) for c in (beta, gamma, rate))
    x1 = (rate * v + beta * (x - gamma * eta)) / (rate**2 + beta**2)
    return Prediction(x1, eta)


@checks.door
def as_denoiser(model: Model, interpolant: Interpolant) -> AsDenoiser:
  """Returns the model for `one_sided_process`'s tables, losses and guidance.

  Raises:
    ValueError: for a two-sided interpolant.
  """
  if interpolant.needs_x0 or float(interpolant.gamma(0.0)) == 0:
    raise ValueError(
      "only one_sided(path) is a Gaussian process; a two-sided interpolant is"
      " sampled by interpolants.transport"
    )
  return AsDenoiser(model, interpolant)

"""Experts: one network a range of noise, with parameters of its own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff import tree
from jaxdiff.distillation.students import with_params
from jaxdiff.predictions import Prediction
from jaxdiff.processes import GaussianProcess


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Experts:
  """A mixture of K experts over time; a model that any table runs.

  Expert k answers at times in (bounds[k + 1], bounds[k]], the last one also
  below. At one time for all samples, as tables ask, one of them is run; at a
  time for each sample all are.

  Attributes:
    params: parameters of all experts, leaves [K, ...].
    model: a Denoiser of one expert, without its parameters.
    bounds: K + 1 falling times.
  """

  params: Any
  model: Any
  bounds: tuple[float, ...] = dataclasses.field(
    default=(), metadata={"static": True}
  )

  @property
  def process(self) -> GaussianProcess:
    """The forward process."""
    return self.model.process

  def expert(self, k: Any) -> Any:
    """Returns the model of expert k, which may be traced."""
    return with_params(self.model, jax.tree.map(lambda p: p[k], self.params))

  def __call__(
    self, x: jax.Array, t: jax.Array, label: Any = None
  ) -> Prediction:
    """Returns (x0, eps) for noisy x [batch, ...] at t, scalar or [batch]."""
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    inner = jnp.asarray(self.bounds[1:-1], t.dtype)
    # a bound belongs to the expert that begins there, however it was rounded
    k = jnp.sum(t[..., None] <= inner * (1.0 + 1e-6), axis=-1)
    if jnp.ndim(t) == 0:
      return self.expert(k)(x, t, label)
    answers = jax.vmap(lambda p: with_params(self.model, p)(x, t, label))(
      self.params
    )
    return jax.tree.map(lambda v: v[k, jnp.arange(len(x))], answers)


def one_by_one(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns the optimizer of stacked networks, each with a state of its own.

  A network without any gradient rests: its parameters, its moments and its
  schedule stay as they are.
  """

  def update(grads, state, params):
    changes, after = jax.vmap(optimizer.update)(grads, state, params)
    moved = jax.tree.map(
      lambda g: jnp.any(g.reshape(len(g), -1) != 0, axis=1), grads
    )
    moved = jnp.any(jnp.stack(jax.tree.leaves(moved)), axis=0)
    keep = lambda new, old: jnp.where(tree.expand(moved, new), new, old)
    rest = jax.tree.map(jnp.zeros_like, changes)
    return jax.tree.map(keep, changes, rest), jax.tree.map(keep, after, state)

  return optax.GradientTransformation(jax.vmap(optimizer.init), update)

"""The optimizer of experts: one network for each range of noise."""

import jax
import jax.numpy as jnp
import optax

from jaxdiff import tree


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

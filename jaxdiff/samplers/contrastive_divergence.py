r"""Contrastive divergence: trains an energy model against short chains.

For p_theta proportional to exp(-E_theta(x)) the gradient of the negative
log-likelihood is E_data[grad_theta E] - E_model[grad_theta E]; CD-k takes the
second mean over Langevin chains of k moves that start at the data, held fixed
for the gradient (Hinton 2002). It is the sampler of `vanilla_score` inside
training: data-based initialization, stopped early.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff.samplers.langevin import langevin
from jaxdiff.types import PyTree


@checks.door
def contrastive_divergence(
  energy: Callable[[PyTree, jax.Array], jax.Array],
  *,
  step: float,
  moves: int = 10,
) -> Callable[[jax.Array, PyTree, Any], tuple[jax.Array, dict]]:
  """Returns loss(key, params, batch) -> (scalar, metrics); its gradient is CD.

  The value is the difference of mean energies, which is no measure of fit.

  Args:
    energy: energy(params, x) -> f[batch].
    step: h of the chains.
    moves: k.
  """

  def loss(key: jax.Array, params: PyTree, batch: PyTree):
    x = jnp.asarray(batch["image"] if isinstance(batch, dict) else batch)
    fixed = jax.lax.stop_gradient(params)
    score = jax.tree_util.Partial(_force, energy, fixed)
    y, _ = langevin(key, score, moves, x, step=step)
    y = jax.lax.stop_gradient(y)
    data, model = jnp.mean(energy(params, x)), jnp.mean(energy(params, y))
    return data - model, dict(loss=data - model, energy=data)

  return loss


def _force(energy, params, x):
  return jax.tree.map(
    jnp.negative, jax.grad(lambda v: jnp.sum(energy(params, v)))(x)
  )

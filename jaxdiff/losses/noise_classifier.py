r"""A classifier of the noise level from a noisy sample alone: p(sigma | x).

With x = x0 + sigma_k z and k uniform on a ladder of levels, cross entropy on k
is minimal at p(k | x) proportional to p_{sigma_k}(x): the Gibbs step of
`samplers.dmcmc`. Reference: Kim and Ye (2023),
https://arxiv.org/abs/2209.14593, section 3.2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import tree
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


@checks.door
def noise_classifier(
  apply: Callable[[PyTree, jax.Array], jax.Array], levels: ArrayLike
) -> Callable[[jax.Array, PyTree, Any], tuple[jax.Array, dict]]:
  """Returns loss(key, params, batch) -> (scalar, metrics).

  The batch is f[batch, ...] or a dict with "image". Metrics are "loss" and
  "log_error", the mean |log(sigma_argmax / sigma)|.

  Args:
    apply: apply(params, x / alpha) -> logits f[batch, K].
    levels: f[K], the ladder.

  Raises:
    ValueError: if the network answers another number of levels.
  """
  log_levels = np.log(np.asarray(levels, np.float64))

  def loss(key: jax.Array, params: PyTree, batch: PyTree):
    x0 = jnp.asarray(batch["image"] if isinstance(batch, dict) else batch)
    level_key, noise_key = jax.random.split(key)
    level = control.own_rows(
      lambda n: jax.random.randint(level_key, (n,), 0, len(log_levels)), x0
    )
    logs = jnp.asarray(log_levels, tree.compute_dtype(x0.dtype))
    sigma = tree.expand(jnp.exp(logs)[level], x0)
    logits = apply(params, x0 + sigma * tree.normal(noise_key, x0))
    if logits.shape != (x0.shape[0], len(log_levels)):
      raise ValueError(
        f"the noise classifier answers with shape {logits.shape}, expected"
        f" {(x0.shape[0], len(log_levels))}, one logit for each level"
      )
    value = jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(logits, level)
    )
    error = jnp.abs(logs[jnp.argmax(logits, axis=1)] - logs[level])
    return value, dict(loss=value, log_error=jnp.mean(error))

  return loss

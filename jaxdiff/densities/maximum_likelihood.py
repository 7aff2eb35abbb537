"""Maximum likelihood: fits the parameters of a density by gradient descent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff.types import PyTree


@checks.door(least=dict(steps=1, batch_size=1))
def maximum_likelihood(
  key: jax.Array,
  log_prob: Callable[[PyTree, jax.Array], jax.Array],
  params: PyTree,
  x: jax.Array,
  *,
  steps: int,
  batch_size: int = 256,
  learning_rate: float = 1e-3,
) -> PyTree:
  """Returns the parameters after Adam on the mean of -log_prob, one program.

  Args:
    key: PRNG key of the minibatches, drawn with replacement.
    log_prob: log_prob(params, x f[batch, ...]) -> f[batch].
    params: where to start.
    x: f[n, ...], the data.
    steps: steps of Adam with a cosine schedule.
    batch_size: points a step.
    learning_rate: its peak.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

  @jax.jit
  def fit(params, x):
    loss = lambda params, batch: -jnp.mean(log_prob(params, batch))

    def step(carry, i):
      params, state = carry
      rows = jax.random.randint(
        jax.random.fold_in(key, i), (batch_size,), 0, len(x)
      )
      changes, state = optimizer.update(jax.grad(loss)(params, x[rows]), state)
      return (optax.apply_updates(params, changes), state), None

    carry = (params, optimizer.init(params))
    return control.scan(step, carry, jnp.arange(steps))[0][0]

  return fit(params, jnp.asarray(x))

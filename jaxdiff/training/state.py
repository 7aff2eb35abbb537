"""What training carries from one update to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class TrainState(NamedTuple):
  """The state of a run; everything that a checkpoint needs but the data.

  Attributes:
    step: i32[], number of updates done.
    params: parameters.
    opt_state: of the optimizer.
    ema_params: exponential moving average of the parameters.
    key: PRNG key of the run; update number `step` uses fold_in(key, step).
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  ema_params: PyTree
  key: jax.Array


def init_state(
  key: jax.Array, params: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state before the first update.

  Everything is copied, since the state is donated to the update: the caller's
  key and params stay valid.
  """
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    data = jnp.copy(jax.random.key_data(key))
    key = jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(key)))
  else:
    key = jnp.copy(key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.copy, params),
    opt_state=jax.tree.map(jnp.copy, optimizer.init(params)),
    ema_params=jax.tree.map(jnp.copy, params),
    key=key,
  )

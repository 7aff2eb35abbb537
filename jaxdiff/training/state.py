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
    ema_params: average of the parameters.
    key: PRNG key of the run; update number `step` uses fold_in(key, step).
    loss_params: of a loss that has parameters of its own, trained along.
    averages: further averages of the parameters, a tuple of trees.
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  ema_params: PyTree
  key: jax.Array
  loss_params: PyTree = ()
  averages: tuple[PyTree, ...] = ()


def init_state(
  key: jax.Array,
  params: PyTree,
  optimizer: optax.GradientTransformation,
  *,
  loss_params: PyTree = (),
  averages: int = 0,
) -> TrainState:
  """Returns the state before the first update.

  Everything is copied, since the state is donated to the update: the caller's
  key and params stay valid.

  Args:
    key: of the run.
    params: initial parameters.
    optimizer: the one that `make_update` is given.
    loss_params: initial parameters of the loss, if it has any.
    averages: how many averages are kept beside `ema_params`.
  """
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    data = jnp.copy(jax.random.key_data(key))
    key = jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(key)))
  else:
    key = jnp.copy(key)
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=copy(params),
    opt_state=copy(optimizer.init(trained(params, loss_params))),
    ema_params=copy(params),
    key=key,
    loss_params=copy(loss_params),
    averages=tuple(copy(params) for _ in range(averages)),
  )


def trained(params: PyTree, loss_params: PyTree) -> PyTree:
  """Returns what the optimizer moves and the loss is called with."""
  return (params, loss_params) if jax.tree.leaves(loss_params) else params

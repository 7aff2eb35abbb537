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
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=copied(params),
    opt_state=copied(optimizer.init(trained(params, loss_params))),
    ema_params=copied(params),
    key=key,
    loss_params=copied(loss_params),
    averages=tuple(copied(params) for _ in range(averages)),
  )


def copied(tree: PyTree) -> PyTree:
  """Returns a copy of which every leaf insists on its dtype.

  What was made of a Python number does not (it is weakly typed), but comes out
  of an update as if it did: the next one would be compiled again.
  """
  return jax.tree.map(lambda v: jnp.array(v, jnp.result_type(v)), tree)


def check_averages(state: TrainState, profiles: tuple) -> None:
  """Raises a ValueError unless the state keeps an average for each profile."""
  if len(state.averages) != len(profiles):
    raise ValueError(
      f"the state keeps {len(state.averages)} averages, but the update has"
      f" {len(profiles)} profiles; make it with"
      f" init_state(..., averages={len(profiles)})"
    )


def trained(params: PyTree, loss_params: PyTree) -> PyTree:
  """Returns what the optimizer moves and the loss is called with."""
  return (params, loss_params) if jax.tree.leaves(loss_params) else params

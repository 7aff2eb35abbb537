"""State of training: parameters, optimizer, averages, key and step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import modules
from jaxdiff.training import ema
from jaxdiff.types import Model
from jaxdiff.types import PyTree


class TrainState(NamedTuple):
  """The state of a run; everything that a checkpoint needs but the data.

  Attributes:
    step: i32[], number of updates done.
    params: parameters.
    opt_state: optimizer state of the optimizer.
    ema_params: average of the parameters, in float32 or wider.
    key: PRNG key of the run; update number `step` uses fold_in(key, step).
    loss_params: parameters of a loss that has parameters of its own, trained
      along.
    averages: further averages of the parameters, a tuple of trees likewise.
    model_state: what the network has beside its parameters and is not trained,
      a Denoiser's `state`: batch statistics.
    ema_model_state: its average, which belongs to `ema_params`.
  """

  step: jax.Array
  params: PyTree
  opt_state: PyTree
  ema_params: PyTree
  key: jax.Array
  loss_params: PyTree = ()
  averages: tuple[PyTree, ...] = ()
  model_state: PyTree = ()
  ema_model_state: PyTree = ()


@checks.door(least=dict(averages=0))
def init_state(
  key: jax.Array,
  params: PyTree,
  optimizer: optax.GradientTransformation,
  *,
  loss_params: PyTree = (),
  averages: int = 0,
  model_state: PyTree = (),
) -> TrainState:
  """Returns the state before the first update.

  Everything is copied, since the state is donated to the update: the caller's
  key and params stay valid.

  Args:
    key: PRNG key of the run.
    params: initial parameters.
    optimizer: the one that `make_update` is given.
    loss_params: initial parameters of the loss, if it has any.
    averages: how many averages are kept beside `ema_params`.
    model_state: `state` of the Denoiser, which an update with batch statistics
      carries; None and () are nothing.
  """
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    data = jnp.copy(jax.random.key_data(key))
    key = jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(key)))
  else:
    key = jnp.copy(key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=copied(params),
    # its averages of gradients as well are float32 or wider
    opt_state=copied(optimizer.init(ema.start(trained(params, loss_params)))),
    ema_params=copied(ema.start(params)),
    key=key,
    loss_params=copied(loss_params),
    averages=tuple(copied(ema.start(params)) for _ in range(averages)),
    model_state=copied(() if model_state is None else model_state),
    ema_model_state=copied(
      ema.start(() if model_state is None else model_state)
    ),
  )


def finished(model: Model, state: TrainState, *, ema: bool = True) -> Any:
  """Returns the model as it is after training, ready to sample.

  Args:
    model: the Denoiser that was trained.
    state: state of the run.
    ema: the averaged parameters and statistics rather than the last ones.
  """
  if not jax.tree.leaves(state.model_state):
    params = state.ema_params if ema else state.params
    return modules.with_params(model, params)
  own = (state.params, state.model_state)
  mean = (state.ema_params, state.ema_model_state)
  return modules.with_params(model, modules.Variables(*(mean if ema else own)))


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


def called_with(moved: PyTree, state: TrainState) -> PyTree:
  """Returns what the loss is called with: `moved`, and the model's state.

  Args:
    moved: as `trained` returns it.
    state: whose `model_state` is added, if it has any.
  """
  if not jax.tree.leaves(state.model_state):
    return moved
  if jax.tree.leaves(state.loss_params):
    params, loss_params = moved
    return modules.Variables(params, state.model_state), loss_params
  return modules.Variables(moved, state.model_state)


def left_by(metrics: dict, state: TrainState) -> tuple[dict, PyTree]:
  """Returns (metrics without it, the model's state that a loss left).

  Raises:
    ValueError: if the loss left one and the state has no place for it, or the
      other way round, or it is another one.
  """
  metrics = dict(metrics)
  after = metrics.pop(modules.STATE, None)
  held = state.model_state
  if after is None and jax.tree.leaves(held):
    raise ValueError(
      "the training state carries a model_state, but the loss returned none:"
      f" put the state after its call into metrics[{modules.STATE!r}] (of"
      " model.stateful(x, t, key=key), as losses.denoising does), or make the"
      " training state without model_state, and the statistics stay as they are"
    )
  if after is None:
    return metrics, held
  if not jax.tree.leaves(held):
    raise ValueError(
      "the network updates a state beside its parameters (batch statistics),"
      " for which the training state has no place; make it with"
      " init_state(..., model_state=model.state), or leave the statistics as"
      " they are with losses.denoising(..., update_state=False)"
    )
  checks.same_structure(
    after, held, "the model_state that the loss returned", "the training state"
  )
  cast = lambda new, old: (
    new if new.dtype == old.dtype else new.astype(old.dtype)
  )
  return metrics, jax.tree.map(cast, after, held)

r"""One update of training as one jitted function with donated state.

  g = grad loss(fold_in(key, step), params, batch), clipped to a global norm
  params <- project(params + optimizer(g))
  averages <- as `ema` has them

The key of an update depends on the run's key and the step alone, so that a
resumed run repeats it exactly. With `accumulate` = n the batch is cut into n
parts, part i with fold_in(fold_in(key, step), i), whose gradients are averaged:
a batch n times larger in the memory of one part.

A network with a state (batch statistics) is normalized by its batch, or part of
a batch; the loss is called with `modules.Variables` in place of the parameters
and leaves the new state in its metrics, under "model_state". On a mesh the
batch is the global one.

The state may lie on a mesh and the batch be split over it, on axes of any kind.
Inside `shard_map` the gradient and the metrics are those of the whole batch, of
which every device has a part; inside `pmap`, whose axis no type tells of, they
are if the axis is named. A loss of one's own draws for the whole batch there as
well, by `control.own_rows` or by indices: one key is on all devices. A part is
normalized by itself there, and the statistics kept are the devices' means.

An update whose loss or gradient is not finite changes nothing but the step, and
says so in the metrics "skipped" and "fault".
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff.training import averaging
from jaxdiff.training import ema as emas
from jaxdiff.training import state as states
from jaxdiff.training.state import TrainState
from jaxdiff.types import Model
from jaxdiff.types import PyTree

Loss = Callable[[jax.Array, PyTree, Any], tuple[jax.Array, dict]]
Update = Callable[[TrainState, Any], tuple[TrainState, dict]]


@checks.door
def make_update(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  *,
  ema: float | emas.Profile = 0.999,
  ema_warmup: bool = True,
  averages: tuple[emas.Profile, ...] = (),
  clip_norm: float | None = 1.0,
  accumulate: int = 1,
  project: Callable[[PyTree], PyTree] | None = None,
  shardings: tuple[PyTree, PyTree] | None = None,
  axis_name: str | None = None,
) -> Update:
  """Returns update(state, batch) -> (state, metrics), jitted, state donated.

  The state that goes in cannot be used again. Metrics are those of the loss,
  and "loss", "grad_norm" (before clipping), "param_norm", "skipped" (1 where
  the loss or a gradient was not finite) and "fault" i32[3]: the first sample of
  the batch that is not finite, the first leaf whose gradient is not (-1 if
  there is none), and the number of such leaves.

  Args:
    loss: loss(key, params, batch) -> (scalar, metrics); params is the pair
      (params, loss_params) if the state has parameters of the loss, and params
      in it `modules.Variables(params, state)` if it has a model_state.
    optimizer: any optax transformation.
    ema: decay of the average per update, in [0, 1), 0 copies the parameters;
      or a profile of `ema`.
    ema_warmup: let the decay grow to `ema`.
    averages: profiles of `state.averages`, for averages chosen afterwards.
    clip_norm: largest global norm of the gradient; None does not clip.
    accumulate: parts into which a batch is cut.
    project: applied to the parameters after every update, as in
      `networks.edm2.normalize`.
    shardings: (of the state, of the batch) on a mesh; None leaves everything
      where it is.
    axis_name: axis that the batch is split over inside `pmap`, or `shard_map`
      with check_vma=False; without it every device trains by itself there.

  Raises:
    ValueError: if ema is outside [0, 1), clip_norm is not positive, or
      accumulate is below 1; in the update, if the batch does not fall into
      equal parts, the state does not have these averages, or it and the loss
      disagree on whether there is a model_state.
  """
  profile = ema if callable(ema) else emas.exponential(ema, ema_warmup)
  if clip_norm is not None and not clip_norm > 0:
    raise ValueError(
      f"clip_norm must be positive, got {clip_norm}; None does not clip"
    )
  if accumulate < 1:
    raise ValueError(
      f"accumulate is the number of parts of a batch, at least 1, got"
      f" {accumulate}"
    )
  rules = _Rules(
    loss,
    optimizer,
    profile,
    tuple(averages),
    clip_norm,
    accumulate,
    project,
    axis_name,
  )

  def update(state: TrainState, batch: PyTree) -> tuple[TrainState, dict]:
    step = functools.partial(_step, rules)
    return control.automatic(step, state, batch, batch=batch, like=(state,))

  if shardings is None:
    return jax.jit(update, donate_argnums=0)
  state_sharding, batch_sharding = shardings
  return jax.jit(
    update,
    donate_argnums=0,
    in_shardings=(state_sharding, batch_sharding),
    out_shardings=(state_sharding, None),
  )


class _Rules(NamedTuple):
  """What stays the same from update to update; see `make_update`."""

  loss: Loss
  optimizer: optax.GradientTransformation
  profile: emas.Profile
  averages: tuple[emas.Profile, ...]
  clip_norm: float | None
  accumulate: int
  project: Callable[[PyTree], PyTree] | None
  axis_name: str | None


def _step(
  rules: _Rules, state: TrainState, batch: PyTree
) -> tuple[TrainState, dict]:
  """Returns (state, metrics) after one update, or one that is skipped."""
  states.check_averages(state, rules.averages)
  # the gradient, of the whole batch also where devices have a part of it
  old = states.trained(state.params, state.loss_params)
  axes = control.split_axes(batch, old, rules.axis_name)
  key = jax.random.fold_in(state.key, state.step)
  with control.batch_over(rules.axis_name):
    value, metrics, model_state, grads = _gradient(
      rules.loss, key, control.vary(old, axes), state, batch, rules.accumulate
    )
  value, metrics, grads = whole(value, metrics, grads, axes)
  model_state = _whole_state(model_state, axes)
  squares = jnp.stack([square(g) for g in jax.tree.leaves(grads)])
  grad_norm = jnp.sqrt(jnp.sum(squares))
  # what it moves
  if rules.clip_norm is not None:
    clip = optax.clip_by_global_norm(rules.clip_norm)
    grads, _ = clip.update(grads, clip.init(old))
  after, moved_by = _moved(rules, state, grads, model_state)
  # unless a number is not finite: then only the step counts on
  finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
  finite &= jnp.isfinite(moved_by)  # the optimizer's own numbers, its rate
  keep = lambda new, old: jnp.where(finite, new, old)
  after = jax.tree.map(
    keep, after._replace(key=()), state._replace(key=())
  )._replace(step=state.step + 1, key=state.key)
  metrics = metrics | dict(
    loss=value,
    grad_norm=grad_norm,
    param_norm=jnp.sqrt(sum(map(square, jax.tree.leaves(after.params)))),
    skipped=1.0 - finite.astype(jnp.float32),
    fault=fault(batch, squares, axes),
  )
  return after, metrics


def _moved(
  rules: _Rules, state: TrainState, grads: PyTree, model_state: PyTree
) -> tuple[TrainState, jax.Array]:
  """Returns (state, squared norm of the change) after the optimizer's step.

  Args:
    rules: the update's.
    state: the state before.
    grads: the gradient that the optimizer is given.
    model_state: the model's state after this batch.
  """
  old = states.trained(state.params, state.loss_params)
  changes, opt_state = rules.optimizer.update(grads, state.opt_state, old)
  new = optax.apply_updates(old, changes)
  # without parameters of the loss the trained ones are the network's alone
  params, loss_params = new if old is not state.params else (new, ())
  if rules.project is not None:
    params = rules.project(params)
  k = state.step.astype(jnp.float32) + 1.0
  after = state._replace(
    params=params,
    opt_state=opt_state,
    ema_params=emas.average(rules.profile, k, state.ema_params, params),
    loss_params=loss_params,
    averages=tuple(
      emas.average(p, k, mean, params)
      for p, mean in zip(rules.averages, state.averages)
    ),
    model_state=model_state,
    ema_model_state=_average_state(
      rules.profile, k, state.ema_model_state, model_state
    ),
  )
  return after, sum(map(square, jax.tree.leaves(changes)))


def projection(denoiser: Model) -> Callable[[PyTree], PyTree] | None:
  """Returns how a network's parameters are brought back after an update.

  A Linen module may have a static method `project(params) -> params`, as the
  magnitude-preserving `networks.EDM2` has; others need none.
  """
  return getattr(getattr(denoiser.apply, "module", None), "project", None)


def _average_state(profile, k, old, new):
  """Returns the average of a model's state: of its numbers, not of counters."""
  real = lambda v: jnp.issubdtype(v.dtype, jnp.inexact)
  return jax.tree.map(
    lambda a, v: emas.average(profile, k, a, v) if real(v) else v, old, new
  )


def _whole_state(state, axes):
  """Returns a model's state of all devices: means of numbers, last counters."""
  if not axes:
    return state
  real = lambda v: jnp.issubdtype(v.dtype, jnp.inexact)
  last = lambda v: jax.lax.pmax(control.vary(v, axes), axes)
  return jax.tree.map(
    lambda v: control.mean_over(v, axes) if real(v) else last(v), state
  )


def whole(
  value: jax.Array, metrics: dict, grads: PyTree, axes: tuple[str, ...]
) -> tuple[jax.Array, dict, PyTree]:
  """Returns (value, metrics, gradient) of a batch of which each has a part.

  Args:
    value: the loss of this device's part.
    metrics: metrics of it.
    grads: its gradient.
    axes: axes of the mesh, that the batch is split over; () leaves all as it
      is.
  """
  if not axes:
    return value, metrics, grads
  value, grads = control.mean_over((value, grads), axes)
  parts = control.gathered(metrics, axes)
  metrics = averaging.merge(parts, empty=0.0)
  metrics |= {k: v.sum(0) for k, v in parts.items() if k.endswith("_count")}
  return value, metrics, grads


def _gradient(
  loss: Loss,
  key: jax.Array,
  params: PyTree,
  state: TrainState,
  batch: PyTree,
  parts: int,
) -> tuple[jax.Array, dict, PyTree, PyTree]:
  """Returns (value, metrics, model_state, gradient), means over the parts.

  A model's state goes from part to part. The gradient is in float32 or wider,
  as what the optimizer remembers of it is.
  """

  def grad(key, model_state, part):
    held = state._replace(model_state=model_state)
    (value, metrics), grads = jax.value_and_grad(
      lambda p: loss(key, states.called_with(p, held), part), has_aux=True
    )(params)
    metrics, model_state = states.left_by(metrics, held)
    return value, metrics, model_state, emas.start(grads)

  if parts == 1:
    return grad(key, state.model_state, batch)

  def cut(leaf):
    n = leaf.shape[0]
    if n % parts:
      raise ValueError(
        f"a batch of {n} cannot be cut into accumulate={parts} equal parts;"
        f" choose a batch size that is a multiple of {parts}"
      )
    # every n-th row, not runs of rows: each device keeps the rows it has
    return leaf.reshape(n // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)

  def add(carry, part):
    total, model_state = carry
    i, rows = part
    value, metrics, model_state, grads = grad(
      jax.random.fold_in(key, i), model_state, rows
    )
    wide = lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32))
    total = jax.tree.map(lambda t, g: t + wide(g) / parts, total, grads)
    return (total, model_state), (value, metrics)

  zero = jax.tree.map(
    lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)),
    params,
  )
  cuts = jax.tree.map(cut, batch)
  (grads, model_state), (values, metrics) = control.scan(
    add,
    (zero, state.model_state),
    (jnp.arange(parts, dtype=jnp.int32), cuts),
  )
  metrics = averaging.merge(metrics, empty=0.0)
  return jnp.mean(values), metrics, model_state, grads


def fault(
  batch: PyTree, squares: jax.Array, axes: tuple[str, ...] = ()
) -> jax.Array:
  """Returns (first bad sample, first bad leaf, number of bad leaves), i32[3].

  Args:
    batch: whose samples are looked at.
    squares: f[leaves], the squared norm of every leaf of the gradient.
    axes: axes of the mesh, that the batch is split over.
  """
  rows = [
    ~jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1)
    for leaf in jax.tree.leaves(batch)
    if jnp.ndim(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  first = lambda bad: jnp.where(bad.any(), jnp.argmax(bad), -1)
  row = first(sum(rows) > 0) if rows else jnp.asarray(-1)
  if axes:
    at, parts = control.part(axes)
    size = jax.tree.leaves(batch)[0].shape[0]
    none = parts * size
    row = jnp.where(row < 0, none, row + at * size)
    row = jax.lax.pmin(control.vary(row, axes), axes)
    row = jnp.where(row == none, -1, row)
  bad = ~jnp.isfinite(squares)
  return jnp.stack([row, first(bad), bad.sum()]).astype(jnp.int32)


def square(v: jax.Array) -> jax.Array:
  """Returns the squared norm of an array, in float32 or wider."""
  return jnp.sum(jnp.square(v.astype(jnp.promote_types(v.dtype, jnp.float32))))

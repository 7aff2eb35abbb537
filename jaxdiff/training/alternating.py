r"""Alternating training: several networks in one jitted update.

  for each player, in their order:
    steps times:
      params <- params + optimizer(grad loss(key, params, nets, batch))
  averages of the main player's params

`nets` holds what a loss may look at beside the parameters that it trains: those
of all players as they are now, the main player's average, frozen models, the
step, and numbers remembered from update to update. Gradients reach the player's
own parameters alone: no stop_gradient is needed to keep them off the others'.

Five steps of a fake score and one of a generator are one jitted function with
donated state; the inner steps are a scan, so their number does not lengthen the
program (`Player.unroll` writes them out instead). Step j of player i draws from
fold_in(fold_in(fold_in(key, step), i), j). A step whose loss, gradient or
change by the optimizer is not finite moves nothing; averages and memory then
stand still too, and the update counts as skipped. (To take back the other
players' steps as well, their old parameters would have to be kept until the
last one has moved: as much memory again.)

The state is training's: `params` are the main player's, `loss_params` those of
the others, which end with the training, under their names, and "memory".
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdiff import control
from jaxdiff import modules
from jaxdiff import parallel
from jaxdiff import tree
from jaxdiff.training import averaging
from jaxdiff.training import ema as emas
from jaxdiff.training import state as states
from jaxdiff.training import update as updates
from jaxdiff.training.state import TrainState
from jaxdiff.types import PyTree

Nets = Mapping[str, Any]
Loss = Callable[[jax.Array, PyTree, Nets, Any], tuple[jax.Array, dict]]

MEMORY = "memory"
_RESERVED = ("ema", "step", MEMORY)


@dataclasses.dataclass(frozen=True)
class Player:
  """One network that is trained, and how.

  Attributes:
    loss: loss(key, params, nets, batch) -> (scalar, metrics).
    optimizer: any optax transformation; a schedule in it counts this player's
      own steps, `steps` of them in an update.
    steps: how often it moves in one update.
    clip_norm: largest global norm of its gradient; None does not clip.
    when: when(step) -> bool[], whether it moves in update `step` = 0, 1, ...;
      None is always.
    project: applied to its parameters after every step.
    unroll: whether the steps of an update are written out, one after another,
      in place of a loop. A loop compiles faster and needs less memory, but on
      a CPU XLA's gradients of convolutions are ten times slower inside of one;
      None writes out steps with convolutions on a CPU, and no others.
  """

  loss: Loss
  optimizer: optax.GradientTransformation
  steps: int = 1
  clip_norm: float | None = 1.0
  when: Callable[[jax.Array], jax.Array] | None = None
  project: Callable[[PyTree], PyTree] | None = None
  unroll: bool | None = None

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(
        f"a player makes at least one step in an update, got steps={self.steps}"
      )
    if self.clip_norm is not None and not self.clip_norm > 0:
      raise ValueError(
        f"clip_norm must be positive, got {self.clip_norm}; None does not clip"
      )


def init_state(
  key: jax.Array,
  players: Mapping[str, Player],
  params: Mapping[str, PyTree],
  *,
  main: str = "student",
  memory: Mapping[str, Any] | None = None,
  averages: int = 0,
) -> TrainState:
  """Returns the state before the first update; everything is copied.

  Args:
    key: PRNG key of the run.
    players: those that `make_update` is given.
    params: initial parameters of each of them.
    main: the player whose parameters are averaged and kept.
    memory: numbers that are remembered from update to update, if any.
    averages: how many averages are kept beside `ema_params`.

  Raises:
    ValueError: if players and parameters have other names.
  """
  _check(players, params, main)
  others = {name: params[name] for name in players if name != main}
  if memory:
    others[MEMORY] = dict(memory)
  state = states.init_state(
    key,
    params[main],
    optax.identity(),
    loss_params=others,
    averages=averages,
  )
  opt_state = {
    n: p.optimizer.init(emas.start(params[n])) for n, p in players.items()
  }
  return state._replace(opt_state=states.copied(opt_state))


@dataclasses.dataclass(frozen=True)
class Update:
  """update(state, batch) -> (state, metrics), with the frozen models bound.

  Attributes:
    program: the jitted function of (frozen, state, batch); lower it to see what
      was compiled.
    frozen: the arrays of the frozen models: arguments, not constants.
    losses: names of the players' losses in the metrics, in the players' order:
      of several that are not finite the first one infected the others.
  """

  program: Any
  frozen: PyTree
  losses: tuple[str, ...] = ()

  def __call__(
    self, state: TrainState, batch: PyTree
  ) -> tuple[TrainState, dict]:
    return self.program(self.frozen, state, batch)

  def lower(self, state: TrainState, batch: PyTree) -> Any:
    """Returns the lowered program."""
    return self.program.lower(self.frozen, state, batch)


def make_update(
  players: Mapping[str, Player],
  *,
  frozen: Mapping[str, Any] | None = None,
  main: str = "student",
  ema: float | emas.Profile = 0.999,
  ema_warmup: bool = True,
  averages: tuple[emas.Profile, ...] = (),
  remember: Callable[[Mapping, dict, Nets], Mapping] | None = None,
  prepare: Callable[[Any], Any] | None = None,
  shardings: tuple[PyTree, PyTree] | None = None,
  axis_name: str | None = None,
) -> Update:
  """Returns update(state, batch) -> (state, metrics), jitted, state donated.

  Metrics are those of the losses, each under "NAME/" of its player but for the
  main player's, and "loss", "grad_norm" likewise (means over inner steps); of a
  player that may rest also "moved", 0 where it did, and then the others are 0.
  "param_norm", "skipped" and "fault" as in `training.make_update`. A batch
  without "index" is given one, i32[batch], the numbers of its samples: noise
  drawn by it is laid out over the devices as the batch is.

  Args:
    players: by name, in the order in which they move.
    frozen: models and parameters that are looked at alone: a teacher.
    main: the player whose parameters are averaged and kept.
    ema: decay of its average per update, or a profile of `ema`.
    ema_warmup: let the decay grow to `ema`.
    averages: profiles of `state.averages`.
    remember: remember(memory, metrics, nets) -> memory, after the players.
    prepare: prepare(batch) -> batch, on the device before anything else.
    shardings: (of the state, of the batch) on a mesh. If the state is split,
      so are the frozen models, and whatever a loss looks at is gathered for it:
      the batch stays split.
    axis_name: as in `training.make_update`, for `pmap`.

  Raises:
    ValueError: for a name that is taken; if `ema` is outside [0, 1); in the
      update, if the state does not have these averages, or `remember` returns
      other numbers than it was given.
  """
  frozen = dict(frozen or {})
  _check_names(players, frozen)
  _check(players, players, main)
  # A teacher may be a plain function, or hold one beside its arrays.
  arrays, static = tree.partition(frozen)
  everywhere = None
  if shardings is not None:
    everywhere = parallel.replicated(shardings[1].mesh)
  rules = _Rules(
    players=dict(players),
    static=static,
    main=main,
    profile=ema if callable(ema) else emas.exponential(ema, ema_warmup),
    averages=tuple(averages),
    remember=remember,
    prepare=prepare,
    batch_sharding=None if shardings is None else shardings[1],
    everywhere=everywhere,
    axis_name=axis_name,
  )

  def update(arrays, state: TrainState, batch) -> tuple[TrainState, dict]:
    with control.batch_over(axis_name):
      return control.automatic(
        functools.partial(_moved, rules),
        arrays,
        state,
        batch,
        batch=batch,
        like=(state,),
      )

  losses = tuple(f"{rules.prefix(name)}loss" for name in players)
  if shardings is None:
    # once, not at every update: they may lie in the host's memory
    return Update(
      jax.jit(update, donate_argnums=1), jax.device_put(arrays), losses
    )
  state_sharding, batch_sharding = shardings
  program = jax.jit(
    update,
    donate_argnums=1,
    in_shardings=(None, state_sharding, batch_sharding),
    out_shardings=(state_sharding, None),
  )
  return Update(program, _laid_out(arrays, rules, state_sharding), losses)


def _laid_out(arrays, rules, state_sharding):
  """Returns the frozen arrays split as the state is, or everywhere."""
  layout = rules.everywhere
  if not all(s.is_fully_replicated for s in jax.tree.leaves(state_sharding)):
    shapes = jax.eval_shape(lambda: arrays)
    layout = parallel.fully_sharded(shapes, rules.batch_sharding.mesh)
  return jax.device_put(arrays, layout)


class _Rules(NamedTuple):
  """What an update does not change: the arguments of `make_update`."""

  players: dict[str, Player]
  static: PyTree
  main: str
  profile: emas.Profile
  averages: tuple[emas.Profile, ...]
  remember: Callable | None
  prepare: Callable | None
  batch_sharding: Any
  everywhere: Any
  axis_name: str | None

  def prefix(self, name: str) -> str:
    """Returns what a player's metrics begin with."""
    return "" if name == self.main else f"{name}/"

  def gather(self, arrays: PyTree) -> PyTree:
    """Returns arrays copied to every device of the mesh, if there is one."""
    if self.everywhere is None:
      return arrays
    return control.constrain(arrays, self.everywhere)


class _Table(NamedTuple):
  """What the players have before them, and change in their turns."""

  params: dict[str, PyTree]
  opt_state: dict[str, PyTree]
  memory: Mapping
  metrics: dict[str, jax.Array]
  squares: dict[str, PyTree]
  finite: jax.Array


def _moved(
  rules: _Rules, arrays: PyTree, state: TrainState, batch: PyTree
) -> tuple[TrainState, dict]:
  """One update: every player in its turn, then memory, then averages."""
  states.check_averages(state, rules.averages)
  frozen = tree.combine(rules.gather(arrays), rules.static)
  batch = batch if rules.prepare is None else rules.prepare(batch)
  batch = _numbered(batch, rules.batch_sharding)
  key = jax.random.fold_in(state.key, state.step)
  axes = control.split_axes(batch, state.params, rules.axis_name)

  table = _laid(rules, state)
  for i, name in enumerate(rules.players):
    nets = _nets(rules, frozen, table, state)
    own = jax.random.fold_in(key, i)
    table = _turn(rules, name, own, table, nets, batch, state.step, axes)
  if rules.remember is not None:
    nets = _nets(rules, frozen, table, state)
    said = rules.remember(table.memory, table.metrics, nets)
    said = _remembered(table.memory, said)
    memory = _where(table.finite, said, table.memory)
    table = table._replace(memory=memory)

  after = _after(rules, table, state)
  leaves = jax.tree.leaves(_squares(rules, table, state))
  metrics = table.metrics | dict(
    param_norm=optax.tree.norm(after.params),
    skipped=1.0 - table.finite.astype(jnp.float32),
    fault=updates.fault(batch, jnp.stack(leaves), axes),
  )
  return after, metrics


def _laid(rules, state):
  """Returns the table before the first player's turn."""
  others = dict(state.loss_params or {})
  memory = others.pop(MEMORY, {})
  return _Table(
    params={rules.main: state.params} | others,
    opt_state=dict(state.opt_state),
    memory=memory,
    metrics={},
    squares={},
    finite=jnp.asarray(True),
  )


def _nets(rules, frozen, table, state):
  """Returns what a loss may look at, as it is now."""
  return {
    **frozen,
    **rules.gather(table.params),
    "ema": rules.gather(emas.parameters(state.ema_params, state.params)),
    "step": state.step,
    MEMORY: table.memory,
  }


def _turn(rules, name, key, table, nets, batch, step, axes):
  """Returns the table after the turn of the player `name`."""
  own, slots, said, squares, spoiled = _play(
    rules.players[name],
    key,
    table.params[name],
    table.opt_state[name],
    nets,
    batch,
    step,
    rules.gather,
    axes,
  )
  prefix = rules.prefix(name)
  return table._replace(
    params=table.params | {name: own},
    opt_state=table.opt_state | {name: slots},
    metrics=table.metrics | {f"{prefix}{k}": v for k, v in said.items()},
    squares=table.squares | {name: squares},
    finite=table.finite & (spoiled == 0),
  )


def _after(rules, table, state):
  """Returns the state after the update; averages stand still at a fault."""
  others = _others(state, table.params)
  if table.memory:
    others[MEMORY] = table.memory
  k = state.step.astype(jnp.float32) + 1.0
  mean = lambda profile, old: _where(
    table.finite,
    emas.average(profile, k, old, table.params[rules.main]),
    old,
  )
  return state._replace(
    step=state.step + 1,
    params=table.params[rules.main],
    opt_state=table.opt_state,
    ema_params=mean(rules.profile, state.ema_params),
    loss_params=others if others else state.loss_params,
    averages=tuple(map(mean, rules.averages, state.averages)),
  )


def _squares(rules, table, state):
  """Returns the squared gradients in the order of the trained parameters."""
  rest = _others(state, table.squares)
  if table.memory:
    rest[MEMORY] = jax.tree.map(lambda v: jnp.zeros(()), table.memory)
  return states.trained(table.squares[rules.main], rest)


def _others(state, found):
  """Returns the entries of the players beside the main one."""
  return {n: found[n] for n in state.loss_params or {} if n != MEMORY}


def _play(player, key, params, opt_state, nets, batch, step, gather, axes):
  """Plays one player's steps.

  Returns:
    (params, opt_state, metrics, squared gradients, steps that moved nothing
    because a number was not finite).
  """
  move = functools.partial(_move, player, key, nets, batch, gather, axes)
  play = functools.partial(_steps, player, move)
  carry = (params, opt_state)
  if player.when is None:
    (params, opt_state), (said, squares, spoiled) = play(carry)
    return params, opt_state, said, squares, spoiled

  def rest(carry):
    _, kept = jax.eval_shape(play, carry)
    return carry, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), kept)

  moves = jnp.asarray(player.when(step), bool)
  (params, opt_state), kept = control.cond(moves, play, rest, carry)
  said, squares, spoiled = kept
  said = said | dict(moved=moves.astype(jnp.float32))
  return params, opt_state, said, squares, spoiled


def _move(player, key, nets, batch, gather, axes, carry, j):
  """Step j: ((params, opt_state), (metrics, squares, 1 if it is spoiled))."""
  params, opt_state = carry
  own = jax.random.fold_in(key, j)
  (value, said), grads = jax.value_and_grad(
    lambda p: player.loss(own, gather(p), nets, batch), has_aux=True
  )(control.vary(params, axes))
  _no_model_state(said)
  value, said, grads = updates.whole(value, said, grads, axes)
  grads = emas.start(grads)  # as wide as what the optimizer remembers
  squares = jax.tree.map(updates.square, grads)
  norm = jnp.sqrt(sum(jax.tree.leaves(squares)))
  if player.clip_norm is not None:
    clip = optax.clip_by_global_norm(player.clip_norm)
    grads, _ = clip.update(grads, clip.init(params))
  changes, slots = player.optimizer.update(grads, opt_state, params)
  new = optax.apply_updates(params, changes)
  if player.project is not None:
    new = player.project(new)
  finite = jnp.isfinite(value) & jnp.isfinite(norm)
  moved_by = sum(map(updates.square, jax.tree.leaves(changes)))
  finite &= jnp.isfinite(moved_by)  # the optimizer's own numbers, too
  after = _where(finite, (new, slots), (params, opt_state))
  spoiled = 1.0 - finite.astype(jnp.float32)
  return after, (said | dict(loss=value, grad_norm=norm), squares, spoiled)


def _steps(player, move, carry):
  """All steps: (carry, (mean metrics, summed squares, steps spoiled))."""
  if player.steps == 1:  # the commonest case, without a loop around it
    return move(carry, 0)
  if _unrolled(player, move, carry):
    kept = []
    for j in range(player.steps):
      carry, of_one = move(carry, j)
      kept.append(of_one)
    kept = jax.tree.map(lambda *v: jnp.stack(v), *kept)
  else:
    steps = jnp.arange(player.steps, dtype=jnp.int32)
    carry, kept = control.scan(move, carry, steps)
  said, squares, spoiled = kept
  return carry, (
    averaging.merge(said, empty=0.0),
    jax.tree.map(jnp.sum, squares),
    spoiled.sum(),
  )


def _unrolled(player, move, carry):
  """Returns whether a player's steps are written out: see `Player.unroll`."""
  if player.unroll is not None:
    return player.unroll
  if jax.default_backend() != "cpu":
    return False
  return "conv_general_dilated" in control.called(move, carry, 0)


def _no_model_state(metrics):
  """Refuses a loss that leaves new batch statistics: none are carried here."""
  if modules.STATE in metrics:
    raise ValueError(
      f"a player's loss returned {modules.STATE!r}: networks that train one"
      " another see several laws (data, noise, samples), whose batch statistics"
      " would be a mixture of theirs; keep the running ones, as"
      " losses.denoising(..., update_state=False) does"
    )


def _where(condition, new, old):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _remembered(old, new):
  """Returns what is remembered; refuses what the state has no place for."""
  new = dict(new)
  shapes = lambda tree: {
    jax.tree_util.keystr(path): f"{jnp.result_type(v)}{list(jnp.shape(v))}"
    for path, v in jax.tree_util.tree_leaves_with_path(tree)
  }
  given, returned = shapes(dict(old)), shapes(new)
  if given != returned:
    raise ValueError(
      f"remember returned {returned or 'nothing'}, but the state has"
      f" {given or 'nothing'}; begin with as many numbers, of the same dtypes,"
      " in memory="
    )
  return new


def _numbered(batch, sharding):
  """Returns the batch with an "index", laid out as the batch is."""
  if not isinstance(batch, dict) or "index" in batch or not batch:
    return batch
  index = control.numbers(batch)
  if sharding is not None:
    index = control.constrain(index, sharding)
  return batch | dict(index=index)


def _check_names(players, frozen):
  taken = [n for n in (*frozen, *players) if n in _RESERVED]
  taken += [n for n in frozen if n in players]
  if taken:
    raise ValueError(
      f"{', '.join(map(repr, taken))} cannot name a player or a frozen model:"
      f" {', '.join(map(repr, _RESERVED))} are what losses find beside them,"
      " and every name is given once"
    )


def _check(players, params, main):
  if main not in players or set(players) != set(params):
    raise ValueError(
      f"an update trains the players {', '.join(map(repr, players))}, of which"
      f" {main!r} is to be the main one, but parameters are given of"
      f" {', '.join(map(repr, params)) or 'none'}; give every player its own"
    )

"""Flax modules as functions of parameters and state.

A network is `params`, which are trained, and `state`, which is not: batch
statistics, buffers, counters. As a function it is

  apply(params, x, c[, label])                      -> output
  apply(params, x, c[, label], state=state)         -> (output, state)

and with key=key either is a call of training: dropout is active, and batch
statistics are those of the batch, with the new running ones in the state that
is returned. Without a key it is one of sampling, whatever mode the module was
left in: no dropout, running statistics, the state as it was. All randomness
comes from the key; no counter advances unseen.

A module's call is told the mode by the arguments that it has: `deterministic`,
`use_running_average`, `train`, `training`, `is_training`, and by `rngs`
(`nnx.Rngs`; NNX alone).
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff.types import Model
from jaxdiff.types import PyTree

STATE = "model_state"  # where a loss's metrics have the state that it leaves

# arguments that say the mode, and their value in training
_MODES = {
  "deterministic": False,
  "use_running_average": False,
  "train": True,
  "training": True,
  "is_training": True,
}


class Variables(NamedTuple):
  """Parameters and state; what a loss is called with if there is a state."""

  params: PyTree
  state: PyTree


def with_params(model: Model, params: PyTree) -> Any:
  """Returns the model with other parameters.

  Args:
    model: a Denoiser, or any dataclass with `params`.
    params: the parameters, or `Variables`, whose state is taken as well.
  """
  if isinstance(params, Variables):
    return dataclasses.replace(model, params=params.params, state=params.state)
  return dataclasses.replace(model, params=params)


def trains(model: Model) -> bool:
  """Returns whether a call of training, with a key, differs from another."""
  if getattr(model, "state", None) is not None:
    return True
  return getattr(model.apply, "trains", False)


def changed(before: PyTree, after: PyTree) -> bool:
  """Returns whether a call set any leaf of a network's state."""
  pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after))
  return any(old is not new for old, new in pairs)


def without_state(model: Model, what: str) -> None:
  """Raises a ValueError if a network has a state where none is carried."""
  if getattr(model, "state", None) is not None:
    names = [
      jax.tree_util.keystr(path, simple=True, separator="/")
      for path, _ in jax.tree_util.tree_leaves_with_path(model.state)
    ]
    raise ValueError(
      f"{what} takes a network of parameters alone, but this one has a state"
      f" beside them ({', '.join(names[:3])}, {len(names)} leaves); fold batch"
      " statistics into the layer before them, or use a network without"
    )


@dataclasses.dataclass(frozen=True)
class LinenApply:
  """module.apply as a function that equals itself when the modules do."""

  module: Any

  @property
  def trains(self) -> bool:
    """Whether a call with a key differs from one without."""
    return bool(self.mode(True))

  def __call__(
    self,
    params: PyTree,
    *args: Any,
    state: PyTree = None,
    key: jax.Array | None = None,
    **options: Any,
  ) -> Any:
    """Returns output, or (output, state) if there is a state."""
    options = self.mode(key is not None) | options
    if key is not None:
      # names that are not given are drawn from "params"
      options["rngs"] = dict(dropout=key, params=jax.random.fold_in(key, 1))
    try:
      if state is None:
        return self.module.apply({"params": params}, *args, **options)
      mutable = [] if key is None else list(state)
      variables = {**state, "params": params}
      output, after = self.module.apply(
        variables, *args, mutable=mutable, **options
      )
    except Exception as e:
      self._explain(e, params, args)
      raise
    return output, {**state, **after}

  def mode(self, training: bool) -> dict[str, bool]:
    """Returns the arguments that tell the module's call its mode."""
    call = type(self.module).__call__
    told = _mode(call, training)
    if training and not told and _takes_any(call):
      told = dict(deterministic=False)  # which it hands on
    return told

  def _explain(self, error: Exception, params: PyTree, args: tuple) -> None:
    """Raises what is to be done about an error of Flax's."""
    from flax import errors

    name = type(self.module).__name__
    if isinstance(
      error, (errors.ScopeParamNotFoundError, errors.ScopeParamShapeError)
    ):
      try:
        made = jax.eval_shape(self.module.init, jax.random.key(0), *args)
      except Exception:  # a module that wants more of init than we know
        raise ValueError(
          f"these are no parameters of {name}, or x has another shape than what"
          f" they were made for: {error}"
        ) from error
      checks.same_structure(params, made["params"], "params", "the network")
    if isinstance(error, errors.ScopeCollectionNotFound):
      raise ValueError(
        f"{name} has variables beside its parameters, which the model was not"
        " given: pass all that module.init returned, from_linen(module,"
        ' {"params": ..., "batch_stats": ...}, process), in place of the'
        ' "params" alone'
      ) from error
    if isinstance(
      error, (errors.InvalidRngError, errors.ModifyScopeVariableError)
    ):
      raise ValueError(
        f"{name} draws random numbers or updates its variables where it is"
        " asked for a sample, without a key: let its __call__ have an argument"
        " `train` (or `deterministic`), which is then False (True), and hand it"
        " to its Dropout and BatchNorm layers"
      ) from error


@dataclasses.dataclass(frozen=True)
class NnxApply:
  """The call of an NNX graph as a function of its parameters and state.

  Attributes:
    graph: nnx.GraphDef of the module.
    streams: structure of its random streams, and for each leaf whether it is a
      key, and its shape. Their values are not kept: in training they come from
      the key, in sampling, where hardly any network draws, from one fixed key.
    takes: names of the arguments of its call.
  """

  graph: Any
  streams: Any = None
  takes: frozenset[str] = frozenset()

  @property
  def trains(self) -> bool:
    """Whether a call with a key differs from one without."""
    return self.streams is not None or bool(self.takes & {*_MODES, "rngs"})

  def __call__(
    self,
    params: PyTree,
    *args: Any,
    state: PyTree = None,
    key: jax.Array | None = None,
    **options: Any,
  ) -> Any:
    """Returns output, or (output, state) if there is a state."""
    from flax import nnx

    training = key is not None
    key = _typed(key) if training else jax.random.key(0)
    # variables of its own, since a module changes them in place
    trees = [jax.tree.map(lambda v: v, t) for t in (params, state)]
    trees = [t for t in (*trees, self._streams(key)) if t is not None]
    module = nnx.merge(self.graph, *trees)
    module.train() if training else module.eval()
    call = type(module).__call__
    told = _mode(call, training)
    rngs = _arguments(call).get("rngs")
    if rngs and (training or rngs.default is inspect.Parameter.empty):
      told["rngs"] = nnx.Rngs(jax.random.fold_in(key, 1))
    output = module(*args, **(told | options))
    if state is None:
      return output
    return output, _like(state, _split(module)[3]) if training else state

  def _streams(self, key: jax.Array) -> PyTree:
    """Returns the random streams of a call, begun from its key."""
    if self.streams is None:
      return None
    structure, shapes = self.streams
    leaves = []
    for i, (is_key, shape) in enumerate(shapes):
      if is_key:
        own = jax.random.fold_in(jax.random.fold_in(key, 0), i)
        leaves.append(jax.random.split(own, shape) if shape else own)
      else:
        leaves.append(jnp.zeros(shape, jnp.uint32))
    return jax.tree.unflatten(structure, leaves)


def of_linen(module: Any, variables: PyTree) -> tuple[Any, PyTree, PyTree]:
  """Returns (apply, params, state) of a Flax Linen module.

  Args:
    module: the module.
    variables: its "params" collection, or all that module.init returned.

  Raises:
    TypeError: for what is no module, or one that cannot be called as module(x,
      c) or module(x, c, label).
  """
  if isinstance(module, type) or not hasattr(module, "apply"):
    raise TypeError(
      f"from_linen takes a Linen module that was made, got {_named(module)};"
      " make it first, Net(...); NNX modules go to from_nnx, functions to"
      " from_function"
    )
  import flax

  call = type(module).__call__
  _check_call(call, _mode(call, False), type(module).__name__)
  if not (isinstance(variables, Mapping) and "params" in variables):
    return LinenApply(module), variables, None
  # plain dictionaries, as a call returns them
  rest = {
    name: flax.core.unfreeze(tree)
    for name, tree in variables.items()
    if name not in ("params", "intermediates") and jax.tree.leaves(tree)
  }
  return LinenApply(module), variables["params"], rest or None


def of_nnx(module: Any) -> tuple[NnxApply, PyTree, PyTree]:
  """Returns (apply, params, state) of a Flax NNX module, which stays as it is.

  Parameters are its `nnx.Param`s of real numbers; the state is every other
  variable and array but the random streams.

  Raises:
    TypeError: for what is no NNX module, or cannot be called as module(x, c) or
      module(x, c, label).
  """
  from flax import nnx

  if not isinstance(module, nnx.Module):
    raise TypeError(
      f"from_nnx takes an nnx.Module that was made, got {_named(module)}; make"
      " it first, Net(rngs=nnx.Rngs(0)); Linen modules go to from_linen,"
      " functions to from_function"
    )
  call = type(module).__call__
  told = _mode(call, False)
  takes = _arguments(call)
  if "rngs" in takes:
    told["rngs"] = None
  _check_call(call, told, type(module).__name__)
  graph, params, streams, state = _split(module)
  leaves, structure = jax.tree.flatten(streams)
  shapes = tuple((_is_key(leaf), leaf.shape) for leaf in leaves)
  copies = lambda t: jax.tree.map(lambda v: v, t)
  apply = NnxApply(
    graph, (structure, shapes) if leaves else None, frozenset(takes)
  )
  return (
    apply,
    copies(params),
    copies(state) if jax.tree.leaves(state) else None,
  )


def _named(module):
  """Returns how a message calls what is no module."""
  if isinstance(module, type):
    return f"the class {module.__name__}"
  return f"one of type {type(module).__name__}"


def _split(module):
  """Returns (graph, params, streams, state) of an NNX module."""
  from flax import nnx

  def trained(path, variable):
    del path
    return isinstance(variable, nnx.Param) and all(
      jnp.issubdtype(leaf.dtype, jnp.inexact)
      for leaf in jax.tree.leaves(variable)
    )

  return nnx.split(module, trained, nnx.RngState, ...)


def _like(state, after):
  """Returns the leaves of `after` that `state` has: not what a call sowed."""
  name = lambda path: jax.tree_util.keystr(path)
  found = {name(p): v for p, v in jax.tree_util.tree_leaves_with_path(after)}
  return jax.tree_util.tree_map_with_path(
    lambda path, old: found.get(name(path), old), state
  )


def _typed(key):
  """Returns a key as NNX's streams hold it."""
  return key if _is_key(key) else jax.random.wrap_key_data(key)


def _is_key(leaf):
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _arguments(call):
  """Returns the parameters of a call by name."""
  return dict(inspect.signature(call).parameters)


def _mode(call, training):
  """Returns the arguments that tell a call its mode."""
  takes = _arguments(call)
  return {
    name: value == training for name, value in _MODES.items() if name in takes
  }


def _takes_any(call):
  kinds = [p.kind for p in _arguments(call).values()]
  return inspect.Parameter.VAR_KEYWORD in kinds


def _check_call(call, told, name):
  """Raises a TypeError unless a module can be called with (x, c[, label])."""
  signature = inspect.signature(call)
  for args in (("self", "x", "c"), ("self", "x", "c", "label")):
    try:
      signature.bind(*args, **told)
    except TypeError:
      continue
    return
  raise TypeError(
    f"{name}.__call__{signature} cannot be called as a network is, module(x, c)"
    " or module(x, c, label), c being what it is told about the time; make a"
    f" module that holds the {name} and calls it with its own arguments, or use"
    " from_function"
  )

r"""Tableau: a solver as a table of numbers, one row for each network call.

State between calls: `y` (where the network is asked next), `a` (the anchor: the
last accepted sample) and `h` (the last K outputs, newest first). One row is one
call:

  y  <- y + noise[0] z0
  (x0, eps) = model(y, t)
  F  = output[0] x0 + output[1] eps
  h  <- (F, h_0, ..., h_{K-2})
  y' = state[0, 0] y + state[0, 1] a + history[0] . h + noise[1] z
  a' = state[1, 0] y + state[1, 1] a + history[1] . h + noise[2] z

After the last row `a` is the result. Between the rows it is the method's sample
at the time where the last step ended: a row inside a step leaves it as it is, a
row that ends one sets it to what is asked next (a' = y'), so that kept samples
have the time of the next call. Of a predictor-corrector that is the prediction:
its correction takes the next call, and is part of the next row
(`solvers.building.corrected`). A method that walks two samples, so as to be
undone exactly (`solvers.exact_inversion`), holds the one before or the other
one there, until its last row. Noise that a row draws before its call (churn,
Restart) it may accept with it. A step into sigma = 0 accepts alpha x0 of its
call, exactly: a value that never varies comes out as it is.

Tables are built on the host in float64 and hold nothing but numbers, so that
tables of one shape share one compiled program, stack under vmap, and can be
differentiated and searched. (Noise is drawn only where a scale is not 0, so the
gradient in a scale that is exactly 0 is 0.)

Times mean nothing without a process. A table carries the one that it was built
for beside its numbers (`under`), so that samplers can compare it with the
model's; transformations, which know numbers alone, lose it. A pickle keeps the
process, or where that cannot be pickled its noise levels at the calls.
"""

import copy
import json
import os
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import archives
from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff.processes import agreement
from jaxdiff.processes import describe
from jaxdiff.types import Array
from jaxdiff.types import PyTree

OUTPUTS = {"x0": (1.0, 0.0), "eps": (0.0, 1.0)}


class _Leaves(NamedTuple):
  """The numbers of a table; see `Tableau`."""

  t: Array
  output: Array
  state: Array
  history: Array
  noise: Array


class Tableau(_Leaves):
  """The coefficients of n network calls with a memory of K outputs.

  Leaves but t may carry trailing data dimensions that broadcast against a
  sample from the right (coefficients per dimension).

  Attributes:
    t: f64[n], the time at which each call is made.
    output: f64[n, 2], weights of (x0, eps) in the extrapolated F.
    state: f64[n, 2, 2], from (y, a) to (y', a').
    history: f64[n, 2, K], from the last K outputs, newest first.
    noise: f64[n, 3], scales of the noise before the call, in y' and in a'.
    process: the forward process that it was built for, or None if it is not
      known. It is no leaf and no part of the tree: what JAX returns has None.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.rectified_flow()
    >>> table = jd.heun(process, jd.grids.uniform(process, 4))
    >>> table.nfe, table.memory, table.stochastic
    (8, 2, False)
    >>> print(table.t.round(2))  # Heun asks at both ends of a step
    [1.   0.75 0.75 0.5  0.5  0.25 0.25 0.  ]
  """

  process = None

  def __reduce__(self):
    return _unpickled, (tuple(self), _to_pickle(self))

  def __copy__(self):
    return under(type(self)(*self), self.process)

  def __deepcopy__(self, memo):
    leaves = (copy.deepcopy(leaf, memo) for leaf in self)
    return under(type(self)(*leaves), self.process)

  def _replace(self, **leaves: Any) -> "Tableau":
    return under(super()._replace(**leaves), self.process)

  @property
  def nfe(self) -> int:
    """Number of network calls (rows), the padding included."""
    return self.t.shape[0]

  @property
  def memory(self) -> int:
    """K, the number of outputs that are kept."""
    return self.history.shape[2]

  @property
  def stochastic(self) -> bool:
    """Whether any row draws noise; needs concrete coefficients."""
    return bool(np.any(np.asarray(self.noise) != 0))

  @property
  def one_step(self) -> bool:
    """Whether every row ends a step (a = y) and none looks further back."""
    state, history = np.asarray(self.state), np.asarray(self.history)
    apart = (
      np.any(state[:, 0] != state[:, 1])
      or np.any(history[:, 0] != history[:, 1])
      or np.any(self.noise[:, 1] != self.noise[:, 2])
    )
    return not (apart or np.any(state[:, :, 1]) or np.any(history[:, :, 1:]))


def under(tableau: Tableau, process: Any) -> Tableau:
  """Returns the table as one that was built for `process`; None forgets it."""
  made = Tableau(*tableau)
  if process is not None:
    made.process = process
  return made


def _unpickled(leaves, process):
  return under(Tableau(*leaves), process)


def _to_pickle(table):
  """Returns the process, or what is known of it if it cannot be pickled."""
  try:
    pickle.dumps(table.process)
  except (pickle.PicklingError, AttributeError, TypeError):
    # functions of the user's own; a stack has no one time for each call
    return agreement.record(table) if np.ndim(table.t) == 1 else None
  return table.process


def common_process(tableaux: Sequence[Tableau], what: str) -> Any:
  """Returns the process of all tables that know theirs; None if none does.

  Args:
    tableaux: the tables.
    what: is made of them, for the message.

  Raises:
    ValueError: if two of them were built for processes with other noise levels
      at the same times, or noise of another law.
  """
  known = [t.process for t in tableaux if t.process is not None]
  # what a file tells is less than a process
  known.sort(key=lambda p: isinstance(p, agreement.Recorded))
  for other in known[1:]:
    whole = not isinstance(other, agreement.Recorded)
    apart = whole and known[0].noise != other.noise
    if apart or not agreement.same(known[0], other):
      raise ValueError(
        f"{what} of tables for different processes, {describe(known[0])} and"
        f" {describe(other)}: a call at one time would mean two noise levels;"
        " build them for one process, or move one with solvers.transfer"
      )
  return known[0] if known else None


@checks.door
def row(
  t: float,
  output: str | tuple[float, float],
  y: Sequence[float],
  a: Sequence[float] | None = None,
  noise: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Tableau:
  """Returns the table of a single call.

  Args:
    t: time of the call.
    output: the F that is remembered: "x0", "eps" or weights (of x0, of eps).
    y: (from y, from a, from h_0, from h_1, ...), the next place to ask.
    a: the same for the anchor; None makes it equal to y.
    noise: scales of the noise before the call, in y' and in a'.
  """
  a = y if a is None else a
  k = max(len(y), len(a)) - 2
  history = np.zeros((1, 2, max(k, 1)))
  history[0, 0, : len(y) - 2] = y[2:]
  history[0, 1, : len(a) - 2] = a[2:]
  return Tableau(
    t=np.asarray([t], np.float64),
    output=np.asarray([_weights(output)], np.float64),
    state=np.asarray([[y[:2], a[:2]]], np.float64),
    history=history,
    noise=np.asarray([noise], np.float64),
  )


@checks.door
def multistep(
  t: np.ndarray,
  output: str | np.ndarray,
  carry: np.ndarray,
  history: np.ndarray,
  noise: np.ndarray | float = 0.0,
) -> Tableau:
  """Returns the table of a method whose every call ends a step (a = y).

  Row i is y' = carry_i y + history_i . h + noise_i z.

  Args:
    t: f64[n].
    output: "x0", "eps" or weights f64[n, 2].
    carry: f64[n].
    history: f64[n, K].
    noise: f64[n] or a scalar.
  """
  t = np.asarray(t, np.float64)
  n = len(t)
  history = np.asarray(history, np.float64)
  state = np.zeros((n, 2, 2))
  state[:, :, 0] = np.broadcast_to(carry, (n,))[:, None]
  scales = np.zeros((n, 3))
  scales[:, 1:] = np.broadcast_to(noise, (n,))[:, None]
  return Tableau(
    t=t,
    output=np.broadcast_to(_weights(output), (n, 2)).astype(np.float64),
    state=state,
    history=np.stack([history, history], axis=1),
    noise=scales,
  )


@checks.door
def validate(tableau: Tableau) -> Tableau:
  """Returns the tableau after checking its shapes and that it is finite.

  Raises:
    ValueError: naming the leaf, its shape and the one expected.
  """
  n = np.shape(tableau.t)[0] if np.ndim(tableau.t) else 0
  if n == 0:
    raise ValueError(
      "a tableau needs at least one row, one network call; got t of shape"
      f" {np.shape(tableau.t)}"
    )
  memory = max([1, *np.shape(tableau.history)[2:3]])
  expected = {
    "t": (n,),
    "output": (n, 2),
    "state": (n, 2, 2),
    "history": (n, 2, memory),
    "noise": (n, 3),
  }
  for name, shape in expected.items():
    leaf = getattr(tableau, name)
    if np.shape(leaf)[: len(shape)] != shape:
      raise ValueError(
        f"tableau.{name} must have shape {shape} (and trailing data"
        f" dimensions, if any) for n = {n} calls, got {np.shape(leaf)}; a"
        " stack of tables runs under jax.vmap"
      )
    if isinstance(leaf, np.ndarray) and not np.isfinite(leaf).all():
      bad = np.argwhere(~np.isfinite(leaf))[0]
      raise ValueError(
        f"tableau.{name}{[int(i) for i in bad]} is"
        f" {leaf[tuple(bad)]}; row {int(bad[0])} of the solver divides by"
        " something that vanishes on this grid"
      )
  return tableau


@checks.door
def pad(
  tableau: Tableau, n: int | None = None, memory: int | None = None
) -> Tableau:
  """Returns the table with rows that change nothing and unused memory added.

  Padding rows cost network calls unless the run is given its `length`.

  Args:
    tableau: the table.
    n: rows to reach; None keeps them.
    memory: K to reach; None keeps it.

  Raises:
    ValueError: if the table already is larger than asked.
  """
  xp = numerics.namespace(*tableau)
  more = (tableau.nfe if n is None else n) - tableau.nfe
  deeper = (tableau.memory if memory is None else memory) - tableau.memory
  if more < 0 or deeper < 0:
    raise ValueError(
      f"cannot pad a tableau of {tableau.nfe} rows and memory"
      f" {tableau.memory} to {n} rows and memory {memory}; use take to"
      " shorten it"
    )

  def zeros(leaf, axis, count):
    if not count:
      return leaf
    shape = (*leaf.shape[:axis], count, *leaf.shape[axis + 1 :])
    return xp.concatenate([leaf, xp.zeros(shape, leaf.dtype)], axis)

  history = zeros(tableau.history, 2, deeper)
  if not more:  # one row after the other comes here when a table is built
    return tableau._replace(history=history)
  identity = np.eye(2, dtype=tableau.state.dtype)
  identity = identity.reshape((1, 2, 2) + (1,) * (tableau.state.ndim - 3))
  rest = xp.broadcast_to(identity, (more, *tableau.state.shape[1:]))
  return tableau._replace(
    t=xp.concatenate([tableau.t, xp.repeat(tableau.t[-1:], more, axis=0)]),
    output=zeros(tableau.output, 0, more),
    state=xp.concatenate([tableau.state, rest]),
    history=zeros(history, 0, more),
    noise=zeros(tableau.noise, 0, more),
  )


@checks.door
def stack(tableaux: Sequence[Tableau]) -> tuple[Tableau, np.ndarray]:
  """Returns one table with a leading axis over solvers, and their lengths.

  The tables are padded to the longest and deepest of them. Run slice i with
  `length=lengths[i]`, or all of them under vmap.

  Returns:
    (tableau, lengths): leaves with a leading axis of size m, and i32[m].
  """
  _check_tables("stack", tableaux)
  n = max(t.nfe for t in tableaux)
  memory = max(t.memory for t in tableaux)
  padded = _one_data_shape([pad(t, n, memory) for t in tableaux])
  xp = numerics.namespace(*padded[0])
  leaves = [xp.stack(leaf) for leaf in zip(*padded, strict=True)]
  stacked = under(Tableau(*leaves), common_process(tableaux, "a stack"))
  return stacked, np.asarray([t.nfe for t in tableaux], np.int32)


def concat(*tableaux: Tableau) -> Tableau:
  """Returns the tables one after the other; memory is carried across."""
  _check_tables("concat", tableaux)
  memory = max(t.memory for t in tableaux)
  deep = _one_data_shape([pad(t, memory=memory) for t in tableaux])
  xp = numerics.namespace(*deep[0])
  whole = Tableau(*(xp.concatenate(leaf) for leaf in zip(*deep, strict=True)))
  return under(whole, common_process(tableaux, "a concatenation"))


def _check_tables(name, tableaux):
  if isinstance(tableaux, Tableau):  # a tuple itself, of arrays
    raise TypeError(
      f"{name} takes a sequence of tables, got a single one; give [table]"
    )
  if not len(tableaux):
    raise ValueError(f"{name} needs at least one tableau")
  for table in tableaux:
    if not isinstance(table, Tableau):
      raise TypeError(
        f"{name} takes tables, got {checks.given(table)}; build one with a"
        " solver, as in dpmpp_2m(process, grid)"
      )


@checks.door
def take(tableau: Tableau, rows: PyTree) -> Tableau:
  """Returns the chosen rows: a slice or an array of indices, of axis 0."""
  return under(Tableau(*(leaf[rows] for leaf in tableau)), tableau.process)


@checks.door
def repeat(tableau: Tableau, times: int) -> Tableau:
  """Returns the table `times` times over, each from where the last ended."""
  if times < 1:
    raise ValueError(f"times must be at least 1, got {times}")
  return concat(*([tableau] * times))


@checks.door
def reverse(tableau: Tableau, t_end: float) -> Tableau:
  r"""Returns the table that walks a one-step method backwards.

  A row x' = c x + w F(x, t) is undone by x = (x' - w F(x', t')) / c with the
  output at the far end of the step, which is how DDIM is inverted; the error
  is that of one first-order step.

  Args:
    tableau: tableau of memory 1, without noise and without data dimensions.
    t_end: the time that the table ends at.

  Raises:
    ValueError: if a row draws noise, remembers outputs, or forgets the state
      (a step into sigma = 0).
  """
  if np.any(tableau.noise):
    raise ValueError("a table that draws noise cannot be reversed; use eta=0")
  carry, weight = tableau.state[:, 0, 0], tableau.history[:, 0, 0]
  if not tableau.one_step:
    raise ValueError(
      "only one-step methods are reversed row by row; to encode with a"
      " multistep or multistage solver build it on the reversed grid:"
      " solvers.encoder(solver, process, grid)"
    )
  if np.any(carry == 0):
    i = int(np.flatnonzero(carry == 0)[0])
    raise ValueError(
      f"row {i} forgets its state (a step into sigma = 0) and cannot be"
      " undone; end the grid at sigma > 0"
    )
  t = np.append(tableau.t[1:], t_end)
  backwards = multistep(
    t=t[::-1],
    output=tableau.output[::-1],
    carry=(1.0 / carry)[::-1],
    history=(-weight / carry)[::-1, None],
  )
  return under(backwards, tableau.process)


_RANKS = {"output": 2, "state": 3, "history": 3, "noise": 2}


def _one_data_shape(tableaux):
  """Returns the tables with equal data dimensions, leaf by leaf.

  A leaf without data dimensions is the same for every value of a sample.
  """
  tableaux = list(tableaux)
  for name, rank in _RANKS.items():
    leaves = [getattr(t, name) for t in tableaux]
    shapes = [leaf.shape[rank:] for leaf in leaves]
    if len(set(shapes)) == 1:
      continue
    try:
      data = np.broadcast_shapes(*shapes)
    except ValueError as error:
      raise ValueError(
        f"the tables' {name} are for samples of different shapes:"
        f" {', '.join(map(str, shapes))}"
      ) from error
    xp = numerics.namespace(*leaves)
    for i, (leaf, shape) in enumerate(zip(leaves, shapes, strict=True)):
      missing = (1,) * (len(data) - len(shape))
      leaf = leaf.reshape(leaf.shape[:rank] + missing + shape)
      leaf = xp.broadcast_to(leaf, leaf.shape[:rank] + data)
      tableaux[i] = tableaux[i]._replace(**{name: leaf})
  return tableaux


@checks.door
def save(
  path: str | os.PathLike,
  tableau: Tableau,
  about: Mapping[str, Any] | None = None,
) -> None:
  """Writes a table to a small npz file in float64, whole or not at all.

  Of its process, if it is known, the name and the noise levels at the calls are
  kept, which is enough to tell a model of another process.

  Args:
    path: path of the file; its folder is made if it is not there.
    tableau: one table with concrete leaves.
    about: where it comes from (model, process, error on which noises, ...),
      anything that JSON can hold; read back by `about`.

  Raises:
    TypeError: for a traced table.
    ValueError: for a malformed table, such as a stack of them, or one that is
      not finite.
  """
  if not all(map(checks.concrete, tableau)):
    raise TypeError(
      "save writes numbers, but this table is traced; return it from the"
      " transformed function and save it outside"
    )
  record = agreement.record(tableau)
  leaves = (np.asarray(leaf, np.float64) for leaf in tableau)
  tableau = validate(Tableau(*leaves))
  known = {}
  if record is not None:
    known = dict(levels=np.asarray(record.levels), process=record.name)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  with open(partial, "wb") as f:  # a name would be given a suffix by numpy
    told = json.dumps(dict(about or {}))
    np.savez(f, **tableau._asdict(), **known, about=told)
  partial.replace(path)


@checks.door
def load(path: str | os.PathLike) -> Tableau:
  """Returns the table that `save` wrote, bit by bit.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file holds no table, or a malformed one.
  """
  leaves = archives.read(path, _WRITES)
  missing = [name for name in Tableau._fields if name not in leaves]
  if missing:
    raise ValueError(
      f"{path} holds {', '.join(leaves) or 'nothing'}, but a table also has"
      f" {', '.join(missing)}; tableau.save(path, table) writes all of it"
    )
  table = validate(Tableau(*(leaves[name] for name in Tableau._fields)))
  levels = leaves.get("levels")
  if levels is None or np.shape(levels) != (table.nfe, 2):
    return table
  name = str(leaves.get("process", "another process"))
  levels = tuple(map(tuple, levels.tolist()))
  return under(table, agreement.Recorded(name, tuple(table.t), levels))


@checks.door
def about(path: str | os.PathLike) -> dict[str, Any]:
  """Returns what `save` was told about the table, empty if nothing."""
  load(path)  # refuses what is no file of a table
  held = archives.read(path, _WRITES)
  return json.loads(str(held["about"])) if "about" in held else {}


_WRITES = "A table's file is written by tableau.save(path, table)."


def _weights(output: PyTree) -> Any:
  if isinstance(output, str):
    checks.one_of(output, tuple(OUTPUTS), "output")
    return OUTPUTS[output]
  return output

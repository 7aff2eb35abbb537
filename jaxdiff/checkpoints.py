"""Checkpoints of training: atomic, asynchronous, resumed to the exact step.

A directory of checkpoints holds one folder per step, written by Orbax (which
is imported when first needed), and `config.json`, which describes the model:

  directory/config.json
  directory/1000/state/       the arrays, under their names in the state's tree
  directory/1000/position/    names, shapes and dtypes of the leaves, where the
                              data iterator stood, and notes
  directory/1000/metrics/

A step's folder gets its name once it is complete, so that a run which is
killed at any moment leaves its last complete checkpoint behind. PRNG keys are
stored as their raw data; everything is restored bit for bit.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree

_CONFIG = "config.json"
_AVERAGED = ("ema_params", "ema_model_state", "averages", "opt_state")


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """An open directory of checkpoints; made by `open`.

  Attributes:
    directory: where they are.
    manager: the Orbax manager that does the work.
    best_metric: name of the metric by which the best one is kept, or None.
    read_only: a directory that another run may be writing to: refuses to save.
  """

  directory: pathlib.Path
  manager: Any
  best_metric: str | None = None
  read_only: bool = False

  def save(
    self,
    step: int,
    state: PyTree,
    data_state: PyTree = None,
    metrics: dict | None = None,
    wait: bool = False,
    notes: PyTree = None,
  ) -> None:
    """Writes a checkpoint in the background; a step that exists is kept.

    Args:
      step: its number.
      state: a tree of arrays and PRNG keys. It is copied before this returns:
        its buffers may be donated.
      data_state: where the data iterator stands, as JSON can store it.
      metrics: name to number; `best_metric` must be among them.
      wait: returns only when the checkpoint is complete.
      notes: whatever else is to be kept, as JSON can store it.

    Raises:
      OSError: if this checkpoint, or the one before it, which was still being
        written, cannot be written: the disk is full, for instance.
      ValueError: if metrics lack `best_metric`, or the directory was opened
        with create=False.
    """
    import orbax.checkpoint as ocp

    if self.read_only:
      raise ValueError(
        f"{self.directory} was opened with create=False, for reading; open it"
        " with create=True to save"
      )

    metrics = {k: float(v) for k, v in (metrics or {}).items()}
    if self.best_metric and self.best_metric not in metrics:
      raise ValueError(
        f"the best checkpoint is kept by {self.best_metric!r}, but metrics"
        f" hold {', '.join(map(repr, metrics)) or 'nothing'}; pass"
        f" metrics={{{self.best_metric!r}: ...}}"
      )
    if step not in self.steps():
      arrays = {k: _snapshot(v) for k, v in _named(state).items()}
      leaves = {k: [list(v.shape), str(v.dtype)] for k, v in arrays.items()}
      position = {"step": int(step), "leaves": leaves, "data": data_state}
      if notes:
        position["notes"] = notes
      with self._writing():
        self.manager.save(
          int(step),
          args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays),
            position=ocp.args.JsonSave(position),
          ),
          metrics=metrics or None,
          force=True,
        )
    if wait:
      self.wait()

  def restore(
    self, template: PyTree, step: int | None = None
  ) -> tuple[PyTree, Any]:
    """Returns (state, data_state) of a checkpoint.

    Args:
      template: a tree like the stored state, of arrays, ShapeDtypeStructs or
        PRNG keys; the result has its structure, dtypes and shardings. It may
        be a part of the stored state: `{"ema_params": params}`. What averages
        (`ema_params`, `averages`, `opt_state`) may be stored in another width
        of floating numbers, as runs of 16 bits had it; all else is as it was.
      step: which one; by default the latest complete one. If that cannot be
        read (half-copied, a full disk), the one before it is taken, with a
        warning.

    Raises:
      FileNotFoundError: if there is no checkpoint, or no such step.
      ValueError: if there are only half-written ones, or the checkpoint is one
        of another model; the leaf and both shapes are named.
    """
    self.wait()
    steps = self.steps()
    if step is not None and step not in steps:
      raise FileNotFoundError(
        f"{self.directory} holds no checkpoint of step {step}; it holds"
        f" {_listed(steps)}"
      )
    if not steps:
      raise self._nothing()
    wanted = [step] if step is not None else sorted(steps, reverse=True)
    damaged = {}
    for number in wanted:
      folder = self.directory / str(number)
      try:
        position = self._position(number)
      except Exception as e:  # whatever Orbax meets in a damaged folder
        damaged[number] = f"{folder} cannot be read ({_first_line(e)})"
        continue
      _same_leaves(template, position["leaves"], folder)
      try:
        state = self._arrays(number, template)
      except Exception as e:
        damaged[number] = f"{folder} cannot be read ({_first_line(e)})"
        continue
      for failure in damaged.values():
        warnings.warn(f"{failure}; step {number} is used instead", stacklevel=2)
      self._set_aside(damaged)
      return state, position["data"]
    raise ValueError(
      "no checkpoint can be read: " + "; ".join(damaged.values()) + ". It was"
      " damaged after it was written: restore the folder from a copy, or"
      " delete it to start again"
    )

  def steps(self) -> list[int]:
    """Returns the steps of all complete checkpoints, rising."""
    return sorted(self.manager.all_steps())

  def latest(self) -> int | None:
    """Returns the last complete step, None if there is none."""
    return max(self.steps(), default=None)

  def notes(self, step: int) -> Any:
    """Returns what was noted with a step, None if nothing was."""
    return self._position(step).get("notes")

  def best(self) -> int | None:
    """Returns the step with the smallest `best_metric`, None without one."""
    return self.manager.best_step() if self.best_metric else None

  def wait(self) -> None:
    """Returns when everything that was saved is on disk.

    Raises:
      OSError: if it cannot be written.
    """
    with self._writing():
      self.manager.wait_until_finished()

  def close(self) -> None:
    """Finishes writing and releases the directory."""
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # what wait has told already
        self.manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what Orbax and its storage raise into one kind of error."""
    try:
      yield
    except Exception as e:
      latest = self.latest()
      reason = " ".join(str(e).split())[-160:]  # the cause comes last
      kept = f"that of step {latest} is" if latest is not None else "none is"
      raise OSError(
        f"a checkpoint could not be written to {self.directory}"
        f" (...{reason}). Of the complete ones {kept} the last. Make room"
        " on the disk, or look at its permissions, and run the same command"
        " again: it goes on from there"
      ) from e

  def _position(self, step: int) -> dict:
    import orbax.checkpoint as ocp

    items = ocp.args.Composite(position=ocp.args.JsonRestore())
    return self.manager.restore(step, args=items)["position"]

  def _arrays(self, step: int, template: PyTree) -> PyTree:
    import orbax.checkpoint as ocp

    wanted = {k: _raw(v) for k, v in _named(template).items()}
    items = ocp.args.Composite(
      state=ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
      )
    )
    arrays = self.manager.restore(step, args=items)["state"]
    treedef = jax.tree.structure(template)
    leaves = [
      _typed(arrays[name], like) for name, like in _named(template).items()
    ]
    return jax.tree.unflatten(treedef, leaves)

  def _set_aside(self, damaged: dict) -> None:
    """Renames damaged folders, so that their steps can be written again."""
    if self.read_only or not damaged:
      return
    for step in damaged:
      folder = self.directory / str(step)
      folder.rename(folder.with_name(f"damaged-{step}-{time.time_ns()}"))
    self.manager.reload()

  def _nothing(self) -> Exception:
    partial = [p for p in self.directory.glob("*") if p.is_dir()]
    if partial:
      return ValueError(
        f"{partial[0]} is half-written (the run was killed during its first"
        " save) and there is no complete checkpoint beside it; start the run"
        " again, which removes it"
      )
    return FileNotFoundError(
      f"there is no checkpoint in {self.directory}; check the path, or train"
      " first"
    )


@checks.door
def open(  # noqa: A001  (as checkpoints.open)
  directory: str | os.PathLike,
  *,
  keep: int = 2,
  best_metric: str | None = None,
  create: bool = True,
) -> Checkpoints:
  """Opens a directory of checkpoints; half-written ones are left over.

  Args:
    directory: made if it does not exist.
    keep: how many of the latest checkpoints are kept.
    best_metric: also keep the checkpoint with the smallest value of this
      metric.
    create: False refuses a directory that does not exist, and only reads.

  Raises:
    FileNotFoundError: if the directory does not exist and create is False.
    ValueError: if keep is below 1.
  """
  import orbax.checkpoint as ocp

  if keep < 1:
    raise ValueError(f"keep must be at least 1, got {keep}")
  directory = pathlib.Path(directory).expanduser().absolute()
  if not create and not directory.is_dir():
    raise FileNotFoundError(
      f"there is no directory {directory}; check the path, or train first"
    )
  best = lambda metrics: _ordered(metrics[best_metric])
  policies = [ocp.checkpoint_managers.LatestN(keep)]
  if best_metric:
    policies.append(
      ocp.checkpoint_managers.BestN(get_metric_fn=best, reverse=True, n=1)
    )
  options = ocp.CheckpointManagerOptions(
    create=create,
    cleanup_tmp_directories=create,
    best_fn=best if best_metric else None,
    best_mode="min",
    preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
    # Several processes wait for one another by names: those of two directories
    # that are written at once must differ.
    multiprocessing_options=ocp.options.MultiprocessingOptions(
      barrier_sync_key_prefix=hashlib.sha256(
        str(directory).encode()
      ).hexdigest()[:12]
    ),
  )
  manager = ocp.CheckpointManager(directory, options=options)
  return Checkpoints(directory, manager, best_metric, not create)


@checks.door
def write_config(directory: str | os.PathLike, config: dict) -> None:
  """Writes `config.json`, which describes the model, atomically.

  Args:
    directory: made if it does not exist.
    config: what JSON can store.
  """
  directory = pathlib.Path(directory).expanduser().absolute()
  directory.mkdir(parents=True, exist_ok=True)
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  handle, name = tempfile.mkstemp(dir=directory, prefix=f".{_CONFIG}.")
  with os.fdopen(handle, "w") as f:
    f.write(text)
  os.replace(name, directory / _CONFIG)


@checks.door
def read_config(directory: str | os.PathLike) -> dict:
  """Returns what `write_config` wrote.

  Raises:
    FileNotFoundError: if there is no config.json.
    ValueError: if it is not JSON.
  """
  path = pathlib.Path(directory).expanduser().absolute() / _CONFIG
  if not path.is_file():
    raise FileNotFoundError(
      f"there is no {path}, which describes the model of a checkpoint; check"
      " the path, or train first"
    )
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(
      f"{path} is not valid JSON ({e}); restore it from a copy, or delete it"
      " and start the training again, which writes it"
    ) from e


def _named(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves of a tree under their paths, as in params/out/bias."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path) or "value": leaf for path, leaf in leaves}


def _is_key(leaf: PyTree) -> bool:
  dtype = getattr(leaf, "dtype", np.float64)
  return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _snapshot(leaf: PyTree) -> jax.Array:
  """Returns a leaf as an array that donation cannot overwrite."""
  if _is_key(leaf):
    leaf = jax.random.key_data(leaf)
  # Orbax copies to the host before it returns, but on a CPU that copy may be
  # a view of the very buffer which the next update reuses.
  return jnp.copy(jnp.asarray(leaf))


def _raw(leaf: PyTree) -> jax.ShapeDtypeStruct:
  """Returns shape, dtype and sharding under which a leaf is stored."""
  if _is_key(leaf):
    concrete = isinstance(leaf, jax.Array)
    data = jax.random.key_data
    leaf = data(leaf) if concrete else jax.eval_shape(data, leaf)
  elif not hasattr(leaf, "dtype"):
    leaf = jnp.asarray(leaf)
  sharding = getattr(leaf, "sharding", None)
  # An array that is not tied to its device stays so: jit tells the two apart,
  # and a resumed run would compile everything again.
  if not getattr(leaf, "committed", True):
    sharding = None
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _typed(stored: PyTree, like: PyTree) -> jax.Array:
  if not _is_key(like):
    return jnp.asarray(stored)
  impl = []  # a key's implementation can be asked of a key, not of its shape
  jax.eval_shape(lambda k: impl.append(jax.random.key_impl(k)), like)
  return jax.random.wrap_key_data(jnp.asarray(stored), impl=str(impl[0]))


def _same_leaves(template: PyTree, stored: dict, folder: Any) -> None:
  """Raises a ValueError naming the first leaf that is not the stored one."""
  wanted = {k: _raw(v) for k, v in _named(template).items()}
  mend = (
    "; it is a checkpoint of another model: build the model from the"
    " config.json beside it, or choose another directory"
  )
  for name, leaf in wanted.items():
    if name not in stored:
      raise ValueError(
        f"the checkpoint {folder} lacks the leaf {name} of shape"
        f" {leaf.shape} that the model has{mend}"
      )
    shape, dtype = tuple(stored[name][0]), stored[name][1]
    same = dtype == str(leaf.dtype)
    if not same and name.split("/")[0] in _AVERAGED:
      same = _floating(dtype) and _floating(leaf.dtype)
    if shape != leaf.shape or not same:
      raise ValueError(
        f"the checkpoint {folder} has {dtype}{list(shape)} at leaf {name},"
        f" but the model has {leaf.dtype}{list(leaf.shape)} there{mend}"
      )
  parts = {name.split("/")[0] for name in wanted}
  for name, (shape, dtype) in stored.items():
    if name not in wanted and name.split("/")[0] in parts:
      raise ValueError(
        f"the checkpoint {folder} has a leaf {name}, {dtype}{shape}, that"
        f" the model lacks{mend}"
      )


def _floating(dtype: DTypeLike) -> bool:
  return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)


def _ordered(value: float) -> float:
  """Returns NaN as infinity: it is never the best."""
  return math.inf if math.isnan(value) else value


def _listed(steps: list[int]) -> str:
  return ", ".join(map(str, steps)) or "none"


def _first_line(e: Exception) -> str:
  return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"

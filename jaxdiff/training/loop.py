"""The training loop: update, report, save, resume, stop in good order."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from jaxdiff import checks
from jaxdiff import data
from jaxdiff import locks
from jaxdiff.checkpoints import Checkpoints
from jaxdiff.training import state as states
from jaxdiff.training.averaging import average
from jaxdiff.training.state import TrainState
from jaxdiff.training.update import Update
from jaxdiff.training.writers import OnMetrics
from jaxdiff.types import PyTree


@dataclasses.dataclass(frozen=True)
class Guard:
  """When a run counts as diverged.

  A loss, "loss" or ".../loss", that between two reports is on average more than
  `factor` times the median magnitude of its first `reports` reports, and than
  `factor` times `least`. (Losses of distillation rise and fall as their
  networks take turns, and may begin near 0; a thousandfold is no longer that.)
  The first reports are kept with the checkpoints: a run that goes on is
  measured by how it began.
  """

  factor: float = 1000.0
  reports: int = 5
  least: float = 0.01

  def __post_init__(self):
    checks.fields(self)
    if not (self.factor > 1 and self.reports >= 1):
      raise ValueError(
        "a guard compares with the first reports >= 1 reports by a factor > 1,"
        f" got factor={self.factor} and reports={self.reports}; guard=None is"
        " none"
      )


@dataclasses.dataclass(frozen=True)
class Trace:
  """Which updates the profiler records: first to last, counted from 1.

  `tensorboard --logdir=FOLDER` or https://ui.perfetto.dev show the trace.
  """

  folder: str | os.PathLike
  first: int
  last: int

  def __post_init__(self):
    checks.fields(self, least=dict(first=1))
    if self.last < self.first:
      raise ValueError(
        f"a trace goes from update first={self.first} to last={self.last},"
        " counted from 1; last is at least first"
      )


_ITERATOR = ("__next__", "get_state", "set_state")


@checks.door(least=dict(steps=0, every=1))
def train(
  state: TrainState,
  update: Update,
  iterator: Iterator,
  *,
  steps: int,
  checkpoints: Checkpoints | None = None,
  every: int = 1000,
  log_every: int = 100,
  on_metrics: OnMetrics | None = None,
  snapshots: Checkpoints | None = None,
  snapshot_every: int = 1000,
  trace: Trace | None = None,
  progress: bool = True,
  guard: Guard | None = Guard(),
  on_checkpoint: Callable[[int, TrainState], None] | None = None,
) -> TrainState:
  """Returns the state after `steps` updates in all, resumed ones included.

  If `checkpoints` holds one, state and iterator go on from there, bit for bit
  as if the run had never stopped. Ctrl-C and SIGTERM (what a cluster sends
  before it takes a machine away) finish the update in progress, save, and then
  stop the program; of several processes all stop, after the next report.

  Args:
    state: where a fresh run begins; donated.
    update: made by `make_update`.
    iterator: next(iterator) is a batch of arrays, the first of which is looked
      at (`data.look`); get_state() and
      set_state(state) tell and set its position, as JSON can store it.
    steps: number of updates when training ends.
    checkpoints: where to save, or None.
    every: updates between checkpoints; the last update is always saved.
    log_every: updates between reports.
    on_metrics: called with (step, metrics averaged over the updates since the
      last report, as floats and lists of floats); beside those of the update
      "updates_per_second" and "data_wait", the share of the time in which the
      loop waited for data. Called in the first process alone.
    snapshots: where `state.averages` are kept, all of them, for
      `load_denoiser(sigma_rel=...)`; or None.
    snapshot_every: updates between snapshots.
    trace: what the profiler records, if anything.
    progress: show a progress bar.
    guard: when a run counts as diverged, if ever. It is asked before every
      checkpoint, also that of a run that is stopped, so that the last one is of
      a state that was still good.
    on_checkpoint: called with (step, state) every `every` updates and after the
      last one, checkpoints or not: pictures of samples, for instance. It may
      not keep the state, which is donated.

  Raises:
    FloatingPointError: if every update since the last report was skipped for a
      loss or gradient that was not finite, or a loss diverged; the step and the
      loss, or the leaf, are named.
    KeyboardInterrupt: after saving, on Ctrl-C.
    SystemExit: after saving, on SIGTERM.
    OSError: if a checkpoint cannot be written, or another training writes
      into the same directory.
    ValueError: if the checkpoint is one of another model.
  """
  state, usual = _resumed(state, iterator, checkpoints)
  start = int(state.step)
  traced = _traced(trace, start + 1, steps)
  first_process = jax.process_index() == 0
  since = _Since([], {}, usual, time.monotonic(), 0.0)
  with (
    _alone(checkpoints, first_process),
    _Stop() as stop,
    _bar(start, steps, shown=progress and first_process) as bar,
  ):
    leaves = _leaf_names(states.trained(state.params, state.loss_params))
    told = on_metrics if first_process else None
    run = _Run(update, iterator, leaves, checkpoints, guard, told, bar)
    for step in range(start + 1, steps + 1):
      if traced and step == traced[0]:
        jax.profiler.start_trace(trace.folder)
      batch, since = _next(run, since)
      if step == start + 1:
        data.look(batch)
      state, metrics = update(state, batch)
      since.pending.append(metrics)
      bar.update()
      if traced and step == traced[1]:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
      # of what is saved the losses have been seen
      at_save = checkpoints is not None and step % every == 0
      at_report = step % log_every == 0 or step == steps or (guard and at_save)
      if at_report:
        since = _report(run, since, step)
      if snapshots is not None and step % snapshot_every == 0:
        snapshots.save(step, dict(averages=state.averages))
      # a signal: of several processes all see it at the same report
      if stop.agreed(at_report):
        _leave(run, since, step, state, stop)
      if step % every == 0 or step == steps:
        _save(run, since, step, state, wait=step == steps)
        if on_checkpoint is not None:
          on_checkpoint(step, state)
  if snapshots is not None:
    snapshots.wait()
  return state


class _Run(NamedTuple):
  """What stays the same from update to update.

  Attributes:
    update: the update.
    iterator: makes the batches.
    leaves: names of the trained parameters.
    checkpoints: where to save, or None.
    guard: when the run counts as diverged, or None.
    on_metrics: called at reports; None in all processes but the first.
    bar: the progress bar.
  """

  update: Update
  iterator: Iterator
  leaves: list[str]
  checkpoints: Checkpoints | None
  guard: Guard | None
  on_metrics: OnMetrics | None
  bar: tqdm.tqdm


class _Since(NamedTuple):
  """What happened since the last report, and what the reports said.

  Attributes:
    pending: metrics of the updates since then, on the device; appended to.
    latest: metrics of the last report.
    usual: magnitudes of the losses in the first reports.
    clock: when the last report was made, in seconds.
    waited: seconds since then in which the loop waited for data.
  """

  pending: list[dict]
  latest: dict[str, Any]
  usual: dict[str, list[float]]
  clock: float
  waited: float


def _check_iterator(iterator: Any, checkpoints: Checkpoints | None) -> None:
  """Raises a TypeError for what is no iterator with a position."""
  missing = [name for name in _ITERATOR if not hasattr(iterator, name)]
  if checkpoints is None:  # no position is stored
    missing = [name for name in missing if name == "__next__"]
  if missing:
    raise TypeError(
      f"train(state, update, iterator) takes an iterator with"
      f" {', '.join(missing)}, got {checks.given(iterator)}; make one with"
      " data.batches(source, batch_size, seed=0)"
    )


def _resumed(
  state: TrainState, iterator: Any, checkpoints: Checkpoints | None
) -> tuple[TrainState, dict[str, list[float]]]:
  """Returns (state, usual losses) of the last checkpoint, if there is one.

  The iterator, if it has all that is needed of one, is set to its position.
  """
  _check_iterator(iterator, checkpoints)
  if checkpoints is None or checkpoints.latest() is None:
    return state, {}
  state, position = checkpoints.restore(state)
  iterator.set_state(position)
  notes = checkpoints.notes(int(state.step)) or {}
  return state, dict(notes.get("usual", {}))


def _bar(start: int, steps: int, shown: bool) -> tqdm.tqdm:
  return tqdm.tqdm(total=steps, initial=start, disable=not shown, unit="update")


def _traced(
  trace: Trace | None, first: int, last: int
) -> tuple[int, int] | None:
  """Returns the first and last update of `first` to `last` to be recorded."""
  if trace is None:
    return None
  span = max(trace.first, first), min(trace.last, last)
  return span if span[0] <= span[1] else None


def _next(run: _Run, since: _Since) -> tuple[Any, _Since]:
  """Returns the next batch, and how long all of them were waited for."""
  before = time.monotonic()
  batch = next(run.iterator)
  waited = since.waited + time.monotonic() - before
  return batch, since._replace(waited=waited)


def _leave(run, since, step, state, stop):
  """Saves a state whose losses have been seen, and stops the program."""
  if since.pending and run.guard is not None:
    since = _report(run, since, step)
  _save(run, since, step, state, wait=True)
  stop.leave(step, run.checkpoints)


def _report(run: _Run, since: _Since, step: int) -> _Since:
  """Reports the updates up to `step`; raises if the run is lost."""
  # the one place where the host waits for the device
  held = jax.device_get(since.pending)
  before = step - len(held)
  losses = getattr(run.update, "losses", None) or tuple(
    name for name in held[0] if name.split("/")[-1] == "loss"
  )
  fault = _first_fault(held, before + 1, run.leaves, losses)
  latest = average(held)
  usual = since.usual
  if run.guard is not None:
    usual = _check_divergence(
      run.guard, usual, held, losses, before, run.checkpoints
    )
  seconds = time.monotonic() - since.clock
  latest["updates_per_second"] = len(held) / seconds
  latest["data_wait"] = since.waited / seconds
  clock = time.monotonic()  # what is written below counts to the next report
  # one update that is not finite is skipped; nothing but such ones is the end
  if latest.get("skipped") == 1.0:
    raise FloatingPointError(
      f"no update since the last report, up to step {step}, was finite;"
      f" {fault}. The parameters no longer change: lower the learning rate,"
      " clip the gradient (clip_norm), or look at the data"
      + (
        f"; {run.checkpoints.directory} holds the last good state"
        if run.checkpoints
        else ""
      )
    )
  if fault:
    warnings.warn(f"an update was skipped: {fault}", stacklevel=3)
  run.bar.set_postfix(loss=f"{latest.get('loss', np.nan):.4g}")
  if run.on_metrics is not None:
    run.on_metrics(step, latest)
  return _Since([], latest, usual, clock, 0.0)


def _save(
  run: _Run, since: _Since, step: int, state: TrainState, wait: bool
) -> None:
  """Saves state, position and the last metrics, if there are checkpoints."""
  if run.checkpoints is None:
    return
  latest = since.latest
  scalars = {k: v for k, v in latest.items() if isinstance(v, float)}
  if not scalars and since.pending:  # before the first report
    values = average([_without_fault(m) for m in since.pending])
    scalars = {k: v for k, v in values.items() if isinstance(v, float)}
  run.checkpoints.save(
    step,
    state,
    run.iterator.get_state(),
    scalars,
    wait=wait,
    notes=dict(usual=dict(since.usual)),
  )


def _alone(checkpoints: Checkpoints | None, first: bool) -> Any:
  """Returns a context in which no other training writes these checkpoints."""
  if checkpoints is None:
    return contextlib.nullcontext()
  return locks.hold(checkpoints.directory, "training", only=first)


def _check_divergence(
  guard: Guard,
  usual: dict[str, list[float]],
  held: list[dict[str, Any]],
  losses: tuple[str, ...],
  step: int,
  checkpoints: Checkpoints | None,
) -> dict[str, list[float]]:
  """Returns `usual` with these; raises if a loss left their range.

  Args:
    guard: what that means.
    usual: magnitudes of the first reports, by loss.
    held: metrics of the updates since the last report, `step` + 1, ...
    losses: names of the losses.
    step: that of the last report.
    checkpoints: checkpoints of the run.
  """
  # an update that was skipped is told of elsewhere, and changed nothing
  latest = average([m for m in held if not m.get("skipped", 0.0)])
  usual = dict(usual)
  for name in losses:
    size = abs(latest.get(name, np.nan))
    if np.isnan(size):  # its player rested
      continue
    first = usual.get(name, [])
    middle = float(np.median(first)) if first else np.inf
    bound = guard.factor * max(guard.least, middle)
    if size > bound:
      beyond = (bound < abs(m[name]) < np.inf for m in held)
      since = step + 1 + next((i for i, far in enumerate(beyond) if far), 0)
      good = None if checkpoints is None else checkpoints.latest()
      raise FloatingPointError(
        f"{name} diverged: {latest[name]:.4g} on average in updates {step + 1}"
        f" to {step + len(held)}, first in update {since}, after"
        f" {middle:.4g} in the first reports. Lower the learning rate,"
        " or clip the gradient"
        + (
          f"; {checkpoints.directory} holds step {good}, from before"
          if good is not None
          else ""
        )
      )
    if len(first) < guard.reports:
      usual[name] = [*first, size]
  return usual


def _leaf_names(tree: PyTree) -> list[str]:
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return [
    jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths
  ]


def _without_fault(metrics: dict) -> dict:
  return {name: v for name, v in metrics.items() if name != "fault"}


def _first_fault(
  metrics: list[dict], step: int, leaves: list[str], losses: tuple[str, ...]
) -> str:
  """Returns what was not finite first, "" for nothing; drops "fault".

  Args:
    metrics: metrics of updates `step`, `step` + 1, ...
    step: number of the first.
    leaves: names of the parameters.
    losses: names of the losses, in the order in which they are computed.
  """
  found = ""
  for i, m in enumerate(metrics):
    fault = m.pop("fault", None)
    if found or not m.get("skipped", 0.0):
      continue
    found = f"the first was update {step + i}"
    if fault is None:
      continue
    row, leaf, count = map(int, fault)
    wrong = [name for name in losses if not np.isfinite(m.get(name, 0.0))]
    if row >= 0:
      found += f", whose batch has NaN or infinity in sample {row}"
    elif wrong and len(losses) > 1:  # the first one infected the others
      found += f", where {wrong[0]} was {m[wrong[0]]}"
    elif count == len(leaves):
      found += ", where the loss and every gradient were not finite"
    elif leaf >= 0:
      found += (
        f", where the gradient of {leaves[leaf]}"
        + (f" and {count - 1} more leaves" if count > 1 else "")
        + " was not finite"
      )
    elif np.isfinite(m["loss"]):
      found += ", where the optimizer made of a finite gradient one that is not"
    else:
      found += f", where the loss was {m['loss']}"
  return found


@dataclasses.dataclass
class _Stop:
  """Notes SIGINT and SIGTERM, so that no update is torn; a second one kills."""

  signal: int | None = None
  previous: dict = dataclasses.field(default_factory=dict)

  def __enter__(self) -> "_Stop":
    # only the main thread may install handlers
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self.previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused: Any) -> None:
    for number, handler in self.previous.items():
      signal.signal(number, handler)
    self.previous.clear()

  def _note(self, number: int, frame: Any) -> None:
    del frame
    self.signal = number
    self.__exit__()

  def agreed(self, at_report: bool) -> bool:
    """Whether to stop now; several processes must do so at the same step."""
    if jax.process_count() == 1:
      return self.signal is not None
    if not at_report:
      return False
    from jax.experimental import multihost_utils

    asked = multihost_utils.process_allgather(np.int32(self.signal or 0))
    self.signal = int(asked.max()) or None
    return self.signal is not None

  def leave(self, step: int, checkpoints: Checkpoints | None) -> None:
    """Says how to go on, and raises what the signal asks for."""
    saved = (
      f"saved in {checkpoints.directory}; run the same command again to go on"
      " from there"
      if checkpoints
      else "not saved: pass checkpoints=... to be able to go on"
    )
    print(f"\nStopped after update {step}: {saved}.", file=sys.stderr)
    if self.signal == signal.SIGINT:
      raise KeyboardInterrupt
    raise SystemExit(128 + self.signal)

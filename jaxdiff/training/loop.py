"""The training loop: update, report, save, resume, stop in good order."""

import csv
import dataclasses
import io
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from jaxdiff.checkpoints import Checkpoints
from jaxdiff.training.state import TrainState
from jaxdiff.training.update import Update

OnMetrics = Callable[[int, dict], None]


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
  progress: bool = True,
) -> TrainState:
  """Returns the state after `steps` updates in all, resumed ones included.

  If `checkpoints` holds one, state and iterator go on from there, bit for bit
  as if the run had never stopped. Ctrl-C and SIGTERM (what a cluster sends)
  finish the update in progress, save, and then stop the program.

  Args:
    state: where a fresh run begins; donated.
    update: made by `make_update`.
    iterator: next(iterator) is a batch of numpy arrays; get_state() and
      set_state(state) tell and set its position, as JSON can store it.
    steps: number of updates when training ends.
    checkpoints: where to save, or None.
    every: updates between checkpoints; the last update is always saved.
    log_every: updates between reports.
    on_metrics: called with (step, metrics averaged over the updates since the
      last report, as floats and lists of floats).
    progress: show a progress bar.

  Raises:
    FloatingPointError: if every update since the last report was skipped for a
      loss or gradient that was not finite.
    KeyboardInterrupt: after saving, on Ctrl-C.
    SystemExit: after saving, on SIGTERM.
    ValueError: if the checkpoint is one of another model.
  """
  if checkpoints is not None and checkpoints.latest() is not None:
    state, position = checkpoints.restore(state)
    iterator.set_state(position)
  start = int(state.step)
  pending, latest = [], {}

  def report(step: int) -> None:
    nonlocal latest
    latest = average(jax.device_get(pending))
    pending.clear()
    if latest.get("skipped") == 1.0:
      raise FloatingPointError(
        f"loss or gradient was not finite in every update up to step {step}"
        " since the last report: the parameters no longer change. Lower the"
        " learning rate, clip the gradient (clip_norm), or look for NaN in"
        " the data"
        + (
          f"; {checkpoints.directory} holds the last good state"
          if checkpoints
          else ""
        )
      )
    bar.set_postfix(loss=f"{latest.get('loss', np.nan):.4g}")
    if on_metrics is not None:
      on_metrics(step, latest)

  def save(step: int, wait: bool = False) -> None:
    if checkpoints is not None:
      scalars = {k: v for k, v in latest.items() if isinstance(v, float)}
      if not scalars and pending:  # before the first report
        values = average(jax.device_get(pending))
        scalars = {k: v for k, v in values.items() if isinstance(v, float)}
      checkpoints.save(step, state, iterator.get_state(), scalars, wait=wait)

  with (
    _Stop() as stop,
    tqdm.tqdm(
      total=steps, initial=start, disable=not progress, unit="update"
    ) as bar,
  ):
    for step in range(start + 1, steps + 1):
      state, metrics = update(state, next(iterator))
      pending.append(metrics)
      bar.update()
      if step % log_every == 0 or step == steps:
        report(step)
      if stop.signal is not None:
        save(step, wait=True)
        stop.leave(step, checkpoints)
      if step % every == 0 or step == steps:
        save(step, wait=step == steps)
  return state


def average(metrics: list[dict]) -> dict[str, Any]:
  """Returns the mean of every metric, as floats and lists of floats.

  An array "x_loss" beside "x_count" is averaged with the counts as weights;
  entries without any count are NaN.
  """
  if not metrics:
    return {}
  stack = {
    name: np.stack([np.asarray(m[name], np.float64) for m in metrics])
    for name in metrics[0]
  }
  mean = {}
  for name, values in stack.items():
    count = stack.get(name.removesuffix("_loss") + "_count")
    if name.endswith("_loss") and count is not None:
      total = count.sum(0)
      value = (values * count).sum(0) / np.where(total > 0, total, np.nan)
    else:
      value = values.mean(0)
    mean[name] = value.tolist()
  return mean


def csv_writer(path: str | os.PathLike) -> OnMetrics:
  """Returns an `on_metrics` that appends a row to a CSV file and flushes it.

  Arrays become columns name_0, name_1, ... Rows that a resumed run repeats
  replace the old ones, and a row cut short by a crash is dropped.
  """
  path = pathlib.Path(path).expanduser()
  columns, last = [], None  # of the file, once this writer has looked at it

  def on_metrics(step: int, metrics: dict) -> None:
    nonlocal columns, last
    row = {"step": step}
    for name, value in metrics.items():
      many = value if isinstance(value, list) else [value]
      for i, v in enumerate(many):
        row[f"{name}_{i}" if isinstance(value, list) else name] = f"{v:.7g}"
    if last is None or step <= last or not set(row) <= set(columns):
      path.parent.mkdir(parents=True, exist_ok=True)
      old, rows = _read(path)
      columns = old + [name for name in row if name not in old]
      _rewrite(path, columns, [r for r in rows if int(r["step"]) < step])
    with path.open("a", newline="") as f:
      csv.DictWriter(f, columns).writerow(row)
    last = step

  return on_metrics


def _read(path: pathlib.Path) -> tuple[list[str], list[dict]]:
  """Returns the columns and the complete rows of a CSV file, if any."""
  text = path.read_text() if path.is_file() else ""
  complete = text[: text.rfind("\n") + 1]
  reader = csv.DictReader(io.StringIO(complete))
  return list(reader.fieldnames or []), list(reader)


def _rewrite(path: pathlib.Path, columns: list[str], rows: list[dict]) -> None:
  new = path.with_name(path.name + ".new")
  with new.open("w", newline="") as f:
    writer = csv.DictWriter(f, columns)
    writer.writeheader()
    writer.writerows(rows)
  os.replace(new, path)


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

"""Writers of reports: CSV files, TensorBoard, several at once."""

import csv
import io
import math
import os
import pathlib
import time
import weakref
from collections.abc import Callable
from typing import Any

from jaxdiff import checks

OnMetrics = Callable[[int, dict], None]


@checks.door
def tensorboard_writer(folder: str | os.PathLike) -> OnMetrics:
  """Returns an `on_metrics` that writes TensorBoard event files.

  Arrays become scalars name/0, name/1, ...; what a resumed run repeats hides
  the older points. `tensorboard --logdir=FOLDER` shows them.

  Args:
    folder: folder of the event files; made when the first report arrives.

  Raises:
    ImportError: if tensorboardX is not installed.
  """
  try:
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2
    from tensorboardX.proto import summary_pb2
  except ImportError as e:
    raise ImportError(
      f"event files for TensorBoard need tensorboardX ({e}); install it with"
      ' pip install "jaxdiff[train]", or write metrics.csv alone'
      " (--config.tensorboard=False)"
    ) from e
  # Not its SummaryWriter, whose thread holds reports back: a killed run would
  # lose them.
  writer: Any = None

  def on_metrics(step: int, metrics: dict) -> None:
    nonlocal writer
    event = event_pb2.Event(wall_time=time.time(), step=step)
    if writer is None:
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
      writer = event_file_writer.EventsWriter(
        os.path.join(folder, "events"), f".{time.time_ns()}"
      )
      weakref.finalize(on_metrics, writer.close)  # with its last user
      # hides what an earlier run wrote from this step on
      event.session_log.status = event_pb2.SessionLog.START
      writer.write_event(event)
    event = event_pb2.Event(wall_time=time.time(), step=step)
    event.summary.value.extend(
      summary_pb2.Summary.Value(tag=name, simple_value=value)
      for name, value in _scalars(metrics, "/").items()
      if not math.isnan(value)
    )
    writer.write_event(event)
    writer.flush()

  return on_metrics


def together(*writers: OnMetrics) -> OnMetrics:
  """Returns an `on_metrics` that hands every report to all of them."""

  def on_metrics(step: int, metrics: dict) -> None:
    for write in writers:
      write(step, metrics)

  return on_metrics


def _scalars(metrics: dict, join: str) -> dict[str, float]:
  """Returns arrays as one entry for each number."""
  found = {}
  for name, value in metrics.items():
    if isinstance(value, list):
      found |= {f"{name}{join}{i}": v for i, v in enumerate(value)}
    else:
      found[name] = value
  return found


@checks.door
def csv_writer(path: str | os.PathLike) -> OnMetrics:
  """Returns an `on_metrics` that appends a row to a CSV file and flushes it.

  Arrays become columns name_0, name_1, ... Rows that a resumed run repeats
  replace the old ones, and a row cut short by a crash is dropped.
  """
  path = pathlib.Path(path).expanduser()
  columns, last = [], None  # of the file, once this writer has looked at it

  def on_metrics(step: int, metrics: dict) -> None:
    nonlocal columns, last
    scalars = _scalars(metrics, "_").items()
    row = {"step": step} | {name: f"{v:.7g}" for name, v in scalars}
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

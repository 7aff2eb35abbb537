r"""Learns a solver's table for one model and a few calls, and reports honestly.

  python -m experiments.learn_solver                        # digits mixture
  python -m experiments.learn_solver --config.target=runs/digits \
      --config.float64=False                                # a trained network

Starts from the best known table (solvers x grids, chosen on the validation
noises), learns on others, and reports on noises that neither has seen. Writes
to --config.out

  <calls>.npz          the table: jaxdiff.tableau.load, and .about for its story
  learned.json, .png   errors of the table, of its start, and the seconds spent
                       (processor_seconds: of this process, over all cores)

Interrupted, it goes on with the round where it stopped.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import auto as tqdm

from jaxdiff import grids
from jaxdiff import learning
from jaxdiff import locks
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import training

from . import frontier
from .parts import console
from .parts import plots

_FAMILIES = {  # on a grid: what makes (theta, build), and calls of a step
  "amed": (learning.amed, 2),
  "dc_solver": (learning.dc_solver, 1),
  "dyweight": (learning.dyweight, 1),
  "epd": (learning.epd, 3),
  "neural_solver": (learning.neural_solver, 1),
}
METHODS = ("bns", "ld3", *_FAMILIES)
_FREE = ("out", "title", "calls", "seconds", "report_seeds")
_ROWS, _MEMORY = 10, 5  # of the one program that tries the known tables


class Room:
  """One target, its lessons and its reference."""

  def __init__(self, config: ml_collections.ConfigDict):
    self.config = config
    self.target = frontier.load_target(config)
    self.process = self.target.process
    self.model = self.target.model
    self.classes = 0
    if getattr(self.model, "label", None) is not None:
      self.classes = int(np.max(self.model.label)) + 1
      self.model = dataclasses.replace(self.model, label=None)
    self.t_end = self.process.t_zero if config.to_zero else self.process.t_min
    self.keys = learning.split(jax.random.key(config.seed))
    begin, work = time.perf_counter(), time.process_time()
    quick = learning.teacher(self.process, config.teacher_calls, self.t_end)
    teach = functools.partial(self.lessons, table=quick, dtype=jnp.float32)
    self.train = teach(self.keys.train, config.noises)
    self.validation = teach(self.keys.validation, config.validation)
    jax.block_until_ready(self.validation.end)
    self.seconds = time.perf_counter() - begin
    self.processor = time.process_time() - work

  def lessons(self, key, size, table, dtype):
    label = np.arange(size) % self.classes if self.classes else None
    return learning.teach(
      key,
      self.model,
      self.process,
      (size, *self.target.shape),
      table,
      label=label,
      dtype=dtype,
    )

  def report(self) -> list[learning.Lessons]:
    """Returns the noises to report on, one set a seed, in float64 if asked."""
    config = self.config
    fine = learning.teacher(self.process, config.reference_calls, self.t_end)
    dtype = jnp.float64 if config.float64 else jnp.float32
    keys = [
      jax.random.fold_in(self.keys.report, s) for s in config.report_seeds
    ]
    return [self.lessons(k, config.report, fine, dtype) for k in keys]

  def known(self, calls: int) -> tuple[float, str, str, tables.Tableau]:
    """Returns (rmse, solver, grid, table) of the best known table."""
    tried = []
    for name in self.config.solvers:
      for grid in self.config.grids:
        times = functools.partial(
          grids.GRIDS[grid], self.process, to_zero=self.config.to_zero
        )
        table = solvers.for_budget(
          functools.partial(solvers.from_spec(name), self.process),
          times,
          calls,
        )
        if table is not None and table.nfe == calls:
          memory = max(_MEMORY, table.memory)
          padded = tables.pad(table, max(_ROWS, calls), memory)
          error = self.error(padded, self.validation, length=calls)
          tried.append((error["rmse"], name, grid, table))
    if not tried:
      raise ValueError(
        f"none of config.solvers={tuple(self.config.solvers)} makes exactly"
        f" {calls} calls; add one of one call a step, such as ddim"
      )
    return min(tried, key=lambda t: t[0])

  def error(self, table, lessons, **options):
    return learning.errors(self.model, table, lessons, **options)


def family(
  room: Room, calls: int, name: str, grid: str, table: tables.Tableau
) -> tuple[np.ndarray, Callable[[jax.Array], tables.Tableau]]:
  """Returns (theta, build) of config.method.

  Raises:
    ValueError: for an unknown method, or a budget that its steps do not make.
  """
  method, process = room.config.method, room.process
  if method not in METHODS:
    raise ValueError(
      f"config.method={method!r} is none of {', '.join(METHODS)}"
    )
  if method == "bns":
    return learning.bns(table, process, t_end=room.t_end)
  to_zero = room.config.to_zero
  times = functools.partial(grids.GRIDS[grid], process, to_zero=to_zero)
  if method == "ld3":
    build = solvers.from_spec(name)
    return learning.ld3(build, process, times(calls), decoupled=True)
  make, each = _FAMILIES[method]
  for steps in range(1, calls + 1):  # of which some at the ends take one call
    inner = solvers.building.inner_steps(process, times(steps))
    if inner and inner * each + steps - inner == calls:
      return make(process, times(steps))
  raise ValueError(
    f"{method} makes {each} calls a step, one where sigma = 0 or alpha = 0,"
    f" which is never {calls} here; take another config.calls or method"
  )


def learn(
  room: Room, calls: int, folder: pathlib.Path
) -> tuple[tables.Tableau, dict[str, Any]]:
  """Returns the table learned for a budget, and how it went."""
  config = room.config
  begin, work = time.perf_counter(), time.process_time()
  rmse, name, grid, known = room.known(calls)
  theta, build = family(room, calls, name, grid, known)
  settings = learning.Settings(
    **{f.name: config[f.name] for f in dataclasses.fields(learning.Settings)}
  )
  stamp = _stamp(config)
  kept = folder / f"{calls}.progress.npz"
  at = _read_progress(kept, stamp)
  before = room.seconds + time.perf_counter() - begin
  descent = learning.descend(
    jax.random.fold_in(jax.random.key(config.seed), 1),
    room.model,
    build,
    theta,
    room.train,
    room.validation,
    settings,
    at,
  )
  bar = tqdm.tqdm(
    descent,
    desc=f"{calls} calls",
    total=settings.rounds,
    initial=at.round if at else 0,
    unit="round",
  )
  for at in bar:
    bar.set_postfix(rmse=f"{at.best_rmse:.2e}", start=f"{rmse:.2e}")
    _write_progress(kept, at, stamp)
    if before + at.seconds > config.seconds:
      break
  bar.close()
  table = tables.Tableau(
    *(np.asarray(v, np.float64) for v in build(jnp.asarray(at.best)))
  )
  story = dict(
    method=config.method,
    start=f"{name} on {grid}",
    seconds=round(before + at.seconds, 1),
    processor_seconds=round(room.processor + time.process_time() - work, 1),
    rounds=at.round,
    numbers=len(theta),
    validation_rmse=at.best_rmse,
  )
  return table, story | dict(known=known)


def run(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
  """Learns every budget of the config; returns the rows that it writes."""
  jax.config.update("jax_enable_x64", config.float64)
  folder = pathlib.Path(config.out)
  with locks.hold(folder, "learning"):
    return _run(config, folder)


def _run(config, folder):
  room = Room(config)
  rows, report = [], None
  for calls in config.calls:
    table, story = learn(room, calls, folder)
    known = story.pop("known")
    report = report or room.report()  # after the clock of the first learning
    learned = [room.error(table, unseen) for unseen in report]
    start = [room.error(known, unseen) for unseen in report]
    row = dict(calls=calls) | story
    row |= _over_seeds("learned", learned) | _over_seeds("start", start)
    rows.append(row)
    about = dict(
      target=config.target,
      model=_model(config),
      process=config.process,
      t_end=float(room.t_end),
      **row,
    )
    tables.save(folder / f"{calls}.npz", table, about=about)
  summary = dict(
    config=config.to_dict(), rows=rows, device=jax.devices()[0].device_kind
  )
  (folder / "learned.json").write_text(json.dumps(summary, indent=1) + "\n")
  print(table_text(rows))
  print(f"Wrote {folder}/learned.json and a table for each budget.")
  print(draw(rows, folder / "learned.png", config.title or config.target))
  return rows


def table_text(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the rows for the terminal."""
  lines = [
    "error per coordinate to the converged ODE on unseen noises, rmse (median)",
    f"{'calls':>5}  {'best known table':<24}{'':<21}{'learned':<23}"
    f"{'ratio':>5}{'seconds':>9}",
  ]
  for r in rows:
    pair = lambda k, r=r: f"{r[f'{k}_rmse']:.2e} ({r[f'{k}_median']:.1e})"
    ratio = r["learned_rmse"] / r["start_rmse"]
    lines.append(
      f"{r['calls']:>5}  {r['start']:<24}{pair('start'):<21}"
      f"{pair('learned'):<23}{ratio:>5.2f}{r['seconds']:>9.0f}"
    )
  return "\n".join(lines)


@plots.picture
def draw(
  plt: Any, rows: Sequence[dict[str, Any]], path: pathlib.Path, title: str
) -> str:
  """Draws errors against calls and saves the picture."""
  figure, axis = plt.subplots(figsize=(5.5, 4))
  calls = [r["calls"] for r in rows]
  for name, colour in (("start", "0.5"), ("learned", "tab:red")):
    label = dict(start="best known table", learned="learned")[name]
    for column, style in (("rmse", "o-"), ("median", "s:")):
      values = [r[f"{name}_{column}"] for r in rows]
      text = f"{label}, {column}"
      axis.loglog(calls, values, style, color=colour, ms=4, label=text)
  axis.set_xticks(calls, [str(c) for c in calls])
  axis.minorticks_off()
  axis.set(xlabel="network calls", ylabel="error to the converged ODE")
  axis.set_title(title, fontsize=9)
  axis.legend(fontsize=8)
  axis.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)
  return f"Wrote {path}."


def _over_seeds(name, errors):
  """Returns rmse over all seeds' noises, by seed, and the mean of medians."""
  rmse = [e["rmse"] for e in errors]
  return {
    f"{name}_rmse": float(np.sqrt(np.mean(np.square(rmse)))),
    f"{name}_median": float(np.mean([e["median"] for e in errors])),
    f"{name}_rmse_by_seed": rmse,
  }


def _model(config):
  """Identifies the model: an oracle's name, or a run's fingerprint."""
  if config.target in frontier.ORACLES:
    return config.target
  return training.fingerprint(config.target)


def _stamp(config):
  """Identifies what the progress in a folder depends on."""
  fixed = {k: v for k, v in config.to_dict().items() if k not in _FREE}
  text = json.dumps(fixed | dict(model=_model(config)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_progress(path, at, stamp):
  partial = path.with_suffix(".partial")
  with open(partial, "wb") as f:
    np.savez(f, stamp=stamp, **at._asdict())
  partial.replace(path)


def _read_progress(path, stamp):
  """Returns the Progress of an earlier run of this config, or None."""
  if not path.exists():
    return None
  with np.load(path) as held:
    if str(held["stamp"]) != stamp:
      return None
    held = {k: held[k] for k in learning.Progress._fields}
  numbers = {k: v.item() for k, v in held.items() if v.ndim == 0}
  return learning.Progress(**(held | numbers))


def main() -> None:
  run(console.config_like("learn_solver"))


if __name__ == "__main__":
  console.define_config_file(
    "learn_solver",
    "What to learn: a file of experiments/configs/. Set single fields with"
    " --config.NAME=VALUE, for instance --config.target=grid25.",
  )
  console.run(main)

r"""Searches for the best table of a number of calls, and reports it honestly.

Candidates are run on the same noises and judged by their rmse to the converged
ODE, a population at a time in one compiled program. What is found is reported
on noises that the search did not see, beside the best of the known solvers.

  python -m experiments.search                         # digits mixture, 8 calls
  python -m experiments.search --config.calls=5 --config.process=vp
  python -m experiments.search --config.target=runs/digits --config.noises=128

Methods: "s3" chooses what to try by a learned predictor, "evolution" does
without, "times" leaves the solvers alone and searches their times, "gits" takes
grids from one cost matrix by dynamic programming.

Writes best.npz (for jaxdiff.tableau.load), search.csv, search.json and
search.png to --config.out. Interrupted, it goes on where it stopped.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import locks
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff.search import fitness
from jaxdiff.search import gits
from jaxdiff.search import populations
from jaxdiff.search import s3
from jaxdiff.search import usf

from . import frontier
from .parts import console
from .parts import plots

METHODS = ("s3", "evolution", "times", "gits")
_GAMMAS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5)


def run(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Runs the search; returns its summary and writes table, csv and picture.

  Raises:
    ValueError: for an unknown method or target.
  """
  if config.method not in METHODS:
    raise ValueError(
      f"config.method={config.method!r} is none of {', '.join(METHODS)}"
    )
  jax.config.update("jax_enable_x64", config.float64)
  out = pathlib.Path(config.out)
  with locks.hold(out, "searching"):
    return _run(config, out)


def _run(config, out):
  target = _begin_with_signal(frontier.load_target(config))
  key = jax.random.key(config.seed)

  def task(index):
    model = target.model
    if getattr(model, "label", None) is not None:  # every class in turn
      held = jax.tree.leaves(model.label)[0]
      model = denoisers.with_label(model, jnp.resize(held, len(index)))
    return populations.converged(
      key,
      model,
      target.process,
      target.shape,
      index,
      steps=config.reference_steps,
      dtype=jnp.float64 if config.float64 else jnp.float32,
    )

  searched = task(range(config.noises))
  begin = time.perf_counter()
  if config.method == "gits":
    name, table, scores = _gits(key, searched, target.process, config)
  else:
    name, table, scores = _evolve(key, searched, target.process, config, out)
  seconds = time.perf_counter() - begin
  tables.save(out / "best.npz", table)
  held = task(range(config.noises, config.noises + config.held_out))
  populations.check_apart(searched, held)
  rows = _report(searched, held, target.process, table, name, config)
  print(_text(rows, config))
  summary = dict(
    config=config.to_dict(),
    rows=rows,
    evaluations=len(scores),
    seconds=round(seconds, 1),
    compilations=populations.compilations(),
    device=jax.devices()[0].device_kind,
    jax=jax.__version__,
  )
  (out / "search.json").write_text(json.dumps(summary, indent=1) + "\n")
  print(f"Wrote {out}/best.npz, search.csv and search.json.")
  print(plots.search(scores, rows, out / "search.png", config.title))
  return summary


def _begin_with_signal(target):
  """Returns the target; where alpha(t_max) = 0 it begins a little later."""
  process = target.process
  if process.alpha(process.t_max) > 0:
    return target
  begin = float(process.time_at(1000.0))
  print(
    f"alpha({process.t_max:g}) = 0, so all tables begin at t = {begin:.4g}."
  )
  return target._replace(process=dataclasses.replace(process, t_max=begin))


def _evolve(key, problem, process, config, out):
  """Returns (name, table, scores) of the evolutionary searches."""
  path = out / "search.csv"
  stamp = _stamp(config)
  known = _resume(path, stamp)
  written = 0 if known is None else len(known[0])
  if known is None:
    path.write_text(f"{stamp}\nnumber,score,schedule\n")
  else:
    logging.info("found %d candidates of an earlier run in %s", written, path)
    known = _whole_generations(known, process, config)

  def progress(schedules, scores):
    nonlocal written
    with open(path, "a", newline="") as f:
      writer = csv.writer(f)
      for i in range(written, len(schedules)):
        fields = json.dumps(dataclasses.asdict(schedules[i]))
        writer.writerow([i, repr(float(scores[i])), fields])
    written = max(written, len(schedules))
    print(
      f"{len(schedules):6d} of {config.budget} candidates, best rmse on the"
      f" search noises {scores.min():.4g}",
      flush=True,
    )

  result = s3.search(
    key,
    problem,
    process,
    _search_config(config),
    budget=config.budget,
    guided=config.method == "s3",
    chunk=config.chunk or None,
    progress=progress,
    known=known,
  )
  if result.tau:
    print(f"Kendall's tau of the predictor: {np.nanmean(result.tau):.2f}")
  return config.method, result.table, result.scores


def _search_config(config):
  return s3.Config(config.calls, times_only=config.method == "times")


def _whole_generations(known, process, config):
  """Drops a generation that was only partly written.

  The search draws a generation from its first number, so it must begin there.
  """
  schedules, scores = known
  first = len(s3.seeds(process, _search_config(config)))
  if len(schedules) < first:
    return None
  size = s3.Config(config.calls).generation
  whole = first + (len(schedules) - first) // size * size
  whole = len(schedules) if len(schedules) == config.budget else whole
  return schedules[:whole], scores[:whole]


def _gits(key, problem, process, config):
  """Returns the best of all solvers on the grids of the cost matrix."""
  first = process.t_max
  ladder = gits.ladder(
    key,
    problem.model,
    process,
    problem.start,
    times=grids.karras(process, 80, start=first),
  )
  made = {}
  for gamma in _GAMMAS:
    grid = gits.grid(ladder, config.calls, gamma)
    for name in config.solvers:
      table = solvers.from_spec(name)(process, grid)
      if table.nfe == config.calls and not table.stochastic:
        made[f"{name} on gits({gamma:g})"] = table
  names = list(made)
  scores = populations.evaluate(
    problem, list(made.values()), chunk=config.chunk or None
  )
  best = int(scores.argmin())
  return names[best], made[names[best]], scores


def _known(process, config):
  """Returns {name: table} of every deterministic solver on every grid."""
  made = {}
  for name in config.solvers:
    build = functools.partial(solvers.from_spec(name), process)
    for grid, make in grids.GRIDS.items():
      table = solvers.for_budget(
        build, functools.partial(make, process), config.calls
      )
      if table is not None and not table.stochastic:
        made[f"{name} on {grid}"] = table
  return made


def _report(searched, held, process, table, name, config):
  """Returns rows of the winner and of the best known solvers, on both sets.

  A known solver is chosen on the search noises, as the winner was.
  """
  known = _known(process, config)
  judge = lambda problem, some: populations.evaluate(
    problem, some, chunk=config.chunk or None
  )
  values = judge(searched, list(known.values()))
  order = np.argsort(values, kind="stable")[:3]
  names = [name, *(list(known)[i] for i in order)]
  some = [table, *(known[n] for n in names[1:])]
  median = held._replace(fitness=fitness.Median(held.fitness.target))
  columns = dict(
    search=judge(searched, some),
    held_out=judge(held, some),
    median=judge(median, some),
  )
  return [
    dict(name=n) | {c: float(v[i]) for c, v in columns.items()}
    for i, n in enumerate(names)
  ]


def _text(rows, config):
  width = max(len(row["name"]) for row in rows) + 2
  lines = [
    f"rmse per coordinate to the converged ODE, {config.calls} calls",
    " " * width
    + f"{f'on {config.noises} searched':>18}"
    + f"{f'on {config.held_out} others':>18}{'their median':>15}",
  ]
  lines += [
    f"{row['name']:{width}s}{row['search']:18.4g}{row['held_out']:18.4g}"
    f"{row['median']:15.4g}"
    for row in rows
  ]
  ratio = rows[0]["held_out"] / min(row["held_out"] for row in rows[1:])
  lines.append(f"found / best known, on noises not searched: {ratio:.3f}")
  return "\n".join(lines)


def _stamp(config) -> str:
  """Identifies what the scores of a folder depend on."""
  free = ("out", "title", "budget", "held_out", "chunk", "solvers")
  fixed = {k: v for k, v in config.to_dict().items() if k not in free}
  text = json.dumps(fixed, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _resume(path, stamp):
  """Returns the schedules and scores of an earlier run, or None."""
  if not path.exists():
    return None
  lines = path.read_text().splitlines(keepends=True)
  if len(lines) < 3 or lines[0].strip() != stamp:
    return None
  schedules, scores, kept = [], [], lines[:2]
  for line in lines[2:]:
    try:
      _, score, fields = next(csv.reader([line]))
      made = json.loads(fields)
      schedules.append(
        usf.Schedule(
          tuple(made["lam"]),
          tuple(usf.StepChoice(**step) for step in made["steps"]),
          made["first"],
        )
      )
      scores.append(float(score))
    except (ValueError, StopIteration):
      break  # the line that was being written when the run was stopped
    kept.append(line)
  path.write_text("".join(kept))
  return schedules, np.asarray(scores)


def main() -> None:
  run(console.config_like("search_mixture"))


if __name__ == "__main__":
  console.define_config_file(
    "search_mixture",
    "What to search: a file of experiments/configs/. Set single fields with"
    " --config.NAME=VALUE, for instance --config.calls=5.",
  )
  console.run(main)

r"""The frontier: which solver is best at which number of network calls.

Runs solvers x grids x calls on one target from the same noises and compares
each result with the same ODE solved to convergence. The whole sweep, the
reference included, is one compiled program for the tables without noise and one
for those with it: tables are padded to one shape and walked for a traced number
of rows.

  python -m experiments.frontier                     # digits mixture, 80 s
  python -m experiments.frontier --config.target=g2 --config.process=vp
  python -m experiments.frontier --config.target=runs/digits   # a trained model

Writes frontier.csv, frontier.png and frontier.json to --config.out, and prints
a table. Interrupted, it goes on where it stopped.

Columns of the CSV: solver, grid, calls (the budget), nfe (calls really made),
rmse and median (per coordinate, over noises, to the converged ODE; a few
samples near a ridge switch modes and dominate the rmse), distance (sliced
Wasserstein to data; the converged ODE's own is in frontier.json as the floor).
Stochastic solvers follow no ODE path: their distance counts alone.

Two solvers bring their own grid: `default`, which is told the width of the
data, and `choose`, which is measured on other noises (`jaxdiff.choose`).
"""

import csv
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from tqdm import auto as tqdm

from jaxdiff import choosing
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import locks
from jaxdiff import metrics
from jaxdiff import models
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import training
from jaxdiff import zoo

from .parts import chosen
from .parts import console
from .parts import plots
from .parts import sources

FIELDS = ("solver", "grid", "calls", "nfe", "rmse", "median", "distance")
PROCESSES = {
  "edm": processes.edm,
  "vp": processes.vp_linear,
  "flow": processes.rectified_flow,
  "cosine": processes.vp_cosine,
  "ve": processes.ve,
  "sub_vp": processes.sub_vp,
}
ORACLES = {
  "digits_mixture": oracles.digits_mixture,
  "digits_empirical": oracles.digits_empirical,
  "g2": oracles.g2,
  "g16": oracles.g16,
  "grid25": oracles.grid25,
  "heavy_tails": oracles.heavy_tails,
  "nearly_flat": oracles.nearly_flat,
}
DEFAULT, CHOOSE = "default", "choose"
_OWN_GRID = {DEFAULT: "angular", CHOOSE: "own"}  # what the CSV has for a grid
ZOO = "zoo:"
Grid = Callable[..., np.ndarray]  # (process, n, to_zero=...)
_MNIST = {"image": "x_test"}
_PIECE = 40  # rows of the compiled program, unless a table is longer
_MEMORY = 4  # outputs that it keeps, unless a table keeps more


class Target(NamedTuple):
  """What the solvers are compared on.

  Attributes:
    model: the denoiser.
    process: its forward process.
    shape: shape of one sample.
    data: samples of the true distribution, for the distance.
    width: standard deviation of the data along their widest direction, None if
      it is not known.
  """

  model: Any
  process: processes.GaussianProcess
  shape: tuple[int, ...]
  data: jax.Array
  width: float | None = None


def load_target(config: ml_collections.ConfigDict) -> Target:
  """Returns the oracle, trained model or weights that the config names.

  Raises:
    ValueError: for a target that is none of them.
  """
  if config.target in ORACLES:
    if config.process not in PROCESSES:
      raise ValueError(
        f"config.process={config.process!r} is none of {', '.join(PROCESSES)}"
      )
    process = PROCESSES[config.process]()
    distribution = ORACLES[config.target]()
    model = oracles.exact(distribution, process)
    key = jax.random.key(config.seed + 1)
    if isinstance(distribution, oracles.Empirical):
      draws = jnp.asarray(distribution.data)
    else:
      draws, _ = distribution.sample(key, config.noises)
    width = choosing.width(np.asarray(draws))
    return Target(model, process, draws.shape[1:], draws, width)
  if config.target.startswith(ZOO):
    name = config.target.removeprefix(ZOO)
    return _trained(config, zoo.load(name), zoo.describe(name).config)
  if pathlib.Path(config.target).is_dir():
    model = training.load_denoiser(config.target)
    folder = models.checkpoint_directory(config.target)
    return _trained(config, model, models.load_config(folder))
  if pathlib.Path(config.target).is_file():
    model = sources.pretrained(config.target)
    process = model.process
    if config.get("max_level", 0):  # start below what the network masters
      t_max = float(process.time_at(config.max_level))
      process = dataclasses.replace(process, t_max=t_max)
    shape = networks.ddpm_mnist.SHAPE
    draws = jnp.zeros((0, *shape))
    if config.data:
      draws = jnp.asarray(data.load(config.data, keys=_MNIST)["image"])
    width = model.data_width
    if width is None and len(draws):
      width = choosing.width(np.asarray(draws))
    return Target(model, process, shape, draws, width)
  raise ValueError(
    f"config.target={config.target!r} is neither an oracle"
    f" ({', '.join(ORACLES)}), nor a model of the zoo ({ZOO}NAME), nor a folder"
    " with a trained model, nor a file of weights; train one with: python -m"
    " experiments.train --workdir=runs/digits"
  )


def _trained(config, model, stored) -> Target:
  """Returns a trained denoiser as a target, every class in turn."""
  if stored.num_classes:
    label = jnp.arange(config.noises) % stored.num_classes
    model = denoisers.with_label(model, label)
  draws = jnp.asarray(_data_of(config.data, stored, config.target))
  width = model.data_width or choosing.width(np.asarray(draws))
  return Target(model, model.process, stored.shape, draws, width)


def _data_of(name: str, stored: models.ModelConfig, run: str) -> np.ndarray:
  """Returns the images to compare a run's samples with."""
  if not name and not stored.dataset:
    raise ValueError(
      f"{run} does not say what data it was trained on; name it, for instance"
      " --config.data=digits"
    )
  options = {} if name else dict(stored.dataset_options)
  images = sources.images(data.load(name or stored.dataset, **options))
  if images.shape[1:] != stored.shape:
    raise ValueError(
      f"the data set {name or stored.dataset!r} has samples of shape"
      f" {images.shape[1:]}, but the model in {run} makes {stored.shape};"
      " leave config.data empty for the data that the run was trained on, or"
      " name a data set of that shape"
    )
  return images


def cells(
  config: ml_collections.ConfigDict,
  process: processes.GaussianProcess,
  named: Mapping[str, Grid] = grids.GRIDS,
  *,
  width: float | None = None,
  taken: Mapping[int, tables.Tableau] = MappingProxyType({}),
) -> Iterable[tuple[str, str, int, tables.Tableau]]:
  """Yields (solver, grid, calls, table) for every cell that fits a budget.

  Args:
    config: the sweep.
    process: the forward process.
    named: the grids that config.grids chooses from.
    width: what the default is told.
    taken: what `choose` took, by number of calls.
  """
  for grid in config.grids:
    if grid not in named:
      raise ValueError(
        f"config.grids has {grid!r}; there are {', '.join(named)}"
      )
  try:
    made = {
      name: solvers.from_spec(name)
      for name in config.solvers
      if name not in _OWN_GRID
    }
  except ValueError as e:
    raise ValueError(f"config.solvers: {e}") from e
  to_zero = config.to_zero
  for name in config.solvers:
    if name == DEFAULT:  # it brings its own grid
      for calls in config.calls:
        table = solvers.default(process, calls, width=width, to_zero=to_zero)
        yield name, _OWN_GRID[name], calls, table
      continue
    if name == CHOOSE:
      for calls, table in taken.items():
        yield name, _OWN_GRID[name], calls, table
      continue
    for grid in config.grids:
      for calls in config.calls:
        table = solvers.for_budget(
          functools.partial(made[name], process),
          functools.partial(named[grid], process, to_zero=to_zero),
          calls,
        )
        if table is not None:
          yield name, grid, calls, table


def choices(
  target: Target, config: ml_collections.ConfigDict
) -> chosen.Kept | None:
  """Returns what `choose` takes for the target, kept in config.out.

  None where config.solvers does not have it. It is measured on noises that the
  sweep does not use, for config.choose_calls or, without them, all.
  """
  if CHOOSE not in config.solvers:
    return None
  calls = tuple(config.choose_calls or config.calls)
  return chosen.keep(
    pathlib.Path(config.out) / "choices",
    dict(stamp=_stamp(config), calls=calls),
    lambda: choosing.choose(
      jax.random.key(config.seed + 2),
      target.model,
      target.process,
      calls,
      target.shape,
      noises=config.noises,
      width=target.width,
      to_zero=config.to_zero,
      dtype=jnp.float64 if config.float64 else jnp.float32,
      progress=True,
    ),
  )


class Sweep:
  """Runs tables from the same noises through one compiled program of each kind.

  A program has room for the longest and deepest of `todo`: a multistep table
  cut in two would lose its history at the cut.
  """

  def __init__(
    self,
    target: Target,
    config: ml_collections.ConfigDict,
    todo: Sequence[tables.Tableau] = (),
  ):
    self.target = target
    rows = max([_PIECE, *(table.nfe for table in todo)])
    self.rows = rows + -rows % 4  # whole steps of RK4, the reference
    self.memory = max([_MEMORY, *(table.memory for table in todo)])
    self.noises = config.noises
    self.to_zero = config.to_zero
    dtype = jnp.float64 if config.float64 else jnp.float32
    self.key = jax.random.key(config.seed)
    self.start = target.process.prior(
      self.key, (config.noises, *target.shape), dtype=dtype
    )
    self.distance_key = jax.random.key(0)

  def __call__(self, table: tables.Tableau, x: Any = None) -> jax.Array:
    """Returns the samples that a table makes of the noises, [noises, ...]."""
    x = self.start if x is None else x
    padded = tables.pad(table, self.rows, self.memory)
    key = jax.random.fold_in(self.key, 0)
    return sampling.sample(key, self.target.model, padded, x, length=table.nfe)

  def reference(self, steps: int) -> jax.Array:
    """Returns the noises taken along the ODE by RK4, in pieces.

    Each of its steps starts from the anchor alone, so it can be cut between
    any two of them.
    """
    process = self.target.process
    if self.to_zero:  # and a last step from where it hardly matters
      process = dataclasses.replace(process, t_min=0.01 * process.t_min)
    grid = grids.karras(process, steps)
    x = self.start
    bar = tqdm.tqdm(total=4 * steps, desc="reference", unit="call")
    per_piece = self.rows // 4
    for first in range(0, steps, per_piece):
      part = grid[first : first + per_piece + 1]
      table = solvers.rk4(process, part)
      x = self(table, x)
      bar.update(table.nfe)
    if self.to_zero:
      x = self(solvers.ddim(process, [process.t_min, process.t_zero]), x)
    jax.block_until_ready(x)
    bar.close()
    return x

  def distance(self, x: jax.Array) -> float:
    """Returns the sliced Wasserstein distance to data, NaN without any."""
    if not len(self.target.data):
      return math.nan
    draws = self.target.data.astype(x.dtype)
    return float(_sliced(self.distance_key, x, draws))


_sliced = jax.jit(metrics.sliced_wasserstein)


def run(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
  """Runs the sweep; returns its rows and writes csv, json and picture."""
  rows, summary = measure(config)
  out = pathlib.Path(config.out)
  print(table_text(rows, config.calls))
  print(
    f"{summary['tables']} tables and the reference ran in"
    f" {summary['compilations']} compiled program(s) on {summary['device']}."
  )
  print(f"Wrote {out}/frontier.csv and frontier.json.")
  path = out / "frontier.png"
  print(plots.frontier(rows, summary["floor"], path, config.title))
  return rows


def measure(
  config: ml_collections.ConfigDict,
  named: Mapping[str, Grid] = grids.GRIDS,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Runs the sweep; returns its rows and a summary, and writes both.

  Args:
    config: see experiments/configs/frontier_mixture.py.
    named: the grids that config.grids chooses from.
  """
  jax.config.update("jax_enable_x64", config.float64)
  out = pathlib.Path(config.out)
  with locks.hold(out, "measuring"):
    return _measure(config, named, out)


def _measure(config, named, out):
  target = load_target(config)
  taken = choices(target, config)
  todo = list(
    cells(
      config,
      target.process,
      named,
      width=target.width,
      taken={} if taken is None else taken.tables,
    )
  )
  if not todo:
    raise ValueError(
      f"none of config.solvers={tuple(config.solvers)} makes a step in any of"
      f" config.calls={tuple(config.calls)}; allow more calls"
    )
  sweep = Sweep(target, config, [table for *_, table in todo])
  stamp = _stamp(config)
  rows, reference = _resume(out, stamp)
  # the CSV keeps what an earlier sweep of other solvers, grids or calls made
  wanted = {cell[:3] for cell in todo}
  rows = [r for r in rows if (r["solver"], r["grid"], r["calls"]) in wanted]
  before = sampling.compilations()
  if reference is None:
    reference = np.asarray(sweep.reference(config.reference_steps))
    _write_npz(out / "reference.npz", reference=reference, stamp=stamp)
    _write_csv(out / "frontier.csv", [])
  done = {(r["solver"], r["grid"], r["calls"]) for r in rows}
  bar = tqdm.tqdm(todo, desc="frontier", unit="table")
  for name, grid, calls, table in bar:
    if (name, grid, calls) in done:
      continue
    bar.set_postfix_str(f"{name} {calls}")
    x = sweep(table)
    row = dict(solver=name, grid=grid, calls=calls, nfe=table.nfe)
    row |= dict(rmse=math.nan, median=math.nan, distance=sweep.distance(x))
    if not table.stochastic:
      row |= errors(np.asarray(x), reference)
    rows.append(row)
    _append_csv(out / "frontier.csv", row)
  summary = dict(
    config=config.to_dict(),
    floor=sweep.distance(jnp.asarray(reference)),
    compilations=sampling.compilations() - before,
    tables=len(todo),
    chosen={} if taken is None else taken.names,
    device=jax.devices()[0].device_kind,
    jax=jax.__version__,
  )
  (out / "frontier.json").write_text(json.dumps(summary, indent=1) + "\n")
  return rows, summary


def errors(x: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  """Returns rmse and median over samples of the error per coordinate."""
  square = np.mean((x - reference) ** 2, axis=tuple(range(1, x.ndim)))
  return dict(
    rmse=float(np.sqrt(square.mean())),
    median=float(np.sqrt(np.median(square))),
  )


def best_by_grid(
  rows: list[dict[str, Any]], by: str = "rmse"
) -> dict[tuple[str, int], dict[str, Any]]:
  """Returns each (solver, calls)'s row on the grid that suits it best."""
  best = {}
  for row in rows:
    at = (row["solver"], row["calls"])
    if at not in best or row[by] < best[at][by]:
      best[at] = row
  return best


def table_text(rows: list[dict[str, Any]], calls: Iterable[int]) -> str:
  """Returns the table for the terminal: median / rmse, best of each marked."""
  best = best_by_grid([r for r in rows if not math.isnan(r["rmse"])])
  names = list(dict.fromkeys(r["solver"] for r in rows))
  width = max(map(len, names)) + 2
  lines = [
    "error per coordinate to the converged ODE, median / rmse, each solver at"
    " its best grid; * lowest rmse",
    "calls".ljust(width) + "".join(f"{c:>18}" for c in calls),
  ]
  lowest = {
    c: min((v["rmse"] for (_, k), v in best.items() if k == c), default=None)
    for c in calls
  }
  for name in names:
    if not any((name, c) in best for c in calls):
      continue
    line = name.ljust(width)
    for c in calls:
      row = best.get((name, c))
      if row is None:
        line += " " * 18
        continue
      star = "*" if row["rmse"] == lowest[c] else " "
      line += f"{row['median']:.1e} / {row['rmse']:.1e}{star}".rjust(18)
    lines.append(line)
  noisy = [n for n in names if not any((n, c) in best for c in calls)]
  if noisy:
    lines.append("sliced Wasserstein distance to data of the stochastic ones")
    by_distance = best_by_grid(rows, "distance")
    for name in noisy:
      line = name.ljust(width)
      for c in calls:
        row = by_distance.get((name, c))
        line += (f"{row['distance']:.3f}" if row else "").rjust(18)
      lines.append(line)
  return "\n".join(lines)


def _stamp(config) -> str:
  """Identifies what the reference and the rows of a folder depend on."""
  fixed = {k: v for k, v in config.to_dict().items() if k not in _FREE}
  target = pathlib.Path(config.target)
  if config.target not in ORACLES and target.is_dir():
    fixed["network"] = training.fingerprint(target)
  text = json.dumps(fixed, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


_FREE = ("out", "title", "solvers", "grids", "calls", "choose_calls")


def _resume(out, stamp):
  """Returns the rows and the reference of an earlier run of this config."""
  try:
    with np.load(out / "reference.npz") as held:
      if str(held["stamp"]) != stamp:
        return [], None
      reference = held["reference"]
    with open(out / "frontier.csv", newline="") as f:
      read = list(csv.DictReader(f))
  except FileNotFoundError:
    return [], None
  rows = []
  for r in read:
    if None in r.values() or set(r) != set(FIELDS):
      break  # the line that was being written when the run was stopped
    number = lambda k, r=r: float(r[k])
    rows.append(
      dict(solver=r["solver"], grid=r["grid"])
      | {k: int(r[k]) for k in ("calls", "nfe")}
      | {k: number(k) for k in ("rmse", "median", "distance")}
    )
  _write_csv(out / "frontier.csv", rows)
  logging.info("found %d cells of an earlier run in %s", len(rows), out)
  return rows, reference


def _write_npz(path, **arrays):
  partial = path.with_suffix(".partial.npz")
  np.savez(partial, **arrays)
  partial.replace(path)


def _write_csv(path, rows):
  with open(path, "w", newline="") as f:
    writer = csv.DictWriter(f, FIELDS)
    writer.writeheader()
    writer.writerows(rows)


def _append_csv(path, row):
  with open(path, "a", newline="") as f:
    csv.DictWriter(f, FIELDS).writerow(row)


def main() -> None:
  run(console.config_like("frontier_mixture"))


if __name__ == "__main__":
  console.define_config_file(
    "frontier_mixture",
    "What to run: a file of experiments/configs/. Set single fields with"
    " --config.NAME=VALUE, for instance --config.noises=256.",
  )
  console.run(main)

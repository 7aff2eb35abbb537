r"""All methods of distillation side by side: docs/distillation.md.

  python -m experiments.pages.students --tasks=mixture  # half an hour
  python -m experiments.pages.students --tasks=digits --methods=dmd,sim
  python -m experiments.pages.students --tasks=  # the page alone

A task is a teacher: "mixture" (25 Gaussians, the exact denoiser), "digits" and
"patches8" (trained first, by experiments.train, if they are not there). Every
method begins with the same student, a copy of the teacher's network, and makes
the same number of updates of the same batches, with the configuration that
experiments/configs/distill.py has for it. Each cell is a run of
experiments.distill under runs/students/<task>/<method>, resumed where it
stopped; what is there is gathered into experiments/results/students.json, from
which the page and its pictures are made.

Distance is the sliced Wasserstein distance of points, the Frechet distance of
random features of images, between as many samples and data; in brackets the
jackknife's interval of 95 %. Coverage is the number of the 25 modes that hold a
fifth of their due, with the share of samples within 4 standard deviations of a
mode, and the coverage of Naeem et al. (2020) for images.
"""

import csv
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from jaxdiff import metrics
from jaxdiff import training

from .. import distill
from ..configs import digits_mlp
from ..configs import distill as configs
from ..configs import patches8
from ..parts import console
from ..parts import grid25
from ..parts import plots
from ..parts import sources

_RESULTS, _PAGE = "experiments/results/students.json", "docs/distillation.md"
_MARKS = "<!-- generated -->\n", "<!-- end -->"
_GROUPS = 10  # of the jackknife
_SHOWN = 16  # samples of a row of the pictures

TASKS = {
  "mixture": dict(
    what="25 Gaussians in the plane, exact teacher, MLP 3 x 128",
    steps=1500,
    batch_size=256,
    samples=4096,
  ),
  "digits": dict(
    what="scikit-learn's digits, 8 x 8, residual MLP 3 x 256, by class",
    steps=500,
    batch_size=128,
    samples=1797,
  ),
  "patches8": dict(
    what="8 x 8 colour patches of photographs, residual MLP 4 x 256, by class",
    steps=400,
    batch_size=128,
    samples=2048,
  ),
}
_TEACHERS = {"digits": digits_mlp, "patches8": patches8}
_TEACHER_CALLS = (1, 2, 4, 18)  # of DDIM
# what distillation trains that is no model of its own, or no few-step one
LEFT_OUT = ("imitation",)

Row = dict[str, Any]


def configuration(task: str, method: str, runs: pathlib.Path) -> Any:
  """Returns the configuration of a cell."""
  config = configs.get_config(method)
  for name in ("steps", "batch_size", "samples"):
    config[name] = TASKS[task][name]
  config.teacher = task if task == "mixture" else str(runs / task / "teacher")
  config.checkpoint_every = config.steps
  return config


def teach(task: str, runs: pathlib.Path) -> None:
  """Trains a task's teacher, if it is not there."""
  from .. import train

  if task in _TEACHERS:
    train.train(_TEACHERS[task].get_config(), runs / task / "teacher")


def measure(x: np.ndarray, reference: np.ndarray) -> Row:
  """Returns distance and coverage of samples, with intervals."""
  interval = metrics.jackknife(distill.distance, x, reference, groups=_GROUPS)
  inside = {}
  if x.ndim == 2:
    held, share = grid25.modes(x)
    coverage, inside["share"] = held, float(f"{share:.3g}")
  else:
    coverage = float(metrics.density_coverage(x, reference)[1])
  ends = (interval.value, interval.low, interval.high)
  return dict(
    distance=float(f"{interval.value:.4g}"),
    interval=[float(f"{max(v, 0.0):.4g}") for v in ends[1:]],
    coverage=float(f"{coverage:.4g}"),
    **inside,
  )


def _drawn(
  config: Any, name: str, model: Any, on: Any, calls: Sequence[int], task: str
) -> tuple[list[Row], dict[int, np.ndarray]]:
  """Returns the rows of a model's samples, and those that are shown, by calls.

  Args:
    config: what `distill.draw` draws by.
    name: name of the method, or "teacher".
    model: the student or the teacher.
    on: as `distill.task` returns it.
    calls: numbers of calls.
    task: its name.
  """
  reference = sources.images(on.source)[: config.samples]
  rows, shown = [], {}
  for n in calls:
    x = distill.draw(
      config, model, on.config.shape, n, len(reference), on.config.num_classes
    )
    shown[n] = x[: 512 if x.ndim == 2 else _SHOWN]
    rows.append(dict(task=task, method=name, calls=n, **measure(x, reference)))
  return rows, shown


def cell(task: str, method: str, runs: pathlib.Path) -> list[Row]:
  """Returns the rows of a method, training it if it is not there."""
  config = configuration(task, method, runs)
  folder = runs / task / method
  _begin(config, task, runs, folder)
  model = distill.distil(config, folder)
  on = distill.task(config)
  rows, shown = _drawn(config, method, model, on, config.calls, task)
  for calls, x in shown.items():
    np.save(folder / f"shown_{calls}.npy", x)
  with (folder / "metrics.csv").open() as f:
    speeds = [float(r["updates_per_second"]) for r in csv.DictReader(f)]
  for row in rows:
    row["seconds_per_update"] = float(f"{1 / np.median(speeds):.3g}")
  return rows


def _begin(
  config: Any, task: str, runs: pathlib.Path, folder: pathlib.Path
) -> None:
  """Gives a student of the exact teacher the start that all others have."""
  if task != "mixture" or (folder / "start").exists():
    return
  kind = "jumps" if config.jumps else "plain"
  shared = runs / task / f"start_{kind}"
  distill.student(config, distill.task(config), shared)
  shutil.copytree(shared / "start", folder / "start")


def baseline(task: str, runs: pathlib.Path) -> list[Row]:
  """Returns the rows of the teacher, by DDIM, and of the data themselves."""
  config = configuration(task, "imitation", runs)
  on = distill.task(config)
  images = sources.images(on.source)
  model = on.network
  if model is None:
    model = training.load_denoiser(runs / task / "start_plain" / "start")
  rows, shown = _drawn(
    distill.by_ddim(config), "teacher", model, on, _TEACHER_CALLS, task
  )
  for calls, x in shown.items():
    np.save(runs / task / f"shown_{calls}.npy", x)
  half = min(len(images) // 2, config.samples)
  # digits come writer by writer: without it two halves are of other hands
  images = np.random.default_rng(0).permutation(images)
  again = measure(images[half : 2 * half], images[:half])
  rows.append(dict(task=task, method="data", calls=0, size=half, **again))
  return rows


def text(results: dict[str, Row]) -> str:
  """Returns the generated part of the page."""
  lines = []
  for task, about in TASKS.items():
    rows = [r for r in results.values() if r["task"] == task]
    if not rows:
      continue
    lines += [
      f"### {task}",
      "",
      f"{about['what']}; {about['steps']:,} updates of {about['batch_size']}"
      f" samples; measured on {about['samples']:,}.",
      "",
      "| method | distance at 1 call | 2 calls | 4 calls | 18 calls |"
      " coverage at 1, 4, 18 |",
      "|---|---|---|---|---|---|",
    ]
    names = sorted({r["method"] for r in rows} - {"teacher", "data"})
    for name in ("teacher", *names):
      own = {r["calls"]: r for r in rows if r["method"] == name}
      if not own:
        continue
      shown = [
        f"{own[c]['distance']:.3g} [{own[c]['interval'][0]:.3g},"
        f" {own[c]['interval'][1]:.3g}]"
        if c in own
        else ""
        for c in (1, 2, 4, 18)
      ]
      covered = ", ".join(_covered(own[c]) for c in (1, 4, 18) if c in own)
      cells = [f"`{name}`" if name != "teacher" else "teacher, DDIM", *shown]
      lines.append(f"| {' | '.join([*cells, covered])} |")
    data = next((r for r in rows if r["method"] == "data"), None)
    if data:
      low, high = data["interval"]
      lines += [
        "",
        f"Two sets of {data['size']:,} of the data are {data['distance']:.3g}"
        f" [{low:.3g}, {high:.3g}] apart.",
      ]
    lines += ["", f"![one call](students_{task}.png)", ""]
  return "\n".join(lines)


def _covered(row: Row) -> str:
  share = f" ({row['share']:.0%})" if "share" in row else ""
  return f"{row['coverage']:.3g}{share}"


def pictures(
  results: dict[str, Row], runs: pathlib.Path, folder: pathlib.Path
) -> list[str]:
  """Draws samples of one call of every method, a picture for each task."""
  said = []
  for task in TASKS:
    names = sorted({r["method"] for r in results.values() if r["task"] == task})
    files = {n: runs / task / n / "shown_1.npy" for n in names}
    files = {"teacher, 18 calls": runs / task / "shown_18.npy", **files}
    shown = {n: np.load(f) for n, f in files.items() if f.exists()}
    if len(shown) < 2:
      continue
    path = folder / f"students_{task}.png"
    images = next(iter(shown.values())).ndim == 4
    draw = plots.image_rows if images else plots.point_panels
    said.append(draw(shown, path))
  return said


def main() -> None:
  """Runs what the flags ask for, and writes the page."""
  runs = pathlib.Path(flags.FLAGS.out)
  kept, path = (console.place(runs, p) for p in (_RESULTS, _PAGE))
  asked = flags.FLAGS.methods or [
    name for name in configs.METHODS if name not in LEFT_OUT
  ]
  results = {}
  if kept.exists():
    results = json.loads(kept.read_text())

  def keep(rows: list[Row]) -> None:
    for row in rows:
      results[f"{row['task']}/{row['method']}/{row['calls']}"] = row
    text = json.dumps(dict(sorted(results.items())), indent=1)
    partial = kept.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(kept)

  for task in flags.FLAGS.tasks:
    teach(task, runs)
    if task == "mixture":
      config = configuration(task, LEFT_OUT[0], runs)
      distill.student(config, distill.task(config), runs / task / "start_plain")
    if flags.FLAGS.baseline:
      keep(baseline(task, runs))
    for method in asked:
      rows = cell(task, method, runs)
      keep(rows)
      row = rows[0]
      print(
        f"{task} {method}: {row['distance']:.4g} at {row['calls']} call(s)",
        flush=True,
      )
  page = path.read_text() if path.exists() else "".join(_MARKS)
  head, _, rest = page.partition(_MARKS[0])
  _, _, tail = rest.partition(_MARKS[1])
  device = jax.devices()[0].device_kind
  made = f"Measured on {device}, jax {jax.__version__}.\n\n{text(results)}\n"
  path.write_text(f"{head}{_MARKS[0]}\n{made}{_MARKS[1]}{tail}")
  for line in (f"Wrote {path}.", *pictures(results, runs, path.parent)):
    print(line)


if __name__ == "__main__":
  flags.DEFINE_list("tasks", list(TASKS), "Tasks to run, by commas.")
  flags.DEFINE_list("methods", None, "Methods; by default all.")
  flags.DEFINE_bool("baseline", True, "Whether to measure the teacher, too.")
  flags.DEFINE_string("out", "runs/students", "Folder of the runs.")
  console.define_publish()
  console.run(main)

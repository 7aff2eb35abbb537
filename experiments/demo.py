"""Trains on real digits, then shows which solver is best at how many calls.

  make demo

2 to 4 minutes on two cores. Interrupted, it goes on where it stopped; run
again, it reads what is there. Writes runs/demo/frontier.png, samples.png and
frontier.csv.
"""

import pathlib
import time

from absl import flags

from jaxdiff import models

from .parts import console

_OUT = flags.DEFINE_string("out", "runs/demo", "Folder for all results.")
_STEPS = flags.DEFINE_integer(
  "steps", None, "Training steps; the config's by default.", lower_bound=1
)
_NOISES = flags.DEFINE_integer(
  "noises", None, "Noises of the frontier; the config's by default."
)


def main() -> None:
  # after the flags, so that --help answers at once
  from jaxdiff import solvers

  from . import frontier
  from . import sample
  from . import train
  from .configs import digits
  from .configs import frontier_digits
  from .parts import plots

  begin = time.perf_counter()
  out = pathlib.Path(_OUT.value)
  workdir = out / "training"
  print("1/3  Training a U-Net on 1,797 real digits of 8x8 pixels.", flush=True)
  config = digits.get_config()
  if _STEPS.value:
    config.steps = _STEPS.value
  model = train.train(config, workdir)

  print("2/3  Drawing 100 digits with 18 network calls each.", flush=True)
  table = solvers.default(model.process, 18, to_zero=True)
  model_config = models.load_config(models.checkpoint_directory(workdir))
  images, _ = sample.draw(
    model,
    table,
    model_config.shape,
    num=100,
    batch=100,
    classes=model_config.num_classes,
  )
  drawn = plots.image_grid(
    images, out / "samples.png", title="default, 18 calls, classes 0 to 9"
  )
  if not drawn.startswith("Wrote"):
    print(drawn)

  sweep = frontier_digits.get_config()
  sweep.target = str(workdir)
  sweep.out = str(out)
  if _NOISES.value:
    sweep.noises = _NOISES.value
  print(
    f"3/3  {len(sweep.solvers)} solvers x {len(sweep.calls)} budgets on that"
    " network, against its converged ODE.",
    flush=True,
  )
  rows = frontier.run(sweep)
  print(f"\nDone in {time.perf_counter() - begin:.0f} s. Look at")
  for name, what in (
    ("samples.png", "  100 digits that the model drew"),
    ("frontier.png", " error of every solver against network calls"),
    ("frontier.csv", " the numbers behind it"),
  ):
    if (out / name).is_file():
      print(f"  {out}/{name} {what}")
  print("Lowest median error at each number of calls:")
  best = _best(rows)
  print("  " + ", ".join(f"{c}: {row['solver']}" for c, row in best.items()))


def _best(rows):
  """Returns the row of the lowest median error for each number of calls."""
  best = {}
  for row in rows:
    if row["median"] == row["median"]:  # not NaN
      held = best.get(row["calls"])
      if held is None or row["median"] < held["median"]:
        best[row["calls"]] = row
  return best


if __name__ == "__main__":
  console.run(main)

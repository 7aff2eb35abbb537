"""Trains on real digits, then shows which solver is best at how many calls.

  make demo

3 to 5 minutes on two cores. At the end stands what `jaxdiff.choose` took for
the network that was just trained, at 5, 8 and 12 calls, and how many times the
error of the usual solvers is its own. Interrupted, it goes on where it stopped;
run again, it reads what is there. Writes runs/demo/frontier.png, samples.png
and frontier.csv.
"""

import json
import pathlib
import time
from typing import Any

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
_TOLD = (5, 8, 12)  # calls
_USUAL = ("ddim", "dpmpp_2m", "unipc(order=3)", "ipndm(order=3)", "default")


def told(
  best: dict[tuple[str, int], dict[str, Any]], chosen: dict[str, str]
) -> str:
  """Returns what was chosen, and the usual solvers' errors over its own.

  Args:
    best: row of each (solver, calls), on the grid that suits it best.
    chosen: name of what `choose` took, by calls as text.
  """
  lines = []
  for calls in _TOLD:
    own = best["choose", calls]["rmse"]
    lines.append(
      f"  {calls} calls: {chosen[str(calls)]}, rmse {own:.2g}. Times that:"
    )
    times = (
      f"{name} {best[name, calls]['rmse'] / own:.1f}"
      for name in _USUAL
      if (name, calls) in best
    )
    lines.append(f"     {', '.join(times)}")
  return "\n".join(lines)


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
  config.steps = _STEPS.value or config.steps
  model = train.train(config, workdir)

  print("2/3  Drawing 100 digits with 18 network calls each.", flush=True)
  table = solvers.default(model, 18, to_zero=True)
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
  sweep.choose_calls = _TOLD
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
  print("What was measured to suit this network best, on other noises:")
  summary = json.loads((out / "frontier.json").read_text())
  print(told(frontier.best_by_grid(rows), summary["chosen"]))


if __name__ == "__main__":
  console.run(main)

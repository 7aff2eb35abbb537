r"""The README's picture: the default rule and others, where it was not fitted.

  python -m experiments.pages.overview  # half an hour
  python -m experiments.pages.overview --targets=zoo:digits
  python -m experiments.pages.overview --targets=  # the picture alone

Error against network calls of the default rule and of published solvers, each
at the better of two grids, on two oracles that the rule was not fitted on and
on trained networks of the zoo. Noises, reference and program as in
`experiments.frontier`. --publish writes experiments/results/overview.json,
docs/overview.png and a table of docs/choosing-a-solver.md anew.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from .. import frontier
from ..configs import frontier_mixture
from ..parts import console
from ..parts import plots
from . import frontier_table

SOLVERS = (
  frontier.DEFAULT,
  "ddim",
  "heun",
  "dpmpp_2m",
  "unipc(order=3)",
  "deis(order=3)",
  "ipndm(order=3)",
)
DRAWN = {
  "heavy_tails": "exact: mixture with heavy tails",
  "digits_empirical": "exact: the digits themselves",
  "zoo:digits": "trained: U-Net of 8x8 digits",
}
# In the table of docs/choosing-a-solver.md alone.
TOLD = {
  "zoo:digits_flow": "trained: U-Net of 8x8 digits, rectified flow",
  "zoo:patches16": "trained: U-Net of 16x16 colour patches",
}
CALLS = (5, 6, 8, 10, 15, 20, 30)
MARK = "<!-- networks -->\n"
_PAGE = "docs/choosing-a-solver.md"  # has a part generated here
_RESULTS = "experiments/results/overview.json"


def measure(target: str, runs: pathlib.Path) -> dict[str, Any]:
  """Returns what is kept of a target: its title and the rows of its sweep."""
  config = frontier_mixture.get_config()
  config.target = target
  config.solvers = SOLVERS
  config.calls = CALLS
  config.noises = 512 if target in DRAWN else 128
  config.reference_steps = 100
  config.float64 = False
  config.out = str(runs / target.replace(":", "_"))
  rows, _ = frontier.measure(config)
  keep = ("solver", "grid", "calls", "rmse", "median")
  rows = [{k: row[k] for k in keep} for row in rows]
  return dict(target=target, title=(DRAWN | TOLD)[target], rows=rows)


def over_best(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
  """Returns the default's rmse over the least of the others, by calls."""
  ratios = {}
  for calls in sorted({row["calls"] for row in rows}):
    here = [row for row in rows if row["calls"] == calls]
    others = [r["rmse"] for r in here if r["solver"] != frontier.DEFAULT]
    (own,) = [r["rmse"] for r in here if r["solver"] == frontier.DEFAULT]
    ratios[calls] = own / np.nanmin(others)
  return ratios


def table(panels: Sequence[Mapping[str, Any]]) -> str:
  """Returns the ratios on networks as a table of docs/choosing-a-solver.md."""
  head = " | ".join(f"{calls} calls" for calls in CALLS)
  lines = [f"| network of the zoo | {head} |", "|---" * (len(CALLS) + 1) + "|"]
  for panel in panels:
    if panel["target"].startswith(frontier.ZOO):
      ratios = over_best(panel["rows"])
      name = panel["target"].removeprefix(frontier.ZOO)
      cells = " | ".join(f"{ratios[calls]:.1f}" for calls in CALLS)
      lines.append(f"| `{name}` | {cells} |")
  return "\n".join([*lines, ""])


def main() -> None:
  runs = pathlib.Path("runs/overview")
  results = console.place(runs, _RESULTS)
  results.parent.mkdir(parents=True, exist_ok=True)
  kept = json.loads(results.read_text()) if results.exists() else []
  found = {panel["target"]: panel for panel in kept}
  for target in filter(None, flags.FLAGS.targets):
    found[target] = measure(target, runs)
    results.write_text(json.dumps(list(found.values()), indent=1) + "\n")
  print(table(found.values()))
  if flags.FLAGS.publish:
    page = console.checkout(_PAGE) / _PAGE
    page.write_text(
      frontier_table.insert(page.read_text(), table(found.values()), MARK)
    )
  shown = [found[target] for target in DRAWN if target in found]
  print(plots.overview(shown, console.place(runs, "docs/overview.png")))


if __name__ == "__main__":
  flags.DEFINE_list(
    "targets", [*DRAWN, *TOLD], "What to measure anew; the rest stays."
  )
  console.define_publish()
  console.run(main)

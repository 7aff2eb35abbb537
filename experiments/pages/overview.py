r"""The README's picture: the default rule and others, where it was not fitted.

  python -m experiments.pages.overview                  # some minutes on a core
  python -m experiments.pages.overview --measure=false  # the picture alone

Error against network calls of the default rule and of published solvers, each
at the better of two grids, on two oracles that the rule was not fitted on and
on a trained network of the zoo. Noises, reference and program as in
`experiments.frontier`. --publish writes experiments/results/overview.json and
docs/overview.png anew.
"""

import json
import pathlib

from absl import flags

from .. import frontier
from ..configs import frontier_mixture
from ..parts import console
from ..parts import plots

SOLVERS = (
  frontier.DEFAULT,
  "ddim",
  "heun",
  "dpmpp_2m",
  "unipc(order=3)",
  "deis(order=3)",
  "ipndm(order=3)",
)
PANELS = {
  "heavy_tails": "exact: mixture with heavy tails",
  "digits_empirical": "exact: the digits themselves",
  "zoo:digits": "trained: U-Net of 8x8 digits",
}
CALLS = (5, 6, 8, 10, 15, 20, 30)


def measure(out: pathlib.Path) -> list[dict]:
  """Returns one entry for each panel: its title and the rows of its sweep."""
  panels = []
  for target, title in PANELS.items():
    config = frontier_mixture.get_config()
    config.target = target
    config.solvers = SOLVERS
    config.calls = CALLS
    config.noises = 512
    config.reference_steps = 100
    config.float64 = False
    config.out = str(out / target.replace(":", "_"))
    rows, _ = frontier.measure(config)
    keep = ("solver", "grid", "calls", "rmse", "median")
    rows = [{k: row[k] for k in keep} for row in rows]
    panels.append(dict(target=target, title=title, rows=rows))
  return panels


def main() -> None:
  out = pathlib.Path("runs/overview")
  committed = "experiments/results/overview.json"
  if flags.FLAGS.measure:
    stored = console.place(out, committed)
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(measure(out), indent=1) + "\n")
    print(f"Wrote {stored}")
  else:
    stored = console.checkout("the picture") / committed
  panels = json.loads(stored.read_text())
  picture = console.place(out, "docs/overview.png")
  print(plots.overview(panels, picture))


if __name__ == "__main__":
  flags.DEFINE_bool("measure", True, "Measure anew, rather than draw alone.")
  console.define_publish()
  console.run(main)

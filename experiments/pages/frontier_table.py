r"""One rule, or the best choice for each cell: docs/frontier.md.

  python -m experiments.pages.frontier_table  # all cells, an hour on a core
  python -m experiments.pages.frontier_table --cells=grid25_vp,g16_edm
  python -m experiments.pages.frontier_table --rule  # the default rule alone
  python -m experiments.pages.frontier_table --cells=  # the document alone

A cell is an oracle and a process. Each is a run of `experiments.frontier` under
runs/frontier_table/<cell>, resumed where it stopped. What is there is gathered
into frontier.json, from which frontier.md is written; with --publish in
experiments/results/ and docs/ of the checkout.

On the mixture of digits and the grid of 25 Gaussians the tables are compared
with the best error that thirteen public libraries reached. Two bars: the
default rule, which is told the width of the data, is never above that figure,
and at every number of calls some table of ours is at most 0.8 of it. On other
oracles it is compared with published solvers, each on its best grid. The rule
has seen none of them. A network on MNIST is added from the run of
configs/frontier_mnist.py, if there is one. --rule measures the rule anew and
leaves all else as it was.
"""

import csv
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from jaxdiff import grids

from .. import frontier
from ..parts import console

CALLS = (5, 6, 8, 10, 15, 20, 30, 50)
FIGURES = {  # rmse of the best of thirteen libraries, at CALLS
  "digits_mixture_edm": (
    7.53e-2, 5.62e-2, 3.10e-2, 1.72e-2, 8.38e-3, 5.09e-3, 1.31e-3, 2.30e-4),
  "digits_mixture_vp": (
    8.15e-2, 7.53e-2, 4.29e-2, 3.04e-2, 9.81e-3, 3.29e-3, 9.92e-4, 2.73e-4),
  "digits_mixture_flow": (
    7.88e-2, 5.77e-2, 3.45e-2, 2.46e-2, 1.48e-2, 5.14e-3, 1.19e-3, 4.15e-4),
  "grid25_edm": (
    3.87e-2, 2.47e-2, 2.13e-2, 1.29e-2, 6.73e-3, 3.48e-3, 1.78e-3, 5.75e-4),
  "grid25_vp": (
    2.57e-2, 3.03e-2, 1.98e-2, 1.77e-2, 5.99e-3, 3.48e-3, 1.72e-3, 4.09e-4),
  "grid25_flow": (
    7.55e-2, 5.53e-2, 4.36e-2, 3.24e-2, 2.30e-2, 7.77e-3, 4.28e-3, 1.05e-3),
}  # fmt: skip
RULE, CHOICE = 1.0, 0.8  # the bars, as parts of the figure
_MNIST = pathlib.Path("runs/frontier_mnist")
_RESULTS, _DOCUMENT = "experiments/results/frontier.json", "docs/frontier.md"
_ADVICE = "docs/choosing-a-solver.md"  # has a part generated here
_MARKS = "<!-- generated -->\n", "<!-- end -->"

_BEFORE = "default of 0.1.0"

Row = dict[str, Any]


def angular_grids(choice: Any) -> dict[str, Callable]:
  """Returns the angular grids that a single cell may choose from, by name."""
  return {
    f"angular({scale}, {bend})": functools.partial(
      grids.angular, scale=scale, bend=bend
    )
    for scale in choice.scales
    for bend in choice.bends
  }


def measure(cell: str, config: Any) -> None:
  """Runs the sweeps of a cell, or what is left of them.

  Raises:
    ValueError: for an unknown cell.
  """
  choice = config.choice
  config = _of_cell(cell, config)
  ours = angular_grids(choice)
  if cell in FIGURES:
    # all in one sweep would be every published solver on every angular grid
    many = [c for c in config.calls if c > choice.few]
    config.calls = [c for c in config.calls if c <= choice.few]
    frontier.measure(config)
    config.solvers = ("default", *choice.solvers)
    config.grids = ("angular", *ours)
    frontier.measure(config, dict(grids.GRIDS) | ours)
    if many:
      config.calls, config.grids = many, choice.grids_of_many
      frontier.measure(config, dict(grids.GRIDS) | ours)
  else:
    config.solvers = ("default", *config.solvers)
    config.grids = choice.held_out_grids
    config.calls = choice.held_out_calls
    config.noises = choice.held_out_noises
    config.reference_steps = choice.reference_steps
    frontier.measure(config)


def measure_rule(cell: str, config: Any) -> None:
  """Runs the default rule of a cell alone."""
  choice = config.choice
  config = _of_cell(cell, config)
  config.solvers = ("default",)
  config.reference_steps = choice.reference_steps
  if cell not in FIGURES:
    config.calls = choice.held_out_calls
    config.noises = choice.held_out_noises
  config.out = f"{config.out}_rule"
  frontier.measure(config)


def measure_seeds(cell: str, config: Any) -> None:
  """Runs the default rule of a cell on other noises."""
  choice = config.choice
  config = _of_cell(cell, config)
  config.solvers = ("default",)
  config.reference_steps = choice.reference_steps
  out = config.out
  for seed in choice.seeds:
    config.update(seed=seed, out=f"{out}_seed{seed}")
    frontier.measure(config)


def _of_cell(cell, config):
  """Returns the config of the cell's sweep."""
  known = (*FIGURES, *config.choice.held_out)
  if cell not in known:
    raise ValueError(f"{cell!r} is none of the cells: {', '.join(known)}")
  config = config.copy_and_resolve_references().unlock()
  del config.choice
  target, process = cell.rsplit("_", 1)
  config.update(
    target=target,
    process=process,
    to_zero=process == "flow",
    title=cell,
    out=str(pathlib.Path(config.out) / cell),
  )
  return config


def read(folder: pathlib.Path) -> list[Row]:
  """Returns the rows of a sweep, none where there was none."""
  path = folder / "frontier.csv"
  if not path.exists():
    return []
  with open(path, newline="") as f:
    return [
      row
      | {k: int(row[k]) for k in ("calls", "nfe")}
      | {k: float(row[k]) for k in ("rmse", "median", "distance")}
      for row in csv.DictReader(f)
    ]


def gather(
  config: Any, before: Mapping[str, Any], rule: bool = False
) -> dict[str, Any]:
  """Returns what was measured; what is not in runs/ now stays as it was.

  Args:
    config: of the page.
    before: the results as they were.
    rule: whether the rule alone is measured anew.
  """
  out = pathlib.Path(config.out)
  cells = dict(before.get("cells", {}))
  for cell in (*FIGURES, *config.choice.held_out):
    rows = read(out / cell)
    by_seed = {
      seed: {r["calls"]: r["rmse"] for r in read(out / f"{cell}_seed{seed}")}
      for seed in config.choice.seeds
    }
    alone = {r["calls"]: r for r in read(out / f"{cell}_rule")}
    if alone and not rows:
      cells[cell] = [_renewed(r, alone, by_seed) for r in cells.get(cell, [])]
    if not any(r["solver"] == "default" for r in rows):
      continue
    found = []
    for calls in sorted({r["calls"] for r in rows}):
      here = [r for r in rows if r["calls"] == calls]
      rule = [r for r in here if r["solver"] == "default"]
      others = here if cell in FIGURES else [r for r in here if r not in rule]
      if not rule or not others:
        continue
      best = min(others, key=lambda r: r["rmse"])
      row = dict(calls=calls, rule=_kept(rule[0]), best=_kept(best))
      if cell in FIGURES:
        row["figure"] = FIGURES[cell][CALLS.index(calls)]
        row["seeds"] = [by[calls] for by in by_seed.values() if calls in by]
      found.append(row)
    cells[cell] = found
  network = read(_MNIST)
  if not network:
    renamed = dict(default=_BEFORE) if rule else {}
    network = [
      r | dict(solver=renamed.get(r["solver"], r["solver"]))
      for r in before.get("mnist", [])
    ]
  return dict(cells=cells, mnist=network)


def _renewed(row, alone, by_seed):
  """Returns a row with the rule as it was measured by itself."""
  calls, row = row["calls"], dict(row)
  if calls not in alone:
    return row
  rule = row["rule"] = _kept(alone[calls])
  if row["best"]["solver"] == "default":  # the rule as it was before
    row["best"] = row["best"] | dict(solver=_BEFORE)
  if "figure" in row:
    if rule["rmse"] <= row["best"]["rmse"]:
      row["best"] = rule
    row["seeds"] = [by[calls] for by in by_seed.values() if calls in by]
  return row


def _kept(row):
  return {k: row[k] for k in ("solver", "grid", "rmse", "median")}


def document(results: Mapping[str, Any]) -> str:
  """Returns docs/frontier.md."""
  cells = results["cells"]
  judged = {c: cells[c] for c in FIGURES if c in cells}
  held = {c: rows for c, rows in cells.items() if c not in FIGURES}
  lines = [_HEAD, *_bars(judged)]
  for cell, rows in judged.items():
    lines += _judged(cell, rows)
  if held:
    lines += [_HELD_OUT, *_held_out(held)]
  if results["mnist"]:
    lines += [_NETWORK, *_network(results["mnist"])]
  return "\n".join(lines) + "\n"


_HEAD = """\
# The frontier

Generated by `python -m experiments.pages.frontier_table` from
`experiments/results/frontier.json`; do not edit.

Error per coordinate (rmse over samples, in brackets the median) to the
converged ODE from the same 2,048 noises, in float64. *Figure* is the best that
thirteen public libraries reached at so many network calls, each at its best
grid. *Rule* is `jaxdiff.default(process, calls, width=...)`, fixed in advance
for all cells and told the width of the data; its few numbers were fitted on
other distributions and on small networks. *Choice* is the best of
our tables for the cell, chosen on the noises that it is reported on, as the
figures are: the rule, published solvers on two grids and three forms of
`angular_adams` on angular grids of scale 0.8 to 4.5 and bend 0.08 to 1 (in
brackets). Not every cell has tried all of them, and from 30 calls on there are
fewer. *Other noises* are the rule's ratio to the same figure on two more sets
of noises: a few samples that fall into another mode dominate the rmse at few
calls, and another set holds more or fewer of them. Processes: EDM from 80 to
0.002, VP linear from 1 to 1e-3, flow from 1 to 0.

The thirteen libraries, as they were public in November 2026: diffusers 0.42.1,
diff-sampler, k-diffusion, azula, DPM-Solver-v3, dpm-solver, UniPC (its port for
score_sde), DEIS, flow_matching, diffrax, EDM, hackable_diffusion, diffusionjax,
each solver on the grids that its library ships or that it was given. The best
of them was picked on the noises that it is scored on, and differences under
20 % mean little: 13 of the rule's 48 wins are smaller than that.
"""

_HELD_OUT = """\
## Other oracles

512 noises. *Others* is the best of dpmpp_2m, dpmpp_3m, unipc(order=3),
deis(order=3), ipndm(order=3) and ipndm(order=4), each on the best of
vp_quadratic, karras and cosine: the best of eighteen for each number of calls,
against one rule. Under 1 the rule wins. Under EDM and the flow *deis* is
`variant="rho_ab"` here, as it was when this was measured; it takes VP time now.
"""

_NETWORK = """\
## A network on MNIST that was trained elsewhere

A public DDPM U-Net of 0.49 M parameters, 64 noises, float32
(`experiments/configs/frontier_mnist.py`): median / rmse per pixel to the
converged ODE, each solver on the best of three grids (q: vp_quadratic, k:
karras, a: angular). In bold the lowest rmse at so many calls. The picture and
the row "default of 0.1.0" are of the rule as it was there.

![Error on MNIST](frontier_mnist.png)

The network's eps is biased by some 0.02 at high noise. The first noise level,
157, makes a brightness of that: its converged ODE ends at a standard deviation
of 7 where the data have 0.6, and distances to data are 0.75 to 11.5. What is
measured here is hence how well a solver follows the network, not how good its
samples are. In the picture the wrong brightness hides most digits; the first
row is the converged ODE:

![Samples on MNIST](mnist.png)
"""


def _bars(judged):
  lines = ["| bar | cells met | worst ratio |", "|---|---|---|"]
  bars = (("rule", RULE, "rule"), ("choice", CHOICE, "best"))
  for name, bar, key in bars:
    ratios = {
      (cell, r["calls"]): r[key]["rmse"] / r["figure"]
      for cell, rows in judged.items()
      for r in rows
    }
    if not ratios:
      continue
    met = sum(ratio <= bar for ratio in ratios.values())
    cell, calls = max(ratios, key=ratios.get)
    lines.append(
      f"| {name}: at most {bar} of the figure | {met} of {len(ratios)} |"
      f" {ratios[cell, calls]:.2f} ({cell}, {calls} calls) |"
    )
  again = [
    ratio / r["figure"]
    for rows in judged.values()
    for r in rows
    for ratio in r["seeds"]
  ]
  if again:
    lines.append(
      f"| rule on other noises | {sum(a <= RULE for a in again)} of"
      f" {len(again)} | {max(again):.2f} |"
    )
  return [*lines, ""]


def _judged(cell, rows):
  lines = [
    f"## {cell}",
    "",
    "| calls | figure | rule | ratio | other noises | choice | | ratio |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for r in rows:
    rule, best, figure = r["rule"], r["best"], r["figure"]
    seeds = ", ".join(_ratio(rmse / figure, RULE) for rmse in r["seeds"])
    lines.append(
      f"| {r['calls']} | {figure:.2e} | {_error(rule)} |"
      f" {_ratio(rule['rmse'] / figure, RULE)} | {seeds} |"
      f" {best['solver']} on {best['grid']} | {_error(best)} |"
      f" {_ratio(best['rmse'] / figure, CHOICE)} |"
    )
  return [*lines, ""]


def _held_out(held):
  calls = sorted({r["calls"] for rows in held.values() for r in rows})
  wins = [
    r["rule"]["rmse"] <= r["best"]["rmse"]
    for rows in held.values()
    for r in rows
  ]
  head = " | ".join(f"{c} calls" for c in calls)
  lines = [
    f"The rule has the lower rmse in {sum(wins)} of {len(wins)} cells. Ratio of"
    " rmse, and of median in brackets:",
    "",
    f"| oracle | {head} |",
    "|---" * (len(calls) + 1) + "|",
  ]
  for cell, rows in held.items():
    at = {r["calls"]: r for r in rows}
    line = f"| {cell} |"
    for c in calls:
      rule, best = at[c]["rule"], at[c]["best"]
      line += (
        f" {_ratio(rule['rmse'] / best['rmse'], 1.0)}"
        f" ({rule['median'] / best['median']:.2f}) |"
      )
    lines.append(line)
  lines += ["", "The best of the others and its rmse:", "", *lines[2:4]]
  for cell, rows in held.items():
    named = " | ".join(
      f"{r['best']['solver']} {r['best']['grid']} {r['best']['rmse']:.1e}"
      for r in rows
    )
    lines.append(f"| {cell} | {named} |")
  return [*lines, ""]


def _network(rows):
  best = frontier.best_by_grid(rows)
  calls = sorted({c for _, c in best})
  names = list(dict.fromkeys(name for name, _ in best))
  mark = {"vp_quadratic": "q", "karras": "k", "angular": "a"}
  lines = [
    "| solver | " + " | ".join(f"{c} calls" for c in calls) + " |",
    "|---" * (len(calls) + 1) + "|",
  ]
  for name in names:
    line = f"| {name} |"
    for c in calls:
      row = best.get((name, c))
      if row is None:
        line += " |"
        continue
      lowest = min(r["rmse"] for (_, k), r in best.items() if k == c)
      text = f"{row['median']:.4f} / {row['rmse']:.4f} {mark[row['grid']]}"
      line += f" **{text}** |" if row["rmse"] == lowest else f" {text} |"
    lines.append(line)
  return [*lines, ""]


def summary(results: Mapping[str, Any]) -> str:
  """Returns the table of docs/choosing-a-solver.md."""
  cells = results["cells"]
  judged = [r for c in FIGURES for r in cells.get(c, [])]
  held = [r for c, rows in cells.items() if c not in FIGURES for r in rows]
  network = frontier.best_by_grid(results["mnist"])
  lines = [
    "| calls | rule / figure | choice / figure | rule / others |"
    " best on the MNIST network |",
    "|---|---|---|---|---|",
  ]
  for calls in sorted({r["calls"] for r in judged}):
    here = [r for r in judged if r["calls"] == calls]
    unseen = [r for r in held if r["calls"] == calls]
    columns = [
      _range([r["rule"]["rmse"] / r["figure"] for r in here]),
      _range([r["best"]["rmse"] / r["figure"] for r in here]),
      _range([r["rule"]["rmse"] / r["best"]["rmse"] for r in unseen]),
    ]
    rows = [r for (_, c), r in network.items() if c == calls]
    best = min(rows, key=lambda r: r["rmse"], default=None)
    columns.append(f"{best['solver']} on {best['grid']}" if best else "")
    lines.append(f"| {calls} | " + " | ".join(columns) + " |")
  return "\n".join(lines) + "\n"


def insert(page: str, table: str, first: str = _MARKS[0]) -> str:
  """Returns the page with the table between its marks.

  Args:
    page: text of the page.
    table: text to insert.
    first: mark in front of it.

  Raises:
    ValueError: if the page has no such marks.
  """
  last = _MARKS[1]
  if first not in page or last not in page:
    raise ValueError(f"the page lacks the marks {first.strip()} and {last}")
  head, rest = page.split(first, 1)
  return head + first + table + last + rest.split(last, 1)[1]


def _range(ratios):
  return f"{min(ratios):.2f} .. {max(ratios):.2f}" if ratios else ""


def _error(row):
  return f"{row['rmse']:.2e} ({row['median']:.1e})"


def _ratio(ratio, bar):
  return f"{ratio:.2f}" if ratio <= bar else f"**{ratio:.2f}**"


def main() -> None:
  config = console.config_like("frontier_table")
  cells = flags.FLAGS.cells
  out = pathlib.Path(config.out)
  kept, page = (console.place(out, p) for p in (_RESULTS, _DOCUMENT))
  if cells == ["all"]:
    cells = (*FIGURES, *config.choice.held_out)
  for cell in filter(None, cells):
    (measure_rule if flags.FLAGS.rule else measure)(cell, config)
  for cell in filter(FIGURES.get, cells):
    measure_seeds(cell, config)
  before = json.loads(kept.read_text()) if kept.exists() else {}
  results = gather(config, before, flags.FLAGS.rule)
  kept.write_text(json.dumps(results, indent=1) + "\n")
  page.write_text(document(results))
  print(f"Wrote {kept} and {page}.")
  if flags.FLAGS.publish:
    advice = console.checkout(_ADVICE) / _ADVICE
    advice.write_text(insert(advice.read_text(), summary(results)))
    print(f"Wrote a table of {advice}.")


if __name__ == "__main__":
  console.define_config_file(
    "frontier_table",
    "What to measure. Set single fields with --config.NAME=VALUE.",
  )
  flags.DEFINE_list("cells", ["all"], "Cells to run, <oracle>_<process>.")
  flags.DEFINE_bool("rule", False, "Measure the default rule alone.")
  console.define_publish()
  console.run(main)

r"""What the measured choice and the default rule do where nothing was fitted.

  python -m experiments.pages.held_out  # an hour on two cores
  python -m experiments.pages.held_out --models=heavy_tails_edm,zoo:digits
  python -m experiments.pages.held_out --models=  # page and picture alone

Exact denoisers of distributions of several widths, ranks and tails under three
processes, and trained networks. None of them chose a number of the rule
(experiments/pages/fit_default.py says which did) or a table of `choose`. From
the same noises, and against the same converged ODE, stand: the rule without a
number, the rule that knows the width, what `choose` took on noises of its own,
the best of 55 published tables in hindsight, and the best of `choose`'s tables
in hindsight. An interrupted run goes on with the next model. --publish writes
experiments/results/held_out.json, docs/overview.png and the tables of
docs/choosing-a-solver.md anew.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxdiff import choosing
from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables

from .. import frontier
from ..configs import frontier_mixture
from ..configs import frontier_mnist_low
from ..parts import console
from ..parts import plots
from . import frontier_table

CALLS = (3, 5, 8, 10, 15, 30)
FEW = 10  # calls up to which the tables say "few"
SOLVERS = (
  "ddim",
  "heun",
  "dpmpp_2m",
  "dpmpp_3m",
  "unipc(order=2)",
  "unipc(order=3)",
  "deis(order=2)",
  "deis(order=3)",
  "ipndm(order=2)",
  "ipndm(order=3)",
  "ipndm(order=4)",
)
GRIDS = ("vp_quadratic", "karras", "log_snr", "cosine", "uniform")
PROCESSES = {
  "edm": processes.edm,
  "vp": processes.vp_linear,
  "flow": processes.rectified_flow,
}
DRAWN = {
  "heavy_tails_edm": "exact: mixture with heavy tails",
  "zoo:digits": "trained: U-Net of 8x8 digits",
  "zoo:patches16": "trained: U-Net of 16x16 colour patches",
}
SHOWN = ("ddim", "heun", "dpmpp_2m", "unipc(order=3)", "ipndm(order=3)")
MARK = "<!-- held out -->\n"
_PAGE = "docs/choosing-a-solver.md"  # has a part generated here
_RESULTS = "experiments/results/held_out.json"
_JUDGE, _CHOOSE = 7, 8  # seeds of the noises


def wide_plane() -> oracles.GaussianMixture:
  """Thirty narrow Gaussians in a plane, of width 6."""
  rng = np.random.default_rng(30)
  means = rng.standard_normal((30, 2)) * np.asarray([6.0, 2.0])
  return oracles.mixture(means - means.mean(0), rng.uniform(0.1, 0.9, 30) ** 2)


def low_rank() -> oracles.GaussianMixture:
  """Six Gaussians of rank 3 in 64 dimensions, of width 5."""
  rng = np.random.default_rng(31)
  means = rng.standard_normal((6, 64))
  spread = rng.standard_normal((6, 64, 3))
  covariances = spread @ spread.transpose(0, 2, 1) + 0.05**2 * np.eye(64)
  return oracles.mixture(means - means.mean(0), covariances)


def narrow() -> oracles.GaussianMixture:
  """Four Gaussians in 8 dimensions, of width 0.4."""
  rng = np.random.default_rng(32)
  means = 0.2 * rng.standard_normal((4, 8))
  return oracles.mixture(means - means.mean(0), np.full(4, 0.06**2))


LAWS: dict[str, Callable[[], Any]] = {
  "g2": oracles.g2,
  "g16": oracles.g16,
  "grid25": oracles.grid25,
  "digits_mixture": oracles.digits_mixture,
  "heavy_tails": oracles.heavy_tails,
  "nearly_flat": oracles.nearly_flat,
  "wide_plane": wide_plane,
  "low_rank": low_rank,
  "narrow": narrow,
}
MIXTURES = tuple(f"{law}_{process}" for law in LAWS for process in PROCESSES)
POINTS = ("digits_empirical_edm", "digits_empirical_vp")
MNIST = "mnist"  # of a file of weights, and measured only where it is named
NETWORKS = ("zoo:digits", "zoo:digits_flow", "zoo:patches16", MNIST)
KINDS = {
  "mixtures, exact": MIXTURES,
  "points, exact": POINTS,
  "networks": NETWORKS,
}


class Subject(NamedTuple):
  """What the tables are tried on.

  Attributes:
    model: the denoiser, of a batch of noises.
    process: its forward process.
    shape: shape of one sample.
    width: standard deviation of the data along their widest direction.
    noises: how many noises it is judged on, and the choice is made on.
    dtype: of the samples.
  """

  model: Callable[[int], Any]
  process: processes.GaussianProcess
  shape: tuple[int, ...]
  width: float
  noises: tuple[int, int]
  dtype: Any


def subject(name: str, weights: str = "", data: str = "") -> Subject:
  """Returns a model by its name, as `KINDS` has it.

  Args:
    name: the name.
    weights: file of the network on MNIST.
    data: MNIST, as `data.load` takes it.
  """
  if name in NETWORKS:
    config = frontier_mixture.get_config()
    if name == MNIST:
      config = frontier_mnist_low.get_config()
      config.data = data
    config.target = weights if name == MNIST else name
    config.noises = 64
    found = frontier.load_target(config)
    width = getattr(found.model, "data_width", None)
    if width is None:
      width = choosing.width(np.asarray(found.data[:4096], np.float32))
    return Subject(
      lambda n: found.model,
      found.process,
      found.shape,
      width,
      (64, 64),
      jnp.float32,
    )
  law, process = name.rsplit("_", 1)
  process = PROCESSES[process]()
  if law == "digits_empirical":
    found = oracles.digits_empirical()
    width = choosing.width(np.asarray(found.data))
    shape, dtype = found.data.shape[1:], jnp.float32
  else:
    found = LAWS[law]()
    width = width_of(found)
    shape, dtype = found.means.shape[1:], jnp.float64
  model = oracles.exact(found, process)
  return Subject(lambda n: model, process, shape, width, (256, 64), dtype)


def width_of(law: oracles.GaussianMixture) -> float:
  """Returns the exact width of a mixture of Gaussians."""
  weights, means = np.exp(np.asarray(law.log_weights)), np.asarray(law.means)
  variances, axes = np.asarray(law.variances), law.axes
  if axes is None:
    spread = np.broadcast_to(variances, means.shape)
    within = np.diag(weights @ spread)
  else:
    axes = np.asarray(axes)
    within = np.einsum("k,kij,kj,klj->il", weights, axes, variances, axes)
  centred = means - weights @ means
  whole = within + np.einsum("k,ki,kj->ij", weights, centred, centred)
  return float(np.sqrt(np.linalg.eigvalsh(whole)[-1]))


def published(
  process: processes.GaussianProcess, calls: int
) -> dict[str, tables.Tableau]:
  """Returns the published tables of one number of calls, "solver / grid"."""
  found = {}
  for spec in SOLVERS:
    solver = functools.partial(solvers.from_spec(spec), process)
    for name in GRIDS:
      grid = functools.partial(grids.GRIDS[name], process)
      table = solvers.for_budget(solver, grid, calls)
      if table is not None:
        found[f"{spec} / {name}"] = table
  return found


def measure(name: str, **files: str) -> dict[str, Any]:
  """Returns what is kept of a model: a cell for each number of calls.

  Args:
    name: of the model.
    **files: as `subject` takes them.
  """
  jax.config.update("jax_enable_x64", name in MIXTURES)
  it = subject(name, **files)
  judged, chosen_on = it.noises
  key = jax.random.key(_JUDGE)
  x = it.process.prior(key, (judged, *it.shape), dtype=it.dtype)
  rows = 40

  def run(table: tables.Tableau, start: jax.Array) -> jax.Array:
    padded = tables.pad(table, rows, 7)
    return sampling.sample(
      key, it.model(judged), padded, start, length=table.nfe
    )

  fine = grids.karras(it.process, 300 if name in MIXTURES else 120)
  end = _converged(run, it.process, fine, x, rows // 4)

  def error(table: tables.Tableau) -> float:
    difference = np.asarray(run(table, x), np.float64) - np.asarray(end)
    return float(np.sqrt(np.mean(difference**2)))

  taken, report = choosing.choose(
    jax.random.key(_CHOOSE),
    it.model(chosen_on),
    it.process,
    CALLS,
    it.shape,
    noises=chosen_on,
    width=it.width,
  )
  cells = []
  for calls in CALLS:
    others = {n: error(t) for n, t in published(it.process, calls).items()}
    ours = choosing.candidates(it.process, calls, it.width)
    ours = {n: error(t) for n, t in ours.items()}
    best, own = min(others, key=others.get), min(ours, key=ours.get)
    cell = dict(
      calls=calls,
      bare=error(solvers.default(it.process, calls)),
      default=ours["default"],
      choose=error(taken[calls]),
      chosen=report.chosen[calls],
      published=others[best],
      published_by=best,
      ours=ours[own],
      ours_by=own,
    )
    if name in DRAWN:
      cell["shown"] = {
        spec: min(v for n, v in others.items() if n.startswith(f"{spec} /"))
        for spec in SHOWN
        if any(n.startswith(f"{spec} /") for n in others)
      }
    cells.append(cell)
    print(name, {k: v for k, v in cell.items() if k != "shown"}, flush=True)
  known = dict(width=it.width, converged=report.converged)
  return dict(model=name, **known, cells=cells)


def _converged(run, process, grid, x, steps):
  """Returns where the ODE leads, by RK4, which can be cut at every step."""
  for first in range(0, len(grid) - 1, steps):
    piece = grid[first : first + steps + 1]
    x = run(solvers.rk4(process, piece), x)
  return x


def ratios(
  found: Sequence[Mapping[str, Any]], names: Sequence[str], column: str
) -> dict[bool, list[float]]:
  """Returns a column over the best published, by whether the calls are few."""
  out = {True: [], False: []}
  for model in found:
    if model["model"] in names:
      for cell in model["cells"]:
        out[cell["calls"] <= FEW].append(cell[column] / cell["published"])
  return out


def mean(values: Sequence[float]) -> float:
  """Returns the geometric mean."""
  return math.exp(sum(map(math.log, values)) / len(values))


def claim(found: Sequence[Mapping[str, Any]], column: str) -> str:
  """Returns words of README.md: a column over the best published, means."""
  told = []
  for kind, few in ((k, f) for k in ("mixtures", "networks") for f in (1, 0)):
    names = MIXTURES if kind == "mixtures" else NETWORKS
    told.append(f"{mean(ratios(found, names, column)[bool(few)]):.2f}")
  return (
    f"{told[0]} and {told[1]} on exact mixtures (3 to 10 and 15 to 30 calls),"
    f" {told[2]} and {told[3]} on networks"
  )


_COLUMNS = {
  "choose": "`choose`",
  "default": "default, width known",
  "bare": "default, no number",
  "ours": "the tables of `choose` in hindsight",
}


def summary(found: Sequence[Mapping[str, Any]]) -> str:
  """Returns the tables of docs/choosing-a-solver.md."""
  head = " | ".join(_COLUMNS.values())
  lines = [
    f"| models | calls | cells | {head} |",
    "|---|---|---|" + "---|" * len(_COLUMNS),
  ]
  for kind, names in KINDS.items():
    for few in (True, False):
      columns = [ratios(found, names, c)[few] for c in _COLUMNS]
      if columns[0]:
        told = [f"{mean(v):.2f} ({max(v):.1f})" for v in columns]
        calls = f"3 to {FEW}" if few else f"{min(_many())} to {max(_many())}"
        cells = [kind, calls, str(len(columns[0])), *told]
        lines.append(f"| {' | '.join(cells)} |")
  lines += [
    "",
    "Of each network, and the worst three mixtures of `choose`:",
    "",
  ]
  lines += [
    "| model | width | " + " | ".join(f"{c} calls" for c in CALLS) + " |",
    "|---|---|" + "---|" * len(CALLS),
  ]
  worst = lambda m: max(c["choose"] / c["published"] for c in m["cells"])
  mixtures = [m for m in found if m["model"] in MIXTURES]
  shown = [m for m in found if m["model"] in NETWORKS + POINTS]
  for model in [*shown, *sorted(mixtures, key=worst)[-3:]]:
    told = [
      f"{c['choose'] / c['published']:.2f}, {c['default'] / c['published']:.2f}"
      for c in model["cells"]
    ]
    cells = [f"`{model['model']}`", f"{model['width']:.3g}", *told]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join([*lines, ""])


def _many():
  return [calls for calls in CALLS if calls > FEW]


def panels(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns what the picture shows: a panel with rows for each model drawn."""
  out = []
  for name, title in DRAWN.items():
    for model in found:
      if model["model"] == name:
        rows = [
          dict(solver=solver, calls=cell["calls"], rmse=rmse)
          for cell in model["cells"]
          for solver, rmse in [
            ("choose", cell["choose"]),
            ("default", cell["default"]),
            *cell["shown"].items(),
          ]
        ]
        out.append(dict(title=title, rows=rows))
  return out


def main() -> None:
  runs = pathlib.Path("runs/held_out")
  local = runs / "held_out.json"
  runs.mkdir(parents=True, exist_ok=True)
  stored = json.loads(local.read_text()) if local.exists() else []
  found = {model["model"]: model for model in stored}
  for name in filter(None, flags.FLAGS.models):
    if name not in found:
      files = dict(weights=flags.FLAGS.weights, data=flags.FLAGS.data)
      found[name] = measure(name, **files)
      local.write_text(json.dumps(list(found.values()), indent=1) + "\n")
  results = console.place(runs, _RESULTS)
  if not found:  # what is there already is drawn anew
    found = {m["model"]: m for m in json.loads(results.read_text())}
  results.write_text(json.dumps(list(found.values()), indent=1) + "\n")
  text = summary(list(found.values()))
  print(text)
  if flags.FLAGS.publish:
    page = console.checkout(_PAGE) / _PAGE
    page.write_text(frontier_table.insert(page.read_text(), text, MARK))
  drawn = panels(list(found.values()))
  if drawn:
    print(plots.overview(drawn, console.place(runs, "docs/overview.png")))


if __name__ == "__main__":
  flags.DEFINE_list(
    "models",
    [*MIXTURES, *POINTS, *(n for n in NETWORKS if n != MNIST)],
    "What to measure, unless it was; the rest stays.",
  )
  flags.DEFINE_string(
    "weights",
    "ddpm_mnist.npz",
    "Weights of the network on MNIST (see configs/frontier_mnist.py).",
  )
  flags.DEFINE_string("data", "npz:mnist.npz", "MNIST, for its width.")
  console.define_publish()
  console.run(main)

r"""The measured choice: which table is nearest to the model's own ODE.

No solver is best for every model. `choose` runs some thirty tables on the model
itself, from a few dozen noises, and takes the one whose samples are nearest to
those of the same ODE solved to convergence. All runs share one compiled
program: tables are padded to one shape and walked for a given number of rows.

Two references of different kinds, UniPC on `vp_quadratic` and iPNDM on
`log_snr`, must agree to a third of the best table's error; they are given twice
the calls until they do, up to four times. If they never agree, the report says
at what noise level they part: the model's ODE is then not resolved there, and
errors below their distance mean nothing.

A sample near a ridge may go to another mode, one in some hundred. Few noises do
not show that, so the three best tables are run on four times as many others,
and the decision among them is by the rmse over all.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau
from jaxdiff.choosing import widths
from jaxdiff.choosing.candidates import candidates
from jaxdiff.choosing.candidates import COUNT
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau
from jaxdiff.types import DTypeLike

Tables = Mapping[str, Tableau]

_REFERENCE = 50  # calls of a reference, or five times those of the tables
_DOUBLINGS = 2
_AGREE = 1 / 3  # of the best table's error
_FINALISTS, _AGAIN = 3, 4  # tables run again, and on how many times the noises


class Measured(NamedTuple):
  """What was measured of one table.

  Attributes:
    name: of the solver and its grid.
    calls: the budget.
    nfe: network calls that the table makes.
    rmse: root mean square distance, over noises and coordinates, to the
      model's ODE solved to convergence.
    median: median over noises of the root mean square over coordinates.
    noises: how many noises it was run from.
  """

  name: str
  calls: int
  nfe: int
  rmse: float
  median: float
  noises: int


@dataclasses.dataclass(frozen=True)
class Report:
  """What `choose` found; `print(report)` shows it as a table.

  Attributes:
    rows: every table that was measured, the best of each number of calls first.
    chosen: name of the table taken, by number of calls.
    width: width of the data that the tables were made for.
    reference: network calls of each reference.
    disagreement: rmse between the two references.
    converged: whether they agree to a third of the smallest error.
    parted: noise level sigma / alpha where they part, if they do not agree.
    calls: network calls in all, each on a batch of `noises`.
  """

  rows: tuple[Measured, ...]
  chosen: Mapping[int, str]
  width: float
  reference: int
  disagreement: float
  converged: bool
  parted: float | None
  calls: int

  def best(self, calls: int) -> Measured:
    """Returns the row of the table that was taken for `calls`."""
    name = self.chosen[calls]
    return next(r for r in self.rows if (r.calls, r.name) == (calls, name))

  def __str__(self) -> str:
    width = max(len(row.name) for row in self.rows)
    lines = []
    for calls in self.chosen:
      lines.append(
        f"{'calls ' + str(calls):<{width}}     rmse   median  noises"
      )
      for row in self.rows:
        if row.calls == calls:
          mark = "*" if row.name == self.chosen[calls] else " "
          lines.append(
            f"{row.name:<{width}} {mark}{row.rmse:8.5f} {row.median:8.5f}"
            f" {row.noises:7d}"
          )
    lines.append(
      f"width {self.width:.3g}; two references of {self.reference} calls differ"
      f" by {self.disagreement:.2g}; {self.calls} network calls in all"
    )
    if not self.converged:
      lines.append(
        "NOT CONVERGED: the references part near the noise level"
        f" {self.parted:.3g}; errors below {self.disagreement:.2g} mean nothing"
      )
    return "\n".join(lines)


@checks.door(host=True)
def cost(calls: int | Sequence[int], *, count: int = COUNT) -> tuple[int, int]:
  """Returns the least and the most network calls of `choose`.

  Each is on a batch of `noises`. The most is spent where the references agree
  only after all doublings, or never, on a model that does not know its width.

  Args:
    calls: as in `choose`.
    count: how many tables are tried for each number of calls.

  Example:
    >>> import jaxdiff as jd
    >>> jd.choosing.cost(10)
    (680, 2612)
  """
  budgets = _budgets(calls)
  first = max(_REFERENCE, 5 * max(budgets))
  again = _AGAIN * _FINALISTS * sum(budgets)
  least = count * sum(budgets) + again + (2 + _AGAIN) * first
  doubled = first * 2**_DOUBLINGS
  most = (1 + _DOUBLINGS) * count * sum(budgets) + again
  most += 2 * (2 * doubled - first) + _AGAIN * doubled
  return least, most + 2 * _PIECES * _PIECE + widths.CALLS


@checks.door(host=True, least=dict(noises=2), above=dict(width=0))
def choose(
  key: jax.Array,
  model: sampling.Model,
  process: GaussianProcess,
  calls: int | Sequence[int],
  shape: Sequence[int],
  *,
  noises: int = 64,
  tables: Tables | Callable[[int], Tables] | None = None,
  reference: Sequence[Tableau] | None = None,
  width: float | None = None,
  to_zero: bool = False,
  dtype: DTypeLike = jnp.float32,
  progress: bool = False,
) -> tuple[Tableau | Mapping[int, Tableau], Report]:
  """Returns (table, report): the table that suits this model best, as measured.

  It runs some thirty tables on the model and takes the one with the lowest
  error to the model's own probability-flow ODE. That costs `cost(calls)`
  network calls on batches of `noises`, all in one compiled program: seconds for
  a small network. Use the table as long as the model, its guidance
  and the number of calls stay.

  Args:
    key: PRNG key of the noises.
    model: model(x, t) -> Prediction, with its labels and guidance: labels of a
      batch must be `noises` of them.
    process: the forward process.
    calls: network calls of one run; several, as in (5, 8, 12), make a frontier.
    shape: shape of one sample.
    noises: how many samples each table is run on.
    tables: what to choose from, by name: a mapping, or a function from the
      number of calls to a mapping; by default `candidates`.
    reference: two tables that solve the model's ODE to convergence, of
      different solvers or grids; by default chosen by what they agree on.
    width: standard deviation of the data along their widest direction; by
      default what the model knows, or else what a run of 20 calls shows.
    to_zero: whether the last step ends at sigma = 0 rather than at t_min.
    dtype: of the samples.
    progress: whether to tell the cost and to show a progress bar.

  Returns:
    The table, and what was measured; for several `calls` a table for each.

  Raises:
    ValueError: for calls below 1, tables that draw noise (they follow no ODE),
      no tables, and a reference that is not two tables.
    FloatingPointError: if no table gives finite samples.

  Example:
    >>> import jax
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> model = jd.exact(jd.oracles.g2(), process)
    >>> key = jax.random.key(0)
    >>> table, report = jd.choose(key, model, process, 8, (2,))
    >>> table.nfe, report.converged, len(report.rows) > 20
    (8, True, True)
    >>> x = jd.sample(key, model, table, (16, 2), process=process)
  """
  budgets = _budgets(calls)
  if width is None:
    width = agreement.width_of(model)
  spent = 0
  if width is None:
    key, first = jax.random.split(key)
    width = widths.sampled_width(first, model, process, shape, samples=noises)
    spent = widths.CALLS
  todo = {n: _tables(tables, process, n, width, to_zero) for n in budgets}
  pairs = _references(process, budgets, to_zero, reference)
  bench = _Bench(key, model, process, tuple(shape), noises, dtype, todo, pairs)
  total = sum(t.nfe for named in todo.values() for t in named.values())
  if progress:
    tried = sum(map(len, todo.values()))
    print(f"choose: {tried} tables, {total} network calls and the references'")

  from tqdm import auto as tqdm  # which `import jaxdiff` can do without

  with tqdm.tqdm(disable=not progress, unit="call", desc="choose") as bench.bar:
    squares, found = _measure(bench, todo, pairs)
    more = _more(bench, todo, found)
    rows = {n: _ranked(bench, n, todo[n], squares[n], more) for n in budgets}
    gap = _rmse(found.squares)
    converged = gap <= _AGREE * min(ranked[0].rmse for ranked in rows.values())
    parted = None if converged else _parted(bench, width)
  report = Report(
    rows=tuple(row for ranked in rows.values() for row in ranked),
    chosen={n: ranked[0].name for n, ranked in rows.items()},
    width=float(width),
    reference=found.table.nfe,
    disagreement=gap,
    converged=converged,
    parted=parted,
    calls=spent + bench.calls,
  )
  taken = {n: todo[n][name] for n, name in report.chosen.items()}
  return (taken[calls] if isinstance(calls, int) else taken), report


class _Bench:
  """Runs tables on one model through one compiled program, and counts calls."""

  def __init__(self, key, model, process, shape, noises, dtype, todo, pairs):
    known = [t for named in todo.values() for t in named.values()]
    known += [t for pair in pairs for t in pair]
    self.rows = max(max(t.nfe for t in known), _PIECES * _PIECE)
    self.memory = max(t.memory for t in known)
    self.key, self.model, self.process = key, model, process
    self.shape, self.noises, self.dtype = (noises, *shape), noises, dtype
    self.calls = 0
    self.bar = None

  def start(self, batch: int) -> jax.Array:
    """Returns a batch of noises, another for each number."""
    key = jax.random.fold_in(self.key, batch)
    return self.process.prior(key, self.shape, dtype=self.dtype)

  def run(self, table: Tableau, x: jax.Array) -> jax.Array:
    """Returns where a table leads from x."""
    padded = tableau.pad(table, self.rows, self.memory)
    out = sampling.sample(self.key, self.model, padded, x, length=table.nfe)
    self.calls += table.nfe
    self.bar.update(table.nfe)
    return out


class _Reference(NamedTuple):
  """A table that solves the ODE, where it leads, and how far another does."""

  table: Tableau
  samples: jax.Array
  squares: np.ndarray


def _measure(bench, todo, pairs):
  """Returns each table's squared errors on the first noises, and the reference.

  The reference has more calls until two of a kind agree. Then those tables are
  measured again that may be the best, errors before being off by the distance
  at most.
  """
  x = bench.start(0)
  squares, gap = {n: {} for n in todo}, math.inf
  for pair in pairs:
    ends = [bench.run(table, x) for table in pair]
    found = _Reference(pair[0], ends[0], _squares(*ends))
    for n, named in todo.items():
      for name in _contenders(named, squares[n], 2.0 * gap):
        end = bench.run(named[name], x)
        squares[n][name] = _squares(end, found.samples)
    gap = _rmse(found.squares)
    smallest = min(
      map(_rmse, (v for s in squares.values() for v in s.values()))
    )
    if not math.isfinite(smallest):
      raise FloatingPointError(
        f"none of the {sum(map(len, todo.values()))} tables gave finite samples"
        " that can be compared with the reference's; look at model(x, t) at"
        f" t = {bench.process.t_max:.4g} and at {bench.process.t_min:.4g}"
      )
    if gap <= _AGREE * smallest:
      break
  return squares, found


def _contenders(named, squares, slack):
  """Returns the names of tables that are not surely worse than another."""
  if not squares:
    return list(named)
  errors = {name: _rmse(values) for name, values in squares.items()}
  bound = min(errors.values()) + slack
  return [name for name, error in errors.items() if error <= bound]


def _more(bench, todo, found):
  """Returns further noises and where the ODE leads from them, for all calls."""
  if all(len(named) == 1 for named in todo.values()):
    return []  # nothing to decide between
  starts = [bench.start(batch) for batch in range(1, 1 + _AGAIN)]
  return [(x, bench.run(found.table, x)) for x in starts]


def _ranked(bench, n, named, squares, more):
  """Returns the rows of one number of calls, the best first.

  The best few are run from more noises, and ranked among themselves by all.
  """
  order = sorted(squares, key=lambda name: _rmse(squares[name]))
  finalists = order[:_FINALISTS] if len(order) > 1 else []
  squares = dict(squares)
  for x, end in more:
    for name in finalists:
      further = _squares(bench.run(named[name], x), end)
      squares[name] = np.concatenate([squares[name], further])
  finalists.sort(key=lambda name: _rmse(squares[name]))
  return [
    Measured(
      name=name,
      calls=n,
      nfe=named[name].nfe,
      rmse=_rmse(squares[name]),
      median=float(np.sqrt(np.median(squares[name]))),
      noises=len(squares[name]),
    )
    for name in [*finalists, *order[len(finalists) :]]
  ]


def _parted(bench, width):
  """Returns the noise level about which two solvers differ most.

  Both walk each piece of the range from where the first had come; a difference
  counts in units of the noisy data's spread at the end of the piece.
  """
  process, x = bench.process, bench.start(0)
  grid = grids.vp_quadratic(process, _PIECES * _PIECE)
  gaps, levels = [], []
  for first in range(0, len(grid) - 1, _PIECE):
    piece = grid[first : first + _PIECE + 1]
    ends = [bench.run(solver(process, piece), x) for solver in _SOLVERS]
    x, t = ends[0], piece[-1]
    spread = math.hypot(process.alpha(t) * width, process.sigma(t))
    gaps.append(_rmse(_squares(*ends)) / spread)
    middle = process.noise_level(piece[_PIECE // 2])
    levels.append(float(middle))
  return levels[int(np.argmax(gaps))]


_PIECES, _PIECE = 8, 12  # of the range, and steps of each
_SOLVERS = (
  functools.partial(solvers.unipc, order=3),
  functools.partial(solvers.ipndm, order=3),
)
_GRIDS = (grids.vp_quadratic, grids.log_snr)


def _references(process, budgets, to_zero, given):
  """Returns the pairs of tables that a reference is sought among, in order."""
  if given is not None:
    pair = tuple(given)
    if len(pair) != 2 or not all(isinstance(t, Tableau) for t in pair):
      raise ValueError(
        f"reference has {len(pair)} entries; give two tables that solve the"
        " model's ODE, of different solvers or grids: where they agree both are"
        " right"
      )
    _check_follows(dict(enumerate(pair)))
    return [pair]
  first = max(_REFERENCE, 5 * max(budgets))
  return [
    tuple(
      solver(process, grid(process, first * 2**k, to_zero=to_zero))
      for solver, grid in zip(_SOLVERS, _GRIDS, strict=True)
    )
    for k in range(_DOUBLINGS + 1)
  ]


def _tables(given, process, calls, width, to_zero):
  """Returns the tables of one number of calls."""
  if given is None:
    return candidates(process, calls, width, to_zero=to_zero)
  named = given(calls) if callable(given) else given
  if not named:
    raise ValueError(
      f"there are no tables for {calls} calls; give a mapping of names to"
      " tables, or leave tables out for those of choosing.candidates"
    )
  _check_follows(named)
  return named


def _check_follows(named):
  for name, table in named.items():
    if table.stochastic:
      raise ValueError(
        f"the table {name!r} draws noise: it follows no path of the ODE that it"
        " could be compared with; compare such tables by the distance of their"
        " samples to data (experiments.frontier does)"
      )


def _budgets(calls):
  budgets = (calls,) if isinstance(calls, int) else tuple(calls)
  if not budgets or min(budgets) < 1:
    raise ValueError(
      f"calls={calls!r}: a table makes at least one network call; give a number"
      " or several, as in (5, 8, 12)"
    )
  return budgets


def _squares(x, other):
  """Returns each sample's mean squared difference, f64[noises]."""
  difference = np.asarray(x, np.float64) - np.asarray(other, np.float64)
  return np.mean(difference**2, axis=tuple(range(1, difference.ndim)))


def _rmse(squares):
  """Returns the root of the mean, infinite for samples that are not finite."""
  error = float(np.sqrt(np.mean(squares)))
  return error if math.isfinite(error) else math.inf

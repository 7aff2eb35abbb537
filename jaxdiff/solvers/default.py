"""The default rule: a grid and a solver for a number of calls and a width.

`balanced_adams` on the `angular` grid, in units of the width of the data: the
standard deviation along their widest direction. The numbers below were fitted
once, on random mixtures and on five small networks (experiments/pages/
fit_default.py). What it does on others, that chose nothing,
docs/choosing-a-solver.md shows, beside `jaxdiff.choose`, which measures.
"""

from typing import Any

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.balanced_adams import balanced_adams
from jaxdiff.solvers.building import inner_steps
from jaxdiff.tableau import Tableau

# Of the grid, in units of the width: where its middle is, and the standard
# deviation that the solver takes for the data's.
_SCALE, _DEVIATION = 0.8, 0.9
_SLOPE = 0.15  # of the solver's clock
_BEND, _FLOOR, _HIGH = 0.8, 0.16, 0.25  # the floor is divided by the calls
_CORRECTOR, _THIRD = 7, 18  # calls from which there are a corrector and order 3


@checks.door(host=True, above=dict(width=0))
def default(
  process: GaussianProcess | Any,
  calls: int,
  *,
  width: float | None = None,
  to_zero: bool = False,
) -> Tableau:
  """Returns a deterministic table of `calls` network calls.

  Where the calls of a measurement can be had, `jaxdiff.choose` finds a better
  one for the model at hand.

  Args:
    process: the forward process, or a model that has one.
    calls: number of network calls, at least 1.
    width: standard deviation of the data along their widest direction, as
      `jaxdiff.width` measures it; it matters within a factor of two. In [-1,
      1] 8x8 digits have 1.7; colour patches of photographs 8 (8x8), 16 (16x16)
      and 30 (32x32), about half the root of their number of values. None takes
      the width that the model knows, and 1 where there is none.
    to_zero: whether the last step ends at sigma = 0 rather than at t_min.

  Raises:
    ValueError: for less than one call, or a width that is not positive.
    TypeError: for a model that does not tell its process.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> table = jd.default(process, 10, width=0.5)
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> _, variance = jd.oracles.propagate(table, process, data)
    >>> print(table.nfe, round(float(variance[0]) ** 0.5, 2))
    10 0.5
  """
  if calls < 1:
    raise ValueError(f"a table makes at least one call, got calls={calls}")
  if not isinstance(process, GaussianProcess):
    if width is None:
      width = agreement.width_of(process)
    process = agreement.process_of(process) or process
  checks.process(process, "default(process, calls)")
  width = 1.0 if width is None else width
  grid = grids.angular(
    process,
    calls,
    scale=_SCALE * width,
    bend=_BEND,
    floor=_FLOOR / calls,
    high=_HIGH,
    to_zero=to_zero,
  )
  steps = inner_steps(process, grid)  # those at its two ends have no order
  order = min(3 if calls >= _THIRD else 2, max(1, steps))
  return balanced_adams(
    process,
    grid,
    order=order,
    corrector=calls >= _CORRECTOR,
    data_std=_DEVIATION * width,
    slope=_SLOPE,
  )

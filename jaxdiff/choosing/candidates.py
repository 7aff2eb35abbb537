"""The tables that `choose` measures when it is given none."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import solvers
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau

# Published solvers on the grids that they are used with.
PUBLISHED = (
  ("ipndm(order=2)", "vp_quadratic"),
  ("ipndm(order=3)", "vp_quadratic"),
  ("ipndm(order=3)", "karras"),
  ("ipndm(order=4)", "vp_quadratic"),
  ("deis(order=3)", "vp_quadratic"),
  ("unipc(order=2)", "vp_quadratic"),
  ("unipc(order=2)", "log_snr"),
  ("unipc(order=3)", "vp_quadratic"),
  ("dpmpp_2m", "vp_quadratic"),
  ("dpmpp_2m", "karras"),
  ("ddim", "karras"),
)


class Adams(NamedTuple):
  """A setting of this library's Adams methods on an angular grid.

  Attributes:
    order: of the predictor.
    corrector: whether there is one.
    scale: of the grid, in units of the width.
    bend: of the grid.
    floor: of the grid, times the number of calls; None is the grid's own.
    deviation: the solver's data_std, in units of the width.
    high: of the grid.
    slope: of the solver; 0 is `angular_adams`.
  """

  order: int
  corrector: bool
  scale: float
  bend: float
  floor: float | None
  deviation: float
  high: float = 0.0
  slope: float = 0.0


# Of a hundred settings, those that together left the least error over the best
# published table, on the mixtures and networks that the rule was fitted on
# (experiments/pages/fit_default.py).
ADAMS = (
  Adams(2, True, 0.6, 0.5, 0.2, 0.35),
  Adams(2, True, 1.2, 0.25, 0.2, 0.7),
  Adams(3, False, 2.4, 0.5, None, 0.7),
  Adams(3, True, 0.4, 0.08, None, 1.0),
  Adams(3, True, 0.6, 0.25, None, 1.0),
  Adams(3, True, 1.2, 1.0, 0.2, 1.0),
  Adams(4, True, 0.6, 0.5, 0.2, 1.0),
  Adams(4, True, 0.8, 0.25, 0.2, 0.35),
  Adams(5, True, 0.4, 0.08, 0.2, 0.7),
  Adams(2, True, 0.4, 0.4, 0.16, 0.9, 0.1, 0.3),
  Adams(4, False, 0.8, 0.8, 0.16, 0.9, 0.3, 0.1),
  Adams(4, False, 1.6, 0.4, 0.16, 0.9, 0.1, 0.3),
)
SCALES = (0.5, 1.0, 2.0)  # of the width that the rule is told
COUNT = len(PUBLISHED) + len(ADAMS) + len(SCALES)


@checks.door(host=True, least=dict(calls=1), above=dict(width=0))
def candidates(
  process: GaussianProcess,
  calls: int,
  width: float,
  *,
  to_zero: bool = False,
) -> Mapping[str, Tableau]:
  """Returns the tables to choose from by their names, "solver / grid".

  They are published solvers on the grids that they are used with, this
  library's rule for half, once and twice the width, and its Adams methods on
  angular grids. A solver whose order needs more calls has a lower one.

  Args:
    process: the forward process.
    calls: network calls of each table, at least 1.
    width: standard deviation of the data along their widest direction.
    to_zero: whether the last step ends at sigma = 0 rather than at t_min.
  """
  found = {}
  for factor in SCALES:
    name = "default" if factor == 1 else f"default({factor:g} width)"
    found[name] = solvers.default(
      process, calls, width=factor * width, to_zero=to_zero
    )
  for setting in ADAMS:
    name, table = _adams(process, calls, width, to_zero, setting)
    found[name] = table
  for spec, grid in PUBLISHED:
    found[f"{spec} / {grid}"] = solvers.from_spec(spec)(
      process, grids.GRIDS[grid](process, calls, to_zero=to_zero)
    )
  return found


def _adams(process, calls, width, to_zero, setting):
  """Returns (name, table) of a setting."""
  floor = {} if setting.floor is None else dict(floor=setting.floor / calls)
  grid = grids.angular(
    process,
    calls,
    scale=setting.scale * width,
    bend=setting.bend,
    high=setting.high,
    to_zero=to_zero,
    **floor,
  )
  leaves = process.alpha(grid[0]) == 0 and setting.slope > 0
  # the steps at the two ends have no order
  order = min(setting.order, max(1, calls - int(to_zero) - int(leaves)))
  options = dict(
    order=order,
    corrector=setting.corrector,
    data_std=setting.deviation * width,
  )
  solver, name = solvers.angular_adams, "angular_adams"
  if setting.slope:
    solver, name = solvers.balanced_adams, "balanced_adams"
    options["slope"] = setting.slope
  name = f"{name}({setting.order}{', corrector' * setting.corrector})"
  name = f"{name} / angular({setting.scale:g} width, {setting.bend:g})"
  return name, solver(process, grid, **options)

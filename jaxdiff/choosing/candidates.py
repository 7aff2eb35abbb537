"""The tables that `choose` measures when it is given none."""

from collections.abc import Mapping

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import solvers
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau

# Published solvers on the grids that they are used with.
PUBLISHED = (
  ("ipndm(order=3)", "vp_quadratic"),
  ("ipndm(order=3)", "karras"),
  ("ipndm(order=2)", "vp_quadratic"),
  ("deis(order=3)", "vp_quadratic"),
  ("unipc(order=2)", "vp_quadratic"),
  ("unipc(order=3)", "vp_quadratic"),
  ("unipc(order=3)", "log_snr"),
  ("dpmpp_2m", "vp_quadratic"),
  ("dpmpp_2m", "karras"),
  ("dpmpp_3m", "log_snr"),
  ("ddim", "karras"),
)
# Adams' methods of this library, in the angle: order, corrector, bend of the
# grid, its scale and the standard deviation in units of the width.
ANGULAR = (
  (2, False, 0.5, 1.2, 0.7),
  (2, True, 0.08, 1.2, 0.7),
  (3, False, 0.5, 0.8, 0.4),
  (3, False, 0.5, 1.6, 0.7),
  (4, True, 0.5, 0.6, 0.35),
  (4, True, 0.5, 1.2, 0.7),
  (4, True, 1.0, 1.2, 0.7),
)
SCALES = (0.5, 1.0, 2.0)  # of the width that the rule is told
COUNT = len(PUBLISHED) + len(ANGULAR) + len(SCALES)


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
  for order, corrector, bend, scale, deviation in ANGULAR:
    grid = grids.angular(
      process, calls, scale=scale * width, bend=bend, to_zero=to_zero
    )
    # the step into sigma = 0 has no order
    order = min(order, max(1, calls - int(to_zero)))
    name = f"angular_adams({order}{', corrector' * corrector})"
    found[f"{name} / angular({scale:g} width, {bend:g})"] = (
      solvers.angular_adams(
        process,
        grid,
        order=order,
        corrector=corrector,
        data_std=deviation * width,
      )
    )
  for spec, grid in PUBLISHED:
    found[f"{spec} / {grid}"] = solvers.from_spec(spec)(
      process, grids.GRIDS[grid](process, calls, to_zero=to_zero)
    )
  return found

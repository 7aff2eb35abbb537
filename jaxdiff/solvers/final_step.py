r"""Final step: three policies for the last step of any table.

| policy        | what becomes of the table                                   |
|---------------|-------------------------------------------------------------|
| "denoise"     | one call more, at the grid's end: its x0 is the sample      |
| "stop"        | a last step into sigma = 0 is not taken: one call less      |
| "first_order" | the last step of a multistep table is DDIM's                |

A grid made with `to_zero=True` already ends by "denoise". Multistep solvers
also take `lower_order_final`, which lowers more than the last step.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import denoise
from jaxdiff.solvers.ddim import ddim
from jaxdiff.tableau import Tableau

POLICIES = ("denoise", "stop", "first_order")


@checks.door(host=True)
def final_step(
  table: Tableau, process: GaussianProcess, grid: np.ndarray, policy: str
) -> Tableau:
  """Returns the table with another end.

  Args:
    table: table of a solver on `grid`.
    process: the forward process.
    grid: f64[n + 1].
    policy: "denoise", "stop" or "first_order".

  Raises:
    ValueError: for another policy, "denoise" where the grid ends without noise
      or the process never does, "stop" where it does not, or "first_order" of
      a last step that takes several calls.
  """
  checks.one_of(policy, POLICIES, "policy")
  grid = checks.falling_grid(grid, process.t_min, process.t_max, process.t_zero)
  clean = process.sigma(grid[-1]) == 0
  if policy == "denoise":
    if clean or np.isnan(process.t_zero):
      raise ValueError(
        "policy='denoise' adds a call at the grid's end, but"
        + (
          " there sigma = 0 and the sample is clean already"
          if clean
          else " this process does not say where sigma = 0; give"
          " from_alpha_sigma its t_zero"
        )
      )
    last = denoise(process, grid[-1], process.t_zero)
    return tables.concat(table, last)
  if policy == "stop":
    if not clean or table.nfe < 2:
      raise ValueError(
        "policy='stop' leaves out a last step into sigma = 0, but the grid's"
        f" last time has sigma = {float(process.sigma(grid[-1])):.4g} and the"
        f" table {table.nfe} calls; make the grid with to_zero=True"
      )
    return tables.take(table, slice(0, -1))
  if table.t[-1] != grid[-2] or (table.nfe > 1 and not _ends(table, -2)):
    raise ValueError(
      "policy='first_order' replaces a last step of one call, but this table's"
      " last step takes several; give it orders instead, as dpm_solver takes"
    )
  return tables.concat(
    tables.take(table, slice(0, -1)), ddim(process, grid[-2:])
  )


def _ends(table, row):
  """Returns whether a row ends a step: what is asked next is accepted."""
  return np.array_equal(
    table.state[row, 0], table.state[row, 1]
  ) and np.array_equal(table.history[row, 0], table.history[row, 1])

"""The default rule: a grid and a solver for a number of calls.

`angular_adams` on the `angular` grid. Below eight calls a corrector sees too
little to be right and costs stability: there the third-order predictor alone
takes larger steps at high noise. Three numbers of the grid and this threshold
were fitted once, on the mixture of digits and the grid of 25 Gaussians; where
the rule wins and where it loses on others, docs/choosing-a-solver.md shows. It
loses where some directions of the data are many times wider than others.
"""

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.angular_adams import angular_adams
from jaxdiff.tableau import Tableau


@checks.door(host=True, above=dict(data_std=0))
def default(
  process: GaussianProcess,
  calls: int,
  *,
  data_std: float = 1.0,
  to_zero: bool = False,
) -> Tableau:
  """Returns a deterministic table of `calls` network calls for any process.

  Args:
    process: the forward process.
    calls: number of network calls, at least 1.
    data_std: standard deviation of the data; 1 suits normalized data. For
      data with a direction wider than 2 give the width of the widest.
    to_zero: whether the last step ends at sigma = 0 rather than at t_min.

  Raises:
    ValueError: for less than one call.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> table = jd.default(process, 10)
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> _, variance = jd.oracles.propagate(table, process, data)
    >>> print(table.nfe, round(float(variance[0]) ** 0.5, 2))
    10 0.5
  """
  if calls < 1:
    raise ValueError(f"a table makes at least one call, got calls={calls}")
  few = calls < 8
  grid = grids.angular(
    process,
    calls,
    scale=(2.22 if few else 1.7) * data_std,
    to_zero=to_zero,
  )
  # the step into sigma = 0 is x0 itself and carries no order
  order = min(3 if few else 4, max(1, calls - int(to_zero)))
  return angular_adams(
    process, grid, order=order, corrector=not few, data_std=data_std
  )

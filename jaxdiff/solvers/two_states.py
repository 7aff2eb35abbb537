r"""Tables that walk two samples, where both are needed to go back.

A table holds two states, y where it is asked next and the anchor a. Most
methods end a step with both at the new sample. A leapfrog keeps the sample
before in a,

  y' = n y + p a + w F(y),     a' = y,

and can be solved for it, a = (y' - n y - w F(y)) / p with y = a'.
"""

import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau


def leapfrog(
  process: GaussianProcess,
  grid: np.ndarray,
  now: np.ndarray,
  past: np.ndarray,
  weight: np.ndarray,
  pair: bool,
) -> Tableau:
  """Returns x_{i+1} = now x_i + past x_{i-1} + weight eps_i as a table.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    now: f64[n - 1], of the steps after the first, which is DDIM's.
    past: f64[n - 1].
    weight: f64[n - 1].
    pair: whether it ends at y = x_{n-1} and a = x_n, else at x_n alone.
  """
  alpha, sigma = process.alpha(grid[:2]), process.sigma(grid[:2])
  ratio = alpha[1] / alpha[0]
  first = (ratio, 0.0, sigma[1] - sigma[0] * ratio)
  steps = [first, *zip(now, past, weight, strict=True)]
  keep = (1.0, 0.0, 0.0)
  rows = [
    tables.row(t, "eps", y=step, a=keep)
    for t, step in zip(grid[:-2], steps[:-1], strict=True)
  ]
  end = steps[-1]
  rows.append(tables.row(grid[-2], "eps", y=keep if pair else end, a=end))
  return tables.concat(*rows)


def closed(table: Tableau, state: int) -> Tableau:
  """Returns the table that ends with both states at one of its two.

  Args:
    table: the table.
    state: 0 for its y, 1 for its anchor.
  """
  leaves = {}
  for name in ("state", "history"):
    leaf = getattr(table, name).copy()
    leaf[-1] = leaf[-1, state]
    leaves[name] = leaf
  return table._replace(**leaves)

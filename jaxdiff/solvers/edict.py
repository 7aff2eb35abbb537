r"""EDICT: two samples that DDIM moves in turn, inverted exactly.

A step of two calls moves x by the answer at y and then y by the answer at the
new x, both at the time where it begins; then it mixes them, so that they stay
together:

  x_m = c x + e eps(y, t),     y_m = c y + e eps(x_m, t),
  x' = p x_m + (1 - p) y_m,    y' = p y_m + (1 - p) x',
  c = alpha' / alpha,          e = sigma' - sigma c.

Each line can be solved for what it replaced. With `alternate` x and y change
places in every second step, but not in the mixing, as in the authors' code. The
result is x; first order.

`exact_inversion` makes the pair of tables that undo each other. Reference:
Wallace et al. (2022), https://arxiv.org/abs/2211.12446, equations 12 to 15.
"""

import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.two_states import closed
from jaxdiff.tableau import Tableau


@solver
def edict(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  mixing: float = 0.93,
  alternate: bool = True,
  pair: bool = False,
) -> Tableau:
  """Returns the table of EDICT on `grid`, f64[n + 1]: 2n calls, K = 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    mixing: p, above 0 and at most 1; 1 leaves the two samples apart.
    alternate: whether every second step moves y first.
    pair: whether the table ends at both samples, y and a = x, which determine
      all others (`exact_inversion`); else both are x.

  Raises:
    ValueError: for a mixing outside of (0, 1].
  """
  if not 0 < mixing <= 1:
    raise ValueError(
      "mixing is the share of a sample's own in its mixture with the other,"
      f" above 0 and at most 1 (0.93 in the paper); got mixing={mixing}"
    )
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  c = alpha[1:] / alpha[:-1]
  e = sigma[1:] - sigma[:-1] * c
  n, p = len(c), mixing
  mix = np.asarray([[p, 1.0 - p], [(1.0 - p) * p, p + (1.0 - p) ** 2]])
  rows = []
  for i in range(n):
    moves = int(alternate and i % 2)  # 0: x moves first, 1: y does
    rows.append(
      tables.row(grid[i], "eps", y=(0.0, c[i], e[i]), a=(1.0, 0.0, 0.0))
    )
    # the second call is at what was moved first; with it the other moves too
    first, second = mix[:, moves], mix[:, 1 - moves]
    x, y = np.stack([first, second * c[i], second * e[i]], axis=-1)
    asks_x = alternate and i % 2 == 0 and i + 1 < n
    asked, anchor = (x, y) if asks_x else (y, x)
    rows.append(tables.row(grid[i], "eps", y=asked, a=anchor))
  table = tables.concat(*rows)
  return table if pair else closed(table, 1)

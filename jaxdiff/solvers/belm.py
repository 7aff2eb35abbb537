r"""O-BELM: leapfrog of second order, one call per step, inverted exactly.

A bidirectional explicit linear multistep method asks in the middle of three
samples, so that the last follows from the first two and the first from the last
two by one and the same formula. With rho = sigma / alpha, h = rho_{i+1} - rho_i
and g = rho_i - rho_{i-1} the weights of least truncation error are

  x_{i+1} / alpha_{i+1} = (h / g)^2 x_{i-1} / alpha_{i-1}
                          + (1 - (h / g)^2) x_i / alpha_i + h (g + h) / g eps_i,

exact for paths x / alpha that are parabolas in rho. The first step is DDIM's.
The second solution of this recurrence shrinks or grows by (h / g)^2 a step: on
the way to the data, where steps in rho get shorter, it dies out; a data sample
that is encoded on the same grid meets the reverse.

`exact_inversion` makes the pair of tables that undo each other. Reference: Wang
et al. (2024), https://arxiv.org/abs/2410.07273, section 4.3 (O-BELM).
"""

import numpy as np

from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.two_states import leapfrog
from jaxdiff.tableau import Tableau


@solver
def belm(
  process: GaussianProcess, grid: np.ndarray, *, pair: bool = False
) -> Tableau:
  """Returns the table of O-BELM on `grid`, f64[n + 1]: n calls, K = 1.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    pair: whether the table ends at its last two samples, y = x_{n-1} and a =
      x_n, which determine all others (`exact_inversion`).

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> for steps in 10, 20, 40:
    ...   table = jd.solvers.belm(process, jd.grids.karras(process, steps))
    ...   _, variance = jd.oracles.propagate(table, process, data)
    ...   print(steps, round(float(variance[0]) ** 0.5, 3))
    10 0.437
    20 0.483
    40 0.496
  """
  alpha, rho = process.alpha(grid), process.noise_level(grid)
  step = np.diff(rho)
  g, h = step[:-1], step[1:]
  ratio = (h / g) ** 2
  past = ratio * alpha[2:] / alpha[:-2]
  now = (g - h) * (g + h) / g**2 * alpha[2:] / alpha[1:-1]
  weight = alpha[2:] * h * (g + h) / g
  return leapfrog(process, grid, now, past, weight, pair)

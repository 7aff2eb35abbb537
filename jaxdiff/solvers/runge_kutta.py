r"""Explicit Runge-Kutta methods of any Butcher array, in any form of the ODE.

With d(x / c) / du = F (`forms.py`: the velocity in t, eps in rho, x0 in 1 /
rho, v in the angle, the flow in its time) and h = u' - u,

  y_i / c_i = x / c + h sum_j a_ij F(y_j, u + c_j h),
  x' / c'   = x / c + h sum_i b_i F(y_i, u + c_i h).

output="velocity" is the classical method in the process's own time, "eps" is
rhoRK-DEIS. References: Hairer, Norsett and Wanner, Solving Ordinary
Differential Equations I, chapter II; Butcher (2016), Numerical Methods for
Ordinary Differential Equations, section 31.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import building
from jaxdiff.solvers import forms
from jaxdiff.tableau import Tableau


class Butcher(NamedTuple):
  """An explicit Runge-Kutta method.

  Attributes:
    stages: the strictly lower triangle of A, row by row, from the second
      stage on; the places c are its row sums.
    weights: b, one for each stage.
  """

  stages: Sequence[Sequence[float]]
  weights: Sequence[float]

  @property
  def places(self) -> np.ndarray:
    """The places c of the stages in units of the step, f64[s]."""
    return np.asarray([0.0, *(sum(row) for row in self.stages)])

  @property
  def matrix(self) -> np.ndarray:
    """A, f64[s, s]."""
    a = np.zeros((len(self.weights),) * 2)
    for i, row in enumerate(self.stages):
      a[i + 1, : len(row)] = row
    return a


METHODS = MappingProxyType(
  {
    "euler": Butcher([], [1.0]),
    "midpoint": Butcher([[1 / 2]], [0.0, 1.0]),
    "heun": Butcher([[1.0]], [1 / 2, 1 / 2]),
    "ralston": Butcher([[2 / 3]], [1 / 4, 3 / 4]),
    "kutta3": Butcher([[1 / 2], [-1.0, 2.0]], [1 / 6, 4 / 6, 1 / 6]),
    "heun3": Butcher([[1 / 3], [0.0, 2 / 3]], [1 / 4, 0.0, 3 / 4]),
    "ralston3": Butcher([[1 / 2], [0.0, 3 / 4]], [2 / 9, 3 / 9, 4 / 9]),
    "ssp3": Butcher([[1.0], [1 / 4, 1 / 4]], [1 / 6, 1 / 6, 4 / 6]),
    "rk4": Butcher(
      [[1 / 2], [0.0, 1 / 2], [0.0, 0.0, 1.0]], [1 / 6, 2 / 6, 2 / 6, 1 / 6]
    ),
    "rk38": Butcher(
      [[1 / 3], [-1 / 3, 1.0], [1.0, -1.0, 1.0]], [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    ),
    "dormand_prince5": Butcher(
      [
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
      ],
      [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ),
  }
)
"""Named arrays; calls per step are their number of weights."""


@building.solver
def runge_kutta(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  method: str | Butcher = "rk4",
  output: str = "velocity",
) -> Tableau:
  """Returns the table of an explicit Runge-Kutta method on `grid`, f64[n + 1].

  Args:
    process: the forward process.
    grid: f64[n + 1].
    method: a name of `METHODS`, or a `Butcher` array of your own.
    output: the form of the ODE: "velocity", "eps", "x0", "v" or "flow".

  Raises:
    ValueError: for an unknown method or output, or an array whose rows do not
      grow by one.
  """
  checks.one_of(output, tuple(forms.FORMS), "output")
  if isinstance(method, str):
    checks.one_of(method, tuple(METHODS), "method")
    method = METHODS[method]
  lengths = [len(row) for row in method.stages]
  if lengths != list(range(1, len(method.weights))):
    raise ValueError(
      f"an explicit method of {len(method.weights)} stages has the rows of its"
      f" strictly lower triangle, of lengths 1..{len(method.weights) - 1}; got"
      f" lengths {lengths}"
    )
  return building.runge_kutta(
    process, grid, method.stages, method.weights, output
  )

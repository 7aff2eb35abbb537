r"""Rex: an explicit Runge-Kutta method, coupled so that it is inverted exactly.

With d(x / c) / du = F (`forms.py`: u = alpha / sigma for x0, sigma / alpha for
eps) and v = x / c, let Psi_h(v, u) be what one step of a Runge-Kutta method
from u to u + h adds. Two samples walk together, coupled by zeta:

  v'     = zeta v + (1 - zeta) v_hat + Psi_h(v_hat, u),
  v_hat' = v_hat - Psi_{-h}(v', u + h),

so that v_hat and then v follow from v_hat' and v'. The result is v; the order
is that of the method. A step costs two calls for each stage; the last one,
whose v_hat nobody asks for, half of it.

In a table the stages leave the anchor as it is, and the last one finds the
place where they began by what was added since.

`exact_inversion` makes the pair of tables that undo each other. References:
Blasingame and Liu (2025), https://arxiv.org/abs/2502.08834, the ODE part, with
zeta = 0.999 as in their experiments with images; the coupling is of McCallum
and Foster (2024), https://arxiv.org/abs/2410.11648.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.runge_kutta import Butcher
from jaxdiff.solvers.runge_kutta import METHODS
from jaxdiff.solvers.two_states import closed
from jaxdiff.tableau import Tableau


@solver
def rex(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  method: str | Butcher = "midpoint",
  output: str = "x0",
  coupling: float = 0.999,
  pair: bool = False,
) -> Tableau:
  """Returns the table of Rex on `grid`: of s stages (2n - 1) s calls, K = s.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    method: a name of `runge_kutta.METHODS`, or a `Butcher` array of your own.
    output: the form of the ODE, "x0" or "eps".
    coupling: zeta, above 0 and at most 1.
    pair: whether the table ends at both samples, y = x_hat and a = x, which
      determine all others (`exact_inversion`), after 2 n s calls.

  Raises:
    ValueError: for another method or output, or a coupling outside of (0, 1].
  """
  checks.one_of(output, ("x0", "eps"), "output")
  if isinstance(method, str):
    checks.one_of(method, tuple(METHODS), "method")
    method = METHODS[method]
  if not 0 < coupling <= 1:
    raise ValueError(
      "coupling is the share of a sample's own in its sum with the other,"
      f" above 0 and at most 1 (0.999 in the paper); got coupling={coupling}"
    )
  rows, n = [], len(grid) - 1
  for i in range(n):
    rows += _half(process, grid[i], grid[i + 1], method, output, coupling)
    if pair or i + 1 < n:
      rows += _half(process, grid[i + 1], grid[i], method, output, None)
  table = tables.concat(*rows)
  return table if pair else closed(table, 0)


def _half(process, t, t_far, method, output, coupling):
  """Returns the rows that move the anchor by a step seen from y.

  Args:
    process: the forward process.
    t: the time of y.
    t_far: the time at the other end of the step.
    method: the Butcher array of Psi.
    output: "x0" or "eps".
    coupling: zeta, if the anchor moves from t to t_far by Psi_h; None if it
      moves from t_far to t by -Psi_{-h}.
  """
  form = forms.FORMS[output]
  u, far = form.clock(process, np.asarray([t, t_far]))
  h = far - u
  at = form.time(process, u + method.places * h)
  at = np.where(method.places == 0, t, np.where(method.places == 1, t_far, at))
  scale = form.scale(process, np.append(at, t_far))
  matrix = h * method.matrix
  rows = []
  for i in range(len(at)):
    if i + 1 < len(at):  # on to the next stage, the anchor stays
      added = scale[i + 1] * (matrix[i + 1] - matrix[i])[i::-1]
      y = (scale[i + 1] / scale[i], 0.0, *added)
      a = (0.0, 1.0)
    else:
      back = -matrix[i][::-1]  # from y / scale to where the stages began
      step = h * np.asarray(method.weights)[::-1]
      if coupling is None:
        end, other, own = scale[0], 0.0, scale[0] / scale[-1]
        step = -step
      else:
        end, other = scale[-1], 1.0 - coupling
        own = coupling * scale[-1] / scale[0]
      y = (end * other / scale[i], own, *(end * (other * back + step)))
      a = (scale[0] / scale[i], 0.0, *(scale[0] * back))
    rows.append(tables.row(at[i], form.output(process, at[i]), y, a))
  return rows

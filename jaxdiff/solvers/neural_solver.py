r"""NeuralSolver: a multistep method whose every weight may be chosen.

In any form of the ODE, d(x / c) / du = F (`forms.py`), the paper's own being
that of a flow,

  x_{i+1} / c_{i+1} = x_i / c_i
                      + (u_{i+1} - u_i) (F_i + sum_{j<i} C_ij (F_j - F_i)):

the weights of each step sum to one, so that a constant F is integrated exactly.
C = 0 is Euler's method, which for a flow, x0 or eps is DDIM. The step into
sigma = 0 accepts the answer itself. `learning.neural_solver` learns C and the
grid.

Reference: Wang et al. (2025), Differentiable Solver Search for Fast Diffusion
Sampling, https://arxiv.org/abs/2505.21114, section 5; timesteps and C as in the
authors' code, u = t.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import leave
from jaxdiff.solvers.building import parameters
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def neural_solver(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  coefficients: np.ndarray | None = None,
  output: str = "flow",
) -> Tableau:
  """Returns the table of given coefficients on `grid`: n calls, K = n.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    coefficients: C, f64[n, n], of which what is below the diagonal counts; None
      is 0.
    output: the form, one of `forms.FORMS`.

  Raises:
    ValueError: for another output or shape.
  """
  checks.one_of(output, tuple(forms.FORMS), "output")
  form = forms.FORMS[output]
  # with the clock of eps no step leaves alpha = 0 but DDIM's
  parts, grid = leave(process, grid) if output == "eps" else ([], grid)
  n = len(grid) - 1
  if n:
    c = np.tril(parameters(coefficients, 0.0, (n, n), "coefficients"), -1)
    c += np.diag(1.0 - c.sum(1))
    gain = form.scale(process, grid[1:]) * np.diff(form.clock(process, grid))
    history = newest_first(gain[:, None] * c)
    parts.append(
      tables.multistep(
        t=grid[:-1],
        output=form.output(process, grid[:-1]),
        carry=forms.carry(output, process, grid[:-1], grid[1:]),
        history=history[:, :1] if coefficients is None else history,
      )
    )
  return tables.concat(*parts)


def newest_first(weights: np.ndarray) -> np.ndarray:
  """Returns the history of a table by the weights of calls, f64[n, n].

  Args:
    weights: f64[n, n], row i of which weighs the calls 0..i.
  """
  history = np.zeros_like(weights)
  for i, row in enumerate(weights):
    history[i, : i + 1] = row[i::-1]
  return history

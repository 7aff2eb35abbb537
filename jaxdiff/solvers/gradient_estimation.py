r"""Gradient estimation: DDIM along a mix of the last two answers.

  x' / c' = x / c + (u' - u) (gamma F_i + (1 - gamma) F_{i-1})

for a form of the ODE, d(x / c) / du = F (`forms.py`): for output="eps", the
paper's, x' = (alpha' / alpha) x + alpha' (rho' - rho) (...) with rho = sigma /
alpha; for output="flow" the time of a flow in place of rho, as ComfyUI has it
for those. The first step takes F_0 alone. gamma = 1 is DDIM (and, along a flow,
Euler), gamma = 1.5 is `ipndm` of order 2, of second order where the steps in u
are equal. Every other gamma is of first order: it is meant to take the error
out of the direction to the data, not to follow the ODE.

Reference: Permenter and Yuan (2024), https://arxiv.org/abs/2306.04848, section
5, gamma = 2.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import leave
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def gradient_estimation(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  gamma: float = 2.0,
  output: str = "eps",
) -> Tableau:
  """Returns the table of gradient estimation on `grid`: n calls, K = 2.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    gamma: weight of the last answer.
    output: "eps" or "flow", the direction. Out of alpha = 0 "eps" takes a step
      of DDIM, and begins after it.

  Raises:
    ValueError: for another output.
  """
  checks.one_of(output, ("eps", "flow"), "output")
  parts, grid = leave(process, grid) if output == "eps" else ([], grid)
  if len(grid) > 1:
    form = forms.FORMS[output]
    gain = form.scale(process, grid[1:]) * np.diff(form.clock(process, grid))
    past = np.where(np.arange(len(gain)), 1.0 - gamma, 0.0)
    parts.append(
      tables.multistep(
        t=grid[:-1],
        output=form.output(process, grid[:-1]),
        carry=forms.carry(output, process, grid[:-1], grid[1:]),
        history=gain[:, None] * np.stack([1.0 - past, past], axis=-1),
      )
    )
  return tables.concat(*parts)

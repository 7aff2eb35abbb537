r"""Heun++: a step along the mean of the directions of this and two more steps.

With F the direction of a form of the ODE, d(x / c) / du = F (`forms.py`), and
two steps of Euler, to u' and to u'', from which F' and F'' are asked,

  x' / c' = x / c + (u' - u) (w F + w' F' + w'' F''),
  w' = u' / (3 u_0),   w'' = u'' / (3 u_0),   w = 1 - w' - w'',

u_0 being the grid's first clock: early steps mean nearly evenly, late ones are
Euler's. The last step has no u'': F and F' with w' = u' / (2 u_0). Of first
order. output="eps" has u = sigma / alpha, as k-diffusion's family, "flow" the
time of a flow, as ComfyUI has it for those.

Reference: sample_heunpp2 of ComfyUI, after
https://github.com/Carzit/sd-webui-samplers-scheduler. Its grids end at sigma =
0, in a step of one call; where a grid does not, theirs takes a last step of
Euler all the same, and here it is the one with two calls.
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
def heunpp2(
  process: GaussianProcess, grid: np.ndarray, *, output: str = "eps"
) -> Tableau:
  """Returns the table of Heun++ on `grid`, f64[n + 1]: 3n - 1 calls, K = 3.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    output: "eps" or "flow", the direction. Out of alpha = 0 "eps" takes a step
      of DDIM, and begins after it.

  Raises:
    ValueError: for another output.
  """
  checks.one_of(output, ("eps", "flow"), "output")
  parts, grid = leave(process, grid) if output == "eps" else ([], grid)
  form = forms.FORMS[output]
  c, u = form.scale(process, grid), form.clock(process, grid)
  mixes = form.output(process, grid)
  for i in range(len(grid) - 1):
    stages = min(3, len(grid) - i)  # two in the last step
    late = u[i + 1 : i + stages] / (stages * u.max())
    weights = np.append(1.0 - late.sum(), late)
    for j in range(stages):
      at = i + j
      if j < stages - 1:
        gain = c[at + 1] * (u[at + 1] - u[at])
        y = (c[at + 1] / c[at], 0.0, gain)
        a = (0.0, 1.0)
      else:
        mean = c[i + 1] * (u[i + 1] - u[i]) * weights[::-1]  # newest first
        y, a = (0.0, c[i + 1] / c[i], *mean), None
      parts.append(tables.row(grid[at], mixes[at], y, a))
  return tables.concat(*parts)

r"""PFDiff: DDIM by the slope inside each step, one call per step.

The first step is DDIM's. Every other one, from t_i to t_{i+1}, asks at a place
inside it, s_i = t_i + ahead / (skip + 1) (t_{i+1} - t_i), which the answer of
the step before has found, and takes the whole step with the new answer:

  x(s_i) / alpha(s_i)   = x_i / alpha_i + (rho(s_i) - rho_i) eps_{i-1},
  x_{i+1} / alpha_{i+1} = x_i / alpha_i + (rho_{i+1} - rho_i) eps(x(s_i), s_i),

rho = sigma / alpha.

The paper counts on a grid of equal times, of which a step skips `skip`: that
grid at the places 0, 1, 1 + (skip + 1), ... is the one to give here, n steps
and n calls. Second order where s_i is the middle of the step (skip = ahead =
1, the default), first order elsewhere.

In the table the state is the place that is asked, x(s_i), from which the last
answer gives x_i back; so what is kept between calls is a sample at the time of
the next one. Reference: Wang et al. (2024), https://arxiv.org/abs/2408.08822,
Algorithm 1, PFDiff-k_h with k = skip and h = ahead, over DDIM (DPM-Solver-1).
"""

import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import Tableau


@solver(least=dict(skip=1, ahead=1))
def pfdiff(
  process: GaussianProcess, grid: np.ndarray, *, skip: int = 1, ahead: int = 1
) -> Tableau:
  """Returns the table of PFDiff over DDIM on `grid`: n calls, K = 2.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    skip: k, the places that a step passes, at least 1.
    ahead: h, which of them it asks at, from 1 to k.

  Raises:
    ValueError: for a place outside of the step.
  """
  if ahead > skip:
    raise ValueError(
      f"a step passes skip={skip} places and asks at one of them, so ahead runs"
      f" from 1 to {skip}; got ahead={ahead}"
    )
  n = len(grid) - 1
  part = np.where(np.arange(n) > 0, ahead / (skip + 1), 0.0)
  asked = np.append(grid[:-1] + part * np.diff(grid), grid[-1])
  alpha, sigma = process.alpha(asked), process.sigma(asked)
  level, rho = sigma / alpha, process.noise_level(grid)
  # y / alpha = x_i / alpha_i + (level_i - rho_i) eps_{i-1}
  history = np.stack([level[1:] - rho[:-1], rho[:-1] - level[:-1]], axis=-1)
  return tables.multistep(
    t=asked[:-1],
    output="eps",
    carry=alpha[1:] / alpha[:-1],
    history=alpha[1:, None] * history,
  )

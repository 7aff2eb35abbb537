r"""Heun's method, deterministic or with churn: second order, two calls a step.

  x_e = x + h v(x, t),   x' = x + h/2 (v(x, t) + v(x_e, t')),   h = t' - t,

on the probability-flow ODE in the process's own time, the last step into
sigma = 0 by a single call: 2n - 1 calls. This is Algorithm 1 of Karras et al.
(2022), https://arxiv.org/abs/2206.00364; `heun_churn` is their stochastic
Algorithm 2: before each step from s = sigma / alpha inside [s_min, s_max] the
noise level is raised to s_hat = (1 + gamma) s by fresh noise of scale

  s_noise sqrt(s_hat^2 - s^2) = s_noise s sqrt(gamma (2 + gamma)),
  gamma = min(churn / n, sqrt(2) - 1).

For a process whose alpha varies, x is rescaled to alpha(t_hat) with it. The
first step is then not churned, since nothing precedes it to rescale.
"""

import math

import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import denoise
from jaxdiff.solvers.building import runge_kutta
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.building import velocity
from jaxdiff.tableau import Tableau


@solver(starts_at_zero_alpha=True)
def heun(process: GaussianProcess, grid: np.ndarray) -> Tableau:
  """Returns the table of Heun's method on `grid`: 2n calls, K = 2.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> data = jd.oracles.gaussian([0.0], 0.25)  # standard deviation 0.5
    >>> for n in 10, 20, 40:
    ...   table = jd.heun(process, jd.grids.karras(process, n))
    ...   _, variance = jd.oracles.propagate(table, process, data)
    ...   print(table.nfe, round(float(variance[0]) ** 0.5, 3))
    20 0.587
    40 0.52
    80 0.505
  """
  return runge_kutta(process, grid, stages=[[1.0]], weights=[1 / 2, 1 / 2])


@solver(ends_at_zero_sigma=True, least=dict(s_min=0, s_max=0, s_noise=0))
def heun_churn(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  churn: float = 0.0,
  s_min: float = 0.0,
  s_max: float = math.inf,
  s_noise: float = 1.0,
) -> Tableau:
  """Returns the table of Heun's method with churn on `grid`, f64[n + 1].

  Args:
    process: the forward process.
    grid: f64[n + 1].
    churn: S_churn, the amount of noise renewed over the whole run; 0 is `heun`.
    s_min: lowest noise level sigma / alpha that is churned.
    s_max: highest one.
    s_noise: inflation of the new noise; 1.003 to 1.007 in the paper.

  Raises:
    ValueError: if churn is negative.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> grid = jd.grids.karras(process, 10)
    >>> for churn in 0.0, 40.0:
    ...   table = jd.heun_churn(process, grid, churn=churn)
    ...   print(churn, table.nfe, table.stochastic)
    0.0 20 False
    40.0 20 True
  """
  if churn < 0:
    raise ValueError(
      f"churn is an amount of noise, at least 0; got churn={churn}"
    )
  n = len(grid) - 1
  level = process.noise_level(grid)
  inside = (level[:-1] >= s_min) & (level[:-1] <= s_max)
  gamma = np.where(inside, min(churn / n, math.sqrt(2.0) - 1.0), 0.0)
  t_hat = grid[:-1].copy()
  churned = gamma > 0
  t_hat[churned] = process.time_at(((1.0 + gamma) * level[:-1])[churned])
  # a process may end below (1 + gamma) s: no more noise than that is added
  reached = np.maximum(process.noise_level(t_hat) / level[:-1] - 1.0, 0.0)
  gamma = np.where(reached < gamma * (1.0 - 1e-6), reached, gamma)
  scale = process.alpha(t_hat) / process.alpha(grid[:-1])
  if scale[0] != 1.0:
    t_hat[0], scale[0], gamma[0] = grid[0], 1.0, 0.0
  noise = (
    s_noise * process.alpha(t_hat) * level[:-1] * np.sqrt(gamma * (2.0 + gamma))
  )
  rescale = np.append(scale[1:], 1.0)  # of the place that is asked next
  parts = []
  for i in range(n):
    h = grid[i + 1] - t_hat[i]
    churn_noise = (noise[i], 0.0, 0.0)
    if process.sigma(grid[i + 1]) == 0:
      last = denoise(process, t_hat[i], grid[i + 1])
      parts.append(last._replace(noise=np.asarray([churn_noise])))
      continue
    first, second = velocity(process, np.asarray([t_hat[i], grid[i + 1]]))
    parts.append(
      tables.row(
        t_hat[i], first, y=(1.0, 0.0, h), a=(1.0, 0.0), noise=churn_noise
      )
    )
    r = rescale[i]
    parts.append(
      tables.row(
        grid[i + 1],
        second,
        y=(0.0, r, r * h / 2, r * h / 2),
        a=(0.0, 1.0, h / 2, h / 2),
      )
    )
  return tables.concat(*parts)

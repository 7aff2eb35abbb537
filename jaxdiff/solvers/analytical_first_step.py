r"""Analytical first step (AFS): the first call of any table, for free.

Where noise dwarfs data the answer is known without a network. For sigma_max >>
data the published direction is

  eps = x / sqrt(alpha^2 + sigma^2),   x0 = (x - sigma eps) / alpha,

in EDM's form (x - D) / sigma = x / sqrt(1 + sigma^2). With a `data_std` d it is
the answer for Gaussian data of mean 0 instead, exact for such data:

  eps = sigma x / S^2,   x0 = alpha d^2 x / S^2,   S^2 = alpha^2 d^2 + sigma^2.

Both are multiples of x, F_0 = kappa x, so the first row merely scales: it goes,
and later rows that remember F_0 get it back from the state, of which it is a
known part. What is left of the row is the factor that the initial noise has to
be scaled by.

References: Dockhorn et al. (2022), GENIE, https://arxiv.org/abs/2210.05475,
appendix D; Zhou et al. (2024), https://arxiv.org/abs/2312.00094.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau


@checks.door(host=True)
def analytical_first_step(
  table: Tableau, process: GaussianProcess, data_std: float | None = None
) -> tuple[Tableau, float]:
  """Returns (table, scale) of one call less: sample from scale * x.

  Args:
    table: table of at least two rows, whose first draws no noise.
    process: the forward process.
    data_std: standard deviation of the data for the Gaussian's answer; None is
      the published direction.

  Raises:
    ValueError: for a table of one row, a first row that draws noise, or one
      that keeps nothing of x, and for a data_std where the noise is not normal.
  """
  if data_std is not None:
    check_normal(
      process,
      "data_std of analytical_first_step",
      "gives the answer for Gaussian data, which is known under normal noise"
      " alone",
      "leave data_std out",
    )
  n, memory = table.nfe, table.memory
  if n < 2:
    raise ValueError(
      "a free first call needs a second one that is paid, but the table makes"
      f" {n}; take a grid with more steps"
    )
  if np.any(table.noise[0]):
    raise ValueError(
      "the first row draws noise, so its call is not asked at a multiple of x;"
      " take a deterministic first step (churn=0, eta=0)"
    )
  kappa = float(table.output[0] @ _direction(process, table.t[0], data_std))
  y, a = table.state[0].sum(1) + table.history[0, :, 0] * kappa
  if y == 0:
    raise ValueError(
      "the first row keeps nothing of x, so nothing is left to start from;"
      " take a grid whose first step does not end at sigma = 0"
    )
  state, history = table.state[1:].copy(), table.history[1:].copy()
  state[0, :, 1] *= a / y  # the run starts with both slots at scale * x
  part = np.ones(2)  # of the start in (y, a) ...
  rest = np.zeros((2, 0))  # ... and of the calls made since, newest first
  for i in range(min(n - 1, memory - 1)):
    ago = i + 1  # F_0 = kappa / y times the start
    slot = int(np.argmax(abs(part)))
    back = history[i, :, ago] * kappa / (y * part[slot])
    history[i, :, ago] = 0.0
    state[i, :, slot] += back
    history[i, :, 1:ago] -= np.outer(back, rest[slot])
    past = np.concatenate([np.zeros((2, 1)), rest], axis=1)
    part, rest = state[i] @ part, state[i] @ past + history[i, :, :ago]
  return (
    tables.take(table, slice(1, None))._replace(state=state, history=history),
    float(y),
  )


def _direction(process, t, data_std):
  """Returns (x0, eps) as multiples of x."""
  alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
  if data_std is None:
    size = np.hypot(alpha, sigma)
    return np.asarray([alpha / (size * (size + sigma)), 1.0 / size])
  square = alpha**2 * data_std**2 + sigma**2
  return np.asarray([alpha * data_std**2, sigma]) / square

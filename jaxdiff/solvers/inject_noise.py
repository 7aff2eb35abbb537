r"""Noise injected before every step without changing the time: a stress test.

  x <- x + amount sigma(t_i) z,   then the step from t_i as if nothing happened.

How much worse the samples become says how far from the truth a solver may
stray before the network, which never saw such points, leads it on: the protocol
of Xu et al. (2023), https://arxiv.org/abs/2302.04265, section 5.2, under which
PFGM++ of small D degrades less than diffusion.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau


@checks.door(host=True)
def inject_noise(
  tableau: Tableau, process: GaussianProcess, amount: float
) -> Tableau:
  """Returns the table with noise in front of each of its steps.

  A step begins where the network is asked at the last accepted sample (y = a);
  it starts from the noisy point, all of its stages included.

  Args:
    tableau: tableau of a multistep or Runge-Kutta method, without data
      dimensions.
    process: gives sigma at each call.
    amount: strength of the noise in units of sigma, 0..0.3 in the paper; 0
      changes nothing.

  Raises:
    ValueError: for a negative amount, a table that draws noise before a call
      already, or one whose calls lie beside the samples that it accepts.
  """
  if not amount >= 0:
    raise ValueError(f"amount is a scale of noise, at least 0; got {amount}")
  if np.any(tableau.noise[:, 0]):
    raise ValueError(
      "this table already draws noise before its calls (churn); inject into"
      " the one with churn=0"
    )
  state, noise = tableau.state.copy(), tableau.noise.copy()
  history = tableau.history
  begins = True
  for i in range(tableau.nfe):
    if begins:  # y = a here, and both are to be the noisy point
      state[i, :, 0] += state[i, :, 1]
      state[i, :, 1] = 0.0
      noise[i, 0] = amount * process.sigma(tableau.t[i])
    ends = (
      np.array_equal(state[i, 0], state[i, 1])
      and np.array_equal(history[i, 0], history[i, 1])
      and noise[i, 1] == noise[i, 2]
    )
    keeps = (
      state[i, 1].sum() == 1.0 and not history[i, 1].any() and not noise[i, 2]
    )
    if not (ends or keeps):
      raise ValueError(
        f"row {i} accepts a sample other than the place that is asked next, so"
        " that no point begins a step; inject into a multistep or Runge-Kutta"
        " table, such as heun or dpmpp_2m"
      )
    begins = ends
  return tableau._replace(state=state, noise=noise)

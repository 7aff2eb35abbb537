r"""Laws without sampling: what a table does to Gaussian data, exactly.

For data N(mu, Sigma) the model is affine, so every row of a table is an affine
map of (y, a, h_0, ..., h_{K-1}) plus independent noise. In the eigenbasis of
Sigma the coordinates do not mix: for each eigenvalue v a vector of K + 2 means
and a (K + 2)^2 covariance propagate by

  m <- M m + b,   P <- M P M^T + N N^T.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.oracles.mixture import GaussianMixture
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau


@checks.door
def propagate(
  tableau: Tableau,
  process: GaussianProcess,
  single: GaussianMixture,
  mean: np.ndarray | None = None,
  variance: np.ndarray | float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the exact law of the samples that a table draws.

  Args:
    tableau: the solver, of any memory, with or without noise; without data
      dimensions.
    process: the process its model is exact under.
    single: data, a mixture of one component with axes None or any.
    mean: f64[d] of the start, in the eigenbasis; the marginal's by default.
    variance: f64[d] or scalar of the start; the marginal's by default.

  Returns:
    (mean, variance): f64[d] each, in the eigenbasis of the covariance.

  Raises:
    ValueError: for more than one component, or noise that is not normal.
  """
  check_normal(
    process,
    "propagate",
    "follows normal laws, which noise of another law does not keep",
    "sample, or take the limit of normal noise, pfgmpp(None)",
  )
  if np.shape(single.means)[0] != 1:
    raise ValueError(
      "laws propagate exactly for one Gaussian only, this mixture has"
      f" {np.shape(single.means)[0]}; sample it"
    )
  v = np.asarray(single.variances, np.float64)[0]
  mu = np.asarray(single.means, np.float64)[0]
  if single.axes is not None:
    mu = mu @ np.asarray(single.axes, np.float64)[0]
  alpha, sigma = process.alpha(tableau.t), process.sigma(tableau.t)
  if mean is None:
    mean = alpha[0] * mu
  if variance is None:
    variance = alpha[0] ** 2 * v + sigma[0] ** 2
  alpha, sigma = alpha[:, None], sigma[:, None]
  c = alpha**2 * v + sigma**2
  slopes = np.stack([alpha * v / c, sigma / c], axis=1)
  shifts = np.stack(
    [mu - slopes[:, 0] * alpha * mu, -slopes[:, 1] * alpha * mu], 1
  )
  mean = np.broadcast_to(mean, v.shape)
  variance = np.broadcast_to(variance, v.shape)
  return propagate_affine(tableau, slopes, shifts, mean, variance)


@checks.door
def propagate_affine(
  tableau: Tableau,
  slopes: np.ndarray,
  shifts: np.ndarray,
  mean: np.ndarray,
  variance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the exact law after a table on a model affine in each coordinate.

  Args:
    tableau: the solver, without data dimensions.
    slopes: f64[n, 2, d]: at call i output j of the pair is slopes[i, j] y +
      shifts[i, j].
    shifts: f64[n, 2, d].
    mean: f64[d] of the start.
    variance: f64[d] of the start.

  Returns:
    (mean, variance): f64[d] each.
  """
  k, d = tableau.memory, np.shape(slopes)[2]
  size = k + 2
  m = np.zeros((d, size))
  p = np.zeros((d, size, size))
  m[:, :2] = np.asarray(mean)[:, None]
  p[:, :2, :2] = np.asarray(variance)[:, None, None]
  for i in range(tableau.nfe):
    p[:, 0, 0] += tableau.noise[i, 0] ** 2
    slope = tableau.output[i] @ slopes[i]  # F = slope y + shift
    shift = tableau.output[i] @ shifts[i]
    push = np.zeros((d, size, size))  # (y, a, h) -> (y, a, F, h_0, ...)
    push[:, 0, 0] = push[:, 1, 1] = 1.0
    push[:, 2, 0] = slope
    for j in range(1, k):
      push[:, 2 + j, 1 + j] = 1.0
    step = np.eye(size)
    step[:2, :2] = tableau.state[i]
    step[:2, 2:] = tableau.history[i]
    offset = np.zeros((d, size))
    offset[:, 2] = shift
    matrix = step @ push
    m = np.einsum("vij,vj->vi", matrix, m) + offset @ step.T
    p = matrix @ p @ matrix.transpose(0, 2, 1)
    noise = np.zeros(size)
    noise[:2] = tableau.noise[i, 1:]
    p += np.outer(noise, noise)
  return m[:, 1], p[:, 1, 1]

r"""DPM-Solver++(3M): third order, one call per step, deterministic.

x0(lambda) is extrapolated by the parabola through the last three calls and the
step's integral is exact for it:

  x' = (sigma' / sigma) x + alpha' h sum_k w_k x0_{i-k},
  w_k = int_0^1 e^{-h (1 - u)} L_k(u) du,

with L_k the Lagrange basis on the last three lambdas in units of h. Orders 1
and 2 (with the exact integral, unlike 2M) warm it up, which caps the order at 2
from a cold start; from an exact history it is 3.

Reference: Lu et al. (2022), https://arxiv.org/abs/2211.01095, appendix B.
Public implementations (and their copies) lack the factor 2 in the second
divided difference D2 = 2 (A - B) / (r0 + r1) and are second order;
`published=True` reproduces them from the third step on (steps 1 and 2 being 1M
and 2M there).
"""

import numpy as np

from jaxdiff.numerics import exponential_weights
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import solver
from jaxdiff.tableau import multistep
from jaxdiff.tableau import Tableau


@solver
def dpmpp_3m(
  process: GaussianProcess, grid: np.ndarray, *, published: bool = False
) -> Tableau:
  """Returns the table of DPM-Solver++(3M) on `grid`: n calls, K = 3.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    published: whether to reproduce the second-order coefficients of the public
      code instead of the third-order ones.
  """
  alpha, sigma, lam = coefficients(process, grid)
  h = np.diff(lam)
  weights = np.zeros((len(h), 3))
  for i in range(len(h)):
    if published:
      weights[i] = _published(h, i)
      continue
    past = lam[i - min(i, 2) : i + 1][::-1]
    nodes = (past - lam[i]) / h[i]
    weights[i, : len(nodes)] = h[i] * exponential_weights(nodes, -h[i])
  return multistep(
    t=grid[:-1],
    output="x0",
    carry=sigma[1:] / sigma[:-1],
    history=alpha[1:, None] * weights,
  )


def _published(h: np.ndarray, i: int) -> np.ndarray:
  """Returns the weights of the public code at step i, f64[3]."""
  gain = -np.expm1(-h[i])
  if i == 0:
    return np.asarray([gain, 0.0, 0.0])
  if i == 1:
    r = h[1] / (2.0 * h[0])
    return gain * np.asarray([1.0 + r, -r, 0.0])
  r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
  a = np.asarray([1.0, -1.0, 0.0]) / r0
  b = np.asarray([0.0, 1.0, -1.0]) / r1
  d1 = a + r0 / (r0 + r1) * (a - b)
  d2 = (a - b) / (r0 + r1)  # half of the second derivative
  p2 = h[i] * phi(2, -h[i])
  p3 = -h[i] * phi(3, -h[i])
  return np.asarray([gain, 0.0, 0.0]) + p2 * d1 - p3 * d2

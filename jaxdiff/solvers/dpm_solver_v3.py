r"""DPM-Solver-v3: the parametrization from a model's empirical statistics.

With the curves l, s, b of `v3_statistics`, L = int l, S = int s and u =
x / alpha, the flow du/dlambda = -l u - f from i to j is exactly

  u_j = e^{L_i - L_j} (u_i - int_i^j e^{L + S - L_i - S_i} (g + beta) dlambda),
  g = e^{S_i - S} f - beta,   beta = e^{S_i} int_i e^{-S} b,

and g, which varies least, is the polynomial through the last calls' g_k. Order
p is that of the polynomial plus 1; orders rise from 1. After a call the
corrector redoes the step that led there, from the corrected sample, with one
more node: the call's f, which is kept. l = 1, s = 0 is DPM-Solver++, l = 0, s =
-1 DPM-Solver; on Gaussian data with its own statistics one step is exact.

Curves by coordinate make coefficients by coordinate. A row of a table has no
constant term, and b asks for one. It is a translation of the samples that
vanishes at both ends of the grid, and so a model: run

  sample(key, recentred(model, process, grid, statistics), table, x)

Without it b counts as 0. For exact models of centred data it is 0.

Reference: Zheng et al. (2023), https://arxiv.org/abs/2310.13268, Algorithms 1
and 2. Their code moves the grid to the nearest node of the statistics; here the
curves are interpolated instead, and their integrals are exact. "pseudo" takes
the leading Newton differences for the derivatives: the pseudo-corrector, their
default, is one order up at few steps and of order 2 at most in the limit.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.numerics import vandermonde_weights
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import coefficients
from jaxdiff.solvers.building import corrected
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.v3_statistics import check
from jaxdiff.solvers.v3_statistics import check_schedule
from jaxdiff.solvers.v3_statistics import ModelStatistics
from jaxdiff.tableau import Tableau
from jaxdiff.types import Array
from jaxdiff.types import Model
from jaxdiff.types import PyTree


@solver
def dpm_solver_v3(
  process: GaussianProcess,
  grid: np.ndarray,
  statistics: ModelStatistics,
  *,
  order: int | None = None,
  corrector: bool | float | None = None,
  lower_order_final: bool = True,
  pseudo: bool = False,
  pseudo_corrector: bool = True,
) -> Tableau:
  """Returns the table of DPM-Solver-v3 on `grid`, f64[n + 1]: n calls.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    statistics: statistics of the model, over the log-SNRs of the grid.
    order: order of the predictor, 1..3; None is 3, or what fewer steps allow.
    corrector: whether to correct; a number: only at later (noisier) times than
      that, as their Stable Diffusion code does above 1/2; None corrects runs of
      at most 10 steps.
    lower_order_final: whether the order falls again in the last steps.
    pseudo: whether the predictor takes the pseudo derivatives, theirs at 5
      steps.
    pseudo_corrector: whether the corrector does, and has one more node.

  Raises:
    ValueError: for an order that exceeds the steps, and statistics of another
      schedule or of a range narrower than the grid's.
  """
  n = len(grid) - 1
  order = checks.order(order, n, 3, "dpm_solver_v3")
  corrector = n <= 10 if corrector is None else corrector
  if isinstance(corrector, bool):
    corrects = np.full(n, corrector)
  else:
    corrects = grid[:-1] > corrector
  alpha, sigma, lam = coefficients(process, grid)
  curves = _curves(statistics, process, lam)
  l, big_l, big_s = curves(lam)
  expand = lambda v: v.reshape((n,) + (1,) * (l.ndim - 1))
  predicts = [min(order, i + 1) for i in range(n)]
  if lower_order_final:
    predicts = [min(p, n - i) for i, p in enumerate(predicts)]

  def step(i, nodes, newton):
    """The step i -> i + 1: weights of x_i and of f at grid[nodes]."""
    kept = np.exp(big_l[i] - big_l[i + 1])
    moments = _moments(curves, lam[i], lam[i + 1], len(nodes))
    weights = _weights(
      lam[nodes] - lam[i], moments, lam[i + 1] - lam[i], newton
    )
    weights = weights * np.exp(big_s[i] - big_s[nodes])  # f_k to g_k
    return alpha[i + 1] / alpha[i] * kept, -alpha[i + 1] * kept * weights

  predicted = lambda i: step(i, i - np.arange(predicts[i]), pseudo)
  data = l.shape[1:]
  memory = order + 1 if corrects.any() else order
  state = np.zeros((n, 2, 2, *data))
  history = np.zeros((n, 2, memory, *data))
  for i in range(n):
    carry, weights = predicted(i)
    size = predicts[i - 1] + pseudo_corrector
    if i > 0 and corrects[i] and size > 1:
      nodes = np.asarray([i - 1, i, *range(i - 2, i - size, -1)])
      _, again = step(i - 1, nodes, pseudo_corrector)
      again = again[np.argsort(-nodes)]  # newest first
      weights = corrected(carry, weights, predicted(i - 1)[1], again)
    state[i, :, 0] = carry
    history[i, :, : len(weights)] = weights
  ratio = expand(sigma[:-1] / alpha[:-1])
  output = np.stack([-l[:-1], (1.0 - l[:-1]) * ratio], axis=1)  # f
  return Tableau(grid[:-1], output, state, history, np.zeros((n, 3)))


def _curves(statistics, process, lam):
  """Returns lambda -> (l, L, S) once the statistics are seen to fit."""
  from scipy import interpolate  # takes a moment, and few tables need it

  check(statistics)
  check_schedule(statistics, process)
  low, high = statistics.lam[0], statistics.lam[-1]
  ends = (min(lam[0], lam[-1]), max(lam[0], lam[-1]))
  slack = 1e-6 * (high - low)
  if ends[0] < low - slack or ends[1] > high + slack:
    raise ValueError(
      f"the statistics cover log-SNRs from {low:.4g} to {high:.4g}, but the"
      f" grid goes from {ends[0]:.4g} to {ends[1]:.4g}; estimate them over the"
      " whole range, or shorten the grid"
    )
  splines = [
    interpolate.CubicSpline(statistics.lam, np.asarray(curve, np.float64))
    for curve in (statistics.l, statistics.s)
  ]
  l, big_l, big_s = splines[0], *(f.antiderivative() for f in splines)
  return lambda at: (l(at), big_l(at), big_s(at))


_POINTS, _HALF_WEIGHTS = np.polynomial.legendre.leggauss(64)


def _quadrature(start, end):
  """Returns points and weights of the integral from start to end, f64[64]."""
  half = 0.5 * (end - start)
  return start + half * (_POINTS + 1.0), half * _HALF_WEIGHTS


def _moments(curves, start, end, m):
  """Returns int e^{(L + S) - (L + S)(start)} (lambda - start)^k, [m, ...]."""
  at, w = _quadrature(start, end)
  _, big_l, big_s = curves(at)
  _, first_l, first_s = curves(start)
  growth = np.exp(big_l + big_s - first_l - first_s)
  powers = (at - start) ** np.arange(m)[:, None] * w
  return np.tensordot(powers, growth, axes=1)


def _weights(places, moments, h, newton):
  """Returns the weights of g at `places`, the first being 0, [m, ...].

  Args:
    places: f64[m], lambda of the nodes from the step's start on.
    moments: f64[m, ...].
    h: the step.
    newton: whether the derivatives are the leading Newton differences.
  """
  m = len(places)
  scale = h ** np.arange(m)
  scaled = moments / scale.reshape((m,) + (1,) * (moments.ndim - 1))
  nodes = places / h
  if not newton:
    flat = scaled.reshape(m, -1)
    units = np.stack([vandermonde_weights(nodes, e) for e in np.eye(m)], axis=1)
    return (units @ flat).reshape(scaled.shape)
  weights = np.zeros_like(scaled)
  for k in range(m):
    for j in range(k + 1):  # the divided difference on nodes 0..k
      others = np.delete(nodes[: k + 1], j)
      weights[j] += scaled[k] / math.prod(nodes[j] - others)
  return weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recentred:
  """A model in translated samples, at the times of a table; a pytree.

  Attributes:
    model: model(x, t) -> Prediction.
    t: f[m], times that it is asked at.
    x: f[m, ...], what is added to a sample before the model sees it.
    x0: f[m, ...], what is added to the model's x0.
    eps: f[m, ...], to its eps.
  """

  model: Model
  t: Array
  x: PyTree
  x0: Array
  eps: Array

  def __call__(self, x: jax.Array, t: jax.Array) -> Prediction:
    """Returns (x0, eps) at x [batch, ...] and a scalar t of the table."""
    dtype = tree.compute_dtype(x.dtype)
    i = jnp.argmin(abs(jnp.asarray(self.t, dtype) - t))
    shift = lambda leaf: jnp.asarray(leaf, dtype)[i]
    answer = ask(self.model, (x + shift(self.x)).astype(x.dtype), t)
    return Prediction(answer.x0 + shift(self.x0), answer.eps + shift(self.eps))


@checks.door(host=True)
def recentred(
  model: Model,
  process: GaussianProcess,
  grid: np.ndarray,
  statistics: ModelStatistics,
) -> Recentred:
  r"""Returns the model that gives the table of v3 on `grid` its b.

  With f_b = e^S (int e^{-S} b + c) and kappa' = -l kappa - f_b, the samples
  u - kappa obey the same flow with f - f_b for f and no b; c is such that
  kappa vanishes at both ends, where samples enter and leave.

  Args:
    model: model(x, t) -> Prediction.
    process: the forward process.
    grid: f64[n + 1], that of the table.
    statistics: statistics of the model.
  """
  from scipy import interpolate

  grid = checks.falling_grid(grid, process.t_min, process.t_max, process.t_zero)
  inner = grid[(process.alpha(grid) > 0) & (process.sigma(grid) > 0)]
  alpha, sigma, lam = coefficients(process, inner)
  curves = _curves(statistics, process, lam)
  _, _, big_s = curves(statistics.lam)
  integrand = np.exp(-big_s) * np.asarray(statistics.b, np.float64)
  big_b = interpolate.CubicSpline(statistics.lam, integrand).antiderivative()
  parts = []  # of int e^{L + S} B and int e^{L + S}, step by step
  for start, end in zip(lam[:-1], lam[1:], strict=True):
    at, w = _quadrature(start, end)
    _, l_at, s_at = curves(at)
    growth = np.exp(l_at + s_at)
    parts.append(
      [np.tensordot(w, growth * big_b(at), 1), np.tensordot(w, growth, 1)]
    )
  through = np.cumsum(np.asarray(parts), axis=0)  # f64[n, 2, ...]
  c = -through[-1, 0] / through[-1, 1]
  l, big_l, big_s = curves(lam)
  kappa = np.zeros_like(l)
  kappa[1:-1] = -np.exp(-big_l[1:-1]) * (through[:-1, 0] + c * through[:-1, 1])
  f_b = np.exp(big_s) * (big_b(lam) + c)
  column = lambda v: v.reshape((-1,) + (1,) * (l.ndim - 1))
  x = column(alpha) * kappa
  x0 = f_b + (l - 1.0) * kappa
  eps = -column(alpha / sigma) * (f_b + l * kappa)
  x0[-1] = eps[-1] = 0.0  # a last call there accepts the model's own x0
  if len(inner) < len(grid) and process.alpha(grid[0]) == 0:
    inner = np.append(inner, grid[0])
    x, x0, eps = (np.append(v, 0.0 * v[:1], axis=0) for v in (x, x0, eps))
  return Recentred(model, inner, x, x0, eps)

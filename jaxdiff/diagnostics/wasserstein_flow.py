r"""Wasserstein gradient flow: diffusion as one, and tests of that reading.

With f = -(g^2 / 2) grad V the forward process moves the density down the free
energy F = E[V + log p], whose flow has the velocity

  v = -(g^2 / 2) grad (V + log p) = f - (g^2 / 2) s = alpha' x0 + sigma' eps.

Sampling walks it backwards, which is the probability-flow ODE: no reverse SDE
is needed for it. A network that regresses the conditional velocity v_c does

  |v_theta - v_c|^2 = (g^4 / 4) |s_theta - grad log p(x_t | x_0)|^2,

denoising score matching in another weight (`weighting`). Along the exact flow

  dF / dt = -(2 / g^2) E |v|^2 + E dV/dt,

and the last term vanishes where V does not depend on the time (VP: |x|^2 / 2;
VE: 0; of sub-VP it does). A learned v need be no gradient: `audit` measures by
how much it is not, level by level. Reference: "Are We Really Learning the Score
Function?" (2025), https://arxiv.org/abs/2509.00336.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.diagnostics import conservativity
from jaxdiff.diagnostics.fields import NO_SCORE
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike

Model = Callable[[Any, Any], Any]
Field = Callable[[jax.Array], jax.Array]


class Audit(NamedTuple):
  """How far a model is from a gradient, f64[n] at n times.

  Attributes:
    denoiser: mean over samples of |K| / |J|, J = K + S the Jacobian of x0.
    score: the same of the score, where -I / sigma hides it at high noise.
    circulation: mean over samples of the score's relative work along a circle.
    largest: the largest of these.
  """

  denoiser: np.ndarray
  score: np.ndarray
  circulation: np.ndarray
  largest: np.ndarray


@checks.door
def velocity(
  model: Model, process: GaussianProcess, x: jax.Array, t: ArrayLike
) -> jax.Array:
  """Returns v(x, t), shaped like x: dx/dt of the flow, backwards to sample.

  Args:
    model: model(x, t) -> Prediction.
    process: the forward process.
    x: f[batch, ...].
    t: scalar or f[batch].
  """
  t = jnp.asarray(t, tree.compute_dtype(x.dtype))
  alpha_dot, sigma_dot = (tree.expand(r, x) for r in process.rates(t))
  answer = ask(model, x, t)
  return alpha_dot * answer.x0 + sigma_dot * answer.eps


@checks.door
def weighting(process: GaussianProcess) -> Callable[[jax.Array], jax.Array]:
  """Returns the weight under which denoising is Wasserstein-flow matching.

  `losses.denoising(denoiser, weighting=weighting(process))` is E |v_theta -
  v_c|^2, its mean over values: a weight (g^2 alpha / (2 sigma^2))^2 of the
  squared error in x0.

  Args:
    process: the forward process.
  """

  def weight(lam: jax.Array) -> jax.Array:
    t = process.log_snr_inverse(lam)
    alpha, sigma = process.alpha(t), process.sigma(t)
    return (0.5 * process.diffusion(t) ** 2 * alpha / sigma**2) ** 2

  return weight


@checks.door
def potential(
  process: GaussianProcess, x: jax.Array, t: ArrayLike
) -> jax.Array:
  """Returns V(x, t) with f = -(g^2 / 2) grad V, f[batch].

  Args:
    process: the forward process.
    x: f[batch, ...].
    t: scalar or f[batch]; alpha(t) > 0.

  Raises:
    ValueError: where g(t) = 0 and the flow stands still.
  """
  t = jnp.asarray(t, tree.compute_dtype(x.dtype))
  square = jnp.sum(jnp.square(x).reshape(x.shape[0], -1), axis=1)
  _moving(process, t)
  return _stiffness(process, t) * square


@checks.door
def free_energy(
  log_prob: Callable[[jax.Array], jax.Array],
  process: GaussianProcess,
  x: jax.Array,
  t: ArrayLike,
) -> jax.Array:
  """Returns an estimate of F = E[V + log p] from samples x of p_t, a scalar.

  Args:
    log_prob: x -> log p_t(x), f[batch].
    process: the forward process.
    x: f[batch, ...], samples of p_t.
    t: scalar.
  """
  return jnp.mean(potential(process, x, t) + log_prob(x))


@checks.door
def free_energy_rate(
  model: Model, process: GaussianProcess, x: jax.Array, t: ArrayLike
) -> jax.Array:
  """Returns dF/dt = -(2 / g^2) E |v|^2 + E dV/dt from samples of p_t, a scalar.

  Args:
    model: model(x, t) -> Prediction, exact or learned.
    process: the forward process.
    x: f[batch, ...], samples of p_t.
    t: scalar.

  Raises:
    ValueError: where g(t) = 0.
  """
  t = jnp.asarray(t, tree.compute_dtype(x.dtype))
  _moving(process, t)
  total = lambda v: jnp.mean(
    jnp.sum(jnp.square(v).reshape(x.shape[0], -1), axis=1)
  )
  speed = total(velocity(model, process, x, t))
  slope = jax.grad(lambda s: _stiffness(process, s))(t)
  return -2.0 / process.diffusion(t) ** 2 * speed + slope * total(x)


@checks.door
def path_gap(
  field: Field, x: jax.Array, y: jax.Array, points: int = 256
) -> jax.Array:
  """Returns the work from x to y along an L less that along the line, f[batch].

  The L changes the first half of the values first. Of a gradient both are the
  difference of potentials and the gap is 0.

  Args:
    field: from f[batch, ...] to f[batch, ...], sample by sample.
    x: f[batch, ...], where the paths begin; two values a sample or more.
    y: f[batch, ...], where they end.
    points: midpoints on each of the three lines.

  Raises:
    ValueError: for samples of a single value, or x and y of different shapes.
  """
  checks.same_structure(y, x, "y", "x")
  if math.prod(x.shape[1:]) < 2:
    raise ValueError(
      f"two paths need two dimensions, the samples have shape {x.shape[1:]}"
    )
  size = math.prod(x.shape[1:])
  first = (jnp.arange(size) < size // 2).reshape(x.shape[1:])
  corner = jnp.where(first, y, x)

  def work(begin, end):
    step = end - begin

    def at(u):
      value = field(begin + u * step)
      return jnp.sum((value * step).reshape(x.shape[0], -1), axis=1)

    middles = (jnp.arange(points, dtype=x.dtype) + 0.5) / points
    return jnp.mean(jax.lax.map(at, middles), axis=0)

  return work(x, corner) + work(corner, y) - work(x, y)


@checks.door
def audit(
  key: jax.Array,
  model: Model,
  process: GaussianProcess,
  x0: jax.Array,
  times: Sequence[float],
  *,
  radius: float = 2.0,
  points: int = 128,
  probes: jax.Array | None = None,
) -> Audit:
  """Returns the differential and the integral test of a model at some times.

  Args:
    key: PRNG key of noise and circles.
    model: model(x, t) -> Prediction.
    process: the forward process.
    x0: data, f[batch, ...].
    times: f[n].
    radius: radius of the circles, in units of sigma.
    points: on a circle, at least 16.
    probes: probes of `jacobians.rademacher`, for samples of many values; the
      Jacobians are exact without.

  Raises:
    ValueError: for fewer than 16 points, a radius that is not positive, or
      more than 256 values a sample without probes, or noise that is not normal.
  """
  check_normal(process, "wasserstein_flow.audit", "score", NO_SCORE)
  agreement.check(model, None, process, "wasserstein_flow.audit")
  if points < 16 or not radius > 0:
    raise ValueError(
      "a circle takes at least 16 points and a positive radius, got"
      f" points={points}, radius={radius}"
    )
  size = math.prod(x0.shape[1:])
  if probes is None and size > 256:
    raise ValueError(
      f"an exact Jacobian of {size} values a sample costs as many"
      " products; pass probes=jacobians.rademacher(key, x0, 64)"
    )
  rows = []
  for t in times:
    t = jnp.asarray(t, tree.compute_dtype(x0.dtype))
    sigma = process.sigma(t)
    x, _ = process.perturb(jax.random.fold_in(key, 0), x0, t)
    denoised = lambda v, t=t: ask(model, v, t).x0
    score = lambda v, t=t, s=sigma: -ask(model, v, t).eps / s
    around = jnp.abs(
      conservativity.circulation(
        jax.random.fold_in(key, 1), score, x, radius * sigma, points
      )
    )
    rows.append(
      (
        jnp.mean(conservativity.asymmetry(denoised, x, probes)),
        jnp.mean(conservativity.asymmetry(score, x, probes)),
        jnp.mean(around),
        jnp.max(around),
      )
    )
  return Audit(*np.asarray(rows, np.float64).T)


def _stiffness(process, t):
  """Returns c with V = c |x|^2: -(alpha' / alpha) / g^2."""
  alpha_dot, _ = process.rates(t)
  return -alpha_dot / (process.alpha(t) * process.diffusion(t) ** 2)


def _moving(process, t):
  if checks.concrete(t) and not np.all(np.asarray(process.diffusion(t)) > 0):
    raise ValueError(
      f"g(t) = 0 at t = {np.asarray(t)}: nothing diffuses there, and the flow"
      " of the free energy stands still; take a later time"
    )

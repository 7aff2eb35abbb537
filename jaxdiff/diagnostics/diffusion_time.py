r"""Diffusion time: the evidence lower bound as a function of T.

For a score model started from a density nu at time T,

  E log p_{t0} >= E log nu(x_T) + int_{t0}^T E[-g^2/2 |s|^2 + g^2 s . grad log
                  p_{t|0} + f d] dt
               = E log nu(x_T) + d log(alpha_T / alpha_{t0})
                  + int_{lam_T}^{lam_{t0}} (d - E |eps - eps_hat|^2) d lam,

with lam = log(alpha / sigma), since g^2 / sigma^2 dt = -2 d lam and E |eps|^2 =
d: uniform in lam is the importance sampling of the literature, and nothing
diverges at t -> 0. What the bound misses of E log p_{t0} is

  G(T) + KL(p_T || nu),   G(T) = int E |eps_hat - eps_exact|^2 d lam,

G grows with T and the divergence falls: there is a best finite T, read off one
trained model. An auxiliary nu fitted to p_tau replaces the fixed prior at a
tau < T (see `auxiliary`). Reference: Franzese et al. (2022),
https://arxiv.org/abs/2206.05173, propositions 1 to 3.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model

LogDensity = Callable[[jax.Array, float], jax.Array]


class ELBOCurve(NamedTuple):
  """The bound on E log p_{t0}, in nats a sample, for every T.

  Attributes:
    t: f64[n], the times T, rising.
    elbo: f64[n], prior + integral.
    error: f64[n], the standard error of elbo over the samples.
    prior: f64[n], E log nu(x_T).
    integral: f64[n], the rest; its fall is what the score's error costs.
  """

  t: np.ndarray
  elbo: np.ndarray
  error: np.ndarray
  prior: np.ndarray
  integral: np.ndarray


@checks.door
def elbo_curve(
  key: jax.Array,
  model: Model,
  process: GaussianProcess,
  x0: jax.Array,
  times: ArrayLike,
  *,
  log_nu: LogDensity | None = None,
  nodes: int = 16,
) -> ELBOCurve:
  """Returns the bound at every T of a grid, of one model, without retraining.

  Args:
    key: PRNG key of the noise.
    model: model(x, t) -> Prediction.
    process: the forward process; its t_min is t0.
    x0: data, f[batch, ...].
    times: f[n], the times T, rising, within (t_min, t_max].
    log_nu: log_nu(x, T) -> f[batch], the density that sampling starts from;
      N(0, (alpha^2 + sigma^2) I) by default, the prior for data of unit scale.
    nodes: nodes of the quadrature in lambda, between one T and the next.

  Raises:
    ValueError: for times that do not rise, or leave the process's.
    TypeError: for a log_nu that is no function.
  """
  _check_bound(process, "elbo_curve")
  agreement.check(model, None, process, "elbo_curve")
  times = checks.rising_times(process, times)
  log_nu = standard_prior(process) if log_nu is None else log_nu
  if not callable(log_nu):
    raise TypeError(
      "log_nu is a function log_nu(x, T) -> f[batch] (an Auxiliary of"
      f" densities.auxiliary_prior has one), got {type(log_nu).__name__}; a"
      " density that can only be sampled has no bound"
    )
  d = math.prod(x0.shape[1:])
  at, weight = quadrature(process, times, nodes)

  def error(model, x0):
    def one(i_t):
      i, t = i_t
      x, eps = process.perturb(jax.random.fold_in(key, i), x0, t)
      square = (ask(model, x, t).eps - eps) ** 2
      return jnp.sum(square.reshape(len(x), -1), axis=1)

    t = jnp.asarray(at.reshape(-1), tree.compute_dtype(x0.dtype))
    return jax.lax.map(one, (jnp.arange(at.size), t))

  squares = np.asarray(jax.jit(error)(model, x0), np.float64)
  squares = squares.reshape(*at.shape, -1)
  parts = np.einsum("im,imb->ib", weight, d - squares)
  shift = d * np.log(process.alpha(times) / process.alpha(process.t_min))
  integral = np.cumsum(parts, axis=0) + shift[:, None]
  prior = []
  for i, t in enumerate(times):
    x, _ = process.perturb(jax.random.fold_in(key, at.size + i), x0, float(t))
    prior.append(np.asarray(log_nu(x, float(t)), np.float64))
  prior = np.stack(prior)
  elbo = prior + integral
  return ELBOCurve(
    times,
    elbo.mean(axis=1),
    elbo.std(axis=1, ddof=1) / np.sqrt(elbo.shape[1]),
    prior.mean(axis=1),
    integral.mean(axis=1),
  )


@checks.door
def optimal_time(curve: ELBOCurve) -> float:
  """Returns the T of the highest bound."""
  return float(curve.t[np.argmax(curve.elbo)])


@checks.door
def score_gap(
  key: jax.Array,
  model: Model,
  exact: Model,
  process: GaussianProcess,
  x0: jax.Array,
  times: ArrayLike,
  *,
  nodes: int = 16,
) -> np.ndarray:
  """Returns G(T) in nats, f64[n], where the exact model is known.

  Args:
    key: PRNG key of the noise.
    model: model(x, t) -> Prediction.
    exact: the exact model, as `oracles.exact` makes it.
    process: the forward process; its t_min is t0.
    x0: data, f[batch, ...].
    times: f[n], the times T, rising.
    nodes: nodes of the quadrature in lambda, between one T and the next.
  """
  _check_bound(process, "score_gap")
  for asked in (model, exact):
    agreement.check(asked, None, process, "score_gap")
  times = checks.rising_times(process, times)
  at, weight = quadrature(process, times, nodes)

  def gap(models, x0):
    def one(i_t):
      i, t = i_t
      x, _ = process.perturb(jax.random.fold_in(key, i), x0, t)
      square = (ask(models[0], x, t).eps - ask(models[1], x, t).eps) ** 2
      return jnp.mean(jnp.sum(square.reshape(len(x), -1), axis=1))

    t = jnp.asarray(at.reshape(-1), tree.compute_dtype(x0.dtype))
    return jax.lax.map(one, (jnp.arange(at.size), t))

  squares = np.asarray(jax.jit(gap)((model, exact), x0), np.float64)
  return np.cumsum(np.sum(weight * squares.reshape(at.shape), axis=1))


@checks.door
def quadrature(
  process: GaussianProcess, times: np.ndarray, nodes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns Gauss-Legendre times and weights in lambda, f64[n, nodes] each.

  Row i covers lambda from that of times[i] to that of times[i - 1], the first
  row to that of t_min; sums over rows integrate from t_min to T.
  """
  x, w = np.polynomial.legendre.leggauss(nodes)
  lam = process.log_snr(np.concatenate([[process.t_min], times]))
  half = 0.5 * (lam[:-1] - lam[1:])[:, None]
  middle = 0.5 * (lam[:-1] + lam[1:])[:, None]
  return process.log_snr_inverse(middle + half * x), half * w


@checks.door
def standard_prior(process: GaussianProcess, data_std: float = 1.0):
  """Returns log_nu(x, T), the density of `process.prior` at T.

  Under normal noise N(0, (alpha_T^2 data_std^2 + sigma_T^2) I).
  """
  return lambda x, t: process.log_prior(x, t, data_std)


def _check_bound(process, name):
  check_normal(
    process,
    name,
    "bounds the likelihood by squared errors, which are the divergence of"
    " normal steps alone",
    "take likelihood.log_likelihood, which is right for any noise",
  )

"""The bound as a function of the diffusion time, and auxiliary priors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff.densities import auxiliary_prior
from jaxdiff.densities import expectation_maximization
from jaxdiff.densities import realnvp
from jaxdiff.diagnostics import diffusion_time
from jaxdiff.diagnostics import gauge

VP = processes.vp_linear()
EDM = processes.edm(0.01, 20.0)
TIMES = np.asarray([0.05, 0.1, 0.3, 0.6, 1.0])
C = np.asarray([0.25, 2.0])  # variances of the Gaussian data


def marginal(process, t):
  return process.alpha(t)[:, None] ** 2 * C + process.sigma(t)[:, None] ** 2


def antithetic(n):
  """Gaussian data whose moments are exact: quantiles and signs."""
  q = stats.norm.ppf((np.arange(n) + 0.5) / n)
  return np.sqrt(C) * np.stack([q, np.random.default_rng(0).permutation(q)], 1)


@pytest.mark.parametrize("process", [VP, EDM], ids=["vp", "edm"])
def test_the_bound_of_the_exact_score_misses_the_divergence_alone(process):
  """Gaussian data, exact moments: the identity to quadrature error."""
  times = TIMES * process.t_max
  at, weight = diffusion_time.quadrature(process, times, 32)
  a, s = process.alpha(at)[..., None], process.sigma(at)[..., None]
  error = np.sum(a**2 * C / (a**2 * C + s**2), axis=-1)  # E |eps - exact|^2
  integral = np.cumsum(np.sum(weight * (2 - error), axis=1))
  integral += 2 * np.log(process.alpha(times) / process.alpha(process.t_min))
  v, n = marginal(process, times), process.alpha(times) ** 2
  n = (n + process.sigma(times) ** 2)[:, None]  # variance of nu
  prior = -0.5 * np.sum(v / n + np.log(2 * np.pi * n), axis=1)
  v0 = marginal(process, np.asarray([process.t_min]))
  truth = -0.5 * np.sum(1 + np.log(2 * np.pi * v0))
  divergence = 0.5 * np.sum(v / n - 1 - np.log(v / n), axis=1)
  # relative to what is integrated: the divergence itself falls to 0
  np.testing.assert_allclose(
    truth - prior - integral, divergence, rtol=1e-4, atol=1e-8
  )


def test_the_measured_curve_is_that_of_the_exact_moments(x64):
  x0 = jnp.asarray(antithetic(4000))
  model = oracles.exact(oracles.gaussian([0.0, 0.0], C), VP)
  curve = diffusion_time.elbo_curve(jax.random.key(0), model, VP, x0, TIMES)
  v = marginal(VP, TIMES)
  divergence = 0.5 * np.sum(v - 1 - np.log(v), axis=1)
  v0 = marginal(VP, np.asarray([VP.t_min]))
  truth = -0.5 * np.sum(1 + np.log(2 * np.pi * v0))
  assert np.all(abs(truth - curve.elbo - divergence) < 4 * curve.error + 1e-3)
  np.testing.assert_allclose(curve.elbo, curve.prior + curve.integral)


def test_the_gap_of_a_scaled_score_is_known(x64):
  """(1 + delta) s: G = delta^2 / 2 int beta sum 1 / V dt, by other means."""
  delta = 0.1
  x0 = jnp.asarray(antithetic(20000))
  exact = oracles.exact(oracles.gaussian([0.0, 0.0], C), VP)
  model = gauge.transform(exact, (1 + delta) * np.eye(2), VP)
  measured = diffusion_time.score_gap(
    jax.random.key(0), model, exact, VP, x0, TIMES, nodes=24
  )
  fine = np.linspace(np.sqrt(VP.t_min), 1.0, 400001) ** 2
  rate = 0.1 + 19.9 * fine
  inside = 0.5 * delta**2 * rate * np.sum(1 / marginal(VP, fine), axis=1)
  steps = 0.5 * (inside[1:] + inside[:-1]) * np.diff(fine)
  total = np.concatenate([[0.0], np.cumsum(steps)])
  expected = np.interp(TIMES, fine, total)
  np.testing.assert_allclose(measured, expected, rtol=0.01)  # Monte Carlo
  at, weight = diffusion_time.quadrature(VP, TIMES, 24)
  s2 = VP.sigma(at)[..., None] ** 2
  v = VP.alpha(at)[..., None] ** 2 * C + s2
  moments = delta**2 * np.sum(s2 / v, axis=-1)
  np.testing.assert_allclose(
    np.cumsum(np.sum(weight * moments, axis=1)), expected, rtol=1e-6
  )
  assert np.all(np.diff(measured) > 0)


def test_from_the_exact_marginal_only_the_score_error_is_left(x64):
  law = oracles.mixture([(1.0, 0.0), (-1.0, 0.5)], [0.1, 0.3])
  x0 = law.sample(jax.random.key(0), 4000)[0].astype(jnp.float64)
  exact = oracles.exact(law, VP)
  log_nu = lambda x, t: law.log_prob(x, VP.alpha(t), VP.sigma(t))
  curve = diffusion_time.elbo_curve(
    jax.random.key(1), exact, VP, x0, TIMES, log_nu=log_nu
  )
  noised, _ = VP.perturb(jax.random.key(2), x0, VP.t_min)
  truth = float(log_nu(noised, VP.t_min).mean())
  assert np.all(abs(curve.elbo - truth) < 4 * np.hypot(curve.error, 0.02))


@pytest.mark.parametrize(("mean", "slope"), [(0.0, -2.0), (1.0, -1.0)])
def test_the_divergence_decays_as_the_signal_does(mean, slope):
  """log KL against int beta: -2 by the variance, -1 by the mean."""
  t = np.linspace(0.6, 1.0, 9)
  v = VP.alpha(t) ** 2 * 0.25 + VP.sigma(t) ** 2
  kl = 0.5 * (v - 1 - np.log(v) + (VP.alpha(t) * mean) ** 2)
  measured = np.polyfit(-2 * np.log(VP.alpha(t)), np.log(kl), 1)[0]
  assert measured == pytest.approx(slope, rel=0.05)


def test_the_best_time_of_an_imperfect_score_lies_inside(x64):
  times = np.asarray([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
  x0 = jnp.asarray(antithetic(8000))
  exact = oracles.exact(oracles.gaussian([0.0, 0.0], C), VP)
  model = gauge.transform(exact, 1.1 * np.eye(2), VP)
  curve = diffusion_time.elbo_curve(jax.random.key(0), model, VP, x0, times)
  at, weight = diffusion_time.quadrature(VP, times, 32)
  s2 = VP.sigma(at)[..., None] ** 2
  v = VP.alpha(at)[..., None] ** 2 * C + s2
  gap = np.cumsum(np.sum(weight * 0.01 * np.sum(s2 / v, -1), axis=1))
  v = marginal(VP, times)
  total = gap + 0.5 * np.sum(v - 1 - np.log(v), axis=1)
  best = times[np.argmin(total)]
  assert 0.05 < best < 1.0
  assert abs(diffusion_time.optimal_time(curve) - best) < 0.101


# --- densities ---------------------------------------------------------------


def test_one_component_is_the_mean_and_covariance():
  x = jax.random.normal(jax.random.key(0), (500, 3)) @ jnp.asarray(
    [[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 0.3]]
  )
  fit = expectation_maximization.fit_mixture(
    jax.random.key(1), x, 1, regularization=0.0
  )
  mean, covariance = fit.moments()
  np.testing.assert_allclose(mean, np.mean(x, axis=0), atol=1e-5)
  np.testing.assert_allclose(
    covariance, np.cov(x, rowvar=False, bias=True), atol=1e-4
  )


def test_em_finds_the_mixture_that_made_the_points():
  law = oracles.mixture(
    [(2.0, 0.0), (-1.0, 1.5), (-1.0, -1.8)], [0.1, 0.2, 0.3]
  )
  x, fresh = (law.sample(jax.random.key(i), 3000)[0] for i in (0, 1))
  fit = expectation_maximization.fit_mixture(jax.random.key(2), x, 3)
  order = np.argsort(fit.means[:, 0] + 0.1 * fit.means[:, 1])
  np.testing.assert_allclose(
    fit.means[order], [(-1.0, -1.8), (-1.0, 1.5), (2.0, 0.0)], atol=0.1
  )
  gap = jnp.mean(law.log_prob(fresh) - fit.log_prob(fresh))
  assert -0.01 < gap < 0.01


@pytest.mark.slow
def test_realnvp_inverts_itself_and_integrates_to_one():
  law = oracles.mixture([(1.0, 0.0), (-1.0, 0.5)], [0.1, 0.3])
  x = law.sample(jax.random.key(0), 2000)[0]
  flow = realnvp.fit_realnvp(
    jax.random.key(1), x, layers=4, width=32, steps=400, learning_rate=3e-3
  )
  gaussian = oracles.gaussian(x.mean(0), np.cov(x, rowvar=False))
  assert jnp.mean(flow.log_prob(x)) > jnp.mean(gaussian.log_prob(x)) + 0.2
  drawn, z = flow.sample(jax.random.key(2), 64)
  white = (drawn - flow.mean) @ np.linalg.inv(flow.root).T
  back, _ = flow.network.apply({"params": flow.params}, white)
  np.testing.assert_allclose(back, z, atol=1e-4)
  side = np.linspace(-6, 6, 301)
  grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
  density = jnp.exp(flow.log_prob(jnp.asarray(grid, jnp.float32)))
  assert float(density.sum()) * 0.04**2 == pytest.approx(1.0, abs=0.02)


@pytest.fixture(scope="module")
def fitted():
  law = oracles.g2()
  x0 = law.sample(jax.random.key(0), 2000)[0]
  return law, auxiliary_prior.fit_auxiliary(
    jax.random.key(1), VP, x0, 0.3, components=(1, 4)
  )


def test_an_auxiliary_starts_any_table_at_its_time(fitted):
  law, aux = fitted
  assert len(aux.density.means) == 4  # what held-out points liked better
  model = oracles.exact(law, VP)
  table = solvers.dpmpp_2m(VP, grids.log_snr(VP, 12, start=0.3))
  x = auxiliary_prior.sample(jax.random.key(2), model, aux, table, 1000)
  data = law.sample(jax.random.key(3), 1000)[0]
  np.testing.assert_allclose(x.mean(0), data.mean(0), atol=0.2)
  np.testing.assert_allclose(x.std(0), data.std(0), atol=0.2)
  with pytest.raises(ValueError, match="start=0.3"):
    late = solvers.dpmpp_2m(VP, grids.log_snr(VP, 12))
    auxiliary_prior.sample(jax.random.key(2), model, aux, late, 10)


def test_draws_of_an_auxiliary_depend_on_their_index(fitted):
  _, aux = fitted
  whole = aux.sample(jax.random.key(0), 8)
  part = aux.sample(jax.random.key(0), 2, index=[5, 6])
  np.testing.assert_allclose(whole[5:7], part, rtol=1e-6)


@pytest.mark.slow
def test_the_bound_with_an_auxiliary_beats_the_prior_at_its_time(fitted):
  law, aux = fitted
  x0 = law.sample(jax.random.key(4), 1000)[0]
  model = oracles.exact(law, VP)
  curve = lambda **o: diffusion_time.elbo_curve(
    jax.random.key(5), model, VP, x0, [0.3], **o
  )
  exact = lambda x, t: law.log_prob(x, VP.alpha(t), VP.sigma(t))
  best, free, fixed = (
    float(curve(log_nu=nu).elbo[0]) for nu in (exact, aux.log_nu, None)
  )
  assert best - free < 0.2 * (best - fixed)  # KL(p_tau || nu), common noise
  with pytest.raises(ValueError, match="fitted at tau"):
    diffusion_time.elbo_curve(
      jax.random.key(5), model, VP, x0, [0.4], log_nu=aux.log_nu
    )


def test_refusals_of_the_diffusion_time_room():
  x0 = jnp.zeros((20, 3))
  for tau in (2.0, 1e-4):
    with pytest.raises(ValueError, match="outside of"):
      auxiliary_prior.fit_auxiliary(jax.random.key(0), VP, x0, tau)
  with pytest.raises(ValueError, match="at least 480 points"):
    auxiliary_prior.fit_auxiliary(jax.random.key(0), VP, x0, 0.3)
  with pytest.raises(ValueError, match="family"):
    auxiliary_prior.fit_auxiliary(jax.random.key(0), VP, x0, 0.3, "glow")
  with pytest.raises(ValueError, match="family='gmm'"):
    auxiliary_prior.fit_auxiliary(
      jax.random.key(0), VP, x0[:, :1], 0.3, "realnvp"
    )
  model = oracles.exact(oracles.gaussian(np.zeros(3), 1.0), VP)
  with pytest.raises(ValueError, match="must rise"):
    diffusion_time.elbo_curve(jax.random.key(0), model, VP, x0, [0.5, 0.2])
  with pytest.raises(TypeError, match="takes a function or None as log_nu"):
    diffusion_time.elbo_curve(
      jax.random.key(0), model, VP, x0, [0.5], log_nu=oracles.g2()
    )

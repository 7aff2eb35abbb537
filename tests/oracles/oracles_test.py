"""Oracles against quadrature, dense algebra, autodiff, ODEs and sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables

KEY = jax.random.key(5)
FULL = np.array([[[0.5, 0.3], [0.3, 0.4]], [[0.2, -0.1], [-0.1, 0.6]]])
MEANS = np.array([[1.0, -0.5], [-1.0, 0.7]])
WEIGHTS = np.array([0.3, 0.7])
PLANE = oracles.mixture(MEANS, FULL, WEIGHTS)
X = np.random.default_rng(0).normal(size=(5, 2))
CURVES = [(0.9, 0.3), (1.0, 3.0), (0.4, 0.7)]


def dense(x, alpha, sigma, means=MEANS, covariances=FULL, weights=WEIGHTS):
  """Returns (log_prob, x0) of one x by dense linear algebra."""
  logs, toward = [], []
  for w, mean, cov in zip(weights, means, covariances, strict=True):
    c = alpha**2 * cov + sigma**2 * np.eye(len(mean))
    offset = x - alpha * mean
    solved = np.linalg.solve(c, offset)
    logdet = np.linalg.slogdet(2 * np.pi * c)[1]
    logs.append(np.log(w) - 0.5 * (offset @ solved + logdet))
    toward.append(mean + alpha * cov @ solved)
  logs = np.array(logs)
  log_prob = np.log(np.exp(logs - logs.max()).sum()) + logs.max()
  return log_prob, np.exp(logs - log_prob) @ np.array(toward)


SIDE = np.linspace(-6, 6, 301)
POINTS = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), -1).reshape(-1, 2)


# --- the mixture's denoiser --------------------------------------------------


def test_x0_is_the_posterior_mean_by_quadrature_on_the_line(x64):
  line = oracles.mixture([[-1.0], [0.6]], [0.04, 0.3], [1.0, 2.0])
  x0 = np.linspace(-7, 7, 40_001)
  density = np.exp(line.log_prob(x0[:, None]))
  assert np.trapezoid(density, x0) == pytest.approx(1, rel=1e-10)
  x = np.array([-2.0, -0.4, 0.0, 1.7])
  for alpha, sigma in CURVES:
    prediction = line.predict(jnp.asarray(x[:, None]), alpha, sigma)
    kernel = np.exp(-((x[:, None] - alpha * x0) ** 2) / (2 * sigma**2))
    weight = density * kernel
    exact = np.trapezoid(weight * x0, x0) / np.trapezoid(weight, x0)
    np.testing.assert_allclose(prediction.x0[:, 0], exact, rtol=1e-8)


def test_x0_is_the_posterior_mean_by_quadrature_in_the_plane(x64):
  density = np.exp(PLANE.log_prob(jnp.asarray(POINTS)))
  for alpha, sigma in CURVES:
    x0 = PLANE.predict(jnp.asarray(X), alpha, sigma).x0
    for row, found in zip(X, x0, strict=True):
      square = np.sum((row - alpha * POINTS) ** 2, axis=1)
      weight = density * np.exp(-square / (2 * sigma**2))
      exact = weight @ POINTS / weight.sum()
      np.testing.assert_allclose(found, exact, atol=1e-9)


def test_full_covariances_agree_with_dense_algebra(x64):
  for alpha, sigma in CURVES:
    x0 = PLANE.predict(jnp.asarray(X), alpha, sigma).x0
    log_prob = PLANE.log_prob(jnp.asarray(X), alpha, sigma)
    for i, row in enumerate(X):
      exact_log_prob, exact_x0 = dense(row, alpha, sigma)
      assert float(log_prob[i]) == pytest.approx(exact_log_prob, rel=1e-12)
      np.testing.assert_allclose(x0[i], exact_x0, rtol=1e-11)


def test_eps_is_minus_sigma_score_and_x0_is_tweedie(x64):
  x = jnp.asarray(X)
  for alpha, sigma in CURVES:
    log_prob = lambda v, a=alpha, s=sigma: PLANE.log_prob(v, a, s).sum()
    score = jax.grad(log_prob)(x)
    prediction = PLANE.predict(x, alpha, sigma)
    np.testing.assert_allclose(prediction.eps, -sigma * score, rtol=1e-11)
    np.testing.assert_allclose(
      prediction.x0, (x + sigma**2 * score) / alpha, rtol=1e-11
    )
    np.testing.assert_allclose(PLANE.score(x, alpha, sigma), score, rtol=1e-11)


def test_isotropic_diagonal_and_full_covariances_are_one_mixture():
  variances = np.array([0.3, 0.8])
  eye = np.eye(2)
  each = [
    oracles.mixture(MEANS, variances, WEIGHTS),
    oracles.mixture(MEANS, variances[:, None] * np.ones(2), WEIGHTS),
    oracles.mixture(MEANS, variances[:, None, None] * eye, WEIGHTS * 7),
  ]
  answers = [m.predict(jnp.asarray(X, jnp.float32), 0.8, 0.5) for m in each]
  for answer in answers[1:]:
    np.testing.assert_allclose(answer.x0, answers[0].x0, atol=1e-6)
    np.testing.assert_allclose(answer.eps, answers[0].eps, atol=1e-6)
  one = oracles.gaussian(MEANS[0], 0.3).predict(X, 0.8, 0.5)
  np.testing.assert_allclose(
    one.x0, each[0].predict(X, 0.8, 0.5, np.zeros(5, int)).x0, atol=1e-6
  )


def test_samples_of_any_shape_and_a_batch_of_levels():
  mixture = oracles.mixture(np.ones((2, 6)) * [[1], [-1]], [0.1, 0.2])
  x = np.random.default_rng(1).normal(size=(3, 2, 3)).astype(np.float32)
  alpha = np.array([0.2, 0.5, 0.9], np.float32)
  sigma = np.sqrt(1 - alpha**2)
  batch = mixture.predict(x, alpha, sigma)
  assert batch.x0.shape == batch.eps.shape == x.shape
  flat = mixture.predict(x[1:2].reshape(1, 6), alpha[1], sigma[1])
  np.testing.assert_allclose(batch.x0[1].ravel(), flat.x0[0], rtol=1e-5)
  assert mixture.predict(x.astype(jnp.bfloat16), 0.5, 0.5).x0.dtype == "float32"


def test_labels_choose_a_component_and_others_leave_the_mixture():
  x = jnp.asarray(X, jnp.float32)
  label = np.array([0, 1, 2, -1, 1])
  answer = PLANE.predict(x, 0.8, 0.5, label)
  free = PLANE.predict(x, 0.8, 0.5)
  single = [oracles.gaussian(m, c) for m, c in zip(MEANS, FULL, strict=True)]
  for i, k in enumerate(label):
    expected = single[k].predict(x, 0.8, 0.5) if k in (0, 1) else free
    np.testing.assert_allclose(answer.x0[i], expected.x0[i], atol=1e-6)
    np.testing.assert_allclose(answer.eps[i], expected.eps[i], atol=1e-6)


def test_moments_are_those_of_the_density_and_of_samples(x64):
  mean, covariance = PLANE.moments()
  density = (
    np.exp(PLANE.log_prob(jnp.asarray(POINTS))) * (SIDE[1] - SIDE[0]) ** 2
  )
  np.testing.assert_allclose(density @ POINTS, mean, atol=1e-9)
  second = np.einsum("n,nd,ne->de", density, POINTS, POINTS)
  np.testing.assert_allclose(
    second - np.outer(mean, mean), covariance, atol=1e-9
  )
  n = 40_000
  x, label = PLANE.sample(KEY, n)
  error = np.sqrt(np.diag(covariance) / n)
  assert (abs(x.mean(0) - mean) < 4 * error).all()
  offset = np.asarray(x) - mean
  product = offset[:, :, None] * offset[:, None, :]
  error = product.std(0) / n**0.5
  assert (abs(product.mean(0) - covariance) < 4 * error).all()
  assert abs((label == 0).mean() - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5


@pytest.mark.parametrize(
  ("alpha", "sigma"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1e-6), (1.0, 80.0)]
)
def test_degenerate_covariances_and_both_ends_are_finite(alpha, sigma):
  flat = np.array([[1.0, 1.0], [1.0, 1.0]])  # singular: variances 2 and 0
  degenerate = oracles.mixture(MEANS, [flat, np.zeros((2, 2))])
  for x in (X, MEANS):
    x = jnp.asarray(x, jnp.float32)
    answer = degenerate.predict(x, alpha, sigma)
    total = lambda v: sum(o.sum() for o in degenerate.predict(v, alpha, sigma))
    for leaf in (*answer, jax.grad(total)(x)):
      assert np.isfinite(leaf).all()
  point = oracles.gaussian([1.0, 2.0], 0.0)
  x = jnp.asarray(X, jnp.float32)
  answer = point.predict(x, alpha, sigma)
  np.testing.assert_allclose(answer.x0, np.tile([1.0, 2.0], (5, 1)))
  if sigma > 1e-3:
    exact = (X - alpha * np.array([1.0, 2.0])) / sigma
    np.testing.assert_allclose(answer.eps, exact, rtol=1e-5, atol=1e-6)
  if sigma == 0:
    assert not answer.eps.any()


def test_data_without_noise_is_its_own_denoised_self():
  answer = PLANE.predict(jnp.asarray(X, jnp.float32), 1.0, 0.0)
  np.testing.assert_allclose(answer.x0, X, rtol=1e-5)
  assert not answer.eps.any()


# --- the flow of one Gaussian ------------------------------------------------

SPACE = np.array([[1.0, 0.4, 0.1], [0.4, 0.8, -0.3], [0.1, -0.3, 0.5]])
SINGLE = oracles.gaussian([0.5, -1.0, 2.0], SPACE)


@pytest.mark.parametrize(
  "process", [processes.edm(0.05, 10.0), processes.vp_linear(t_min=0.02)]
)
def test_flow_map_is_the_solution_of_the_ode(process, x64):
  grid = grids.log_snr(process, 150)
  ends = [(process.alpha(t), process.sigma(t)) for t in (grid[0], grid[-1])]
  x = process.prior(KEY, (4, 3), dtype=jnp.float64)
  model = oracles.exact(SINGLE, process)
  solved = sampling.sample(KEY, model, solvers.rk4(process, grid), x)
  mapped = oracles.flow_map(SINGLE, x, *ends)
  np.testing.assert_allclose(solved, mapped, rtol=1e-6)
  back = oracles.flow_map(SINGLE, mapped, *ends[::-1])
  np.testing.assert_allclose(back, x, rtol=1e-10)


def test_flow_map_keeps_shape_and_dtype(x64):
  for x in (np.ones((2, 1, 3)), jnp.ones((2, 1, 3), jnp.float32)):
    moved = oracles.flow_map(SINGLE, x, (1.0, 2.0), (1.0, 0.0))
    assert (moved.shape, moved.dtype) == (x.shape, x.dtype)
    assert isinstance(moved, type(x))


# --- the empirical distribution ----------------------------------------------


def test_empirical_is_the_softmax_over_its_points(x64):
  data = np.random.default_rng(2).normal(size=(9, 2, 1))
  x = np.random.default_rng(3).normal(size=(4, 2, 1))
  empirical = oracles.Empirical(jnp.asarray(data))
  for alpha, sigma in [(0.9, 0.3), (1.0, 2.0), (0.5, 0.9)]:
    answer = empirical.predict(jnp.asarray(x), alpha, sigma)
    for row, x0, eps in zip(x, *answer, strict=True):
      square = np.sum((row - alpha * data) ** 2, axis=(1, 2))
      weight = np.exp(-square / (2 * sigma**2))
      exact = np.tensordot(weight / weight.sum(), data, 1)
      np.testing.assert_allclose(x0, exact, rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(eps, (row - alpha * exact) / sigma, rtol=1e-8)


def test_empirical_is_a_mixture_of_points():
  data = np.random.default_rng(2).normal(size=(9, 2)).astype(np.float32)
  points = oracles.mixture(data, np.zeros(9))
  x = jnp.asarray(X, jnp.float32)
  level = np.linspace(0.2, 1.5, 5)
  one = oracles.Empirical(data).predict(x, 0.8, level)
  other = points.predict(x, 0.8, level)
  np.testing.assert_allclose(one.x0, other.x0, atol=1e-4)
  np.testing.assert_allclose(one.eps, other.eps, atol=1e-4)


def test_empirical_ends_are_the_nearest_point_and_the_mean():
  data = np.random.default_rng(2).normal(size=(9, 2)).astype(np.float32)
  empirical = oracles.Empirical(data)
  x = jnp.asarray(X, jnp.float32)
  answer = empirical.predict(x, 1.0, 0.0)
  distance = np.linalg.norm(X[:, None] - data, axis=-1)
  np.testing.assert_allclose(answer.x0, data[distance.argmin(1)])
  assert not answer.eps.any()
  total = lambda v: sum(o.sum() for o in empirical.predict(v, 1.0, 0.0))
  assert np.isfinite(jax.grad(total)(x)).all()
  answer = empirical.predict(x, 0.0, 1.0)
  np.testing.assert_allclose(
    answer.x0, np.tile(data.mean(0), (5, 1)), atol=1e-6
  )
  np.testing.assert_allclose(answer.eps, x)


# --- laws --------------------------------------------------------------------


def random_table(n, memory, seed):
  rng = np.random.default_rng(seed)
  return tables.Tableau(
    t=np.geomspace(5.0, 0.2, n),
    output=rng.normal(size=(n, 2)),
    state=rng.normal(size=(n, 2, 2)),
    history=rng.normal(size=(n, 2, memory)),
    noise=rng.uniform(size=(n, 3)),
  )


CHAIN = processes.edm(0.2, 5.0)
NOISY = {
  "ddpm": solvers.ddpm(CHAIN, grids.karras(CHAIN, 5)),
  "churn": solvers.heun_churn(CHAIN, grids.karras(CHAIN, 4), churn=1.5),
  "any": random_table(5, 3, seed=4),
}


@pytest.mark.parametrize("name", list(NOISY))
def test_propagated_law_is_that_of_the_sampler(name):
  table, n = NOISY[name], 30_000
  mean, variance = oracles.propagate(table, CHAIN, SINGLE)
  axes = np.asarray(SINGLE.axes[0])
  to_draw, to_perturb, to_sample = jax.random.split(KEY, 3)
  data, _ = SINGLE.sample(to_draw, n)
  x, _ = CHAIN.perturb(to_perturb, data, table.t[0])
  model = oracles.exact(SINGLE, CHAIN)
  z = np.asarray(sampling.sample(to_sample, model, table, x)) @ axes
  assert (abs(z.mean(0) - mean) < 4 * np.sqrt(variance / n)).all()
  assert (abs(z.var(0) - variance) < 4 * variance * np.sqrt(2 / n)).all()
  # and the test would see an error of a few percent
  assert 4 * np.sqrt(2 / n) < 0.04


def test_propagated_law_of_a_fine_ode_is_the_flow_map():
  process = processes.vp_linear(t_min=0.02)
  grid = grids.log_snr(process, 150)
  table = solvers.rk4(process, grid)
  mean, variance = oracles.propagate(table, process, SINGLE)
  alpha, sigma = process.alpha(grid[-1]), process.sigma(grid[-1])
  axes = np.asarray(SINGLE.axes[0])
  np.testing.assert_allclose(mean, alpha * SINGLE.means[0] @ axes, atol=1e-7)
  exact = alpha**2 * SINGLE.variances[0] + sigma**2
  np.testing.assert_allclose(variance, exact, rtol=1e-6)
  # started from the prior, not from the marginal
  start = (process.alpha(grid[0]), process.sigma(grid[0]))
  mean, variance = oracles.propagate(table, process, SINGLE, 0.0, start[1] ** 2)
  origin = oracles.flow_map(SINGLE, np.zeros((1, 3)), start, (alpha, sigma))
  np.testing.assert_allclose(mean, origin[0] @ axes, atol=1e-6)
  total = start[0] ** 2 * SINGLE.variances[0] + start[1] ** 2
  np.testing.assert_allclose(variance, start[1] ** 2 * exact / total, rtol=1e-6)


# --- refusals ----------------------------------------------------------------


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: oracles.mixture([1.0], [1.0]), r"means must be \[K, d\]"),
    (lambda: oracles.mixture(MEANS, np.ones(3)), r"K=2, d=2, got shape \(3,\)"),
    (
      lambda: oracles.mixture(MEANS, [[1.0, 1.0], [1.0, -0.1]]),
      "component 1 has the negative eigenvalue -0.1",
    ),
    (
      lambda: oracles.mixture(MEANS, [np.eye(2), [[1.0, 0.5], [0.0, 1.0]]]),
      "component 1 is not symmetric",
    ),
    (lambda: oracles.mixture(MEANS, [1, 1], [1, 0]), "one positive number"),
    (lambda: oracles.mixture(MEANS, [1, 1], [1]), r"weights must be \[2\]"),
    (
      lambda: oracles.flow_map(PLANE, X, (1.0, 1.0), (1.0, 0.0)),
      "one Gaussian only, this mixture has 2",
    ),
    (
      lambda: oracles.propagate(NOISY["ddpm"], CHAIN, PLANE),
      "one Gaussian only, this mixture has 2",
    ),
    (
      lambda: oracles.Empirical(X).predict(X, 1.0, 1.0, np.zeros(5)),
      "has no classes",
    ),
  ],
)
def test_oracles_refuse_what_they_do_not_know(build, message):
  with pytest.raises(ValueError, match=message):
    build()


def test_points_much_closer_to_one_another_than_to_the_mean_are_told_apart():
  """Weights against float64, of groups of spread 0.001 that are 40 apart."""
  rng = np.random.default_rng(0)
  centre = np.asarray([[20.0, 0.0], [-20.0, 0.0]])
  data = centre[np.arange(60) % 2] + 1e-3 * rng.normal(size=(60, 2))
  data = np.float32(data)
  x = np.float32(data[:20] + 1e-3 * rng.normal(size=(20, 2)))
  apart = (x[:, None].astype(np.float64) - data) / 1e-3
  weight = special.softmax(-0.5 * (apart**2).sum(-1), axis=1)
  found = oracles.Empirical(data).predict(jnp.asarray(x), 1.0, 1e-3)
  right = np.einsum("bi,bid->bd", weight, apart)
  np.testing.assert_allclose(found.eps, right, atol=0.01)  # an ulp of x: 0.002

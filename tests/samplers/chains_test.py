"""Chains: Langevin dynamics, the vanilla score, contrastive divergence."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers

KEY = jax.random.key(0)


def gaussian_score(x, variance=1.0):
  return -x / variance


# --- unadjusted and adjusted Langevin -----------------------------------------


def test_unadjusted_chain_is_an_ar1_process():
  """Mean (1 - h/c^2)^k, stationary variance c^2 / (1 - h/(2 c^2)): 3 s.e."""
  n, c2, h = 20000, 0.49, 0.3
  score = jax.tree_util.Partial(gaussian_score, variance=c2)
  start = jnp.full((n, 1), 2.0)
  run = lambda n: np.asarray(
    samplers.langevin(KEY, score, n, start, step=h)[0], np.float64
  )
  few = run(3)
  variance = c2 / (1.0 - h / (2.0 * c2))
  decay = 1.0 - h / c2
  error = np.sqrt(variance / n)
  assert abs(few.mean() - 2.0 * decay**3) < 3.0 * error
  many = run(60)
  assert abs(many.var() - variance) < 3.0 * variance * np.sqrt(2.0 / n)
  assert variance > 1.4 * c2  # the bias is what the check sees


def test_adjusted_chain_keeps_the_law_where_the_unadjusted_one_does_not():
  n, h = 20000, 0.9
  start = jax.random.normal(jax.random.key(1), (n, 2))
  log_prob = lambda x: -0.5 * jnp.sum(x**2, axis=1)
  x, info = samplers.langevin(
    KEY,
    gaussian_score,
    25,
    start,
    step=h,
    log_prob=log_prob,
    collect=sampling.every(1, lambda info: info.accept),
  )
  error = np.sqrt(2.0 / x.size)
  assert abs(np.asarray(x).var() - 1.0) < 3.0 * error
  assert 0.5 < info.acceptance.mean() < 0.95
  np.testing.assert_allclose(info.acceptance, info.kept.mean(0), rtol=1e-5)
  assert info.nfe == 26  # one at the start
  biased, info = samplers.langevin(KEY, gaussian_score, 25, start, step=h)
  assert (info.acceptance == 1).all() and info.nfe == 25
  assert np.asarray(biased).var() > 1.5


def test_adjusted_chain_refuses_a_proposal_off_the_support():
  """log p = -inf beyond the unit ball: no chain leaves it."""
  log_prob = lambda x: jnp.where(jnp.sum(x**2, axis=1) < 1.0, 0.0, -jnp.inf)
  x, _ = samplers.langevin(
    KEY, jnp.zeros_like, 100, jnp.zeros((500, 2)), step=0.1, log_prob=log_prob
  )
  radius = np.sum(np.asarray(x) ** 2, axis=1)
  assert radius.max() < 1.0
  assert abs(radius.mean() - 0.5) < 0.05  # uniform on the disc: E r^2 = 1/2


def test_exact_chains_from_exact_draws_keep_the_weights_of_modes():
  """Reversibility: as many chains change sides one way as the other."""
  target = two_modes(8)
  x, _ = target.sample(KEY, 2000)
  left = lambda v: np.mean(np.asarray(v)[:, 0] > 0)
  y, _ = samplers.langevin(KEY, target.score, 500, x, step=0.01)
  error = np.sqrt(0.2 * 0.8 / 2000)
  assert abs(left(y) - left(x)) < 3.0 * error
  assert not np.array_equal(x, y)


def two_modes(d):
  means = np.zeros((2, d))
  means[:, 0] = -4.0, 4.0
  return oracles.mixture(means, [1.0, 0.49], [0.8, 0.2])


def test_a_chain_knows_its_key_and_its_index_alone():
  x = jax.random.normal(KEY, (6, 3))
  run = lambda v, **kw: samplers.langevin(
    KEY, gaussian_score, 7, v, step=0.1, **kw
  )[0]
  log_prob = lambda v: -0.5 * jnp.sum(v**2, axis=1)
  for options in ({}, {"log_prob": log_prob}):
    whole = run(x, **options)
    np.testing.assert_array_equal(whole, run(x, **options))
    part = run(x[4:], index=jnp.asarray([4, 5]), **options)
    np.testing.assert_allclose(part, whole[4:], rtol=1e-6)
  still, info = samplers.langevin(KEY, gaussian_score, 0, x, step=0.1)
  np.testing.assert_array_equal(still, x)
  assert info.nfe == 0


def test_steps_may_change_from_move_to_move_and_compile_once(compiled):
  module = importlib.import_module("jaxdiff.samplers.langevin")
  x = jnp.ones((4, 2))
  h = np.linspace(0.1, 0.2, 5)
  samplers.langevin(KEY, gaussian_score, 5, x, step=0.1)
  compiled.clear()
  varied, _ = samplers.langevin(KEY, gaussian_score, 5, x, step=h)
  assert "jit(_langevin)" not in compiled
  by_hand = x
  for i in range(5):
    key = jax.random.fold_in(jax.random.fold_in(KEY, module._TAG), i)
    z = jax.vmap(lambda j, k=key: _draw(k, j))(jnp.arange(4))
    by_hand = by_hand - h[i] * by_hand + np.sqrt(2.0 * h[i]) * z
  np.testing.assert_allclose(varied, by_hand, rtol=1e-5)


def test_a_bfloat16_chain_makes_steps_that_it_cannot_hold():
  """h = 1e-4 against x = 100: lost one by one, seen in the end."""
  x = jnp.full((4, 2), 100.0, jnp.bfloat16)
  y, _ = samplers.langevin(KEY, gaussian_score, 2000, x, step=1e-4)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(y, np.float32), 100.0 * np.exp(-0.2), rtol=0.03
  )


def _draw(key, j):
  own = jax.random.fold_in(jax.random.fold_in(key, j), 0)
  return jax.random.normal(own, (2,))


def test_the_score_of_a_model_is_that_of_its_marginal():
  for process in (processes.edm(), processes.vp_linear()):
    model = oracles.exact(oracles.g2(), process)
    x = jax.random.normal(KEY, (50, 2))
    t = 0.3
    score = samplers.ModelScore(model, t, process)
    exact = oracles.g2().score(x, process.alpha(t), process.sigma(t))
    np.testing.assert_allclose(score(x), exact, rtol=1e-4, atol=1e-4)
    moved, _ = samplers.langevin(KEY, score, 1, x, step=0.01)
    assert moved.shape == x.shape


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(step=0.0), "positive size h, got step=0.0"),
    (dict(step=-1.0), "positive size"),
    (dict(steps=-1), "at least 0; got -1"),
    (dict(step=np.ones(3)), r"one for each of the 5, got shape \(3,\)"),
    (dict(score=lambda x: x[:, :1]), r"the score has shape \(4, 1\)"),
    (dict(steps=0, collect=sampling.every(1)), "no move to collect"),
  ],
)
def test_what_is_no_chain_is_refused(options, message):
  arguments = dict(score=gaussian_score, step=0.1, steps=5) | options
  with pytest.raises(ValueError, match=message):
    samplers.langevin(KEY, x=jnp.ones((4, 2)), **arguments)


def test_a_chain_that_diverges_names_its_step():
  cubic = lambda x: -(x**3)
  with pytest.raises(FloatingPointError, match=r"of 50, with step h = 3"):
    samplers.langevin(
      KEY, cubic, 50, jnp.full((3, 1), 5.0), step=3.0, check_finite=True
    )


# --- annealed Langevin as a table ---------------------------------------------


@pytest.mark.parametrize(
  "process", [processes.edm(0.05, 20.0), processes.vp_linear()]
)
def test_annealed_langevin_reaches_the_stationary_law_of_its_last_level(
  process,
):
  """Variance w / (1 - h / (2 w)) with w = alpha^2 v + sigma^2: exactly."""
  single = oracles.gaussian([1.0, -0.5], [0.25, 1.5])
  grid = grids.log_snr(process, 4)
  end = process.time_at(0.5)
  grid = np.append(grid[grid > end], end)
  step = 0.3
  table = solvers.annealed_langevin(process, grid, step=step, per_level=400)
  assert table.nfe == 400 * len(grid)
  mean, variance = oracles.propagate(table, process, single)
  alpha, sigma = process.alpha(end), process.sigma(end)
  w = alpha**2 * np.asarray([0.25, 1.5]) + sigma**2
  h = step * sigma**2
  np.testing.assert_allclose(variance, w / (1.0 - h / (2.0 * w)), rtol=1e-9)
  np.testing.assert_allclose(mean, alpha * single.means[0], rtol=1e-9)


def test_annealed_langevin_rescales_between_levels_and_may_end_clean():
  """On any process it is the same chain in x / alpha, and ends on x0."""
  edm, vp = processes.edm(), processes.vp_linear()
  single = oracles.gaussian([1.0], [0.25])
  levels = np.append(np.geomspace(20.0, 0.05, 6), 0.0)
  law = []
  for process in (edm, vp):
    grid = grids.from_noise_levels(process, levels)
    table = solvers.annealed_langevin(process, grid, step=0.5, per_level=3)
    assert table.nfe == 3 * 6 + 1
    law.append(oracles.propagate(table, process, single))
  np.testing.assert_allclose(law[0][0], law[1][0], rtol=1e-7)
  np.testing.assert_allclose(law[0][1], law[1][1], rtol=1e-7)


@pytest.mark.parametrize("bad", [0.0, 2.0, -0.1])
def test_annealed_langevin_refuses_steps_that_diverge(bad):
  process = processes.edm()
  with pytest.raises(ValueError, match=r"must lie in \(0, 2\)"):
    solvers.annealed_langevin(process, grids.log_snr(process, 3), step=bad)
  with pytest.raises(ValueError, match="at least 1, got 0"):
    solvers.annealed_langevin(process, grids.log_snr(process, 3), per_level=0)
  flow = processes.rectified_flow()
  with pytest.raises(ValueError, match="alpha = 0 at the first"):
    solvers.annealed_langevin(flow, grids.uniform(flow, 3))


# --- the vanilla score --------------------------------------------------------


def matched(n, mean, covariance):
  """Points whose first two moments are exactly these, f64[n, d]."""
  z = np.random.default_rng(0).standard_normal((n, len(mean)))
  z = z - z.mean(0)
  z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / n)).T
  return mean + z @ np.linalg.cholesky(covariance).T


def affine(params, x):
  return x @ params["a"].T + params["b"]


def test_implicit_score_matching_is_score_matching(x64):
  """Of affine scores on Gaussian moments: equal up to E|s*|^2 / 2, exactly."""
  mean = np.asarray([0.5, -1.0, 0.2])
  root = np.random.default_rng(1).standard_normal((3, 3))
  covariance = root @ root.T + np.eye(3)
  x = jnp.asarray(matched(500, mean, covariance))
  precision = np.linalg.inv(covariance)
  truth = {"a": jnp.asarray(-precision), "b": jnp.asarray(precision @ mean)}
  params = {"a": truth["a"] + 0.3 * root, "b": truth["b"] + 0.1}
  loss = losses.implicit_score(affine, trace="exact")
  square = lambda p: 0.5 * jnp.mean(jnp.sum(p**2, axis=1))
  for p in (params, truth):
    expected = square(affine(p, x) - affine(truth, x)) - square(
      affine(truth, x)
    )
    np.testing.assert_allclose(loss(KEY, p, x)[0], expected, rtol=1e-10)
  grad = jax.grad(lambda p: loss(KEY, p, {"image": x})[0])(truth)
  for leaf in jax.tree.leaves(grad):
    np.testing.assert_allclose(leaf, 0.0, atol=1e-12)


def test_signs_give_the_trace_of_a_diagonal_jacobian_exactly(x64):
  apply = lambda p, x: p * jnp.sin(x)
  params, x = jnp.arange(1.0, 5.0), jax.random.normal(KEY, (7, 4))
  value = lambda **options: losses.implicit_score(apply, **options)(
    KEY, params, x
  )
  exact, parts = value(trace="exact")
  np.testing.assert_allclose(value(probes=1)[0], exact, rtol=1e-12)
  trace = jnp.mean(jnp.sum(params * jnp.cos(x), axis=1))
  np.testing.assert_allclose(parts["trace"], trace, rtol=1e-12)


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.leaky_relu])
def test_piecewise_linear_score_networks_are_refused(activation):
  loss = losses.implicit_score(lambda p, x: activation(x @ p))
  with pytest.raises(ValueError, match="relu: the trace of a piecewise"):
    jax.jit(loss)(KEY, jnp.eye(3), jnp.ones((2, 3)))


def test_smooth_networks_with_normalisation_pass():
  network = networks.make("residual_mlp", width=8, blocks=1, embedding=8)
  x = jnp.ones((2, 3))
  params = network.init(KEY, x, jnp.zeros(2))
  apply = lambda p, v: network.apply(p, v, jnp.zeros(v.shape[0]))
  value, parts = jax.jit(losses.implicit_score(apply))(KEY, params, x)
  assert np.isfinite(value) and set(parts) == {"loss", "trace", "square"}


def test_implicit_score_options_are_checked():
  with pytest.raises(ValueError, match="trace must be one of"):
    losses.implicit_score(affine, trace="none")
  with pytest.raises(ValueError, match="at least 1, got 0"):
    losses.implicit_score(affine, probes=0)
  with pytest.raises(ValueError, match="at least 0, got -1"):
    losses.implicit_score(affine, input_noise=-1)


def test_data_initialization_draws_training_points_by_index():
  data = np.random.default_rng(0).standard_normal((40, 3))
  x = samplers.data_init(KEY, data, 3000)
  assert np.max(metrics.nearest_distance(x, data.astype(x.dtype))) == 0.0
  counts = np.unique(np.asarray(x)[:, 0], return_counts=True)[1]
  assert len(counts) == 40 and counts.max() < 130  # uniform: 75 +- 9
  part = samplers.data_init(KEY, data, 2, index=jnp.asarray([7, 9]))
  np.testing.assert_array_equal(part, x[jnp.asarray([7, 9])])


def test_stopping_time_is_two_relaxation_times_of_the_widest_mode():
  """Of N(0, diag(4, 1)) it is 8; of two far modes that of a single one."""
  rng = np.random.default_rng(0)
  one = rng.standard_normal((2000, 2)) * [2.0, 1.0]
  np.testing.assert_allclose(
    samplers.stopping_time(one, neighbours=2000), 8.0, rtol=0.1
  )
  two = np.concatenate([one, one + [100.0, 0.0]])
  np.testing.assert_allclose(
    samplers.stopping_time(two, neighbours=2000), 8.0, rtol=0.1
  )
  assert 0.0 < samplers.stopping_time(two) < 8.0  # a ball cuts its mode


def test_early_stopping_beats_copies_and_a_wrong_score():
  """With a score too narrow by 2 the best time lies between start and end."""
  rng = np.random.default_rng(0)
  train, fresh = rng.standard_normal((2, 400, 4)).astype(np.float32)
  wrong = jax.tree_util.Partial(gaussian_score, variance=0.5)
  times = (0.0, 0.02, 0.05, 4.0)
  found = samplers.choose_time(KEY, wrong, train, fresh, times, step=0.01)
  assert found.time < 4.0
  assert found.distance[-1] > 1.5 * found.distance.min()
  assert found.memorization[0] == 0.0
  assert np.all(np.diff(found.memorization[:3]) > 0)
  draw = lambda time, n: samplers.vanilla_sample(
    KEY, wrong, time, train, n=n, step=0.01
  )
  x, info = draw(0.05, 400)
  assert (info.time, info.nfe) == (0.05, 5)
  again = samplers.choose_time(KEY, wrong, train, fresh, (0.05,), step=0.01)
  np.testing.assert_allclose(
    metrics.memorization_ratio(x, train, fresh), again.memorization[0]
  )
  copies, info = draw(0.0, 5)
  np.testing.assert_array_equal(copies, info.start)
  assert metrics.nearest_distance(copies, train).max() == 0.0


def test_bad_input_of_the_vanilla_sampler_is_named():
  data = np.ones((5, 2))
  with pytest.raises(ValueError, match="M >= 2, got shape"):
    samplers.data_init(KEY, data[:1], 3)
  with pytest.raises(ValueError, match="at least two points, got 1"):
    samplers.stopping_time(data[:1])
  with pytest.raises(ValueError, match="at least 0; got time=-1"):
    samplers.vanilla_sample(KEY, gaussian_score, -1.0, data, n=3, step=0.1)
  with pytest.raises(ValueError, match="step must be positive"):
    samplers.vanilla_sample(KEY, gaussian_score, 1.0, data, n=3, step=0.0)
  with pytest.raises(ValueError, match="times must rise"):
    samplers.choose_time(KEY, gaussian_score, data, data, (1.0, 0.5), step=0.1)
  with pytest.raises(ValueError, match=r"shape \(2,\).*shape \(3,\)"):
    metrics.nearest_distance(np.ones((4, 2)), np.ones((4, 3)))


def test_nearest_distance_is_that_of_all_pairs():
  rng = np.random.default_rng(0)
  x, data = rng.standard_normal((50, 2, 2)), rng.standard_normal((30, 2, 2))
  pairs = np.sqrt(np.sum((x[:, None] - data[None]) ** 2, axis=(2, 3)))
  np.testing.assert_allclose(
    metrics.nearest_distance(x, data, block=7), pairs.min(1), rtol=1e-12
  )


# --- contrastive divergence ---------------------------------------------------


def test_contrastive_divergence_has_the_gradient_of_its_short_chain():
  """E = theta x^2 / 2: (1 - v_k) / 2 with v' = (1 - h theta)^2 v + 2 h."""
  n, theta, h, k = 20000, 2.0, 0.05, 4
  loss = samplers.contrastive_divergence(
    lambda p, x: 0.5 * p * jnp.sum(x**2, axis=1), step=h, moves=k
  )
  x = jax.random.normal(KEY, (n, 1))
  grad = jax.grad(lambda p: loss(KEY, p, x)[0])(theta)
  v = 1.0
  for _ in range(k):
    v = (1.0 - h * theta) ** 2 * v + 2.0 * h
  # data and chain share their start: the difference has a smaller error
  assert abs(grad - 0.5 * (1.0 - v)) < 4.0 * 0.5 * np.sqrt(2.0 / n)
  assert 0.5 * (1.0 - v) > 0.1

"""Teleportation: the flow of one Gaussian in closed form, before any table."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from tests.solvers.cases import CASES

KEY = jax.random.key(0)
EDM = processes.edm(0.01, 20.0)
VP = processes.vp_linear_covering(0.01, 20.0)
both_processes = pytest.mark.parametrize("process", [EDM, VP])


def data(n=400, d=6, seed=0):
  rng = np.random.default_rng(seed)
  root = rng.standard_normal((d, d)) * 0.6 ** np.arange(d)
  return rng.standard_normal((n, d)) @ root.T + rng.standard_normal(d)


def dense(x):
  return oracles.gaussian(x.mean(0), np.cov(x, rowvar=False))


# --- the flow -----------------------------------------------------------------


@both_processes
def test_the_jump_is_the_probability_flow(process, x64):
  """RK4 on the exact score ends where the jump does, to 1e-8."""
  x0 = data()
  stats, model = oracles.fit(x0), oracles.exact(dense(x0), process)
  x = process.prior(KEY, (8, 6), dtype=jnp.float64)
  end = process.time_at(0.5)
  grid = grids.log_snr(process, 400)
  grid = np.append(grid[grid > end], end)
  walked = sampling.sample(KEY, model, solvers.rk4(process, grid), x)
  jumped = samplers.teleport(stats, x, process, process.t_max, end)
  np.testing.assert_allclose(jumped, walked, rtol=1e-8, atol=1e-8)


@both_processes
def test_jumps_compose_and_come_back(process, x64):
  stats = oracles.fit(data())
  x = process.prior(KEY, (8, 6), dtype=jnp.float64)
  a, b, c = process.time_at(np.asarray([20.0, 3.0, 0.1]))
  go = lambda v, s, t: samplers.teleport(stats, v, process, s, t)
  twice = go(go(x, a, b), b, c)
  np.testing.assert_allclose(twice, go(x, a, c), rtol=1e-12)
  np.testing.assert_allclose(go(twice, c, a), x, rtol=1e-10)
  assert go(x, b, b) is x


def test_the_jump_to_clean_data_has_their_covariance(x64):
  """M (C + sigma^2 I) M^T = C for the linear part M of the map: exactly."""
  x0 = data()
  stats, covariance = oracles.fit(x0), np.cov(x0, rowvar=False)
  eye, zero = jnp.eye(6), jnp.zeros((1, 6))
  jump = lambda v: np.asarray(samplers.teleport(stats, v, EDM, 20.0, 0.0))
  linear = (jump(eye) - jump(zero)).T
  start = covariance + 400.0 * np.eye(6)
  np.testing.assert_allclose(linear @ start @ linear.T, covariance, atol=1e-12)
  mean = jump(jnp.asarray(x0.mean(0))[None])
  np.testing.assert_allclose(mean[0], x0.mean(0), rtol=1e-12)


@pytest.mark.parametrize("points", [4, 400])
def test_a_thin_basis_is_the_dense_formula(points, x64):
  """Off the span of few points the flow is that of variance 0."""
  x0 = data(points)
  stats = oracles.fit(x0)
  assert stats.basis.shape == (6, min(6, points - 1))
  np.testing.assert_allclose(
    stats.covariance(), np.cov(x0, rowvar=False), atol=1e-12
  )
  x = 5.0 * jax.random.normal(KEY, (9, 6))
  begin, end = (0.9, 4.0), (0.95, 0.3)
  expected = oracles.flow_map(dense(x0), x, begin, end)
  np.testing.assert_allclose(stats.flow(x, begin, end), expected, rtol=1e-10)


def test_the_denoiser_is_that_of_a_mixture_of_one(x64):
  x0 = data()
  x = 3.0 * jax.random.normal(KEY, (9, 6))
  for alpha, sigma in ((1.0, 2.0), (0.3, 0.8), (1.0, 0.0), (0.0, 1.0)):
    own = oracles.fit(x0).predict(x, alpha, sigma)
    expected = dense(x0).predict(x, alpha, sigma)
    np.testing.assert_allclose(own.x0, expected.x0, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(own.eps, expected.eps, rtol=1e-9, atol=1e-11)


def test_the_score_of_a_single_point_pulls_to_it(x64):
  point = jnp.asarray([[1.0, -2.0]])
  x = jax.random.normal(KEY, (5, 2))
  sigma = 0.7
  eps = oracles.Empirical(point).predict(x, 1.0, sigma).eps
  np.testing.assert_allclose(-eps / sigma, (point - x) / sigma**2, rtol=1e-12)


def test_left_out_directions_share_their_variance(x64):
  x0 = data()
  stats = oracles.fit(x0, rank=2)
  values = np.linalg.eigvalsh(np.cov(x0, rowvar=False))
  np.testing.assert_allclose(stats.residual, values[:4].mean(), rtol=1e-9)
  np.testing.assert_allclose(
    np.trace(stats.covariance()), values.sum(), rtol=1e-12
  )
  shrunk = oracles.fit(x0, shrink=0.25)
  np.testing.assert_allclose(
    shrunk.covariance(),
    0.75 * np.cov(x0, rowvar=False) + 0.25 * values.mean() * np.eye(6),
    atol=1e-12,
  )


def test_statistics_of_batches_are_those_of_the_whole():
  """Far from the origin too, where a sum of squares would cancel."""
  x0 = data(300) + 1e6
  whole = oracles.fit(x0)
  parts = oracles.fit(iter([x0[:7], x0[7:120], x0[120:]]))
  np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-14)
  np.testing.assert_allclose(
    parts.covariance(), whole.covariance(), rtol=1e-6, atol=1e-9
  )


def test_every_sample_moves_by_its_own_class(x64):
  label = np.arange(400) % 3
  x0 = data() + 5.0 * label[:, None]
  stats = oracles.fit(x0, labels=label)
  x = jax.random.normal(KEY, (7, 6))
  own = np.asarray([0, 1, 2, 2, 1, 0, 0])
  moved = stats.flow(x, (1.0, 20.0), (1.0, 0.5), own)
  predicted = stats.predict(x, 0.5, 0.5, own)
  for c in range(3):
    single = oracles.fit(x0[label == c])
    here = own == c
    expected = single.flow(x[here], (1.0, 20.0), (1.0, 0.5))
    np.testing.assert_allclose(moved[here], expected, rtol=1e-10)
    expected = single.predict(x[here], 0.5, 0.5).eps
    np.testing.assert_allclose(predicted.eps[here], expected, rtol=1e-10)
  with pytest.raises(ValueError, match="the statistics of 3 classes"):
    stats.flow(x, (1.0, 20.0), (1.0, 0.5))
  with pytest.raises(ValueError, match="know no classes"):
    oracles.fit(x0).flow(x, (1.0, 20.0), (1.0, 0.5), own)


# --- in front of a table ------------------------------------------------------


@both_processes
@pytest.mark.parametrize("solver", ["heun", "unipc_2"])
def test_on_gaussian_data_the_skipped_steps_cost_nothing(solver, process, x64):
  """The table after the jump is nearer to the flow than the whole table."""
  x0 = data()
  stats, model = oracles.fit(x0), oracles.exact(dense(x0), process)
  grid = grids.karras(process, 10)
  build = CASES[solver].build
  x = process.prior(KEY, (64, 6), dtype=jnp.float64)
  truth = samplers.teleport(stats, x, process, grid[0], grid[-1])
  error = lambda v: float(jnp.sqrt(jnp.mean((v - truth) ** 2)))
  whole = build(process, grid)
  rest = build(process, samplers.truncate(grid, grid[4]))
  respent = build(process, grids.karras(process, 10, start=grid[4]))
  assert rest.nfe == whole.nfe * 6 // 10 and respent.nfe == whole.nfe
  after = lambda table: samplers.teleport_sample(
    KEY, model, table, x, process=process, stats=stats
  )[0]
  plain = error(sampling.sample(KEY, model, whole, x))
  assert error(after(rest)) < plain
  assert error(after(respent)) < 0.5 * plain


def test_without_a_skip_it_is_the_sampler_itself():
  x0 = data()
  stats, model = oracles.fit(x0), oracles.exact(oracles.g2(), EDM)
  stats = oracles.fit(x0[:, :2])
  table = solvers.heun(EDM, grids.karras(EDM, 4))
  x = EDM.prior(KEY, (5, 2))
  own, info = samplers.teleport_sample(
    KEY, model, table, x, process=EDM, stats=stats
  )
  assert info == samplers.TeleportInfo(table.t[0], table.nfe)
  np.testing.assert_array_equal(own, sampling.sample(KEY, model, table, x))


def test_the_gaussian_prior_has_the_marginal_s_moments():
  """Near data of its own size pure noise has not."""
  stats = oracles.fit(data())
  process = processes.edm(0.01, 2.0)
  x = np.asarray(samplers.gaussian_prior(KEY, stats, (40000, 6), process))
  expected = stats.covariance() + 4.0 * np.eye(6)
  np.testing.assert_allclose(np.cov(x, rowvar=False), expected, atol=0.15)
  np.testing.assert_allclose(x.mean(0), stats.mean, atol=0.08)
  part = samplers.gaussian_prior(
    KEY, stats, (2, 6), process, index=jnp.asarray([5, 9])
  )
  np.testing.assert_allclose(part, x[[5, 9]], rtol=1e-5)
  table = solvers.heun(process, grids.karras(process, 3, start=1.0))
  model = oracles.exact(dense(data()), process)
  for prior in ("isotropic", "gaussian"):
    out, _ = samplers.teleport_sample(
      KEY, model, table, (4, 6), process=process, stats=stats, prior=prior
    )
    assert out.shape == (4, 6) and np.isfinite(out).all()


def test_truncation_keeps_the_grid_s_own_times():
  grid = grids.karras(EDM, 6, to_zero=True)
  np.testing.assert_array_equal(samplers.truncate(grid, grid[2]), grid[2:])
  between = 0.5 * (grid[2] + grid[3])
  np.testing.assert_array_equal(
    samplers.truncate(grid, between), [between, *grid[3:]]
  )
  for bad in (0.0, 21.0):
    with pytest.raises(ValueError, match="must lie on the grid"):
      samplers.truncate(grid, bad)


# --- how far to skip ----------------------------------------------------------


def test_the_gaussian_explains_a_mixture_down_to_its_boundary():
  law = oracles.g2()
  x0 = law.sample(KEY, 4000)[0]
  stats = oracles.from_moments(*law.moments())
  model = oracles.exact(law, EDM)
  times = np.geomspace(20.0, 0.2, 12)
  gauss = oracles.exact(stats, EDM)
  shares = oracles.unexplained(KEY, model, gauss, EDM, x0, times)
  assert (np.diff(shares[:8]) > 0).all() and shares[0] < 1e-4 < 0.05 < shares[
    -1
  ]
  skip = samplers.choose_skip(KEY, model, stats, EDM, x0, times, 1e-2)
  place = int(np.flatnonzero(times == skip)[0])
  assert shares[place] <= 1e-2 < shares[place + 1]
  assert np.isnan(samplers.choose_skip(KEY, model, stats, EDM, x0, times, 0.0))
  table = solvers.heun(EDM, [0.5, 0.01])
  draw = functools.partial(
    samplers.teleport_sample,
    KEY,
    model,
    table,
    (4, 2),
    process=EDM,
    stats=stats,
  )
  with pytest.warns(UserWarning, match="the Gaussian misses 0"):
    _, info = draw(check=x0)
  assert info.unexplained > 1e-3
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    draw(check=x0, tolerance=1.0)


def test_finer_rungs_of_the_ladder_explain_more_at_low_noise():
  """Of the score of few points; the points themselves explain all of it."""
  x0 = np.asarray(oracles.g2().sample(KEY, 300)[0])
  rungs = oracles.score_ladder(x0, clusters=3)
  model = oracles.exact(rungs["points"], EDM)
  share = {
    name: oracles.unexplained(
      KEY, model, oracles.exact(law, EDM), EDM, x0, [0.5]
    )[0]
    for name, law in rungs.items()
  }
  assert list(share) == ["mean", "gaussian", "mixture", "points"]
  assert share["points"] < 1e-6 < share["mixture"] < share["gaussian"]
  assert share["mixture"] < 0.3 * share["gaussian"]
  with pytest.raises(ValueError, match=r"1..300, got 0"):
    oracles.score_ladder(x0, clusters=0)


# --- bad input ----------------------------------------------------------------


def test_a_table_cut_out_of_a_longer_one_is_refused():
  grid = grids.karras(EDM, 6)
  cut = tables.take(solvers.dpmpp_2m(EDM, grid), slice(2, None))
  stats, model = oracles.fit(data(d=2)), oracles.exact(oracles.g2(), EDM)
  draw = lambda table, **options: samplers.teleport_sample(
    KEY, model, table, (3, 2), process=EDM, stats=stats, **options
  )
  with pytest.raises(ValueError, match="row 0 of the table uses outputs"):
    draw(cut)
  whole = solvers.dpmpp_2m(EDM, grid)
  with pytest.raises(ValueError, match=r"above t_from = 3"):
    draw(whole, t_from=3.0)
  with pytest.raises(ValueError, match="prior must be one of"):
    draw(whole, prior="none")
  with pytest.raises(ValueError, match="t_to=99 is outside"):
    samplers.teleport(stats, jnp.ones((3, 2)), EDM, 20.0, 99.0)
  with pytest.raises(ValueError, match="2 values a sample, but x has shape"):
    samplers.teleport(stats, jnp.ones((3, 4)), EDM, 20.0, 1.0)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: oracles.fit(data()[:1]), "at least two points, got 1"),
    (lambda: oracles.fit(data() * np.nan), "NaN or infinity"),
    (lambda: oracles.fit(data(), 7), r"rank must lie in 1..6, got 7"),
    (lambda: oracles.fit(data(), shrink=2.0), r"share in \[0, 1\], got 2"),
    (lambda: oracles.fit(data(), labels=[0, 1]), r"shape \(400,\), got \(2,\)"),
    (
      lambda: oracles.fit(data(4), labels=[0, 0, 2, 2]),
      "class 1 has 0 points",
    ),
    (
      lambda: oracles.from_moments(np.zeros(2), [[1.0, 0.5], [0.0, 1.0]]),
      "not symmetric",
    ),
    (
      lambda: oracles.from_moments(np.zeros(2), [[1.0, 2.0], [2.0, 1.0]]),
      "the eigenvalue -1 < 0",
    ),
    (lambda: oracles.from_moments(np.zeros(2), np.eye(3)), r"\(2,\) and \(3"),
  ],
)
def test_statistics_that_are_none_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()

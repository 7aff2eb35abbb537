"""The Frechet distance against closed forms, and that in random features."""

import warnings

import numpy as np
import pytest
from scipy import linalg

from jaxdiff import metrics
from jaxdiff.metrics.frechet import expected_bias
from jaxdiff.metrics.frechet import factor
from jaxdiff.metrics.frechet import warn_of_bias


def covariance(rng, d, rank=None):
  root = rng.standard_normal((d, d if rank is None else rank))
  return root @ root.T


def test_commuting_covariances_have_a_closed_form():
  """Of one eigenbasis: sum (sqrt a - sqrt b)^2, and the means beside."""
  rng = np.random.default_rng(0)
  axes = np.linalg.qr(rng.standard_normal((5, 5)))[0]
  a, b = rng.uniform(0.1, 3.0, (2, 5))
  means = rng.standard_normal((2, 5))
  expected = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
  expected += np.sum((means[0] - means[1]) ** 2)
  value = metrics.frechet(
    means[0], (axes * a) @ axes.T, means[1], (axes * b) @ axes.T
  )
  np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_it_is_the_formula_with_a_matrix_root_of_the_product():
  rng = np.random.default_rng(1)
  a, b = covariance(rng, 6), covariance(rng, 6)
  zero = np.zeros(6)
  product = np.trace(linalg.sqrtm(a @ b).real)
  expected = np.trace(a) + np.trace(b) - 2.0 * product
  value = metrics.frechet(zero, a, zero, b)
  np.testing.assert_allclose(value, expected, rtol=1e-9)
  np.testing.assert_allclose(metrics.frechet(zero, b, zero, a), value)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_equal_laws_are_0_apart_of_any_rank(rank):
  """A root of a rounded product would leave sqrt(1e-16) for rank < d."""
  cov = covariance(np.random.default_rng(2), 6, rank)
  assert metrics.frechet(np.ones(6), cov, np.ones(6), cov) < 1e-13 * cov.max()


def test_it_is_the_cost_of_the_transport_map():
  """The linear map from N(0, A) to N(0, B) is optimal if it is symmetric."""
  rng = np.random.default_rng(3)
  transport, a = covariance(rng, 4), covariance(rng, 4)
  b = transport @ a @ transport
  move = transport - np.eye(4)
  zero = np.zeros(4)
  np.testing.assert_allclose(
    metrics.frechet(zero, a, zero, b), np.trace(move @ a @ move), rtol=1e-9
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c[:2], r"shapes \(3,\), \(2, 3\)"),
    (lambda c: c + np.triu(np.ones((3, 3)), 1), "cov_a is not symmetric"),
    (lambda c: c - 2.0 * np.eye(3), "the eigenvalue -1 < 0"),
    (lambda c: c * np.nan, "cov_a holds NaN"),
  ],
)
def test_what_is_no_covariance_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    metrics.frechet(np.zeros(3), change(np.eye(3)), np.zeros(3), np.eye(3))


def sample(rng, n, d=8, scale=1.0):
  """Draws of a non-Gaussian law of mean 0 and covariance scale^2 I."""
  return scale * rng.choice([-1.0, 1.0], (n, d))


def test_random_features_see_beyond_the_first_two_moments():
  rng = np.random.default_rng(0)
  data, again = sample(rng, 4000), sample(rng, 4000)
  gaussian = rng.standard_normal((4000, 8))
  floor = metrics.random_feature_frechet(again, data)
  seen = metrics.random_feature_frechet(gaussian, data)
  assert seen > 4.0 * floor
  wide = metrics.random_feature_frechet(1.1 * again, data)
  assert wide > 2.0 * floor


def test_units_and_shape_of_the_data_play_no_role():
  rng = np.random.default_rng(1)
  x, y = sample(rng, 500), sample(rng, 400)
  value = metrics.random_feature_frechet(x, y)
  move = lambda v: (30.0 * v - 7.0).reshape(-1, 2, 4)
  np.testing.assert_allclose(
    metrics.random_feature_frechet(move(x), move(y)), value, rtol=1e-9
  )
  assert metrics.random_feature_frechet(x, y, seed=1) != value
  assert metrics.random_feature_frechet(x[::-1], x) < 1e-12
  assert metrics.random_feature_frechet(x, y, features=1) < value


@pytest.mark.parametrize(
  ("dims", "n", "m", "decay"), [(60, 40, 60, 1), (40, 30, 4000, 0)]
)
def test_too_few_samples_are_warned_of_with_the_bias_to_be_expected(
  dims, n, m, decay
):
  """The bias that is told is the distance of two sets of one Gaussian."""
  rng = np.random.default_rng(0)
  spread = (1.0 + np.arange(dims)) ** (-decay / 2)
  draw = lambda size: spread * rng.standard_normal((size, dims))
  pairs = [(draw(n), draw(m)) for _ in range(4)]
  a, b = (factor(v) for v in pairs[0])
  told = expected_bias(a, b, n, m)
  with pytest.warns(UserWarning, match=f"would be {told:.4g} apart"):
    found = [metrics.frechet_of_samples(*pair) for pair in pairs]
  assert 0.6 * np.mean(found) < told < 1.1 * np.mean(found)
  one, other = (metrics.statistics.of(v) for v in pairs[0])
  with pytest.warns(UserWarning, match=f"{n} and {m} samples in {dims} dim"):
    metrics.statistics.distance(one, other)


def test_the_expected_bias_of_many_samples_is_that_of_perturbation_theory():
  """(1/n + 1/m) (tr C + sum_ij l_i l_j (1 + d_ij) / (l_i + l_j) / 2)."""
  values = np.asarray([2.0, 1.0, 0.5])
  pair = np.zeros(3), np.diag(np.sqrt(values))
  n, m = 200_000, 100_000
  pairs = (
    values * values[:, None] * (1 + np.eye(3)) / (values + values[:, None])
  )
  right = (1 / n + 1 / m) * (values.sum() + pairs.sum() / 2)
  told = expected_bias(pair, pair, n, m)
  assert 0.5 * right < told < 1.6 * right  # one draw of six numbers
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # and enough samples are not warned of
    warn_of_bias(pair, pair, 4, 4)


@pytest.mark.parametrize(
  ("x", "y", "message"),
  [
    (np.ones((4, 2)), np.ones((4, 3)), r"\(4, 2\) and \(4, 3\)"),
    (np.ones(4), np.ones(4), r"\(4,\)"),
    (np.ones((1, 2)), np.ones((4, 2)), "at least two samples"),
    (np.full((2, 3), np.nan), np.eye(3), "2 of 2 samples of x"),
    (np.eye(2), np.ones((4, 2)), "all points of the reference"),
  ],
)
def test_samples_that_cannot_be_compared_are_refused(x, y, message):
  with pytest.raises(ValueError, match=message):
    metrics.random_feature_frechet(x, y)

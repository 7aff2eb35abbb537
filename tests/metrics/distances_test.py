"""Distances against closed forms, scikit-learn, SciPy and torch-fidelity."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn import neighbors as sklearn_neighbors

from jaxdiff import metrics
from jaxdiff.metrics import kernel
from jaxdiff.metrics import neighbors
from tests.metrics import golden_run as golden


def draws(seed, n, d, shift=0.0, scale=1.0):
  rng = np.random.default_rng(seed)
  return shift + scale * rng.standard_normal((n, d))


# moments


def test_moments_are_those_of_numpy_however_the_set_is_split():
  """The mean is a million deviations from zero: sums of squares would fail."""
  x = draws(0, 200, 5, shift=1e6) @ draws(1, 5, 5)
  whole = metrics.statistics.of(x)
  for cuts in ([1, 2, 150], [100], range(1, 200)):
    s = metrics.statistics.of(np.split(x, cuts))
    assert s.count == 200
    np.testing.assert_allclose(s.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(s.cov, np.cov(x.T), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(s.cov, whole.cov, rtol=1e-8, atol=1e-9)


def test_the_frechet_distance_of_samples_is_that_of_their_moments():
  """For more samples than dimensions and for fewer, on either side."""
  # Of few samples a covariance has zeros, the root of whose rounding is 1e-8.
  for n, m, rtol in ((50, 40, 1e-9), (5, 40, 1e-7), (6, 5, 1e-7)):
    x, y = draws(n, n, 10), draws(m, m, 10, 0.3, 2.0)
    moments = metrics.statistics.distance(
      metrics.statistics.of(x), metrics.statistics.of(y)
    )
    np.testing.assert_allclose(
      metrics.frechet_of_samples(x, y), moments, rtol=rtol
    )
  assert metrics.frechet_of_samples(x, x) < 1e-12


def test_statistics_are_kept_with_what_they_are_of(tmp_path):
  s = metrics.statistics.of(
    draws(0, 9, 3), extractor="effnet, SHA-256 5", dataset="digits"
  )
  path = tmp_path / "deep" / "s.npz"
  metrics.statistics.save(path, s)
  kept = metrics.statistics.load(path)
  assert (kept.count, kept.features, kept.dataset) == (9, s.features, "digits")
  np.testing.assert_array_equal(kept.cov, s.cov)
  with np.load(path) as f:  # what other tools look for
    assert f["mu"].shape == (3,) and f["sigma"].shape == (3, 3)


def test_published_statistics_have_no_count(tmp_path):
  x = draws(0, 9, 3)
  np.savez(tmp_path / "fid.npz", mu=x.mean(0), sigma=np.cov(x.T))
  s = metrics.statistics.load(tmp_path / "fid.npz")
  assert s.count is None and s.features == ""
  own = metrics.statistics.of(x)
  assert metrics.statistics.distance(s, own) < 1e-12
  with pytest.raises(ValueError, match="without a count cannot be merged"):
    metrics.statistics.merge(s, own)


def test_published_statistics_in_float32_are_a_covariance(tmp_path):
  """Of 40 features of rank 5, rounding leaves negative eigenvalues."""
  x = draws(0, 200, 5) @ draws(1, 5, 40)
  cov = np.cov(x.T).astype(np.float32)
  assert np.linalg.eigvalsh(np.float64(cov))[0] < -1e-8 * cov.max()
  np.savez(tmp_path / "s.npz", mu=x.mean(0).astype(np.float32), sigma=cov)
  s = metrics.statistics.load(tmp_path / "s.npz")
  own = metrics.statistics.of(x)
  assert metrics.statistics.distance(s, own) < 1e-5 * np.trace(own.cov)


def test_statistics_that_cannot_be_compared_are_refused(tmp_path):
  of = metrics.statistics.of
  with pytest.raises(ValueError, match="of 3 and of 4 features"):
    metrics.statistics.distance(of(draws(0, 9, 3)), of(draws(0, 9, 4)))
  with pytest.raises(ValueError, match="'effnet' and 'inception'"):
    metrics.statistics.distance(
      of(draws(0, 9, 3), extractor="effnet"),
      of(draws(0, 9, 3), extractor="inception"),
    )
  with pytest.raises(ValueError, match="the set is empty"):
    of([])
  with pytest.raises(FileNotFoundError, match="no statistics at"):
    metrics.statistics.load(tmp_path / "none.npz")
  np.savez(tmp_path / "other.npz", image=np.zeros(3))
  with pytest.raises(ValueError, match="holds image; statistics are"):
    metrics.statistics.load(tmp_path / "other.npz")
  (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
  with pytest.raises(ValueError, match="was cut short"):
    metrics.statistics.load(tmp_path / "cut.npz")
  np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((3, 2)))
  with pytest.raises(ValueError, match=r"sigma \(3, 2\)"):
    metrics.statistics.load(tmp_path / "odd.npz")


# kernels and energy


def unbiased(xx, yy, xy):
  """The MMD written out over pairs."""
  off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
  return off(xx) + off(yy) - 2 * xy.mean()


@pytest.mark.parametrize(
  ("ours", "name", "options"),
  [
    (metrics.polynomial, "poly", dict(degree=3, gamma=1 / 4, coef0=1)),
    (metrics.rbf(1.5), "rbf", dict(gamma=1 / (2 * 1.5**2))),
  ],
)
def test_mmd_is_that_of_scikit_learns_kernels(ours, name, options, monkeypatch):
  monkeypatch.setattr(kernel, "_BLOCK", 16)  # several blocks, one not full
  x, y = draws(0, 50, 4), draws(1, 35, 4, 0.5)
  k = lambda a, b: sklearn_metrics.pairwise_kernels(a, b, name, **options)
  np.testing.assert_allclose(
    metrics.mmd(x, y, ours).value, unbiased(k(x, x), k(y, y), k(x, y))
  )
  biased = k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean()
  np.testing.assert_allclose(metrics.mmd(x, y, ours, biased=True).value, biased)


def test_the_error_of_mmd_is_the_jackknife_done_by_hand():
  x, y = draws(0, 12, 2), draws(1, 9, 2)
  value = lambda a, b: metrics.mmd(a, b).value
  without = lambda v, i: np.delete(v, i, axis=0)
  one = np.array([value(without(x, i), y) for i in range(12)])
  other = np.array([value(x, without(y, i)) for i in range(9)])
  np.testing.assert_allclose(
    metrics.mmd(x, y).error, np.sqrt(11 * one.var() + 8 * other.var())
  )


def test_mmd_between_gaussians_has_a_closed_form():
  """E k is a Gaussian of variance s^2 + 2 or s^2 + 5 at the shift."""
  d, s, shift = 2, 1.2, 0.8
  x, y = draws(0, 3000, d), draws(1, 3000, d, shift, 2.0)
  mean = lambda v, r2: (
    (s**2 / (s**2 + v)) ** (d / 2) * np.exp(-r2 / (2 * (s**2 + v)))
  )
  expected = mean(2, 0) + mean(8, 0) - 2 * mean(5, d * shift**2)
  found = metrics.mmd(x, y, metrics.rbf(s), level=0.999)
  assert found.low < expected < found.high
  assert found.error < 0.05 * expected


def test_kid_over_subsets_of_everything_is_mmd():
  x, y = draws(0, 60, 5), draws(1, 60, 5, 0.2)
  mean, deviation = metrics.kid(x, y, subsets=3, size=60)
  np.testing.assert_allclose(mean, metrics.mmd(x, y).value)
  assert deviation < 1e-12
  mean, deviation = metrics.kid(x, y, subsets=400, size=20)
  assert deviation > 0
  error = deviation / np.sqrt(400)
  assert abs(mean - metrics.mmd(x, y).value) < 4 * error  # both are unbiased


def test_energy_distance_is_scipys_in_one_dimension():
  x, y = draws(0, 40, 1), draws(1, 70, 1, 0.5, 2.0)
  value = metrics.energy_distance(x, y, biased=True).value
  np.testing.assert_allclose(
    np.sqrt(value), stats.energy_distance(x[:, 0], y[:, 0])
  )
  assert metrics.energy_distance(x, y).value < value


def test_energy_distance_of_a_far_point_is_exact():
  """Far from both laws 2 E|x - y| grows by two for each unit of distance."""
  x, y = draws(0, 30, 3), draws(1, 20, 3)
  far = lambda r: metrics.energy_distance(x + [r, 0, 0], y).value
  np.testing.assert_allclose(far(1e4 + 1) - far(1e4), 2.0, rtol=1e-4)


def test_the_median_bandwidth_is_the_median_distance():
  y = np.array([[0.0], [1.0], [3.0]])
  assert metrics.median_bandwidth(y) == 2.0
  with pytest.raises(ValueError, match="bandwidth of rbf.*more than 0, got 0"):
    metrics.rbf(0.0)


def test_sliced_wasserstein_of_a_shift_is_scipys_of_order_1():
  """W_1 <= W_2, with equality for a shift."""
  x = draws(0, 50, 1)
  y = x + 0.7
  value = metrics.sliced_wasserstein(
    jax.random.key(0), jnp.asarray(x), jnp.asarray(y)
  )
  one = stats.wasserstein_distance(x[:, 0], y[:, 0])
  np.testing.assert_allclose(value, one, rtol=1e-5)


# neighbours


@pytest.fixture(scope="module")
def clouds():
  return draws(0, 90, 6, 0.5), draws(1, 70, 6)


def test_neighbours_are_scikit_learns(clouds, monkeypatch):
  monkeypatch.setattr(neighbors, "_BLOCK", 32)
  x, y = clouds
  tree = sklearn_neighbors.NearestNeighbors(n_neighbors=4).fit(y)
  distance, index = tree.kneighbors(x)
  ours = neighbors.nearest(x, y, 4)
  np.testing.assert_allclose(ours[0], distance, rtol=1e-5)
  np.testing.assert_array_equal(ours[1], index)
  np.testing.assert_allclose(
    neighbors.radii(y, 3), tree.kneighbors(y)[0][:, 3], rtol=1e-5
  )


@pytest.fixture(scope="module")
def tight():
  """Two groups of spread 0.001 and 0.003, 40 apart: expanded squares cancel."""
  rng = np.random.default_rng(0)
  centre = np.array([[20.0, 0], [-20.0, 0]])
  draw = lambda s: (
    centre[rng.integers(2, size=150)] + s * rng.normal(size=(150, 2))
  )
  return draw(0.001), draw(0.003)


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_neighbours_of_tight_groups_far_apart_are_those_of_differences(
  tight, far
):
  x, y = tight[0] + far, tight[1] + far
  apart = np.sqrt(((x[:, None] - y) ** 2).sum(-1))
  own = np.sort(np.sqrt(((y[:, None] - y) ** 2).sum(-1)), axis=1)
  distance, index = neighbors.nearest(x, y, 4)
  np.testing.assert_array_equal(index, np.argsort(apart, axis=1)[:, :4])
  np.testing.assert_array_equal(distance, np.sort(apart, axis=1)[:, :4])
  radius = neighbors.radii(y, 3)
  np.testing.assert_array_equal(radius, own[:, 3])
  inside = (apart <= radius).sum(1)
  np.testing.assert_array_equal(neighbors.balls(x, y, radius), inside)
  np.testing.assert_array_equal(
    neighbors.largest_ratio(x, y, radius), (radius / apart).max(1)
  )
  found = metrics.precision_recall(x, y, k=3)
  assert found.precision == np.mean(inside > 0)
  assert metrics.nearest_distance(x, y) == pytest.approx(apart.min(1), rel=0)


def test_a_set_has_the_whole_of_its_own_support_twice_over(tight):
  x = np.concatenate([tight[1], tight[1][:20]])  # with copies: radii of 0
  assert metrics.precision_recall(x, x, k=1) == (1, 1)
  copied = metrics.realism(x, x, k=1)[-20:]  # centres of balls of radius 0
  assert copied.min() >= 1.0


def test_squared_distances_hold_six_digits_however_much_cancels(tight):
  x, y = tight[0] * 1e5 + 1e9, tight[1] * 1e5 + 1e9
  right = ((x[:, None] - y) ** 2).sum(-1)
  np.testing.assert_allclose(kernel.squared_distances(x, y), right, rtol=1e-6)
  np.testing.assert_array_equal(np.diag(kernel.squared_distances(x, x)), 0.0)


def test_sliced_distances_do_not_depend_on_where_the_data_lie():
  key, x, y = jax.random.key(0), draws(2, 80, 3), draws(3, 80, 3, 0.1)
  x, y = np.float32(x), np.float32(y)
  near = metrics.sliced_wasserstein(key, x, y)
  x, y = x + np.float32(4096), y + np.float32(4096)
  exact = metrics.sliced_wasserstein(key, x - 4096, y - 4096)
  far = metrics.sliced_wasserstein(key, x, y)
  np.testing.assert_allclose(far, exact, rtol=1e-4)
  assert far != near


def support(centres, points, k):
  """In how many k-nearest-neighbour balls about the centres the points lie."""
  tree = sklearn_neighbors.NearestNeighbors(n_neighbors=k + 1).fit(centres)
  radius = tree.kneighbors(centres)[0][:, k]
  return (sklearn_metrics.pairwise_distances(points, centres) <= radius).sum(1)


def test_precision_and_recall_are_those_of_scikit_learns_neighbours(clouds):
  x, y = clouds
  found = metrics.precision_recall(x, y, k=3)
  np.testing.assert_allclose(found.precision, np.mean(support(y, x, 3) > 0))
  np.testing.assert_allclose(found.recall, np.mean(support(x, y, 3) > 0))
  assert 0 < found.precision < 1 and 0 < found.recall < 1
  assert metrics.precision_recall(y, x) == found[::-1]
  assert metrics.precision_recall(x, x) == (1, 1)
  assert metrics.precision_recall(x, x + 100.0) == (0, 0)


def test_density_and_coverage_are_those_of_scikit_learns_neighbours(clouds):
  x, y = clouds
  found = metrics.density_coverage(x, y, k=5)
  np.testing.assert_allclose(found.density, support(y, x, 5).mean() / 5)
  tree = sklearn_neighbors.NearestNeighbors(n_neighbors=6).fit(y)
  radius = tree.kneighbors(y)[0][:, 5]
  closest = sklearn_metrics.pairwise_distances(y, x).min(1)
  np.testing.assert_allclose(found.coverage, np.mean(closest <= radius))


def test_density_and_coverage_of_equal_laws_do_not_depend_on_the_law():
  """E density = 1 and E coverage = 1 - prod (m - i) / (n + m - i)."""
  n, m, k = 60, 40, 3
  values = np.array(
    [
      metrics.density_coverage(
        draws(2 * i, n, 2) ** 3, draws(2 * i + 1, m, 2) ** 3, k=k
      )
      for i in range(200)
    ]
  )
  i = np.arange(1, k + 1)
  expected = [1.0, 1.0 - np.prod((m - i) / (n + m - i))]
  error = values.std(0) / np.sqrt(len(values))
  assert (abs(values.mean(0) - expected) < 3.5 * error).all()


def test_realism_is_above_1_inside_and_falls_with_the_distance():
  y = draws(0, 300, 3)
  x = np.array([[0.0, 0, 0], [3, 0, 0], [30, 0, 0], [60, 0, 0]])
  score = metrics.realism(x, y)
  assert score[0] > 1 > score[2] > score[3]
  np.testing.assert_allclose(score[2] / score[3], 2.0, rtol=0.1)


# scores of class probabilities


def test_the_inception_score_of_even_confident_classes_is_their_number():
  even = np.eye(5)[np.arange(20) % 5]
  assert metrics.inception_score(even) == pytest.approx(5.0)
  assert metrics.inception_score(even[:1]) == pytest.approx(1.0)
  assert metrics.inception_score(np.full((9, 5), 0.2)) == pytest.approx(1.0)


def test_modes_have_a_closed_form():
  """Three of four classes, one of them unsure, drawn 2 : 1 : 1."""
  p = np.eye(4)[[0, 0, 1, 2]] * 1.0
  p[3] = [0.2, 0.2, 0.4, 0.2]
  found = metrics.mode_coverage(p)
  assert found.found == 2 and found.confident == 0.75
  np.testing.assert_allclose(found.kl, 0.5 * np.log(2))
  right = metrics.mode_coverage(p, [0.5, 0.25, 0.25, 0.0])
  np.testing.assert_allclose(right.kl, 0.0, atol=1e-12)
  assert metrics.mode_coverage(p, confidence=0.3).found == 3
  assert metrics.mode_coverage(p, [0, 0.5, 0.5, 0]).kl == np.inf


# torch-fidelity


def check_fidelity(expected):
  x, y, logits = golden.features()
  x, y = x.astype(np.float64), y.astype(np.float64)
  p = special.softmax(logits.astype(np.float64), axis=1)
  fid = metrics.frechet_of_samples(x, y)
  ours = {
    "frechet_inception_distance": fid,
    "kernel_inception_distance_mean": metrics.mmd(x[:100], y).value,
    "inception_score_mean": metrics.inception_score_splits(p)[0],
    "inception_score_std": metrics.inception_score_splits(p)[1],
    "precision": metrics.precision_recall(x, y).precision,
    "recall": metrics.precision_recall(x, y).recall,
  }
  for name, value in ours.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def test_metrics_are_those_of_torch_fidelity():
  with np.load(golden.GOLDEN / "fidelity.npz") as expected:
    check_fidelity(expected)


def test_metrics_are_those_of_torch_fidelity_live():
  pytest.importorskip("torch")
  if not importlib.util.find_spec("torch_fidelity"):
    pytest.skip("torch-fidelity is not installed")
  check_fidelity(golden.reference_metrics())


# input that cannot be measured


def nan_at(i):
  x = draws(0, 8, 3)
  x[i, 1] = np.nan
  return x


OK = draws(1, 8, 3)
TWO_SETS = [
  metrics.frechet_of_samples,
  metrics.mmd,
  metrics.energy_distance,
  metrics.precision_recall,
  metrics.density_coverage,
  metrics.realism,
  lambda x, y: metrics.kid(x, y, size=2),
]


@pytest.mark.parametrize("distance", TWO_SETS)
@pytest.mark.parametrize(
  ("x", "y", "message"),
  [
    (nan_at(6), OK, r"x: 1 of 8 samples are not finite.*number 6 \(from 0\)"),
    (OK, nan_at(2), r"y: 1 of 8 samples.*number 2"),
    (OK[:0], OK, r"x: expected \d samples .* or more, got 0"),
    (OK, OK[:, :2], r"shape \(3,\) cannot be compared.*shape \(2,\)"),
    (OK[:, 0], OK, r"x: expected samples \[n, \.\.\.\]"),
  ],
)
def test_samples_that_cannot_be_compared_are_refused(distance, x, y, message):
  with pytest.raises(ValueError, match=message):
    distance(x, y)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: metrics.precision_recall(OK, OK, k=0), "k: expected a neighbour"),
    (lambda: metrics.precision_recall(OK[:3], OK), "x: expected 4 samples"),
    (lambda: metrics.density_coverage(OK, OK[:5]), "y: expected 6 samples"),
    (lambda: metrics.density_coverage(OK, OK, k=0), "k: expected a neighbour"),
    (lambda: metrics.kid(OK, OK), "KID over subsets of 1000.*give size=8"),
    (lambda: metrics.mmd(OK[:2], OK), "x: expected 3 samples"),
    (lambda: metrics.inception_score(OK), "row .* adds up to .*softmax"),
    (lambda: metrics.inception_score_splits(np.eye(3), 4), r"expected 1\.\.3"),
    (
      lambda: metrics.mode_coverage(np.eye(3), [0.5, 0.5]),
      "of 3 classes, got 2",
    ),
  ],
)
def test_settings_that_make_no_sense_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()

"""Intervals hold what they claim to hold as often as they claim."""

import numpy as np
import pytest

from jaxdiff import metrics


def test_the_bootstrap_of_a_mean_has_its_standard_error():
  x = np.random.default_rng(0).standard_normal(400)
  found = metrics.bootstrap(lambda w: w @ x / 400, 400, replicas=4000)
  assert found.value == pytest.approx(x.mean())
  np.testing.assert_allclose(found.error, x.std() / 20, rtol=0.05)
  np.testing.assert_allclose(
    [found.low, found.high],
    x.mean() + np.array([-1.96, 1.96]) * x.std() / 20,
    atol=0.01,
  )


def test_the_jackknife_of_a_mean_is_exact():
  """One sample a group: error s / sqrt(n), no bias, and Student's t."""
  x = np.random.default_rng(0).standard_normal((30, 2))
  found = metrics.jackknife(lambda v: v.mean(0), x, groups=30)
  error = x.std(0, ddof=1) / np.sqrt(30)
  np.testing.assert_allclose(found.error, error)
  np.testing.assert_allclose(found.bias, 0.0, atol=1e-12)
  np.testing.assert_allclose(found.high - found.value, 2.04523 * error, 1e-5)


def test_the_jackknife_finds_the_bias_of_a_variance():
  """Divided by n, a variance is too small by s^2 / n, and exactly so here."""
  x = np.random.default_rng(0).standard_normal(40)
  found = metrics.jackknife(np.var, x, groups=40)
  np.testing.assert_allclose(found.corrected, x.var(ddof=1))


def test_two_sets_vary_independently():
  x, y = np.random.default_rng(0).standard_normal((2, 50))
  found = metrics.jackknife(lambda a, b: a.mean() - b.mean(), x, y, groups=50)
  np.testing.assert_allclose(
    found.error, np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 50)
  )


def test_a_summary_is_made_once_for_each_set_with_a_group_left_out():
  calls = []

  def summary(v):
    calls.append(len(v))
    return v.mean()

  x, y = np.random.default_rng(0).standard_normal((2, 23))
  metrics.jackknife(lambda a, b: a - b, x, y, summary=summary, groups=5)
  assert sorted(calls) == [18] * 6 + [19] * 4 + [23] * 2


def gaussians(rng, n=150, d=3):
  return rng.standard_normal((n, d)), 0.5 + 1.5 * rng.standard_normal((n, d))


def coverage(interval, truth, repeats):
  """Returns how often the interval of fresh samples holds the truth."""
  rng = np.random.default_rng(1)
  held = 0
  for _ in range(repeats):
    found = interval(*gaussians(rng))
    held += found[0] <= truth <= found[1]
  return held / repeats


def frechet_interval(x, y):
  found = metrics.jackknife(metrics.frechet_of_samples, x, y, groups=20)
  return found.low, found.high, found.bias


# Of 300 trials with probability 0.95 some 0.95 -+ 0.0126 succeed; the band is
# four deviations, and a little more on the wide side, where an interval errs.
BAND = (0.90, 0.99)


def test_the_frechet_distance_without_its_bias_holds_the_truth():
  """Between N(0, I) and N(0.5, 2.25 I) it is d (0.25 + 0.25)."""

  def corrected(x, y):
    low, high, bias = frechet_interval(x, y)
    return low - bias, high - bias

  low, high = BAND
  assert low < coverage(corrected, 1.5, 300) < high


def test_the_frechet_distance_holds_its_mean_at_that_size():
  rng = np.random.default_rng(0)
  mean = np.mean(
    [metrics.frechet_of_samples(*gaussians(rng)) for _ in range(3000)]
  )
  assert mean > 1.52  # what the bias adds to 1.5
  low, high = BAND
  assert low < coverage(frechet_interval, mean, 300) < high


def test_the_jackknife_takes_nearly_all_of_the_bias_in_many_dimensions():
  """Of 150 samples in 24 dimensions most of the distance is bias."""
  rng = np.random.default_rng(0)
  truth = 24 * (0.1**2 + 0.1**2)
  raw, corrected = [], []
  for _ in range(20):
    x, y = rng.standard_normal((2, 150, 24))
    found = metrics.jackknife(
      metrics.frechet_of_samples, x, 1.1 * y + 0.1, groups=10
    )
    raw.append(found.value)
    corrected.append(found.corrected)
  assert np.mean(raw) > 5 * truth
  assert abs(np.mean(corrected) - truth) < 0.1 * (np.mean(raw) - truth)


@pytest.mark.parametrize("distance", [metrics.mmd, metrics.energy_distance])
def test_the_interval_of_an_unbiased_distance_holds_the_truth(distance):
  """The truth of MMD is exact; of the energy distance, a mean over many."""
  if distance is metrics.mmd:
    distance = lambda x, y: metrics.mmd(x, y, lambda a, b: a @ b.T)
    truth = 3 * 0.5**2  # a linear kernel sees the means alone
  else:
    rng = np.random.default_rng(0)
    values = [distance(*gaussians(rng)).value for _ in range(1500)]
    truth = np.mean(values)
  interval = lambda x, y: (distance(x, y).low, distance(x, y).high)
  low, high = BAND
  assert low < coverage(interval, truth, 300) < high


def test_resamples_of_a_biased_score_are_shifted_back():
  """exp of an entropy is biased by -1 / n, which resampling would double."""
  rng = np.random.default_rng(0)
  draw = lambda: np.eye(6)[rng.choice(6, 60, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])]
  mean = np.mean([metrics.inception_score(draw()) for _ in range(2000)])
  held = 0
  for _ in range(200):
    p = draw()
    found = metrics.bootstrap(
      lambda w, p=p: metrics.inception_score(p, w), 60, replicas=400
    )
    held += found.low <= mean <= found.high
    assert found.bias < 0
  assert BAND[0] < held / 200 < BAND[1]


def test_modes_take_weights():
  p = np.eye(3)[[0, 0, 1, 2]]
  found = metrics.bootstrap(
    lambda w: np.stack(metrics.mode_coverage(p, weights=w), axis=-1), 4
  )
  assert found.value.tolist() == [3.0, pytest.approx(found.value[1]), 1.0]
  assert found.value[1] == pytest.approx(np.log(3) - 1.5 * np.log(2))
  assert found.bias[0] < 0  # classes are missing from resamples


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: metrics.bootstrap(lambda w: w, 5, level=95),
      r"in \(0, 1\), got 95",
    ),
    (lambda: metrics.bootstrap(lambda w: w, 0), "at least 1 samples"),
    (
      lambda: metrics.jackknife(np.mean, np.ones(5), groups=10),
      "at least 10 samples, one a group.* has 5",
    ),
  ],
)
def test_intervals_of_nothing_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()

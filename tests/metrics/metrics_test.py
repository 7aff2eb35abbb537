"""Distances between samples against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import metrics

KEY = jax.random.key(0)


def test_sliced_wasserstein_of_a_shift_is_the_shift_over_root_d():
  """A projection of a shift s has W_2 = |theta . s|, of mean square s^2/d."""
  d = 16
  x = jax.random.normal(KEY, (500, d))
  shift = 3.0 * jnp.eye(d)[2]
  distance = metrics.sliced_wasserstein(KEY, x, x + shift, directions=4000)
  np.testing.assert_allclose(distance, 3.0 / np.sqrt(d), rtol=0.02)


def test_sliced_wasserstein_in_one_dimension_is_that_of_sorted_values():
  x = jax.random.normal(KEY, (300, 1))
  y = 2.0 * jax.random.normal(jax.random.key(1), (300, 1)) + 1.0
  expected = np.sqrt(np.mean((np.sort(x, 0) - np.sort(y, 0)) ** 2))
  np.testing.assert_allclose(
    metrics.sliced_wasserstein(KEY, x, y), expected, rtol=1e-5
  )


def test_sliced_wasserstein_of_gaussians_of_different_sizes():
  """W_2 between N(0, 1) and N(0, 4) is 1 along every direction."""
  x = jax.random.normal(KEY, (8000, 3))
  y = 2.0 * jax.random.normal(jax.random.key(1), (4000, 3))
  np.testing.assert_allclose(
    metrics.sliced_wasserstein(KEY, x, y), 1.0, rtol=0.03
  )


def test_sets_of_different_sizes_are_compared_at_symmetric_quantiles():
  """Turning both sets around changes nothing, however few there are."""
  x = jax.random.normal(KEY, (5, 1))
  y = jax.random.normal(jax.random.key(1), (12, 1)) ** 2
  distance = lambda s: metrics.sliced_wasserstein(KEY, s * x, s * y, 1)
  np.testing.assert_allclose(distance(-1.0), distance(1.0), rtol=1e-5)


def test_it_is_zero_for_the_same_set_in_another_order_and_shape():
  x = jax.random.normal(KEY, (100, 2, 3))
  y = jax.random.permutation(KEY, x)
  assert metrics.sliced_wasserstein(KEY, x, y) < 1e-6


def test_shapes_that_cannot_be_compared_are_named():
  with pytest.raises(ValueError, match=r"shape \(2,\).*shape \(3,\)"):
    metrics.sliced_wasserstein(KEY, jnp.ones((4, 2)), jnp.ones((4, 3)))

"""Degradations of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import data


def test_degradations_keep_what_they_should():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 12, 3)))
  flat = jnp.ones((1, 12, 12, 1))
  np.testing.assert_allclose(data.blur(flat, 1.3), flat, rtol=1e-6)
  np.testing.assert_array_equal(data.blur(x, 0.0), x)
  small = data.downsample(x, 3)
  np.testing.assert_allclose(small.mean((1, 2)), x.mean((1, 2)), rtol=1e-4)
  np.testing.assert_allclose(small[0, 0, 0], x[0, :3, :3].mean((0, 1)), 1e-5)
  large = data.upsample(flat[:, ::3, ::3], (12, 12))
  np.testing.assert_allclose(large, flat, rtol=1e-5)
  key = jax.random.key(0)
  noisy = data.degrade(key, x, factor=3, noise=0.1)
  again = data.degrade(key, x[1:], factor=3, noise=0.1, index=jnp.asarray([1]))
  np.testing.assert_allclose(noisy[1], again[0], rtol=1e-6)
  with pytest.raises(ValueError, match="12x12 cannot be made 5 times smaller"):
    data.downsample(x, 5)
  with pytest.raises(ValueError, match="5x5 become ones of 12x12 by no whole"):
    data.upsample(x[:, :5, :5], (12, 12))
  with pytest.raises(ValueError, match="more than images of 12x12"):
    data.blur(x, 9.0)

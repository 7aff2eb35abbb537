"""The width of data: the root of the covariance's largest eigenvalue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import choosing
from jaxdiff import oracles
from jaxdiff import processes


@pytest.mark.parametrize("shape", [(300, 5), (20, 4, 4, 3)])
def test_it_is_the_root_of_the_largest_eigenvalue(shape):
  """With more samples than values, and with fewer."""
  data = np.random.default_rng(0).standard_normal(shape)
  data[:, 0] *= 3.0
  flat = data.reshape(len(data), -1)
  expected = np.sqrt(np.linalg.eigvalsh(np.cov(flat, rowvar=False))[-1])
  np.testing.assert_allclose(choosing.width(data + 7.0), expected, rtol=1e-10)
  near = choosing.width(jnp.asarray(data, jnp.bfloat16))
  np.testing.assert_allclose(near, expected, rtol=1e-2)


def test_of_many_samples_a_choice_from_all_of_them_is_looked_at():
  """The second half is twice as wide, and counts."""
  data = np.random.default_rng(0).standard_normal((20_000, 2))
  data[10_000:] *= 2.0
  assert 1.5 < choosing.width(data) < 1.7


@pytest.mark.parametrize("name", ["edm", "rectified_flow"])
def test_a_model_shows_it_by_its_samples(name):
  process = getattr(processes, name)()
  law = oracles.random_mixture(7, width=3.0)
  model = oracles.exact(law, process)
  found = choosing.sampled_width(
    jax.random.key(0), model, process, law.means.shape[1:]
  )
  assert 2.6 < found < 3.4


@pytest.mark.parametrize(
  ("data", "kind", "said"),
  [
    (np.zeros((9, 2), np.uint8), TypeError, "uint8.*scale them first"),
    (np.zeros((1, 2)), ValueError, r"two samples or more.*\(1, 2\)"),
    (np.full((3, 2), np.nan), ValueError, "not finite"),
    (np.ones((3, 2)), ValueError, "all the same"),
  ],
)
def test_data_without_a_width_are_refused(data, kind, said):
  with pytest.raises(kind, match=said):
    jd.width(data)

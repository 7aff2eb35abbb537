"""Distribution matching: the gradient of the KL of Gaussians, regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import oracles
from jaxdiff.distillation.dmd import direction
from jaxdiff.distillation.dmd import pairs
from tests.distillation import cases


def test_the_gradient_of_matching_is_that_of_the_kl_of_gaussians(x64):
  """Fake N(m, v), teacher N(0, 1): E c g = sigma^2 dKL / dm."""
  m, v, sigma = 0.7, 0.49, 1.3
  z, w = np.polynomial.hermite_e.hermegauss(60)
  w = w / w.sum()
  x = m + np.sqrt(v) * z[:, None] + sigma * z[None, :]
  fake = (v * x + sigma**2 * m) / (v + sigma**2)
  real = x / (1.0 + sigma**2)
  mean = np.einsum("i,j,ij->", w, w, fake - real)
  kl = lambda m: 0.5 * m**2 / (1.0 + sigma**2)  # the part that depends on m
  slope = (kl(m + 1e-5) - kl(m - 1e-5)) / 2e-5
  assert mean == pytest.approx(sigma**2 * slope, rel=1e-8)
  x0 = jnp.asarray(m + np.sqrt(v) * z)[:, None, None]
  g = direction(x0, jnp.asarray(real)[..., None], jnp.asarray(fake)[..., None])
  scale = np.maximum(abs(x0[..., 0] - real).mean(1), 1e-3)
  np.testing.assert_allclose(
    np.asarray(g)[..., 0] * scale[:, None], fake - real, rtol=1e-9, atol=1e-12
  )


def test_matching_has_no_gradient_at_its_optimum():
  model = oracles.exact(oracles.g2(), cases.EDM)
  times = losses.times.uniform_log_snr(cases.EDM)
  x = jax.random.normal(jax.random.key(0), (6, 2))
  loss = lambda x: distillation.dmd_loss(
    jax.random.key(1), x, model, model, times, {"image": x}
  )
  value, gradient = jax.value_and_grad(loss)(x)
  assert float(value) == 0.0
  np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_a_sample_without_a_finite_direction_is_left_out():
  x = jnp.ones((2, 3))
  bad = jnp.asarray([[1.0, 2.0, 3.0], [jnp.nan, 0.0, 0.0]])
  g = direction(x, jnp.zeros((2, 3)), bad)
  np.testing.assert_array_equal(g[1], np.zeros(3))
  assert np.all(np.asarray(g[0]) != 0)


@pytest.mark.slow
def test_dmds_regression_is_the_error_on_the_stored_pairs():
  teacher, student = oracles.exact(oracles.g2(), cases.EDM), cases.network()
  noise = 20.0 * cases.SIX_POINTS["image"]
  batch = cases.SIX_POINTS | {"noise": noise, "end": cases.SIX_POINTS["image"]}
  plain, with_pairs = (
    distillation.dmd(teacher, student, optimizer=cases.SGD, regression=w)
    for w in (0.0, 0.25)
  )
  error = jnp.mean((student(noise, 20.0).x0 - batch["end"]) ** 2)
  value = [
    m.players["student"].loss(cases.KEY, student.params, cases.nets(m), batch)[
      0
    ]
    for m in (plain, with_pairs)
  ]
  assert float(value[1] - value[0]) == pytest.approx(0.25 * float(error), 1e-5)
  exact = pairs(student, batch | {"end": student(noise, 20.0).x0})
  assert float(exact) == 0.0
  with pytest.raises(ValueError, match="the batch lacks noise, end"):
    pairs(student, cases.SIX_POINTS)

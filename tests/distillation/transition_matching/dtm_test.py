"""Transitions drawn exactly and in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import distillation
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.distillation.transition_matching import dtm

TILTED = oracles.mixture(
  [[1.0, -0.5], [-0.8, 0.6]],
  [[[0.3, 0.2], [0.2, 0.4]], [[0.2, -0.1], [-0.1, 0.1]]],
  [0.6, 0.4],
)


@pytest.mark.parametrize("factorised", [False, True])
def test_draws_of_the_posterior_have_its_mean_and_covariance(factorised, x64):
  """Tweedie: mean of x0, and Cov = (sigma / alpha)^2 (I + sigma^2 Hessian)."""
  alpha, sigma, n = 0.6, 0.4, 20_000
  x = np.asarray([0.3, 0.1])

  @jax.jit
  def both():
    score = lambda v: TILTED.score(v[None], alpha, sigma)[0]
    return TILTED.posterior_sample(
      jax.random.key(0),
      jnp.tile(x, (n, 1)),
      alpha,
      sigma,
      factorised=factorised,
    ), jax.jacobian(score)(x)

  draws, hessian = map(np.asarray, both())
  mean = (
    x + sigma**2 * np.asarray(TILTED.score(x[None], alpha, sigma))
  ) / alpha
  exact = (sigma / alpha) ** 2 * (np.eye(2) + sigma**2 * hessian)
  if factorised:
    exact = np.diag(np.diag(exact))
  error = 4 * np.sqrt(np.diag(exact) / n)
  assert np.all(abs(draws.mean(0) - mean) < error)
  centred = draws - mean
  products = centred[:, :, None] * centred[:, None, :]
  spread = products.std(0) / np.sqrt(n)
  assert np.all(abs(products.mean(0) - exact) < 4 * spread)


def test_the_mean_kernel_is_euler_on_the_flow(x64):
  flow = processes.rectified_flow(1e-3)
  x = jax.random.normal(jax.random.key(0), (5, 2), jnp.float64)
  table = solvers.euler(flow, np.linspace(1.0, 0.0, 7))
  model = oracles.exact(TILTED, flow)
  expected = sampling.sample(jax.random.key(1), model, table, x)
  walked = dtm.walk(jax.random.key(1), dtm.mean_kernel(TILTED), x, 6)
  np.testing.assert_allclose(walked, expected, rtol=1e-10)
  # E[Y | X_t] = (E[X_T | X_t] - X_t) / (1 - tau)
  own = dtm.mean_kernel(TILTED)(None, x, 0.3)
  x0 = TILTED.predict(x, 0.3, 0.7).x0
  np.testing.assert_allclose(own, (x0 - x) / 0.7, rtol=1e-10)


def test_the_exact_kernel_keeps_the_law_of_every_state(x64):
  """Also in one transition; the factorised one loses the correlation."""
  law = oracles.gaussian(np.zeros(2), [[1.5, 0.9], [0.9, 0.8]])
  cov, n, steps = law.moments()[1], 20_000, 3
  x = jax.random.normal(jax.random.key(0), (n, 2), jnp.float64)
  _, path = dtm.walk(
    jax.random.key(1),
    dtm.exact_kernel(law),
    x,
    steps,
    collect=sampling.every(1),
  )
  for t, states in enumerate(np.asarray(path), start=1):
    tau = t / steps
    exact = (1 - tau) ** 2 * np.eye(2) + tau**2 * cov
    products = states[:, :, None] * states[:, None, :]
    spread = products.std(0) / np.sqrt(n)
    assert np.all(abs(products.mean(0) - exact) < 4.5 * spread), t
  apart = dtm.walk(jax.random.key(1), dtm.exact_kernel(law, True), x, 1)
  assert abs(np.corrcoef(apart, rowvar=False)[0, 1]) < 4 / np.sqrt(n)


def test_many_transitions_tend_to_the_path_of_the_flow():
  """The mean squared distance to Euler's path falls like 1 / T."""
  law = oracles.gaussian([0.5], 0.6)
  x = jax.random.normal(jax.random.key(0), (4000, 1))
  steps, distance = np.asarray([32, 512]), []
  for n in map(int, steps):

    @jax.jit
    def apart(key, n=n):
      drawn = dtm.walk(key, dtm.exact_kernel(law), x, n)
      mean = dtm.walk(key, dtm.mean_kernel(law), x, n)
      return jnp.mean((drawn - mean) ** 2)

    distance.append(float(apart(jax.random.key(1))))
  slope = np.polyfit(np.log(steps), np.log(distance), 1)[0]
  assert slope == pytest.approx(-1.0, abs=0.2)


@pytest.mark.slow
def test_one_transition_draws_two_points():
  """At t = 0 the kernel is the data's law itself: the head is multimodal."""
  model = distillation.transitions(
    jax.random.key(0), (1,), steps=1, continuous=False, width=32, heads=0
  )
  method = distillation.transition_matching(
    model, optimizer=optax.adam(3e-3), ema=0.99
  )
  state = distillation.init_state(jax.random.key(1), method)
  update = distillation.make_update(method)
  x = jnp.where(jnp.arange(256) % 2, 1.0, -1.0)[:, None]
  for _ in range(800):
    state, _ = update(state, {"image": x})
  drawn = distillation.sample_transitions(
    jax.random.key(2), method.finished(state), 1000, head_steps=32
  )
  assert np.mean(abs(abs(drawn) - 1.0) < 0.3) > 0.85
  assert abs(np.mean(drawn > 0) - 0.5) < 0.1

"""Kernels of transitions: correlations, heads, guidance."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.distillation.transition_matching import kernels
from tests.distillation import cases


def test_processes_have_the_same_marginals_and_other_correlations():
  """Cov(X_s, X_t) is s t c + (1 - s)(1 - t) if they share their noise."""
  n, c, tau = 20_000, 0.49, np.asarray([0.25, 0.5])
  x = 0.7 * jax.random.normal(jax.random.key(0), (n, 1))
  for process, shared in (("linear", 1.0), ("independent", 0.0)):
    path = jax.jit(kernels.states, static_argnums=1)(
      jax.random.key(1), process, x, tau
    )
    found = np.cov(np.asarray(path)[..., 0])
    exact = np.outer(tau, tau) * c
    noise = np.outer(1 - tau, 1 - tau)
    exact += np.where(np.eye(2), noise, shared * noise)
    np.testing.assert_allclose(found, exact, atol=4.5 / np.sqrt(n))


def test_the_head_keeps_tokens_apart():
  model = cases.chain("dtm", shape=(4, 2), token=(1, 2))
  rng = np.random.default_rng(0)
  h, y = rng.standard_normal((1, 4, 8)), rng.standard_normal((1, 4, 2))
  velocity = jax.jit(lambda y: kernels.velocity(model, h)(0.3, y))
  other = y.copy()
  other[:, 1] += 1.0
  moved = np.asarray(velocity(y) - velocity(other))
  np.testing.assert_array_equal(moved[0, [0, 2, 3]], np.zeros((3, 2)))
  assert np.all(moved[0, 1] != 0)


def test_guidance_one_is_none_and_zero_is_without_label():
  model = cases.chain("dtm", shape=(2,), token=None, num_classes=3)
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 4, 1, 2)).astype(np.float32)
  tau, label = np.full(4, 0.3, np.float32), np.asarray([0, 1, 2, 0])

  @jax.jit
  def velocities():
    h = [model.apply("features", x, tau, v) for v in (label, None)]
    pair = jnp.concatenate(h)
    guided = [kernels.velocity(model, pair, w)(0.4, y) for w in (0.0, 1.0, 2.0)]
    return guided, [kernels.velocity(model, own)(0.4, y) for own in h]

  guided, (with_label, null) = velocities()
  assert np.all(abs(with_label - null)[:3].max((1, 2)) > 1e-3)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  close(guided[0], null)
  close(guided[1], with_label)
  close(guided[2], 2.0 * with_label - null)


def test_the_flow_of_a_point_is_drawn_exactly():
  """u = (b - y) / (1 - s) leads to b from everywhere, in any steps."""
  b = np.asarray([[[1.0, -2.0]], [[0.5, 3.0]]], np.float32)
  drawn = jax.jit(
    lambda key: kernels.flow_sample(key, lambda s, y: (b - y) / (1.0 - s), b, 3)
  )
  np.testing.assert_allclose(drawn(jax.random.key(0)), b, rtol=1e-5)

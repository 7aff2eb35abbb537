"""Optimizers of experts that rest."""

import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff.distillation.parts.experts import one_by_one


def test_an_expert_that_rests_keeps_its_moments_and_its_schedule():
  optimizer = one_by_one(optax.adam(optax.cosine_decay_schedule(0.1, 10)))
  params = {"w": jnp.ones((2, 3))}
  state = optimizer.init(params)
  for i, gradient in enumerate(([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])):
    grads = {"w": jnp.ones((2, 3)) * jnp.asarray(gradient)[:, None]}
    changes, state = optimizer.update(grads, state, params)
    np.testing.assert_array_equal(changes["w"][int(i < 2)], np.zeros(3))
  alone = optax.adam(optax.cosine_decay_schedule(0.1, 10))
  own = alone.init(jnp.ones(3))
  expected, _ = alone.update(jnp.ones(3), own, jnp.ones(3))
  np.testing.assert_allclose(changes["w"][1], expected, rtol=1e-6)

"""Adversarial losses, features of a named layer, critics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import networks
from jaxdiff.distillation.parts import critic
from jaxdiff.distillation.parts import critic as critics
from tests.distillation import cases


def test_a_critic_knows_nothing_yet_and_is_asked_at_noised_samples():
  network = cases.network(cases.EDM)
  make = lambda **options: critics.make(
    jax.random.key(0), network, "Dense_0", (2,), width=8, **options
  )
  critic = make()
  x = jax.random.normal(jax.random.key(1), (5, 2))
  player = critics.player(
    critic, lambda key, nets, batch: batch["image"], cases.SGD
  )
  nets = {"critic_network": network}
  value, said = jax.jit(
    lambda p: player.loss(jax.random.key(3), p, nets, {"image": x})
  )(critic.params)
  assert float(value) == 2.0  # of the hinge, where nothing is told apart
  assert float(said["real"]) == float(said["fake"]) == 0.0
  with pytest.raises(ValueError, match="kind of adversarial loss"):
    make(kind="wgan")


@pytest.mark.parametrize("kind", critic.KINDS)
def test_adversarial_losses_push_logits_apart_and_back(kind):
  logits = jnp.asarray([0.1, -0.2])
  real, fake = jax.grad(
    lambda r, f: critic.discriminator_loss(kind, r, f), argnums=(0, 1)
  )(logits, logits - 0.3 if kind != "least_squares" else logits + 0.5)
  assert np.all(real < 0)
  assert np.all(fake > 0)
  pull = jax.grad(lambda f: critic.generator_loss(kind, f))(logits)
  assert np.all(pull < 0)


def test_features_are_those_of_the_named_layer():
  module = networks.MLP(features=(8, 6), embedding=8)
  x = jax.random.normal(jax.random.key(0), (3, 2))
  params = module.init(jax.random.key(1), x, jnp.zeros(3))["params"]
  model = denoisers.from_linen(module, params, cases.EDM)
  found = critic.features(model, "Dense_1", x, 1.0)
  assert found.shape == (3, 6)
  # the network's answer is a linear map of its last hidden layer
  h = nn.silu(found)
  output = h @ params["out"]["kernel"] + params["out"]["bias"]
  expected = module.apply({"params": params}, *model.inputs(x, 1.0))
  np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match="no layer 'middle'; it has Dense_0"):
    critic.features(model, "middle", x, 1.0)

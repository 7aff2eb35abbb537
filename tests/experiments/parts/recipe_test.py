"""From a configuration to the parts of a training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import distill
from experiments import train
from experiments.configs import base
from experiments.parts import recipe
from jaxdiff import models


def config(**fields):
  changed = base.get_config()
  changed.update(fields)
  return changed


def rates(steps, **fields):
  """The learning rates of plain gradient descent, read off its updates."""
  optimizer = recipe.optimizer(
    config(optimizer="sgd", learning_rate=0.1, steps=steps, **fields)
  )
  state, found = optimizer.init(jnp.zeros(())), []
  for _ in range(steps):
    change, state = optimizer.update(jnp.ones(()), state)
    found.append(-float(change))
  return np.array(found)


def test_schedules_rise_and_then_fall_as_their_names_say():
  rise = 0.1 * np.arange(10) / 10
  for schedule in recipe.SCHEDULES:
    found = rates(100, schedule=schedule, warmup_steps=10, constant_steps=20)
    np.testing.assert_allclose(found[:10], rise, atol=1e-7)
    after = np.arange(90)
    expected = dict(
      cosine=0.05 * (1 + np.cos(np.pi * after / 90)),
      constant=np.full(90, 0.1),
      inverse_sqrt=0.1 / np.sqrt(np.maximum(after / 20, 1.0)),
    )[schedule]
    np.testing.assert_allclose(found[10:], expected, rtol=1e-5, atol=1e-7)
  no_rise = rates(5, schedule="constant", warmup_steps=0)
  np.testing.assert_allclose(no_rise, 0.1)


def test_options_reach_the_optimizer():
  fields = dict(optimizer="adamw", optimizer_options=dict(weight_decay=0.5))
  optimizer = recipe.optimizer(
    config(**fields, schedule="constant", warmup_steps=0, learning_rate=0.1)
  )
  params = jnp.ones(())
  change, _ = optimizer.update(jnp.zeros(()), optimizer.init(params), params)
  np.testing.assert_allclose(change, -0.05, rtol=1e-6)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(optimizer="adaam"), r"'adaam' is no function of optax; adam,"),
    (
      dict(optimizer_options=dict(beta=1.0)),
      r"optimizer_options has beta, which adam .* takes learning_rate, b1",
    ),
    (dict(schedule="linear"), "must be one of cosine, constant, inverse_sqrt"),
  ],
)
def test_optimizers_and_schedules_that_are_not_there(fields, message):
  with pytest.raises(ValueError, match=message):
    recipe.optimizer(config(**fields))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(augment="Flip"), r"'Flip', but must be one of Mirror, Geometric"),
    (
      dict(augment="Geometric", augment_options=dict(turn=1)),
      "augment_options has turn, which Geometric does not take; it takes prob",
    ),
    (dict(augment="Geometric"), "takes 0.*Mirror"),
  ],
)
def test_augmentations_that_cannot_be(fields, message):

  model = models.ModelConfig((8, 8, 1), "mlp")
  with pytest.raises(ValueError, match=message):
    recipe.loss(config(**fields), models.make_denoiser(model))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(params="split"), "must be replicated .* or sharded"),
    (dict(batch_size=10, accumulate=4), r"1 devices in 4 part.*multiple of 4"),
    (dict(devices=64), "asked for 64 devices, but there are"),
  ],
)
def test_layouts_that_devices_cannot_have(tmp_path, fields, message):
  changed = config(dataset="digits", network="mlp", **fields)
  changed.network_options = {}
  with pytest.raises(ValueError, match=message):
    train.train(changed, tmp_path, progress=False)
  assert jax.device_count() < 64


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    (dict(learning_rate=float("nan")), "learning_rate must be more than 0"),
    (dict(learning_rate=float("inf")), "learning_rate is a finite number"),
    (dict(learning_rate=0.0), "learning_rate must be more than 0, got 0"),
    (dict(steps=-1), "steps must be at least 0, got -1"),
    (dict(warmup_steps=-1), "warmup_steps must be at least 0"),
    (dict(batch_size=0), "batch_size must be at least 1, got 0"),
    (dict(ema=1.0), "ema must be less than 1, got 1"),
    (dict(sigma_data=-0.5), "sigma_data must be at least 0"),
    (dict(clip_norm=float("nan")), "clip_norm must be more than 0"),
    (dict(accumulate=0), "accumulate must be at least 1"),
    (dict(log_every=0), "log_every must be at least 1"),
    (dict(seed=2**32), "seed must be less than"),
    (dict(optimizer_options=dict(weight_decay=-1.0)), "weight_decay must be"),
    (dict(learning_rates=dict(fake_optimizer=-1.0)), "fake_optimizer must be"),
  ],
)
def test_numbers_that_no_training_can_have_are_refused(fields, said, tmp_path):
  """By both scripts, before the working directory is made."""
  recipe.check(base.get_config())
  wrong = base.get_config()
  wrong.update(fields)
  for script in (train.train, distill.distil):
    with pytest.raises(ValueError, match=f"config.*{said}"):
      script(wrong, tmp_path / "run")
  assert not (tmp_path / "run").exists()

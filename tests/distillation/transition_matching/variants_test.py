"""Contracts of all variants of transition matching."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import distillation
from jaxdiff import tree
from jaxdiff.distillation.transition_matching import artm
from jaxdiff.distillation.transition_matching import dtm
from jaxdiff.distillation.transition_matching import fhtm
from jaxdiff.distillation.transition_matching import kernels
from tests.distillation import cases


@pytest.mark.parametrize("variant", ["artm", "fhtm"])
def test_no_token_sees_itself_or_a_later_one(variant):
  model = cases.chain(variant, steps=2)
  first = model.tokens if variant == "artm" else 0
  length = model.network.length
  base = np.random.default_rng(1).standard_normal((1, length, 4))
  moved, j = base.copy(), first + 2
  moved[:, j] += 1.0  # token j is seen by the features of places >= j
  both = np.concatenate([base, moved]).astype(np.float32)
  h = cases.chain_features(model, both, np.zeros(2, np.float32))
  np.testing.assert_array_equal(h[0, :j], h[1, :j])
  assert np.all(abs(h[0, j:] - h[1, j:]).max(-1) > 1e-5)
  later = kernels.shifted(both)
  np.testing.assert_array_equal(later[:, 1:], both[:, :-1])
  assert not later[:, 0].any()


@pytest.mark.parametrize("variant", ["artm", "fhtm"])
def test_sampling_with_a_cache_is_sampling_without(variant, x64):
  """Every token anew from the whole sequence so far, with the same noise."""
  model = cases.chain(
    variant, shape=(3, 2), token=(1, 2), steps=2, num_classes=2
  )
  label, like = np.asarray([1, 0]), jax.ShapeDtypeStruct((2, 3, 2), float)
  draw = {"artm": artm, "fhtm": fhtm}[variant].draw
  key = jax.random.key(5)
  found = jax.jit(
    lambda key: draw(key, model, like, label, steps=2, head_steps=2)
  )(key)

  features = jax.jit(lambda s, c: model.apply("features", s, c, label))
  normal = jax.jit(lambda key: tree.normal(key, like))
  one = jax.ShapeDtypeStruct((2, 1, 2), float)
  token = jax.jit(
    lambda key, i, h: kernels.flow_sample(
      jax.random.fold_in(key, i), kernels.velocity(model, h), one, 2
    )
  )

  def written(key, read, count, tau):
    tokens = np.zeros((2, count, 2))
    for i in range(count):
      shifted = np.pad(tokens, ((0, 0), (1, 0), (0, 0)))[:, :-1]
      sequence = np.concatenate([read, shifted], axis=1)
      h = features(sequence, np.full(2, tau))[:, read.shape[1] + i]
      tokens[:, i] = token(key, i, h[:, None])[:, 0]
    return tokens

  if variant == "fhtm":
    expected = written(key, np.zeros((2, 0, 2)), 6, 0.0)[:, 3:]
  else:
    start, walk = jax.random.split(key)
    expected = np.asarray(normal(start))
    for t in range(2):
      read = expected / np.hypot(1 - t / 2, t / 2)
      expected = written(jax.random.fold_in(walk, t), read, 3, t / 2)
      expected = expected * np.hypot((1 - t) / 2, (t + 1) / 2)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("variant", ["dtm", "artm", "fhtm"])
def test_what_the_head_learns_has_unit_variance(variant):
  model = cases.chain(variant, shape=(2,), token=(1,), steps=3, data_std=0.5)
  x = 0.5 * np.random.default_rng(0).standard_normal((4000, 2))
  learn = {"dtm": dtm, "artm": artm, "fhtm": fhtm}[variant].learn
  both = lambda key: learn(key, model, jnp.asarray(x), None, None)
  target = jax.jit(lambda key: both(key)[1])(jax.random.key(1))
  h, _ = jax.eval_shape(both, jax.random.key(1))
  assert h.shape == (4000, 6 if variant == "fhtm" else 2, 8)
  assert h.shape[:2] == target.shape[:2]
  np.testing.assert_allclose(np.std(target, (0, 2)), 1.0, atol=0.05)


@pytest.mark.parametrize("variant", ["dtm", "artm", "fhtm"])
@pytest.mark.slow
def test_labels_training_and_guided_sampling(variant):
  model = cases.chain(variant, steps=2, num_classes=3)
  method = distillation.transition_matching(model, optimizer=optax.adam(1e-2))
  state = distillation.init_state(jax.random.key(1), method)
  update = distillation.make_update(method)
  x = jax.random.normal(jax.random.key(2), (8, 4, 4, 1))
  batch, seen = {"image": x, "label": jnp.arange(8) % 3}, []
  for _ in range(60):
    state, metrics = update(state, batch)
    seen.append(float(metrics["loss"]))
  assert np.mean(seen[-10:]) < 0.7 * np.mean(seen[:5])
  draw = lambda n: distillation.sample_transitions(
    jax.random.key(3),
    method.finished(state),
    n,
    head_steps=3,
    label=1,
    guidance=2.0,
  )
  assert draw(5).shape == (5, 4, 4, 1)
  np.testing.assert_allclose(draw(5)[:2], draw(2), rtol=1e-4, atol=1e-5)

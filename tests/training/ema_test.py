"""Averages of parameters: profiles, widths, and averages made afterwards."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import checkpoints
from jaxdiff import training
from jaxdiff.training import ema


def density(sigma_rel, steps, whole):
  """The power profile at 1..whole of an average taken at `steps`."""
  gamma, k = ema.exponent(sigma_rel), np.arange(1, whole + 1)
  return np.where(k <= steps, (gamma + 1) / steps * (k / steps) ** gamma, 0)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25, 12**-0.5])
def test_the_width_of_a_power_profile_is_its_name(sigma_rel):
  k = (np.arange(200_000) + 0.5) / 200_000
  p = (ema.exponent(sigma_rel) + 1) * k ** ema.exponent(sigma_rel) / len(k)
  mean = (p * k).sum()
  np.testing.assert_allclose(
    np.sqrt((p * (k - mean) ** 2).sum()), sigma_rel, rtol=1e-4
  )


def test_the_recursion_has_the_power_profile_as_its_weights():
  """Fed with unit impulses; the sum over updates stands for the integral."""
  steps = 400
  run = lambda profile: np.array(
    jax.lax.fori_loop(
      1,
      steps + 1,
      lambda k, mean: ema.average(
        profile, jnp.float32(k), mean, jnp.eye(steps)[k - 1]
      ),
      jnp.full(steps, 7.0),  # the start is forgotten altogether
    )
  )
  found = run(ema.power(0.1))
  np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-4)
  expected = density(0.1, steps, steps)
  np.testing.assert_allclose(found, expected, atol=0.02 * expected.max())
  mean = run(ema.power(12**-0.5))
  np.testing.assert_allclose(mean, 1 / steps, rtol=1e-3)


@pytest.mark.parametrize(
  ("sigma_rel", "error"), [(0.05, 1e-6), (0.07, 0.02), (0.15, 0.03)]
)
def test_snapshots_make_up_other_widths(sigma_rel, error):
  """Widths that were kept come back as they are; those between nearly so."""
  whole = 1000
  stored = [(s, t) for t in range(100, whole + 1, 100) for s in (0.05, 0.1)]
  weights = ema.weights(stored, sigma_rel, whole)
  np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-9)
  made = sum(w * density(s, t, whole) for w, (s, t) in zip(weights, stored))
  wanted = density(sigma_rel, whole, whole)
  assert np.linalg.norm(made - wanted) < error * np.linalg.norm(wanted)


def test_an_average_made_afterwards_is_the_one_that_was_not_kept(tmp_path):
  """Of a run whose parameters wander: 0.07 from snapshots of 0.05 and 0.1."""
  widths = (0.05, 0.1)
  draw = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
  path = jnp.cumsum(jnp.asarray(draw), axis=0)
  profiles = tuple(map(ema.power, (*widths, 0.07)))

  def loss(key, params, batch):
    return jnp.sum((params["w"] - batch["image"][0]) ** 2), {}

  optimizer = optax.sgd(0.5)  # straight to the image
  state = training.init_state(
    jax.random.key(0), dict(w=jnp.zeros(3)), optimizer, averages=3
  )
  update = training.make_update(
    loss, optimizer, averages=profiles, clip_norm=None
  )
  opened = training.open_snapshots(tmp_path, widths)
  for k, image in enumerate(path, 1):
    state, _ = update(state, dict(image=image[None]))
    if k % 40 == 0:
      opened.save(k, dict(averages=state.averages[:2]))
  opened.close()
  template = dict(w=jax.ShapeDtypeStruct((3,), jnp.float32))
  made = training.reconstruct(tmp_path, template, 0.07)
  wanted, spread = state.averages[2]["w"], np.std(path, axis=0)
  assert (abs(made["w"] - wanted) < 0.01 * spread).all()
  assert (abs(state.averages[1]["w"] - wanted) > 0.01 * spread).any()
  early = training.reconstruct(tmp_path, template, 0.07, step=200)
  assert (abs(early["w"] - path[120:200].mean(0)) < spread).all()
  with pytest.raises(ValueError, match="no snapshot at step 7; it has 40, 80"):
    training.reconstruct(tmp_path, template, 0.07, step=7)
  with pytest.raises(ValueError, match=r"widths \[0.05, 0.1\], but \[0.2\]"):
    training.open_snapshots(tmp_path, (0.2,))
  with pytest.raises(FileNotFoundError, match="config.averages"):
    training.reconstruct(tmp_path / "none", template, 0.07)


def half(dtype, player=False):
  """Updates that add 0.01 to 16-bit parameters; (state, update, path)."""
  loss = lambda key, p, *rest: (-jnp.sum(p["w"].astype(jnp.float32)), {})
  optimizer, params = optax.sgd(1e-2), {"w": jnp.ones((4,), dtype)}
  options = dict(ema=0.999, ema_warmup=False)
  if not player:
    state = training.init_state(jax.random.key(0), params, optimizer)
    return state, training.make_update(
      loss, optimizer, clip_norm=None, **options
    )
  seen = lambda key, p, nets, batch: (
    loss(key, p)[0] + 0 * jnp.sum(nets["ema"]["w"]),
    {"average": nets["ema"]["w"].astype(p["w"].dtype)},
  )
  players = {"student": training.Player(seen, optimizer, clip_norm=None)}
  state = training.alternating.init_state(
    jax.random.key(0), players, {"student": params}
  )
  return state, training.alternating.make_update(players, **options)


@pytest.mark.parametrize("player", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_an_average_of_16_bits_moves_as_in_float64(dtype, player):
  state, update = half(dtype, player)
  mean = 1.0
  for _ in range(50):
    state, metrics = update(state, {"image": jnp.zeros((2, 1))})
    mean += 1e-3 * (float(state.params["w"][0]) - mean)
  assert state.params["w"].dtype == dtype
  assert state.ema_params["w"].dtype == jnp.float32
  np.testing.assert_allclose(state.ema_params["w"] - 1, mean - 1, rtol=1e-4)
  used = ema.parameters(state.ema_params, state.params)
  assert used["w"].dtype == dtype


def test_the_second_moment_of_16_bit_gradients_moves():
  """Adam's average of g^2 = 1 is 1 - 0.999^n, which bfloat16 stops short."""
  loss = lambda key, p, batch: (jnp.sum(p["w"].astype(jnp.float32)), {})
  optimizer = optax.adam(1e-3)
  params = {"w": jnp.ones(2, jnp.bfloat16)}
  state = training.init_state(jax.random.key(0), params, optimizer)
  update = training.make_update(loss, optimizer, clip_norm=None)
  shapes = jax.tree.map(lambda v: (v.shape, v.dtype), state.opt_state)
  for _ in range(300):
    state, _ = update(state, {"image": jnp.zeros((2, 1))})
  assert shapes == jax.tree.map(lambda v: (v.shape, v.dtype), state.opt_state)
  np.testing.assert_allclose(
    optax.tree.get(state.opt_state, "nu")["w"], 1 - 0.999**300, rtol=1e-5
  )


def test_averages_that_were_kept_in_16_bits_are_restored(tmp_path):
  state, _ = half(jnp.bfloat16)
  old = {"w": jnp.full((4,), 1.5, jnp.bfloat16)}
  opened = checkpoints.open(tmp_path)
  opened.save(1, state._replace(ema_params=old), wait=True)
  back, _ = opened.restore(state)
  opened.close()
  assert back.ema_params["w"].dtype == jnp.float32
  np.testing.assert_array_equal(back.ema_params["w"], 1.5)
  opened = checkpoints.open(tmp_path / "wide")
  opened.save(1, state, wait=True)  # and 16-bit parameters from wide averages
  part, _ = opened.restore({"ema_params": old})
  opened.close()
  assert part["ema_params"]["w"].dtype == jnp.bfloat16


def test_what_a_late_update_gets_is_right_to_float32():
  """1 - (1 - 1 / k)^(gamma + 1) of a million updates, not a rounded 1 - d."""
  k = np.asarray([1.0, 10.0, 1e4, 1e6, 1.5e7])
  for sigma_rel in (0.05, 0.1, 12**-0.5):
    with np.errstate(divide="ignore"):
      right = -np.expm1((ema.exponent(sigma_rel) + 1) * np.log1p(-1 / k))
    one = lambda k, profile: ema.average(profile, k, 0 * k, 0 * k + 1)
    found = one(jnp.asarray(k, jnp.float32), ema.power(sigma_rel))
    np.testing.assert_allclose(found, right, rtol=1e-6)
  slow = ema.average(ema.exponential(1 - 1e-6, False), jnp.float32(5), 0.0, 1.0)
  np.testing.assert_allclose(slow, 1e-6, rtol=1e-6)


def test_decay_zero_copies_and_counters_have_no_average():
  old = {"w": jnp.float32(1e8), "count": jnp.int32(3), "on": jnp.asarray(False)}
  new = {"w": jnp.float32(0.1), "count": jnp.int32(9), "on": jnp.asarray(True)}
  found = ema.average(ema.exponential(0.0), jnp.float32(1), old, new)
  chex.assert_trees_all_equal(found, new)


def test_refusals_say_what_a_width_is():
  with pytest.raises(ValueError, match=r"\(0, 0.289\].*got 0.3"):
    ema.power(0.3)
  with pytest.raises(ValueError, match="the last is at 100"):
    ema.weights([(0.05, 100)], 0.05, 200)

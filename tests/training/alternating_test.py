"""Updates of several players: turns, rests, memory, the guard."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import training
from jaxdiff.training import alternating

PLAYER = lambda loss, **options: training.Player(
  loss, optax.sgd(0.1), **options
)


def _square(aim):
  return lambda key, params, nets, batch: (
    jnp.sum((params - aim(nets)) ** 2),
    {},
  )


def test_players_move_in_turn_and_see_each_other():
  fixed = 3.0
  players = {
    "fake": PLAYER(_square(lambda n: n["student"]), steps=4, clip_norm=None),
    "student": PLAYER(_square(lambda n: n["fake"] + n["fixed"])),
  }
  players["student"] = dataclasses.replace(players["student"], clip_norm=None)
  params = {"fake": jnp.asarray(0.0), "student": jnp.asarray(1.0)}
  state = alternating.init_state(jax.random.key(0), players, params)
  update = alternating.make_update(
    players, frozen={"fixed": jnp.asarray(fixed)}, ema=0.5, ema_warmup=False
  )
  fake, student, mean = 0.0, 1.0, 1.0
  for _ in range(3):
    state, metrics = update(state, {"image": jnp.zeros((2, 1))})
    for _ in range(4):
      fake -= 0.2 * (fake - student)
    student -= 0.2 * (student - fake - fixed)
    mean = 0.5 * mean + 0.5 * student
  assert float(state.loss_params["fake"]) == pytest.approx(fake, rel=1e-6)
  assert float(state.params) == pytest.approx(student, rel=1e-6)
  assert float(state.ema_params) == pytest.approx(mean, rel=1e-6)
  assert set(metrics) >= {"loss", "fake/loss", "grad_norm", "fake/grad_norm"}


@pytest.mark.parametrize("convolution", [False, True])
def test_inner_steps_are_a_loop_but_for_convolutions_on_a_cpu(convolution):
  """Their gradients in a loop's body are ten times slower there."""

  def loss(key, params, nets, batch):
    x = batch["image"]
    if convolution:
      x = jax.lax.conv(x, params, (1, 1), "SAME")
    return jnp.mean((x - params.sum()) ** 2), {}

  players = {"student": PLAYER(loss, steps=3)}
  params = {"student": jnp.ones((1, 1, 3, 3))}
  state = alternating.init_state(jax.random.key(0), players, params)
  update = alternating.make_update(players)
  batch = {"image": jnp.ones((2, 1, 4, 4))}
  text = update.program.lower({}, state, batch).as_text()
  assert ("stablehlo.convolution" in text) == convolution
  assert ("stablehlo.while" in text) != convolution


def test_steps_written_out_are_those_of_the_loop():
  """Each with its own key, and metrics over all of them."""

  def loss(key, params, nets, batch):
    aim = jax.random.normal(key, params.shape)
    return jnp.sum((params - aim) ** 2), dict(aim=aim.sum())

  ends = []
  for unroll in (False, True):
    players = {"student": PLAYER(loss, steps=3, unroll=unroll)}
    params = {"student": jnp.ones(4)}
    state = alternating.init_state(jax.random.key(0), players, params)
    update = alternating.make_update(players)
    state, said = update(state, {"image": jnp.zeros((2, 1))})
    ends.append((state.params, said))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends)


def test_a_step_that_the_optimizer_spoils_moves_nothing():
  """Loss and gradient are finite; the optimizer's own number is not."""
  broken = optax.sgd(lambda count: jnp.where(count == 1, jnp.nan, 0.1))
  loss = lambda key, params, nets, batch: (jnp.sum(params**2), {})
  players = {"student": training.Player(loss, broken)}
  params = {"student": jnp.ones(4)}
  state = alternating.init_state(jax.random.key(0), players, params)
  update = alternating.make_update(players)
  batch = {"image": jnp.zeros((2, 1))}
  state, said = update(state, batch)
  before = np.asarray(state.params)
  assert said["skipped"] == 0 and (before < 1).all()
  state, said = update(state, batch)
  assert said["skipped"] == 1
  np.testing.assert_array_equal(state.params, before)


def test_a_player_that_rests_keeps_its_parameters_and_its_momentum():
  players = {
    "fake": training.Player(
      _square(lambda n: n["student"]),
      optax.adam(0.1),
      when=lambda step: step >= 2,
    ),
    "student": PLAYER(_square(lambda n: 5.0)),
  }
  params = {"fake": jnp.asarray(0.0), "student": jnp.asarray(1.0)}
  state = alternating.init_state(jax.random.key(0), players, params)
  update = alternating.make_update(players)
  moved = []
  for _ in range(3):
    state, _ = update(state, {"image": jnp.zeros((2, 1))})
    moved.append(float(state.loss_params["fake"]))
  assert moved[:2] == [0.0, 0.0]
  assert moved[2] == pytest.approx(0.1, rel=1e-3)


def test_one_player_is_training_as_usual():
  def plain(key, params, batch):
    noise = jax.random.normal(key, batch["image"].shape)
    return jnp.mean((params * batch["image"] - noise) ** 2), {}

  optimizer = optax.adam(0.1)
  # one key in every update of both, so that they see the same noise
  fixed = jax.random.key(1)
  players = {
    "student": training.Player(
      lambda key, params, nets, batch: plain(fixed, params, batch), optimizer
    )
  }
  start, batch = jnp.asarray(1.0), {"image": jnp.arange(6.0).reshape(3, 2)}
  one = alternating.init_state(fixed, players, {"student": start})
  other = training.init_state(fixed, start, optimizer)
  update = alternating.make_update(players)
  usual = training.make_update(lambda k, p, b: plain(fixed, p, b), optimizer)
  for _ in range(3):
    one, said = update(one, batch)
    other, expected = usual(other, batch)
    assert float(one.params) == pytest.approx(float(other.params), rel=1e-6)
    for name in ("loss", "grad_norm", "param_norm", "skipped"):
      assert float(said[name]) == pytest.approx(float(expected[name]), rel=1e-5)
    np.testing.assert_array_equal(said["fault"], expected["fault"])
  assert float(one.ema_params) == pytest.approx(float(other.ema_params))


def test_memory_goes_from_update_to_update(compiled):
  players = {"student": PLAYER(_square(lambda n: n["memory"]["seen"]))}
  state = alternating.init_state(
    jax.random.key(0),
    players,
    {"student": jnp.full((), 2.0, jnp.float32)},
    memory={"seen": 0.0},
  )
  update = alternating.make_update(
    players,
    remember=lambda memory, metrics, nets: {"seen": memory["seen"] + 1.0},
  )
  for _ in range(3):
    state, _ = update(state, {"image": jnp.zeros((2, 1))})
  assert float(state.loss_params["memory"]["seen"]) == 3.0
  assert compiled.count("jit(update)") == 1


def test_an_update_that_is_not_finite_changes_nothing_and_names_the_loss():
  def fails(key, params, nets, batch):
    return jnp.where(nets["step"] >= 1, jnp.nan, 1.0) * params**2, {}

  players = {"fake": PLAYER(fails), "student": PLAYER(_square(lambda n: 1.0))}
  params = {"fake": jnp.asarray(1.0), "student": jnp.asarray(0.0)}
  batches = data.batches({"image": np.zeros((4, 1), np.float32)}, 2, seed=0)
  with pytest.raises(FloatingPointError, match="update 2, where fake/loss"):
    training.train(
      alternating.init_state(jax.random.key(0), players, params),
      alternating.make_update(players),
      batches,
      steps=4,
      log_every=1,
      progress=False,
    )


def test_a_diverging_loss_is_named_and_not_saved(tmp_path):
  from jaxdiff import checkpoints

  grows = lambda key, p, nets, batch: (-jnp.sum(p**2), {})
  players = {
    "fake": training.Player(grows, optax.sgd(1.0), clip_norm=None),
    "student": PLAYER(_square(lambda n: 1.0)),
  }
  params = {"fake": jnp.asarray(0.1), "student": jnp.asarray(0.0)}
  batches = data.batches({"image": np.zeros((4, 1), np.float32)}, 2, seed=0)
  opened = checkpoints.open(tmp_path)
  try:
    with pytest.raises(FloatingPointError, match="fake/loss diverged") as e:
      training.train(
        alternating.init_state(jax.random.key(0), players, params),
        alternating.make_update(players),
        batches,
        steps=40,
        checkpoints=opened,
        every=2,
        log_every=1,
        guard=training.Guard(reports=1),
        progress=False,
      )
    last = opened.latest()
    assert f"holds step {last}" in str(e.value)
    held, _ = opened.restore({"loss_params": {"fake": jnp.zeros(())}})
    assert abs(float(held["loss_params"]["fake"])) ** 2 < 100
  finally:
    opened.close()


def test_players_and_parameters_have_the_same_names():
  players = {"student": PLAYER(_square(lambda n: 1.0))}
  with pytest.raises(ValueError, match="'student' is to be the main one"):
    alternating.init_state(jax.random.key(0), players, {"policy": 0.0})
  with pytest.raises(ValueError, match="'ema' cannot name"):
    alternating.make_update(players, frozen={"ema": 1.0})
  with pytest.raises(ValueError, match="at least one step"):
    PLAYER(_square(lambda n: 1.0), steps=0)


def player(loss, rate=0.1, **options):
  said = lambda key, params, nets, batch: (loss(params, nets), {})
  return training.Player(said, optax.sgd(rate), **options)


def batches():
  return data.batches({"image": np.zeros((4, 1), np.float32)}, 2, seed=0)


def begin(players, memory=None, **params):
  return alternating.init_state(
    jax.random.key(0), players, params, memory=memory
  )


def test_what_began_as_a_number_does_not_compile_the_second_update(compiled):
  players = {"student": player(lambda p, n: (p - n["memory"]["seen"]) ** 2)}
  remember = lambda memory, metrics, nets: {
    "seen": 0.9 * memory["seen"] + 0.1 * metrics["loss"]
  }
  state = begin(players, {"seen": 0.0}, student=1.0)
  update = alternating.make_update(players, remember=remember)
  for _ in range(3):
    state, _ = update(state, next(batches()))
  assert compiled.count("jit(update)") == 1


def test_what_is_remembered_has_a_place_in_the_state():
  players = {"student": player(lambda p, n: p**2)}
  batch = next(batches())
  for memory, returned in (
    (None, {"seen": 0.0}),
    ({"seen": 0.0}, {}),
    ({"seen": 0}, {"seen": 0.5}),
    ({"seen": 0.0}, {"seen": jnp.zeros(2)}),
  ):
    update = alternating.make_update(
      players, remember=lambda *_, returned=returned: returned
    )
    with pytest.raises(ValueError, match="remember returned .* in memory="):
      update(begin(players, memory, student=1.0), batch)


def test_averages_that_the_state_does_not_keep_are_named():
  players = {"student": player(lambda p, n: p**2)}
  profile = training.ema.power(0.1)
  update = alternating.make_update(players, averages=(profile,))
  with pytest.raises(ValueError, match="keeps 0 averages, .* has 1 profiles"):
    update(begin(players, student=1.0), next(batches()))


def test_frozen_models_lie_where_the_update_runs():
  players = {"student": player(lambda p, n: (p - n["aim"][0]) ** 2)}
  update = alternating.make_update(players, frozen={"aim": np.ones(3)})
  assert all(isinstance(v, jax.Array) for v in jax.tree.leaves(update.frozen))


def test_of_several_broken_losses_the_first_one_is_named():
  """In the order of the players, which is not that of the alphabet."""
  players = {
    "velocity": player(lambda p, n: p * jnp.where(n["step"] > 0, jnp.nan, 1.0)),
    "fake": player(lambda p, n: p * n["velocity"]),
    "student": player(lambda p, n: p * n["fake"]),
  }
  state = begin(players, velocity=1.0, fake=1.0, student=1.0)
  update = alternating.make_update(players)
  assert update.losses == ("velocity/loss", "fake/loss", "loss")
  run = lambda update: training.train(
    state, update, batches(), steps=3, log_every=1, progress=False
  )
  with pytest.raises(
    FloatingPointError, match="2, where velocity/loss was nan"
  ):
    run(update)
  players["velocity"] = player(lambda p, n: p)
  players["student"] = player(
    lambda p, n: p * jnp.where(n["step"] > 0, jnp.nan, 1.0)
  )
  state = begin(players, velocity=1.0, fake=1.0, student=1.0)
  with pytest.raises(FloatingPointError, match="update 2, where loss was nan"):
    run(alternating.make_update(players))


def test_losses_are_averaged_over_the_updates_in_which_their_player_moved():
  constant = lambda value: lambda p, n: 0.0 * p + value
  players = {
    "fake": player(constant(5.0)),
    "late": player(constant(7.0), when=lambda step: step >= 4),
    "student": player(constant(3.0), when=lambda step: step % 2 == 1),
  }
  reports = []
  training.train(
    begin(players, fake=0.0, late=0.0, student=0.0),
    alternating.make_update(players),
    batches(),
    steps=8,
    log_every=4,
    on_metrics=lambda step, m: reports.append(m),
    progress=False,
  )
  assert [m["loss"] for m in reports] == [3.0, 3.0]
  assert [m["moved"] for m in reports] == [0.5, 0.5]
  assert [m["fake/loss"] for m in reports] == [5.0, 5.0]
  assert np.isnan(reports[0]["late/loss"]) and reports[1]["late/loss"] == 7.0
  assert reports[0]["skipped"] == 0.0


def test_a_player_that_begins_late_is_measured_by_its_own_beginning():
  """Its rest is no loss of 0: 90 is not nine thousand times the least."""
  players = {
    "fake": player(lambda p, n: p**2),
    "student": player(lambda p, n: 90.0 + p**2, when=lambda s: s >= 6),
  }
  state = training.train(
    begin(players, fake=1.0, student=1.0),
    alternating.make_update(players),
    batches(),
    steps=10,
    log_every=1,
    guard=training.Guard(reports=2),
    progress=False,
  )
  assert int(state.step) == 10


def growing(tmp_path, steps, **options):
  """Runs a player whose loss grows ninefold with every update."""
  players = {
    "fake": player(lambda p, n: -(p**2), rate=1.0, clip_norm=None),
    "student": player(lambda p, n: p**2),
  }
  opened = checkpoints.open(tmp_path)
  try:
    return training.train(
      begin(players, fake=0.1, student=0.0),
      alternating.make_update(players),
      batches(),
      steps=steps,
      checkpoints=opened,
      guard=training.Guard(reports=2),
      progress=False,
      **options,
    )
  finally:
    opened.close()


def test_a_diverging_run_that_is_started_again_stops_where_it_stopped(tmp_path):
  """It does not take what it has come to for its usual loss."""
  said = []
  for _ in range(3):
    with pytest.raises(FloatingPointError) as e:
      growing(tmp_path, 40, every=1, log_every=1)
    said.append(str(e.value))
  assert len(set(said)) == 1
  # 9^(n - 1) / 100 in update n, .05 in the middle of the first two
  assert "fake/loss diverged" in said[0] and "first in update 5" in said[0]
  assert f"{tmp_path} holds step 4" in said[0]


def test_the_first_reports_are_looked_at_too(tmp_path):
  # the mean of nine updates is 9^8 / 800, a thousand times it is in the twelfth
  with pytest.raises(FloatingPointError, match="first in update 12"):
    growing(tmp_path, 40, every=100, log_every=9)


def test_a_run_that_is_stopped_is_looked_at_before_it_is_saved(tmp_path):
  class Stopping:
    """Sends a signal with batch 14: the loss is 9^13 / 100 then."""

    def __init__(self):
      self.iterator, self.count = batches(), 0
      self.get_state = self.iterator.get_state
      self.set_state = self.iterator.set_state

    def __next__(self):
      self.count += 1
      if self.count == 14:
        os.kill(os.getpid(), signal.SIGTERM)
      return next(self.iterator)

  players = {
    "student": player(lambda p, n: -(p**2), rate=1.0, clip_norm=None),
  }
  opened = checkpoints.open(tmp_path)
  try:
    with pytest.raises(FloatingPointError, match="loss diverged"):
      training.train(
        begin(players, student=0.1),
        alternating.make_update(players),
        Stopping(),
        steps=40,
        checkpoints=opened,
        every=20,
        log_every=2,
        progress=False,
      )
  finally:
    opened.close()


def test_an_infinite_loss_that_was_skipped_is_told_and_is_no_divergence():
  players = {
    "student": player(
      lambda p, n: p**2 + jnp.where(n["step"] == 5, jnp.inf, 0.0)
    )
  }
  with pytest.warns(UserWarning, match="first was update 6"):
    state = training.train(
      begin(players, student=1.0),
      alternating.make_update(players),
      batches(),
      steps=8,
      log_every=2,
      guard=training.Guard(reports=1),
      progress=False,
    )
  assert int(state.step) == 8

"""Whole updates of distillation: on devices, through stops, as runs on disk."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import models
from jaxdiff import sampling
from jaxdiff import training
from jaxdiff.training import alternating
from tests import virtual_devices
from tests.distillation import run as distillation_run


def launch(*arguments, devices=1):
  return subprocess.Popen(
    [sys.executable, "-m", distillation_run.__name__, *map(str, arguments)],
    env=virtual_devices.environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


# --- devices ------------------------------------------------------------------


@pytest.mark.slow
def test_an_update_is_the_same_on_every_mesh_and_each_device_does_its_part():
  process = launch(1, 2, "2s", 4, "4s", devices=4)
  out, said = process.communicate(timeout=500)
  assert process.returncode == 0, said[-3000:]
  one, *others = json.loads(out)
  assert len({loss for pair in one["losses"] for loss in pair}) == 6
  for other in others:
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(other["memory"], one["memory"], rtol=1e-5)
    # a generator without data: both players draw the rows of their device
    rows = distillation_run.BATCH // other["devices"]
    assert other["rows"] == [rows] * 2
    # and nothing as long as the batch is made on any device, in any place
    assert other["whole"] == 0
    if other["sharded"]:
      assert other["share"] < 1.2 / other["devices"]  # biases are copied
    else:
      assert other["share"] == 1.0
  assert one["whole"] > 0


# --- stops --------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  return distillation_run.main(tmp_path_factory.mktemp("whole"), 9, every=9)


def test_a_resumed_distillation_is_bit_identical(
  tmp_path, undisturbed, compiled
):
  """Both players, both optimizers, the average and what is remembered."""
  for steps in (2, 5, 9):
    found = distillation_run.main(tmp_path, steps, every=4)
  assert found == undisturbed
  assert "jit(update)" not in compiled


def test_the_state_holds_all_that_a_run_goes_on_from(tmp_path):
  """A leaf that is not restored would go on from its beginning."""
  found, update = distillation_run.program()
  start = lambda: distillation.init_state(jax.random.key(1), found)
  state = start()
  iterator = distillation_run.batches()
  for _ in range(3):
    state, _ = update(state, next(iterator))
  opened = checkpoints.open(tmp_path)
  opened.save(3, state, wait=True)
  restored, _ = opened.restore(start())
  opened.close()
  assert int(restored.loss_params["memory"]["updates"]) == 3
  chex.assert_trees_all_equal(
    restored._replace(key=()),
    state._replace(key=()),
  )
  moved = jax.tree.map(
    lambda a, b: bool(np.any(a != b)),
    restored._replace(key=()),
    start()._replace(key=()),
  )
  # Adam's first moment is not there at b1 = 0, everything else has moved
  still = [
    jax.tree_util.keystr(path)
    for path, v in jax.tree_util.tree_leaves_with_path(moved)
    if not v and ".mu" not in jax.tree_util.keystr(path)
  ]
  assert still == []


@pytest.mark.slow
def test_a_killed_distillation_ends_bit_identical(tmp_path, undisturbed):
  draw = random.Random(0)
  for _ in range(2):
    process = launch(tmp_path, 9, 0.3)
    metrics = tmp_path / "checkpoints"
    before = len(list(metrics.glob("[0-9]*")))
    while process.poll() is None:
      if len(list(metrics.glob("[0-9]*"))) > before:
        break
      time.sleep(0.05)
    time.sleep(draw.uniform(0.0, 0.5))
    process.kill()
    process.communicate()
  process = launch(tmp_path, 9, 0.0)
  out, said = process.communicate(timeout=200)
  assert out.strip() == undisturbed, said[-3000:]


# --- tiny players, whose numbers are known ------------------------------------


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


# --- the guard ----------------------------------------------------------------


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


# --- runs on disk -------------------------------------------------------------


def test_a_student_that_jumps_is_read_back_from_its_run(tmp_path):
  """Its averaged and its last parameters, as the model that was trained."""
  config = models.ModelConfig(
    shape=(4,),
    network="mlp",
    network_options=dict(features=(8,), embedding=8),
    process="edm",
    process_options=dict(sigma_min=0.02, sigma_max=20.0),
  )
  teacher = models.make_denoiser(config, jax.random.key(0))
  student = distillation.student_of(
    jax.random.key(1), teacher, config.shape, jumps=True
  )
  players = {
    "student": training.Player(
      lambda key, params, nets, batch: (optax.tree.norm(params) ** 2, {}),
      optax.sgd(0.1),
    )
  }
  method = distillation.Method(student, players)
  models.save_config(tmp_path, dataclasses.replace(config, jumps=True))
  opened = checkpoints.open(tmp_path)
  state = training.train(
    distillation.init_state(jax.random.key(2), method),
    distillation.make_update(method),
    distillation_run.batches(),
    steps=2,
    checkpoints=opened,
    progress=False,
  )
  opened.close()
  grid = grids.karras(student.process, 2, to_zero=True)
  x = student.process.prior(jax.random.key(3), (5, 4))

  def draw(model):
    model, table = distillation.sampler(model, grid, gamma=0.5)
    return sampling.sample(jax.random.key(4), model, table, x)

  for ema in (True, False):
    loaded = training.load_denoiser(tmp_path, ema=ema)
    assert loaded.jumps
    np.testing.assert_array_equal(
      draw(loaded), draw(method.finished(state, ema=ema))
    )

"""A method as a run: few-step sampling, meshes, stops, runs on disk."""

import dataclasses
import json
import random
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
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import models
from jaxdiff import sampling
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.distillation.parts import consistency
from tests import virtual_devices
from tests.distillation import cases
from tests.distillation import run as distillation_run


def test_the_sampler_with_gamma_one_is_that_of_consistency_models(x64):
  """x <- f(x, t), then noise of variance t'^2 - t_min^2, by the same keys."""
  student = cases.network(cases.EDM, jumps=True)
  grid = np.asarray([20.0, 3.0, 0.5, 0.02])
  x = cases.EDM.prior(jax.random.key(0), (3, 2), dtype=jnp.float64)
  model, table = distillation.sampler(student, grid, gamma=1.0)
  found = sampling.sample(jax.random.key(1), model, table, x)
  for i, (t, after) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
    key = jax.random.fold_in(sampling.stream(jax.random.key(1)), i)
    z = tree.normal(jax.random.fold_in(key, 1), x)
    x = consistency.function(student, x, jnp.full(3, t))
    x = x + np.sqrt(after**2 - 0.02**2) * z
  np.testing.assert_allclose(found, x, rtol=1e-10)


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_few_steps_spend_no_call_without_noise(name):
  process = cases.PROCESSES[name]
  whole = distillation.few_step_grid(process, 4)
  assert whole.shape == (5,)
  assert whole[0] == process.t_max
  assert whole[-1] == process.t_zero
  np.testing.assert_allclose(whole[:-1], grids.karras(process, 4)[:-1])
  ends = distillation.few_step_grid(process, 1, start=4.0, to_zero=False)
  np.testing.assert_allclose(ends, [process.time_at(4.0), process.t_min])
  high = distillation.few_step_grid(process, 3, start=4.0, lowest=0.8)
  levels = process.noise_level(high[:-1])
  np.testing.assert_allclose(levels[[0, -1]], [4.0, 0.8], rtol=1e-6)
  assert 0.8 < levels[1] < 4.0
  assert high[-1] == process.t_zero


def launch(*arguments, devices=1):
  return subprocess.Popen(
    [sys.executable, "-m", distillation_run.__name__, *map(str, arguments)],
    env=virtual_devices.environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


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

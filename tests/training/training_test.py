"""Training: one update, the loop, and runs that are stopped and go on."""

import csv
import dataclasses
import gc
import itertools
import os
import pathlib
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
from jaxdiff import models
from jaxdiff import training
from jaxdiff import zoo
from tests import ROOT
from tests.training import run as training_run


def quadratic(key, params, batch):
  """A loss with known gradients; its noise comes from the key."""
  value = 0.5 * jnp.sum((params["w"] - batch["image"]) ** 2)
  return value, dict(draw=jax.random.uniform(key))


def start(learning_rate=0.1, **options):
  optimizer = optax.sgd(learning_rate)
  params = dict(w=jnp.ones(3))
  state = training.init_state(jax.random.key(0), params, optimizer)
  return state, training.make_update(quadratic, optimizer, **options)


def test_an_update_is_one_program_that_donates_its_state(compiled):
  training_run.program.cache_clear()
  state, update, iterator = training_run.parts()
  before = state
  for _ in range(3):
    state, _ = update(state, next(iterator))
  assert compiled.count("jit(update)") == 1
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
  assert int(state.step) == 3


def test_the_callers_parameters_outlive_the_donation():
  params, key = dict(w=jnp.ones(3)), jax.random.key(0)
  optimizer = optax.adam(0.1)
  update = training.make_update(quadratic, optimizer)
  update(training.init_state(key, params, optimizer), dict(image=jnp.zeros(3)))
  np.testing.assert_array_equal(params["w"], 1.0)
  jax.random.normal(key)


def test_the_average_has_its_closed_form():
  # gradient 0, then params move by -0.1 each update
  state, update = start(ema=0.9, ema_warmup=False, clip_norm=None)
  expected = path = np.ones(3)
  for _ in range(4):
    state, _ = update(state, dict(image=jnp.zeros(3)))
    path = 0.9 * path
    expected = 0.9 * expected + 0.1 * path
  np.testing.assert_allclose(state.params["w"], path, rtol=1e-6)
  np.testing.assert_allclose(state.ema_params["w"], expected, rtol=1e-6)


def test_the_warmed_up_average_forgets_the_start():
  state, update = start(0.5, ema=0.999)
  for step in range(30):
    weight = (1 + step) / (10 + step)
    previous = np.asarray(state.ema_params["w"])
    state, _ = update(state, dict(image=jnp.zeros(3)))
    np.testing.assert_allclose(
      state.ema_params["w"],
      weight * previous + (1 - weight) * np.asarray(state.params["w"]),
      atol=1e-6,
    )
  assert np.abs(state.ema_params["w"]).max() < 0.01


def test_the_warm_up_ends_at_the_decay_asked_for():
  state, update = start(0.5, ema=0.2)
  for step in range(5):
    weight = min(0.2, (1 + step) / (10 + step))
    previous = np.asarray(state.ema_params["w"])
    state, _ = update(state, dict(image=jnp.zeros(3)))
    np.testing.assert_allclose(
      state.ema_params["w"],
      weight * previous + (1 - weight) * np.asarray(state.params["w"]),
      atol=1e-6,
    )


def test_the_gradient_is_clipped_to_its_norm():
  state, update = start(1.0, clip_norm=0.3)
  state, metrics = update(state, dict(image=jnp.full(3, -9.0)))
  np.testing.assert_allclose(metrics["grad_norm"], 10 * np.sqrt(3), rtol=1e-6)
  moved = np.linalg.norm(np.asarray(state.params["w"]) - 1.0)
  np.testing.assert_allclose(moved, 0.3, rtol=1e-5)
  np.testing.assert_allclose(
    metrics["param_norm"], np.linalg.norm(state.params["w"]), rtol=1e-6
  )


def test_an_update_that_is_not_finite_changes_nothing_and_says_so():
  state, update = start()
  state, metrics = update(state, dict(image=jnp.full(3, jnp.nan)))
  assert metrics["skipped"] == 1.0
  np.testing.assert_array_equal(state.params["w"], 1.0)
  np.testing.assert_array_equal(state.ema_params["w"], 1.0)
  state, metrics = update(state, dict(image=jnp.zeros(3)))
  assert metrics["skipped"] == 0.0
  assert int(state.step) == 2


@pytest.mark.parametrize("broken", ["value", "gradient"])
def test_a_loss_or_a_gradient_alone_is_enough_to_skip(broken):
  """The memory of the optimizer is left as it was too."""

  def loss(key, params, batch):
    value = jnp.sum(params["w"] ** 2)
    if broken == "value":
      return value + batch["image"], {}
    zero = params["w"] - jax.lax.stop_gradient(params["w"])
    return value + jnp.where(batch["image"] > 0, jnp.sqrt(zero), 0).sum(), {}

  optimizer = optax.adam(0.1)
  state = training.init_state(jax.random.key(0), dict(w=jnp.ones(3)), optimizer)
  update = training.make_update(loss, optimizer)
  state, metrics = update(state, dict(image=jnp.float32(0.0)))
  if broken == "value":
    assert metrics["skipped"] == 0.0
  before = jax.device_get((state.params, state.opt_state, state.ema_params))
  state, metrics = update(state, dict(image=jnp.float32(jnp.inf)))
  assert metrics["skipped"] == 1.0
  assert np.isfinite(metrics["loss"]) == (broken == "gradient")
  assert np.isfinite(metrics["grad_norm"]) == (broken == "value")
  after = jax.device_get((state.params, state.opt_state, state.ema_params))
  chex.assert_trees_all_equal(after, before)


def test_a_change_that_the_optimizer_spoils_is_skipped_too():
  """And a run that made no finite one ends in an error, however short."""
  optimizer = optax.adam(float("nan"))
  loss = lambda key, params, batch: (jnp.sum(params["w"] ** 2), {})
  begin = lambda: training.init_state(
    jax.random.key(0), dict(w=jnp.ones(3)), optimizer
  )
  update = training.make_update(loss, optimizer)
  state, metrics = update(begin(), dict(image=jnp.zeros(3)))
  assert metrics["skipped"] == 1.0
  np.testing.assert_array_equal(state.params["w"], 1.0)
  with pytest.raises(FloatingPointError, match="optimizer made of a finite"):
    training.train(
      begin(),
      update,
      itertools.repeat(dict(image=np.zeros(3, np.float32))),
      steps=3,
      log_every=50,
      progress=False,
    )


def test_every_update_has_its_own_key():
  state, update = start()
  draws = []
  for _ in range(3):
    state, metrics = update(state, dict(image=jnp.zeros(3)))
    draws.append(float(metrics["draw"]))
  expected = [
    float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), i)))
    for i in range(3)
  ]
  assert draws == expected


def test_a_loss_falls_where_there_is_something_to_learn():
  state, update, _ = training_run.parts()
  point = dict(image=np.ones((16, 2), np.float32), label=np.zeros(16, np.int32))
  seen = []
  training.train(
    state,
    update,
    itertools.repeat(point),
    steps=600,
    log_every=60,
    on_metrics=lambda step, m: seen.append((step, m["loss"])),
    progress=False,
  )
  assert [step for step, _ in seen] == list(range(60, 601, 60))
  assert seen[-1][1] < 0.5 * seen[0][1]


def test_a_report_averages_the_updates_since_the_last_one():
  """Also the last one, which may come early."""
  state, update = start()
  seen = []
  training.train(
    state,
    update,
    itertools.repeat(dict(image=jnp.zeros(3))),
    steps=8,
    log_every=3,
    on_metrics=lambda step, m: seen.append((step, m["draw"])),
    progress=False,
  )
  draws = [
    float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), i)))
    for i in range(8)
  ]
  assert [step for step, _ in seen] == [3, 6, 8]
  parts = [draws[:3], draws[3:6], draws[6:]]
  np.testing.assert_allclose(
    [mean for _, mean in seen], [np.mean(part) for part in parts], rtol=1e-6
  )


def test_the_last_update_is_saved_whatever_the_interval(tmp_path):
  state, update, iterator = training_run.parts()
  opened = checkpoints.open(tmp_path)
  training.train(
    state,
    update,
    iterator,
    steps=5,
    checkpoints=opened,
    every=2,
    progress=False,
  )
  assert opened.latest() == 5
  opened.close()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  """The digest of a run of 40 updates that nothing stopped."""
  return training_run.main(tmp_path_factory.mktemp("whole"), 40, 0.0, every=7)


def test_a_resumed_run_is_bit_identical(tmp_path, uninterrupted):
  for steps in (3, 17, 40):
    found = training_run.main(tmp_path, steps, 0.0, every=5)
  assert found == uninterrupted


def test_a_resumed_run_does_not_compile_again(tmp_path, compiled):
  state, update, iterator = training_run.parts()
  opened = checkpoints.open(tmp_path)
  run = lambda state, steps: training.train(
    state, update, iterator, steps=steps, checkpoints=opened, progress=False
  )
  run(state, 2)
  fresh, _, _ = training_run.parts()
  compiled.clear()
  run(fresh, 4)
  opened.close()
  assert "jit(update)" not in compiled


@pytest.mark.parametrize(
  ("number", "error"),
  [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_saves_and_says_how_to_go_on(
  tmp_path, capsys, uninterrupted, number, error
):
  handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  state, update, iterator = training_run.parts()
  opened = checkpoints.open(tmp_path / "checkpoints")

  def stop(step, metrics):
    if step == 10:
      os.kill(os.getpid(), number)

  with pytest.raises(error) as stopped:
    training.train(
      state,
      update,
      iterator,
      steps=40,
      checkpoints=opened,
      log_every=5,
      on_metrics=stop,
      progress=False,
    )
  if error is SystemExit:  # what a shell reports of a program so ended
    assert stopped.value.code == 128 + number
  assert opened.latest() in (10, 11)
  opened.close()
  assert "run the same command again" in capsys.readouterr().err
  after = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  assert after == handlers
  assert training_run.main(tmp_path, 40, 0.0) == uninterrupted


def launch(directory):
  command = [
    sys.executable,
    "-m",
    training_run.__name__,
    str(directory),
    "40",
    "0.02",
  ]
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  return subprocess.Popen(
    command,
    env=os.environ | {"PYTHONPATH": path},
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


def kill_at_random(directory, draw):
  """Kills a run at a random moment after it has begun to write."""
  folder = directory / "checkpoints"
  before = set(os.listdir(folder)) if folder.is_dir() else set()
  process = launch(directory)
  deadline = time.monotonic() + 60
  while process.poll() is None and time.monotonic() < deadline:
    if folder.is_dir() and set(os.listdir(folder)) - before:
      break
    time.sleep(0.002)
  time.sleep(draw.uniform(0, 0.3))
  process.kill()
  process.communicate()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_bit_identical(tmp_path, uninterrupted, kills):
  # a checkpoint is written after every update: the kill meets a write
  draw = random.Random(kills)
  for _ in range(kills):
    kill_at_random(tmp_path, draw)
  process = launch(tmp_path)
  out, _ = process.communicate(timeout=120)
  assert out.strip() == uninterrupted
  with (tmp_path / "metrics.csv").open() as f:
    steps = [int(row["step"]) for row in csv.DictReader(f)]
  assert steps == sorted(set(steps))
  assert steps[-1] == 40


class Repeated:
  """The same batch for ever."""

  def __init__(self, batch):
    self.batch = batch

  def __next__(self):
    return self.batch


@pytest.mark.parametrize(
  ("sample", "message"),
  [
    ([[0.0], [np.nan]], "the first was update 1, whose batch has NaN .* 1"),
    ([[0.0], [-1.0]], "update 1, where the gradient of b was not finite"),
  ],
)
def test_a_run_of_nothing_but_nan_names_the_step_and_the_place(sample, message):
  def loss(key, params, batch):
    # the root has an infinite slope at 0, and no value below
    root = jnp.sqrt(params["b"] + jnp.minimum(batch["image"], 0.0).sum() + 1.0)
    return jnp.sum(params["a"] ** 2) + root, {}

  optimizer = optax.sgd(0.1)
  params = dict(a=jnp.ones(2), b=jnp.zeros(()))
  state = training.init_state(jax.random.key(0), params, optimizer)
  update = training.make_update(loss, optimizer, clip_norm=None)
  batch = dict(image=np.asarray(sample, np.float32))
  with pytest.raises(FloatingPointError, match=f"up to step 5.*{message}"):
    training.train(
      state, update, Repeated(batch), steps=20, log_every=5, progress=False
    )


def test_a_single_skipped_update_is_told_with_its_step():
  state, update = start()
  images = [jnp.zeros(3)] * 7
  images[3] = jnp.asarray([0.0, jnp.inf, 0.0])
  with pytest.warns(UserWarning, match="first was update 4, whose batch"):
    training.train(
      state,
      update,
      iter([dict(image=v) for v in images]),
      steps=7,
      log_every=7,
      progress=False,
    )


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
  loss = lambda key, params, batch: (
    jnp.mean((batch["image"] @ params["w"]) ** 2),
    dict(a_loss=batch["image"].mean(0), a_count=jnp.ones(3)),
  )
  optimizer = optax.sgd(0.1)
  batch = dict(image=jax.random.normal(jax.random.key(0), (12, 3)))
  found = []
  for parts in (1, 3):
    state = training.init_state(
      jax.random.key(1), dict(w=jnp.arange(3.0)), optimizer
    )
    update = training.make_update(loss, optimizer, accumulate=parts)
    found.append(update(state, batch))
  (one, metrics), (parted, others) = found
  np.testing.assert_allclose(one.params["w"], parted.params["w"], rtol=1e-6)
  for name in ("loss", "grad_norm", "a_loss"):
    np.testing.assert_allclose(metrics[name], others[name], rtol=1e-5)
  update = training.make_update(loss, optimizer, accumulate=5)
  with pytest.raises(ValueError, match=r"batch of 12 .* accumulate=5"):
    update(parted, batch)


def test_a_projection_follows_every_update():
  state, _ = start()
  unit = lambda params: jax.tree.map(lambda v: v / jnp.linalg.norm(v), params)
  update = training.make_update(quadratic, optax.sgd(0.1), project=unit)
  state, _ = update(state, dict(image=jnp.asarray([1.0, 2.0, 3.0])))
  np.testing.assert_allclose(jnp.linalg.norm(state.params["w"]), 1.0, rtol=1e-6)


def test_parameters_of_the_loss_are_trained_along():
  """u goes to log E l, here of the images' mean square."""

  def loss(key, params, batch):
    params, u = params
    square = jnp.mean((params["w"] - batch["image"]) ** 2)
    return square * jnp.exp(-u) + u, {}

  optimizer = optax.sgd(0.2)
  params, u = dict(w=jnp.zeros(2)), jnp.zeros(())
  state = training.init_state(
    jax.random.key(0), params, optimizer, loss_params=u
  )
  update = training.make_update(loss, optimizer)
  batch = dict(image=jnp.asarray([[1.0, 2.0], [3.0, 4.0]]))
  for _ in range(200):
    state, _ = update(state, batch)
  np.testing.assert_allclose(state.params["w"], [2.0, 3.0], rtol=1e-4)
  np.testing.assert_allclose(state.loss_params, 0.0, atol=1e-4)  # log 1
  assert jax.tree.structure(state.ema_params) == jax.tree.structure(params)


def test_event_files_hold_what_was_reported(tmp_path):
  from tensorboardX.proto import event_pb2

  write = training.together(
    training.csv_writer(tmp_path / "metrics.csv"),
    training.tensorboard_writer(tmp_path / "events"),
  )
  write(3, dict(loss=0.5, b=[1.0, float("nan")]))
  write(6, dict(loss=0.25, b=[1.0, 2.0]))
  (file,) = (tmp_path / "events").iterdir()
  data, found = file.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], "little")
    event = event_pb2.Event.FromString(data[12 : 12 + size])
    found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    data = data[16 + size :]
  assert found == [
    (3, "loss", 0.5),
    (3, "b/0", 1.0),
    (6, "loss", 0.25),
    (6, "b/0", 1.0),
    (6, "b/1", 2.0),
  ]
  assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_event_files_are_closed_with_their_last_user(tmp_path):
  write = training.tensorboard_writer(tmp_path)
  write(1, dict(loss=0.5))
  (file,) = tmp_path.iterdir()
  opened = lambda: (
    str(file)
    in {
      os.path.realpath(link) for link in pathlib.Path("/proc/self/fd").iterdir()
    }
  )
  assert opened()
  del write
  gc.collect()
  assert not opened()


def test_the_profiler_records_the_updates_asked_for(tmp_path):
  state, update = start()
  training.train(
    state,
    update,
    Repeated(dict(image=jnp.zeros(3))),
    steps=4,
    trace=training.Trace(tmp_path, 2, 3),
    progress=False,
  )
  assert list(tmp_path.rglob("*.xplane.pb"))


def test_bucket_losses_are_averaged_by_their_counts():
  metrics = [
    dict(loss=1.0, a_loss=[2.0, 0.0, 0.0], a_count=[3.0, 0.0, 0.0]),
    dict(loss=3.0, a_loss=[6.0, 5.0, 0.0], a_count=[1.0, 2.0, 0.0]),
  ]
  mean = training.average(metrics)
  assert mean["loss"] == 2.0
  np.testing.assert_allclose(mean["a_loss"], [3.0, 5.0, np.nan])


def test_the_metrics_file_survives_a_crash_and_a_resumed_run(tmp_path):
  path = tmp_path / "metrics.csv"
  write = training.csv_writer(path)
  for step in (1, 2, 3):
    write(step, dict(loss=0.1 * step, b=[1.0, 2.0]))
  with path.open("a") as f:
    f.write("4,0.4")  # cut short
  again = training.csv_writer(path)
  again(3, dict(loss=0.5, b=[1.0, 2.0]))
  again(4, dict(loss=0.6, b=[1.0, 2.0], new=7.0))
  with path.open() as f:
    rows = list(csv.DictReader(f))
  assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
  assert [row["loss"] for row in rows] == ["0.1", "0.2", "0.5", "0.6"]
  assert rows[-1]["new"] == "7"
  assert rows[0]["new"] == ""


@pytest.mark.parametrize("process", ["edm", "rectified_flow"])
def test_a_model_is_rebuilt_from_its_working_directory(tmp_path, process):
  config = models.ModelConfig(
    shape=(4, 4, 1),
    network="residual_mlp",
    network_options=dict(width=8, blocks=1, embedding=8),
    num_classes=2,
    process=process,
    sigma_data=0.7,
  )
  model = models.make_denoiser(config, jax.random.key(0))
  folder = models.checkpoint_directory(tmp_path)
  models.save_config(folder, config)
  opened = checkpoints.open(folder)
  scaled = jax.tree.map(lambda p: 2 * p, model.params)
  opened.save(5, dict(ema_params=model.params, params=scaled))
  opened.close()
  back = training.load_denoiser(tmp_path)
  assert (back.process, back.sigma_data) == (model.process, 0.7)
  assert back.apply == model.apply
  chex.assert_trees_all_equal(back.params, model.params)
  models.check_config(folder, config)
  other = dataclasses.replace(config, network_options=dict(width=9))
  with pytest.raises(ValueError, match=r"network_options = .*'width': 8"):
    models.check_config(folder, other)
  last = training.load_denoiser(folder, ema=False)
  chex.assert_trees_all_equal(last.params, scaled)


def test_the_digits_model_is_trained_once(tmp_path):
  options = dict(steps=4, batch_size=8, width=8, blocks=1, cache=tmp_path)
  first = zoo.digits_denoiser(**options)
  (folder,) = tmp_path.iterdir()
  stamp = folder.stat().st_mtime_ns
  again = zoo.digits_denoiser(**options)
  assert folder.stat().st_mtime_ns == stamp
  chex.assert_trees_all_equal(first.params, again.params)


@pytest.mark.parametrize(
  ("options", "message"),
  [(dict(ema=1.0), "ema is a decay"), (dict(clip_norm=0.0), "clip_norm")],
)
def test_refusals_say_how_to_mend(options, message):
  with pytest.raises(ValueError, match=message):
    start(**options)


def small_config(**options):
  fields = dict(shape=(2,), network="residual_mlp") | options
  return models.ModelConfig(**fields)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      dict(network_options=dict(patch=2, width=8)),
      r"patch, which the network 'residual_mlp' .* takes blocks",
    ),
    (dict(process_options=dict(beta_min=1.0)), r"the process 'edm' .* sigma_"),
    (dict(process="from_alpha_sigma"), "must be one of edm, pfgmpp, rect"),
    (dict(process="GaussianProcess"), "must be one of edm"),
    (dict(process="vp_linear_covering"), "must be one of edm"),
  ],
)
def test_options_of_another_network_or_process_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    models.make_denoiser(small_config(**options))


def test_the_data_set_may_move_and_older_models_do_not_name_it(tmp_path):
  config = small_config(dataset="digits")
  models.save_config(tmp_path, config)
  models.check_config(tmp_path, dataclasses.replace(config, dataset="x"))
  fields = checkpoints.read_config(tmp_path)["model"]
  del fields["dataset"], fields["dataset_options"]
  checkpoints.write_config(tmp_path, {"model": fields})
  models.check_config(tmp_path, config)
  assert models.load_config(tmp_path).dataset == ""


@pytest.mark.parametrize(
  ("model", "message"),
  [([], "does not describe a model"), ({"shape": [2], "old": 1}, "has old")],
)
def test_a_config_of_something_else_names_its_path(tmp_path, model, message):
  checkpoints.write_config(tmp_path, {"model": model})
  with pytest.raises(ValueError, match=rf"{tmp_path}.*config.json.*{message}"):
    models.load_config(tmp_path)


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ([1, 2, 3], "label 3, .* takes 0..2; .* counted from 1"),
    ([0, 7], r"label 7, .*set it to 8 or more"),
    ([-1, 2], "label -1, .*from 0 on"),
    ([0.0, 1.0], "whole numbers, got float64"),
  ],
)
def test_labels_out_of_range_name_the_value_and_its_cause(labels, message):
  training.check_labels(np.array([0, 1, 2]), 3)
  with pytest.raises(ValueError, match=message):
    training.check_labels(np.array(labels), 3)

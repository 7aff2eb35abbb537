"""Jobs of many samples: resumed bit for bit, shared, refused where foreign."""

import dataclasses
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from experiments import sample
from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import jobs
from jaxdiff import locks
from jaxdiff import models
from jaxdiff import training
from jaxdiff.data import shards
from tests import jobs_run as small
from tests import ROOT

SHARDS = 5  # of 18 samples, four each


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The folder of an undisturbed job."""
  folder = tmp_path_factory.mktemp("whole")
  assert small.draw(folder) == small.NUM
  return folder


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


# --- interrupted --------------------------------------------------------------


def test_a_job_killed_while_it_writes_a_shard_goes_on_bit_for_bit(
  whole, tmp_path
):
  child = subprocess.Popen(
    [sys.executable, "-m", "tests.jobs_run", tmp_path, "3"],
    env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT)),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  assert child.stdout.readline() == "writing\n"
  child.kill()  # SIGKILL
  assert child.wait() == -signal.SIGKILL
  assert shards.numbers(tmp_path) == [0, 1, 2]
  assert len(list(tmp_path.glob(".shard-00003-*.partial"))) == 1
  assert small.draw(tmp_path) == small.NUM - 3 * small.SHARD
  assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("moment", range(1, 2 * SHARDS, 3))
def test_a_job_stopped_at_any_write_goes_on_bit_for_bit(
  whole, tmp_path, monkeypatch, moment
):
  """Every shard is flushed twice, itself and its name: stop at the n-th."""

  class Stop(BaseException):
    pass

  sync, left = os.fsync, [moment]

  def stopping(handle):
    left[0] -= 1
    if not left[0]:
      raise Stop
    sync(handle)

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", stopping)
    with pytest.raises(Stop):
      small.draw(tmp_path)
  assert shards.numbers(tmp_path) == list(range(moment // 2))
  small.draw(tmp_path)
  assert contents(tmp_path) == contents(whole)


def test_a_full_disk_loses_nothing(whole, tmp_path, monkeypatch):
  """No file may grow beyond half a shard, from the third shard on."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill():
    if len(shards.numbers(tmp_path)) == 2:
      resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))

  try:
    with pytest.raises(OSError) as full:
      small.draw(tmp_path, on_shard=fill)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  said = str(full.value)
  assert "disk is full" in said and "shard-00002.npz" in said
  assert "run the same command again" in said
  assert sorted(contents(tmp_path)) == ["shard-00000.npz", "shard-00001.npz"]
  small.draw(tmp_path)
  assert contents(tmp_path) == contents(whole)


def test_a_damaged_shard_is_drawn_again(whole, tmp_path):
  small.draw(tmp_path)
  for number, cut in ((1, 100), (3, 0)):
    os.truncate(shards.path_of(tmp_path, number), cut)
  assert small.draw(tmp_path) == 2 * small.SHARD
  assert contents(tmp_path) == contents(whole)


def test_a_larger_job_goes_on_from_a_smaller_one(whole, tmp_path):
  small.draw(tmp_path, num=10)
  assert small.draw(tmp_path) == small.NUM - 8  # the last was cut at ten
  assert contents(tmp_path) == contents(whole)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run folder of a small network on digits, with weights of no training."""
  workdir = tmp_path_factory.mktemp("run")
  config = models.ModelConfig(
    shape=(8, 8, 1),
    network="digits_mlp",
    network_options=dict(width=64),
    num_classes=10,
    sigma_data=0.75,
  )
  folder = models.checkpoint_directory(workdir)
  models.save_config(folder, config)
  model = models.make_denoiser(config, jax.random.key(0))
  draw = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: draw.normal(0, 0.1, leaf.shape).astype(leaf.dtype),
    model.params,
  )
  opened = checkpoints.open(folder)
  opened.save(1, {"ema_params": params})
  opened.close()
  return workdir


def start(run, out, *flags):
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.sample"),
      *(f"--workdir={run}", f"--out={out}", *flags),
    ],
    cwd=ROOT,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )


@pytest.mark.slow
def test_a_job_of_5000_images_survives_20_kills(run, tmp_path):
  """Half of the kills at any moment, half when a shard is being written."""
  flags = ("--num=5000", "--batch=50", "--calls=400", "--format=float32")
  whole, out = tmp_path / "whole", tmp_path / "killed"
  assert start(run, whole, *flags).wait() == 0
  draw = np.random.default_rng()  # really at random, another time elsewhere
  folder, in_write = out / "samples", 0
  for kill in range(20):
    before = len(shards.numbers(folder))
    child = start(run, out, *flags)
    while len(shards.numbers(folder)) == before:
      assert child.poll() is None, "done before all kills: make it longer"
    if kill % 2:
      time.sleep(draw.uniform(0, 0.2))
    else:
      while not list(folder.glob(".shard-*.partial")):
        assert child.poll() is None
    child.kill()
    assert child.wait() == -signal.SIGKILL
    in_write += len(list(folder.glob(".shard-*.partial")))
  held = len(shards.numbers(folder))
  child = start(run, out, *flags)
  said = child.communicate()[0]
  assert child.returncode == 0
  print(f"{in_write} kills in a write, {held} of 100 shards held; {said}")
  assert in_write > 0 and held < 100
  assert f"{5000 - 50 * held} drawn now" in said
  assert contents(folder) == contents(whole / "samples")


@pytest.mark.slow
def test_two_processes_of_one_jax_job_draw_what_one_draws(run, tmp_path):
  flags = ("--num=200", "--batch=50", "--calls=4", "--shards")
  assert start(run, tmp_path / "one", *flags).wait() == 0
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  flags += (f"--coordinator=127.0.0.1:{port}", "--process_count=2")
  both = [
    start(run, tmp_path / "two", *flags, f"--process_index={i}") for i in (0, 1)
  ]
  said = [child.communicate()[0] for child in both]
  assert [child.returncode for child in both] == [0, 0]
  assert all("100 drawn now" in text for text in said)
  one, two = (contents(tmp_path / name / "samples") for name in ("one", "two"))
  assert one == two


# --- shared -------------------------------------------------------------------


def test_processes_share_a_job_without_a_word(whole, tmp_path):
  drawn = [small.draw(tmp_path, process=(i, 3)) for i in (2, 0, 1)]
  assert sum(drawn) == small.NUM
  assert contents(tmp_path) == contents(whole)


def test_the_batch_changes_the_rounding_alone(whole, tmp_path):
  small.draw(tmp_path, batch=4)
  for other, one in zip(shards.each(tmp_path), shards.each(whole), strict=True):
    np.testing.assert_allclose(other["image"], one["image"], atol=1e-5)


def test_a_nan_is_named_by_sample_and_step(tmp_path, monkeypatch):
  launch = jobs.launch

  def breaking(job, index):
    x, since = launch(job, index)
    return x, np.where(index == 9, 1, since)

  monkeypatch.setattr(jobs, "launch", breaking)
  with pytest.raises(
    FloatingPointError, match="sample 9 holds NaN.* step 1 of"
  ):
    small.draw(tmp_path)
  assert shards.numbers(tmp_path) == [0, 1]


def test_pixels_are_rounded_and_come_back():
  pixels = np.arange(256, dtype=np.uint8)
  exact = jobs.decode(pixels)
  assert np.array_equal(jobs.encode(exact, "uint8"), pixels)
  x = np.linspace(-1, 1, 999, dtype=np.float32)
  back = jobs.decode(jobs.encode(x, "uint8"))
  assert np.abs(back - x).max() <= 1 / 255 + 1e-6
  outside = np.array([-1.5, 1.5], np.float32)
  assert jobs.encode(outside, "uint8").tolist() == [0, 255]
  assert np.array_equal(jobs.encode(outside, "float32"), outside)


def test_values_that_no_pixel_holds_are_warned_of(capsys):
  jobs.warn_of_cut(np.linspace(-1.15, 1.15, 99))
  assert not capsys.readouterr().out
  jobs.warn_of_cut(np.linspace(-3, 3, 99))
  assert "of the values lie outside of [-1, 1]" in capsys.readouterr().out


def test_a_trajectory_is_drawn_of_images_alone(tmp_path):
  process = small.EDM
  plain = lambda params, x, c: jax.numpy.zeros_like(x)
  model = denoisers.from_function(plain, {}, process)
  path = tmp_path / "trajectory.png"
  job = jobs.Job(model, small.TABLE, (4, 4, 1))
  assert "Wrote" in sample.trajectory(job, path, rows=2)
  assert path.read_bytes()[:4] == b"\x89PNG"
  job = jobs.Job(model, small.TABLE, (2,))
  assert "No trajectory" in sample.trajectory(job, path)


# --- settings -----------------------------------------------------------------

SETTING = dict(solver="ddpm", seed=3, label=None, num=18, shard_size=4)


def test_a_folder_of_another_setting_is_refused_and_a_longer_job_is_not(
  tmp_path,
):
  jobs.keep_setting(tmp_path, SETTING)
  jobs.keep_setting(tmp_path, SETTING)
  said = r"seed is 3 there and 4 here; label is None there and 1 .*other folder"
  with pytest.raises(ValueError, match=said):
    jobs.keep_setting(tmp_path, SETTING | dict(seed=4, label=1))
  with pytest.raises(ValueError, match="shard_size is 4 there and 8 here"):
    jobs.keep_setting(tmp_path, SETTING | dict(shard_size=8))
  jobs.keep_setting(tmp_path, SETTING | dict(num=30))
  assert jobs.stored_setting(tmp_path)["num"] == 30
  with pytest.raises(ValueError, match="a job of 30 samples, of which num=18"):
    jobs.keep_setting(tmp_path, SETTING)
  (tmp_path / "setting.json").write_text("{")
  with pytest.raises(ValueError, match="not valid JSON"):
    jobs.keep_setting(tmp_path, SETTING)


def test_shards_of_an_unknown_setting_are_refused(tmp_path):
  shards.path_of(tmp_path, 0).touch()
  with pytest.raises(ValueError, match=r"holds shards but no setting\.json"):
    jobs.keep_setting(tmp_path, SETTING)


# --- read ---------------------------------------------------------------------


def fill(folder, **setting):
  """Writes pixels 0..9 of ten samples in shards of four."""
  for number, first in enumerate((0, 4, 8)):
    label = np.arange(first, min(first + 4, 10), dtype=np.int32)
    image = label.astype(np.uint8).reshape(-1, 1, 1, 1)
    shards.write(folder, number, image=image, label=label, first=first)
  if setting:
    (folder / "setting.json").write_text(json.dumps(setting))


@pytest.mark.parametrize("setting", [{}, dict(num=10, shard_size=4)])
def test_shards_read_as_one_set_in_order(tmp_path, setting):
  fill(tmp_path, **setting)
  found = data.load(f"shards:{tmp_path}")
  assert found["label"].tolist() == list(range(10))
  assert found["image"].shape == (10, 1, 1, 1)
  np.testing.assert_allclose(
    found["image"].ravel(), np.arange(10) / 127.5 - 1, atol=1e-6
  )
  pixels = data.load(f"shards:{tmp_path}", scale=False)["image"]
  assert pixels.dtype == np.uint8 and pixels.ravel().tolist() == [*range(10)]


@pytest.mark.parametrize("setting", [{}, dict(num=10, shard_size=4)])
def test_a_missing_shard_is_named(tmp_path, setting):
  fill(tmp_path, **setting)
  shards.path_of(tmp_path, 1).unlink()
  said = r"1 of 3 shards are not complete.*shard-00001.npz with samples 4 to 7"
  with pytest.raises(FileNotFoundError, match=said):
    data.load(f"shards:{tmp_path}")


def test_the_last_shards_are_missed_as_well(tmp_path):
  fill(tmp_path, num=21, shard_size=4)
  with pytest.raises(FileNotFoundError, match="4 of 6 .*-00002.npz .* 8 to 11"):
    data.load(f"shards:{tmp_path}")


def test_a_damaged_shard_is_named(tmp_path):
  fill(tmp_path)
  path = shards.path_of(tmp_path, 1)
  whole = path.read_bytes()
  path.write_bytes(whole[:-40])
  with pytest.raises(ValueError, match="shard-00001.npz.*cut short"):
    data.load(f"shards:{tmp_path}")
  at = whole.index(b"image.npy") + 150  # among the pixels: the checksum tells
  path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
  with pytest.raises(ValueError, match="shard-00001.npz.*CRC-32"):
    data.load(f"shards:{tmp_path}")


def test_folders_without_shards_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="there is no folder 'nowhere'"):
    data.load("shards:nowhere")
  with pytest.raises(FileNotFoundError, match="there is no shard in"):
    data.load(f"shards:{tmp_path}")


# --- the solver of the command line -------------------------------------------


def refused(run, out, *flags):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.sample"),
      *(f"--workdir={run}", f"--out={out}", *flags),
    ],
    cwd=ROOT,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and not list(out.glob("[a-z]*"))
  (line,) = done.stderr.splitlines()
  return line


def test_v3_estimates_its_models_statistics_once(run, tmp_path, monkeypatch):
  folder = models.checkpoint_directory(run)
  config = dataclasses.replace(models.load_config(folder), dataset="digits")
  model = training.load_denoiser(run)
  if not sample.FLAGS.is_parsed():
    sample.FLAGS.mark_as_parsed()
  values = dict(label=3, guidance_scale=1.0)
  monkeypatch.setattr(sample, "FLAGS", types.SimpleNamespace(**values))
  monkeypatch.setattr(
    sample, "_STATISTICS", dict(m=40, batch=8, trace="hutchinson")
  )
  setting = dict(values, weights="abc")
  found = sample.statistics_of(config, model, setting, tmp_path, True)
  assert found.l.shape == (40, 8, 8, 1)
  # l of this model, not of a standard Gaussian, 1 / (1 + e^{2 lambda})
  gaussian = 1.0 / (1.0 + np.exp(2.0 * found.lam))
  assert np.abs(found.l.mean((1, 2, 3)) - gaussian).max() > 0.05
  (file,) = tmp_path.glob("dpm_solver_v3-*.npz")
  written = file.stat().st_mtime_ns
  again = sample.statistics_of(config, model, setting, tmp_path, True)
  np.testing.assert_array_equal(again.l, found.l)
  assert file.stat().st_mtime_ns == written
  other = setting | dict(weights="def")
  sample.statistics_of(config, model, other, tmp_path, False)
  assert list(tmp_path.iterdir()) == [file]
  table = sample.table_for(
    model.process, "dpm_solver_v3(order=2)", "log_snr", 4, statistics=found
  )
  assert table.nfe == 4 and table.history.shape[3:] == (8, 8, 1)
  for dataset, said in (
    ("", "does not say what"),
    ("npz:/no.npz", "cannot be"),
  ):
    lost = dataclasses.replace(config, dataset=dataset)
    with pytest.raises(ValueError, match=rf"{said}.*statistics='FILE.npz'"):
      sample.statistics_of(lost, model, other, tmp_path, False)


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--solver=heun_churn(chrun=4)"], "did you mean churn?"),
    (["--grid=karras"], "--solver=default brings its own grid"),
    (["--solver=heun", "--gamma=0"], "--gamma belongs to --solver=gamma"),
  ],
)
def test_a_solver_that_is_none_is_refused_in_a_line(run, tmp_path, flags, said):
  assert said in refused(run, tmp_path, *flags)


def test_a_second_job_is_told_who_samples_into_the_folder(run, tmp_path):
  with locks.hold(tmp_path, "sampling"):
    line = refused(run, tmp_path)
  said = f"error: {tmp_path} is in use: sampling by process {os.getpid()}"
  assert line.startswith(said)


@pytest.mark.parametrize("devices", [0, -1, 10_000])
def test_a_number_of_devices_that_there_is_not_is_refused(devices):
  with pytest.raises(ValueError, match=rf"devices={devices}, .* has 1 to"):
    jobs.mesh_of(devices)


def test_words_that_a_job_does_not_know_are_refused(tmp_path):
  with pytest.raises(ValueError, match="params must be one of .*'shared'"):
    jobs.place(small.MODEL, None, "shared")
  with pytest.raises(ValueError, match="dtype must be one of .*'float16'"):
    small.draw(tmp_path, dtype="float16")

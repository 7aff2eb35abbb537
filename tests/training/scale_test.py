"""One program on one device and on many, in one process and in several."""

import csv
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxdiff import parallel
from tests import ROOT
from tests import virtual_devices
from tests.training import scale_run


def test_training_is_the_same_on_every_mesh_and_sharded_state_is_split():
  one, *others = virtual_devices.answer(scale_run.__name__, devices=8)
  assert len(set(one["losses"])) == 4
  for other in others:
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(other["head"], one["head"], atol=1e-6)
    if other["sharded"]:
      assert other["share"] < 1.3 / other["devices"]
    else:
      assert other["share"] == 1.0


def launch(workdir, processes, *flags):
  """Starts `processes` trainings of one job on loopback; returns them."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  options = "{'width':16,'blocks':1,'embedding':16}"
  command = [
    *(sys.executable, "-m", "experiments.train"),
    "--config=experiments/configs/digits.py",
    "--config.network=residual_mlp",
    f"--config.network_options={options}",
    "--config.batch_size=32",
    "--config.log_every=1",
    "--config.tensorboard=False",
    "--config.averages=(0.05, 0.1)",
    "--config.snapshot_every=2",
    "--config.checkpoint_every=2",
    f"--workdir={workdir}",
    *flags,
  ]
  several = [f"--coordinator=localhost:{port}", f"--process_count={processes}"]
  return [
    subprocess.Popen(
      command + (several + [f"--process_index={i}"] if processes > 1 else []),
      cwd=ROOT,
      env=virtual_devices.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(processes)
  ]


def finish(started):
  out = [process.communicate(timeout=200)[0] for process in started]
  return [process.returncode for process in started], out


def curve(workdir):
  with (workdir / "metrics.csv").open() as f:
    return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(f)}


@pytest.mark.slow
def test_two_processes_on_loopback_train_as_one(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  jobs = [
    launch(one, 1, "--config.steps=4"),
    launch(two, 2, "--config.steps=4"),
  ]
  for job in jobs:
    codes, out = finish(job)
    assert not any(codes), "\n".join(out)[-3000:]
  assert list(curve(one)) == [1, 2, 3, 4]
  for step, loss in curve(one).items():
    np.testing.assert_allclose(curve(two)[step], loss, rtol=1e-5)
  for folder in ("checkpoints/4", "averages/2", "averages/4"):
    assert (two / folder).is_dir()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_job_goes_on(tmp_path):
  """Killed by SIGTERM in one process, resumed: the curve of a whole run."""
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  codes, out = finish(launch(whole, 2, "--config.steps=300"))
  assert not any(codes), "\n".join(out)[-3000:]
  job = launch(stopped, 2, "--config.steps=300")
  deadline = time.monotonic() + 100
  while time.monotonic() < deadline:
    if (stopped / "metrics.csv").is_file() and len(curve(stopped)) > 5:
      break
    time.sleep(0.01)
  job[1].send_signal(signal.SIGTERM)
  codes, out = finish(job)
  assert codes == [128 + signal.SIGTERM] * 2, "\n".join(out)[-3000:]
  assert 5 < len(curve(stopped)) < 300
  codes, out = finish(launch(stopped, 2, "--config.steps=300"))
  assert not any(codes), "\n".join(out)[-3000:]
  assert curve(stopped) == curve(whole)


def test_a_coordinator_needs_to_know_who_asks():
  with pytest.raises(ValueError, match=r"needs process_count and process_ind"):
    parallel.initialize("localhost:1234", 2)

"""One job in a folder at a time."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from experiments import distill
from experiments import frontier
from experiments import learn_solver
from experiments import search
from experiments import train
from experiments.configs import digits
from experiments.configs import distill as distill_configs
from experiments.configs import frontier_mixture
from experiments.configs import learn_solver as learn_configs
from experiments.configs import search_mixture
from jaxdiff import locks

# The file alone: JAX takes seconds to import.
HOLDER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("locks", sys.argv[1])
locks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locks)
with locks.hold(sys.argv[2], "training"):
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """A process that holds tmp_path / "run" until its input ends."""
  child = subprocess.Popen(
    [sys.executable, "-c", HOLDER, locks.__file__, tmp_path / "run"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == "held\n"
  yield child
  child.kill()
  child.wait()
  child.stdin.close()
  child.stdout.close()


def test_a_second_process_is_told_who_holds_the_folder(holder, tmp_path):
  with (
    pytest.raises(BlockingIOError) as e,
    locks.hold(tmp_path / "run", "training"),
  ):
    pass
  said = str(e.value)
  assert f"training by process {holder.pid} on {socket.gethostname()}" in said
  assert "-c" in said and "since 2" in said and "another folder" in said
  with locks.hold(tmp_path / "run", "sampling"):  # does not disturb it
    pass
  holder.stdin.close()
  assert holder.wait() == 0
  assert not list((tmp_path / "run").iterdir())  # nothing is left behind


def test_a_process_that_was_killed_holds_nothing(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  (left,) = (tmp_path / "run").iterdir()
  assert json.loads(left.read_text())["process"] == holder.pid
  with locks.hold(tmp_path / "run", "training"):
    assert json.loads(left.read_text())["process"] == os.getpid()
  assert not list((tmp_path / "run").iterdir())


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
  with locks.hold(tmp_path, "training"):
    with (
      pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"),
      locks.hold(tmp_path, "training"),
    ):
      pass
    with locks.hold(tmp_path, "training", only=False):  # of the same job
      pass
  for _ in range(2):  # an error gives it back
    with pytest.raises(KeyError), locks.hold(tmp_path, "training"):
      raise KeyError
  assert not list(tmp_path.iterdir())


def test_a_lock_is_on_the_file_that_others_see(tmp_path, monkeypatch):
  """The holder removes its file between another's open and its lock."""
  path, calls = tmp_path / ".training.lock", []
  lock = locks._lock

  def slow(handle):
    calls.append(handle)
    if len(calls) == 1:
      path.unlink()
      path.touch()  # of the next
    return lock(handle)

  path.touch()
  monkeypatch.setattr(locks, "_lock", slow)
  with locks.hold(tmp_path, "training"):
    assert len(calls) == 2
    with (
      pytest.raises(BlockingIOError),
      locks.hold(tmp_path, "training"),
    ):
      pass


def test_without_locks_of_the_system_the_file_is_one(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, "fcntl", None)
  path = tmp_path / ".training.lock"
  with (
    locks.hold(tmp_path, "training"),
    pytest.raises(BlockingIOError, match=f"is gone, delete {path}"),
    locks.hold(tmp_path, "training"),
  ):
    pass
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  mine = dict(
    host=socket.gethostname(), process=gone.pid, since="x", command=""
  )
  path.write_text(json.dumps(mine))
  with locks.hold(tmp_path, "training"):
    assert json.loads(path.read_text())["process"] == os.getpid()
  for text in (json.dumps(mine | dict(host="elsewhere")), ""):
    path.write_text(text)
    with (
      pytest.raises(BlockingIOError, match="is in use"),
      locks.hold(tmp_path, "training"),
    ):
      pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  for folder in (tmp_path / "file", tmp_path / "file" / "below"):
    with (
      pytest.raises(OSError, match=rf"{folder} cannot .*a file is in the way"),
      locks.hold(folder, "training"),
    ):
      pass

  def denied(path, *_):  # root may write anywhere
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(os, "open", denied)
  with (
    pytest.raises(PermissionError, match=r"cannot .*Permission denied.*give a"),
    locks.hold(tmp_path, "training"),
  ):
    pass


SEARCH = search_mixture.get_config()
RUNS = {
  "train": ("training", lambda out: train.train(digits.get_config(), out)),
  "distill": (
    "training",
    lambda out: distill.distil(distill_configs.get_config("dmd"), out),
  ),
  "frontier": (
    "measuring",
    lambda out: frontier.run(into(frontier_mixture.get_config(), out)),
  ),
  "search": ("searching", lambda out: search.run(into(SEARCH, out))),
  "learn_solver": (
    "learning",
    lambda out: learn_solver.run(into(learn_configs.get_config(), out)),
  ),
}


def into(config, out):
  config.out = str(out)
  return config


@pytest.mark.parametrize("name", RUNS)
def test_a_job_is_refused_before_it_does_anything(name, tmp_path):
  job, run = RUNS[name]
  with locks.hold(tmp_path, job):
    before = list(tmp_path.iterdir())
    with pytest.raises(BlockingIOError, match=f"in use: {job} by process"):
      run(tmp_path)
    assert list(tmp_path.iterdir()) == before


def test_a_loop_holds_the_checkpoints_that_it_writes(tmp_path):
  from jaxdiff import checkpoints
  from jaxdiff.training import loop

  opened = checkpoints.open(tmp_path)
  with (
    locks.hold(tmp_path, "training"),
    pytest.raises(BlockingIOError),
    loop._alone(opened, True),
  ):
    pass
  with loop._alone(opened, False), loop._alone(opened, True):
    assert (tmp_path / ".training.lock").is_file()
  with loop._alone(None, True):
    pass
  opened.close()

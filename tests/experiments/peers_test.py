"""Our tables beside other implementations, where those are installed."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import peers
from jaxdiff import solvers
from tests import ROOT

needs_diffusers = pytest.mark.skipif(
  importlib.util.find_spec("diffusers") is None
  or importlib.util.find_spec("torch") is None,
  reason='needs diffusers and torch: pip install -e ".[peers]"',
)


@needs_diffusers
def test_diffusers_schedulers_agree_with_our_tables():
  """Each within 1e-5 in float64, and apart where we mean to differ."""
  for one in peers.load():
    if one.library == "diffusers":
      value = peers.difference(one)
      assert one.differs == (value > peers.BAR), (one, value)


def test_a_peer_is_compared_from_the_same_noise(monkeypatch):
  """A peer that does what our table does is at rounding, another is not."""
  monkeypatch.setattr(peers, "PEERS", [])

  def walk(problem, step):
    x = problem.x
    for i in range(len(problem.grid) - 1):
      x = step(problem, x, i, problem.answer(x, problem.grid[i]))
    return x

  def ddim(problem, x, i, answer):
    ratio = problem.sigma[i + 1] / problem.sigma[i]
    gain = problem.alpha[i + 1] - ratio * problem.alpha[i]
    return ratio * x + gain * answer[0]

  for process in peers.PROCESSES:

    @peers.peer("ddim", "numpy", "three lines", process=process)
    def _(problem):
      table = solvers.ddim(problem.process, problem.grid)
      return peers.Pair(table, walk(problem, ddim))

  @peers.peer("euler", "numpy", "three lines")
  def _(problem):
    table = solvers.euler(problem.process, problem.grid)
    return peers.Pair(table, walk(problem, ddim))

  @peers.peer("ddim", "numpy", "in float32")
  def _(problem):
    table = solvers.ddim(problem.process, problem.grid)
    return peers.Pair(table, problem.x.astype(np.float32))

  *same, other, narrow = peers.PEERS
  assert max(map(peers.difference, same)) < 1e-12
  assert peers.difference(other) > 1e-3
  with pytest.raises(TypeError, match="returned float32"):
    peers.difference(narrow)


def test_a_missing_library_is_named(tmp_path):
  """Without any peer it says what to install; a folder must be one."""
  run = lambda *flags: subprocess.run(
    [sys.executable, "-m", "experiments.peers", *flags],
    cwd=ROOT,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
    capture_output=True,
    text=True,
  )
  done = run(f"--code={tmp_path}", "--only=wl-zhao")
  assert done.returncode == 1
  assert "put its checkout in FOLDER/wl-zhao/UniPC" in done.stdout
  assert "no peer was run" in done.stderr
  done = run(f"--code={tmp_path / 'nowhere'}")
  assert done.returncode == 1 and "is no folder" in done.stderr

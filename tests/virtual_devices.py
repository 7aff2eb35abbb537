"""Programs of the tests with several CPU devices: environment and answer."""

import json
import os
import subprocess
import sys

from tests import ROOT


def environment(devices=1):
  """Returns environment variables.

  Other flags of XLA are dropped: the emitters that the suite compiles fast with
  round differently with every partition.
  """
  path = (str(ROOT), os.environ.get("PYTHONPATH", ""))
  return os.environ | dict(
    JAX_PLATFORMS="cpu",
    PYTHONPATH=os.pathsep.join(path),
    XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
  )


def answer(module, *arguments, devices, optimized=True):
  """Returns what `python -m module` prints, read as JSON.

  Args:
    module: name of the program, tests.ROOM.NAME.
    *arguments: its command line.
    devices: number of its CPU devices.
    optimized: whether XLA optimizes; fused, products and sums round as each
      program pleases.
  """
  flags = {} if optimized else dict(JAX_DISABLE_MOST_OPTIMIZATIONS="1")
  done = subprocess.run(
    [sys.executable, "-m", module, *arguments],
    env=environment(devices) | flags,
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)

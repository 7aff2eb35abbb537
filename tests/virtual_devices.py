"""The environment of a test's own program with several CPU devices."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def environment(devices=1):
  """Returns environment variables.

  Other flags of XLA are dropped: the emitters that the suite compiles fast with
  round differently with every partition.
  """
  path = (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))
  return os.environ | dict(
    JAX_PLATFORMS="cpu",
    PYTHONPATH=os.pathsep.join(path),
    XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
  )

"""The environment of a test's own program with several CPU devices."""

import os

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

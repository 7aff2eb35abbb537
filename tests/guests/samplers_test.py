"""Samplers that are no tables, with their batch over two devices: as on one."""

import functools
import json
import subprocess
import sys

import pytest

from tests import ROOT
from tests import virtual_devices
from tests.guests import samplers_run


@functools.cache
def found(*splits):
  """Returns what samplers_run.py prints: one process, two devices."""
  done = subprocess.run(
    [sys.executable, "-m", "tests.guests.samplers_run", *splits],
    # optimized, fused products and sums round as each program pleases
    env=virtual_devices.environment(2)
    | dict(JAX_DISABLE_MOST_OPTIMIZATIONS="1"),
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


def check(row):
  assert not isinstance(row, str), row
  assert row["devices"] == 2
  assert row["away"] < 1e-5


@pytest.mark.parametrize("name", samplers_run.CALLS)
def test_a_batch_on_an_explicit_mesh_gives_the_same_samples(name):
  check(found("explicit")[name]["explicit"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["auto", "shard_map"])
@pytest.mark.parametrize("name", samplers_run.CALLS)
def test_a_batch_that_is_split_otherwise_gives_the_same_samples(name, how):
  check(found("auto", "shard_map")[name][how])

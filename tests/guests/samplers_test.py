"""Samplers that are no tables, with their batch over two devices: as on one."""

import functools

import pytest

from tests import virtual_devices
from tests.guests import samplers_run


@functools.cache
def found(*splits):
  """Returns what samplers_run.py prints: one process, two devices."""
  return virtual_devices.answer(
    samplers_run.__name__, *splits, devices=2, optimized=False
  )


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

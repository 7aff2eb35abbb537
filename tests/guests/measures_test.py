"""Measures of a batch that is split over an Explicit mesh: as on one device."""

import functools

import pytest

from tests import virtual_devices
from tests.guests import measures_run


@functools.cache
def found():
  """Returns what measures_run.py prints: one process, two devices."""
  return virtual_devices.answer(
    measures_run.__name__, devices=2, optimized=False
  )


@pytest.mark.slow  # a process of its own, half a minute
@pytest.mark.parametrize("name", measures_run.CALLS)
def test_a_batch_on_an_explicit_mesh_has_the_same_measures(name):
  away = found()[name]
  assert not isinstance(away, str), away
  assert away < 1e-5

"""One seed, one set of images: on any number of devices, however params lie."""

import functools

import numpy as np
import pytest

from tests import virtual_devices

ALONE = "1-replicated"
FAST = ("2-sharded", "4-replicated", "8-sharded")
REST = ("2-replicated", "4-sharded", "8-replicated")


@functools.cache
def run(*cases):
  """Returns what sharded_run.py prints: one process, eight devices."""
  return virtual_devices.answer("tests.guests.sharded_run", *cases, devices=8)


def fast():
  return run(ALONE, *FAST, "1-elementwise", "8-elementwise")


def rest():
  return run(*REST, "2-elementwise", "4-elementwise")


def test_an_elementwise_model_is_bit_identical_over_devices():
  """All noise and all arithmetic of the loop, without a network's rounding."""
  one, eight = fast()["1-elementwise"], fast()["8-elementwise"]
  assert (one["devices"], eight["devices"]) == (1, 8)
  assert eight["image"] == one["image"]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_an_elementwise_model_is_bit_identical_on_the_other_meshes(devices):
  other = rest()[f"{devices}-elementwise"]
  assert other["devices"] == devices
  assert other["image"] == fast()["1-elementwise"]["image"]


def check(alone, other, case):
  devices, params = case.split("-")
  assert other["devices"] == int(devices)
  assert other["noise"] == alone["noise"]
  np.testing.assert_allclose(other["image"], alone["image"], atol=2e-6)
  if params == "sharded":  # its part of each large leaf, and the small ones
    assert other["held"] < 1 / int(devices) + 0.05
  else:
    assert other["held"] == 1


@pytest.mark.parametrize("case", FAST)
def test_a_unet_gives_the_same_images(case):
  alone = fast()[ALONE]
  assert np.std(alone["image"]) > 0.1
  check(alone, fast()[case], case)


@pytest.mark.slow
@pytest.mark.parametrize("case", REST)
def test_a_unet_gives_the_same_images_on_the_other_meshes(case):
  check(fast()[ALONE], rest()[case], case)


@pytest.mark.slow
def test_sharded_parameters_are_gathered_in_the_loop_and_nothing_else_is():
  """Gathered before the loop, all of them would stay on every device."""
  found = run("8-gathers")["8-gathers"]
  gathered, plain = found["gathered"], found["plain"]
  assert gathered["all-gather in loop"] > 0
  assert sum(gathered.values()) == gathered["all-gather in loop"]
  # what the compiler does left to itself, the reason for parallel.Gathered
  assert plain["all-gather before"] > 0


@pytest.mark.slow
def test_parameters_are_read_onto_the_devices_that_hold_them():
  found = run("8-loaded")["8-loaded"]
  assert found["same"] and found["held"] < 1 / 8 + 0.05

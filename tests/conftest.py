"""Fixtures that all tests share."""

import gc
import pathlib
import sys

import jax
import pytest

# `pytest` alone must find experiments in a checkout that is not installed
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


@pytest.fixture
def x64():
  """Runs a test in float64."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def compiled():
  """The list of what is compiled while a test runs, as "jit(name)" each.

  jit's own count of its programs won't do: all functions of a process share
  one cache, which forgets some.
  """
  names = []

  def note(event, seconds, *, fun_name="", **_):
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
      names.append(fun_name)

  jax.monitoring.register_event_duration_secs_listener(note)
  yield names
  jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
  """Forgets compiled programs before they exhaust a process's memory maps.

  Each holds from a few to a hundred of them; Linux grants 65,530, and beyond
  these XLA's compiler ends the process by a segmentation fault.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def precision():
  """A script run in process may switch to float64; no test inherits it."""
  before = jax.config.jax_enable_x64
  yield
  jax.config.update("jax_enable_x64", before)

"""Fixtures that all tests share."""

import contextlib
import ctypes
import gc
import pathlib
import resource
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


# What the process may hold before it forgets its compiled programs.
MEMORY = 1.2e9  # bytes; a module adds half of that at most
MOST = 2.5e9  # bytes that a process of `make test` is promised to stay below
MAPS = 30_000  # Linux grants 65,530; beyond these XLA's compiler crashes


@pytest.fixture(autouse=True, scope="module")
def few_programs(request):
  """Forgets compiled programs before they exhaust the memory or its maps.

  A program holds from a few to a hundred maps and about a megabyte. What is
  freed lies scattered, and only malloc_trim gives it back to the system.
  """
  yield
  process = pathlib.Path("/proc/self")
  if not (process / "statm").exists():
    return
  pages = int((process / "statm").read_text().split()[1])
  held = pages * resource.getpagesize()
  if held > MEMORY or (process / "maps").read_bytes().count(b"\n") > MAPS:
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(AttributeError):  # not in every C library
      ctypes.CDLL(None).malloc_trim(0)
  if "not slow" in request.config.option.markexpr:
    assert held < MOST, f"{held / 1e9:.1f} GB are held after this module"


@pytest.fixture(autouse=True)
def precision():
  """A script run in process may switch to float64; no test inherits it."""
  before = jax.config.jax_enable_x64
  yield
  jax.config.update("jax_enable_x64", before)

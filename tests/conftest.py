"""Fixtures that all tests share."""

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


@pytest.fixture(autouse=True)
def precision():
  """A script run in process may switch to float64; no test inherits it."""
  before = jax.config.jax_enable_x64
  yield
  jax.config.update("jax_enable_x64", before)

"""Refusals say what arrived, what was expected, and how to mend it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import checks


def falling(grid, low=0.1, high=1.0, zero=0.0):
  return checks.falling_grid(grid, low, high, zero)


@pytest.mark.parametrize(
  ("grid", "message"),
  [
    (0.5, r"1-D array of at least two times, got shape \(\)"),
    ([0.5], r"got shape \(1,\); n steps need n \+ 1 times"),
    ([[1.0, 0.5]], r"got shape \(1, 2\)"),
    ([1.0, np.nan, 0.5], "NaN at index 1"),
    ([1.0, 0.5, 0.5], r"grid\[1\] = 0.5 is followed by grid\[2\] = 0.5"),
    ([0.1, 0.5, 1.0], r"grid\[0\] = 0.1 is followed.*pass grid\[::-1\]"),
    ([1.5, 0.5], r"grid\[0\] = 1.5 is outside.*\[0.1, 1\].*replace"),
    ([1.0, 0.05], r"grid\[1\] = 0.05 is outside.*may be 0, free of noise"),
    ([1.0, 0.05, 0.0], r"grid\[1\] = 0.05 is outside"),
    ([np.inf, 0.5], r"grid\[0\] = inf is outside"),
  ],
)
def test_a_grid_that_cannot_be_walked_is_refused(grid, message):
  with pytest.raises(ValueError, match=message):
    falling(grid)


def test_only_the_last_time_may_be_free_of_noise():
  assert falling([1.0, 0.1, 0.0]).tolist() == [1.0, 0.1, 0.0]
  assert falling([1.0, -np.inf], zero=-np.inf)[-1] == -np.inf
  with pytest.raises(ValueError, match="is outside") as refusal:
    falling([1.0, 0.0], zero=np.nan)
  assert "free of noise" not in str(refusal.value)


def test_a_float32_grid_is_taken_in_float64_with_its_rounding():
  grid = falling(np.array([1.0, 0.3, 0.1], np.float32), low=0.1)
  assert grid.dtype == np.float64
  assert falling([1 + 1e-12, 0.5])[0] == 1.0


def test_a_traced_grid_is_refused_and_told_where_tables_are_built():
  with pytest.raises(TypeError, match="build the table outside of jit"):
    jax.jit(falling)(jnp.array([1.0, 0.5]))


def test_concrete_tells_values_from_tracers():
  seen = []
  jax.jit(lambda x: seen.append(checks.concrete(x)))(1.0)
  assert seen == [False]
  assert checks.concrete(jnp.ones(3))
  assert checks.concrete(1.0)


def test_order_defaults_to_the_highest_that_the_steps_allow():
  assert [checks.order(None, n, 3, "m") for n in (0, 1, 2, 3, 9)] == [
    *(1, 1, 2, 3, 3)
  ]
  assert checks.order(2, 2, 3, "m") == 2


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (0, r"m is defined for orders 1\.\.3, got order=0"),
    (4, "got order=4"),
    (3, "m of order 3 needs at least 3 steps, but the grid has 2"),
  ],
)
def test_an_order_beyond_method_or_grid_is_refused(value, message):
  with pytest.raises(ValueError, match=message):
    checks.order(value, 2, 3, "m")


def test_one_of_lists_the_choices():
  checks.one_of("a", ("a", "b"), "letter")
  with pytest.raises(ValueError, match="letter must be one of 'a', 'b'; got 3"):
    checks.one_of(3, ("a", "b"), "letter")


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"a": 0.0}, r"x0 lacks the leaf \['b'\] that the state has.*\['a'\]"),
    ({}, r"lacks the leaf \['a'\].*holds nothing"),
    (
      {"a": 0.0, "b": np.ones(2)},
      r"\(2,\) at leaf \['b'\].*\(3,\) there",
    ),
    ({"a": 0.0, "b": np.ones(3), "c": 1}, r"has a leaf \['c'\] that the state"),
    (np.ones(3), r"lacks the leaf \['a'\].*\(the array itself\)"),
  ],
)
def test_same_structure_names_the_leaf(given, message):
  expected = {"a": 1.0, "b": np.zeros(3)}
  with pytest.raises(ValueError, match=message):
    checks.same_structure(given, expected, "x0", "the state")


def test_same_structure_accepts_shapes_alone():
  shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  checks.same_structure(shape, np.zeros((2, 3)), "x", "y")

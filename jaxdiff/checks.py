"""Refusals at the public door: what was given, what was expected, the mend.

Every check runs while tracing. Values are looked at only where they are
concrete; under a transformation a traced value passes.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def concrete(x: Any) -> bool:
  """Returns whether the value of x can be read now."""
  return not isinstance(x, jax.core.Tracer)


def falling_grid(
  grid: Any,
  t_min: float,
  t_max: float,
  t_zero: float,
  outside: Callable[[float], str] | None = None,
):
  """Returns the grid as f64[n + 1] after checking that a solver can walk it.

  Args:
    grid: 1-D times, strictly falling, inside [t_min, t_max]; the last one may
      also be `t_zero`.
    t_min: the process's smallest time.
    t_max: the process's largest time.
    t_zero: the time at which the process has no noise, NaN if there is none.
    outside: what more to say of a time outside of the process.

  Raises:
    TypeError: if the grid is traced.
    ValueError: if it is not 1-D, has fewer than two times, a NaN, an equal or
      rising pair, or a time outside the process.
  """
  if not concrete(grid):
    raise TypeError(
      "the grid is a traced array, but tables are computed on the host in"
      " float64; build the table outside of jit and pass it as an argument"
      " (tables of one shape share one compilation)"
    )
  grid = np.array(grid, np.float64)
  if grid.ndim != 1 or len(grid) < 2:
    raise ValueError(
      f"a grid is a 1-D array of at least two times, got shape {grid.shape};"
      " n steps need n + 1 times"
    )
  if np.isnan(grid).any():
    raise ValueError(f"the grid holds NaN at index {_first(np.isnan(grid))}")
  rising = np.diff(grid) >= 0
  if rising.any():
    i = _first(rising)
    raise ValueError(
      "the time grid must be strictly decreasing (sampling goes from noise"
      f" to data), but grid[{i}] = {grid[i]:.6g} is followed by grid[{i + 1}]"
      f" = {grid[i + 1]:.6g}; "
      + (
        "a step of length 0 asks the network and goes nowhere: drop the"
        " repeated times with grids.distinct(times)"
        if grid[i] == grid[i + 1]
        else "pass grid[::-1] if it is the wrong way round (to encode data use"
        " solvers.encoder)"
      )
    )
  slack = 1e-9 * max(abs(t_min), abs(t_max))
  beyond = (grid > t_max + slack) | (grid < t_min - slack)
  beyond[-1] &= grid[-1] != t_zero
  if beyond.any():
    i = _first(beyond)
    raise ValueError(
      f"grid[{i}] = {grid[i]:.6g} is outside of the process's times"
      f" [{t_min:.6g}, {t_max:.6g}]; give the process a wider range, as in"
      " dataclasses.replace(process, t_max=...), or shorten the grid"
      + (
        ""
        if np.isnan(t_zero)
        else f" (its last time alone may be {t_zero:.6g}, free of noise)"
      )
      + ("" if outside is None else outside(float(grid[i])))
    )
  grid[0] = min(grid[0], t_max)  # alpha may be negative beyond, if by rounding
  return grid


def order(value: int | None, steps: int, highest: int, name: str) -> int:
  """Returns a multistep order that the grid can carry.

  Args:
    value: what the user asked for; None is the highest that `steps` allows.
    steps: number of steps of the grid.
    highest: the highest order that the method is defined for.
    name: of the solver, for the message.

  Raises:
    ValueError: if the order is outside of 1..highest or exceeds the steps.
  """
  if value is None:
    return max(1, min(highest, steps))
  if not 1 <= value <= highest:
    raise ValueError(
      f"{name} is defined for orders 1..{highest}, got order={value}"
    )
  if value > steps:
    raise ValueError(
      f"{name} of order {value} needs at least {value} steps, but the grid"
      f" has {steps} (a step out of alpha = 0 or into sigma = 0 does not"
      " count); lower the order, or leave it out and the highest that the"
      " grid allows is taken"
    )
  return value


def process(value: Any, call: str) -> None:
  """Raises a TypeError unless value is a forward process.

  Args:
    value: what arrived.
    call: how the function is called, for the message.
  """
  if hasattr(value, "log_snr") and hasattr(value, "t_max"):
    return
  mend = "make one, as in jaxdiff.edm()"
  if callable(value):
    name = getattr(value, "__name__", "it")
    mend = f"call it: {name}()"
  raise TypeError(
    f"{call} takes a process there, got {type(value).__name__}; {mend}"
  )


def one_of(value: Any, choices: tuple, name: str) -> None:
  """Raises a ValueError that lists the choices unless value is among them."""
  if value not in choices:
    listed = ", ".join(repr(c) for c in choices)
    raise ValueError(
      f"{name} must be one of {listed}; got {value!r}{near(value, choices)}"
    )


def near(value: Any, choices: Iterable[Any]) -> str:
  """Returns "; did you mean 'x'?" of the nearest choice, empty if none is."""
  names = [c for c in choices if isinstance(c, str)]
  found = difflib.get_close_matches(str(value), names, n=1)
  return f"; did you mean {found[0]!r}?" if found else ""


def same_structure(given: Any, expected: Any, what: str, source: str) -> None:
  """Raises a ValueError naming the first leaf where shape or tree differ.

  Args:
    given: the tree that arrived.
    expected: the tree it should match, leaf by leaf.
    what: the given tree's name in the message.
    source: where the expectation comes from, in the message.
  """
  paths = jax.tree_util.tree_leaves_with_path
  name = lambda path: jax.tree_util.keystr(path) or "(the array itself)"
  have = {name(p): jnp.shape(leaf) for p, leaf in paths(given)}
  want = {name(p): jnp.shape(leaf) for p, leaf in paths(expected)}
  for leaf in want:
    if leaf not in have:
      raise ValueError(
        f"{what} lacks the leaf {leaf} that {source} has; it holds"
        f" {', '.join(have) or 'nothing'}"
      )
    if have[leaf] != want[leaf]:
      raise ValueError(
        f"{what} has shape {have[leaf]} at leaf {leaf}, but {source} has"
        f" {want[leaf]} there"
      )
  for leaf in have:
    if leaf not in want:
      raise ValueError(f"{what} has a leaf {leaf} that {source} lacks")


def _first(mask: np.ndarray) -> int:
  return int(np.flatnonzero(mask)[0])

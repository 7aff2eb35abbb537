"""Our tables beside other people's implementations, on one exact oracle.

Every peer is one small function in a module of this package (`MODULES`):

  @peer("dpmpp_2m", "diffusers", "DPMSolverMultistepScheduler", process="vp")
  def _(problem: Problem) -> Pair:
    return Pair(our_table, their_samples)

It is given a problem (process, grid, noise, exact model), builds our table on
it, runs theirs from the same noise on the same grid in float64, and returns
both. `python -m experiments.peers` runs them all and prints the differences.
"""

import functools
import importlib
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import tableau as tables

BAR = 1e-5
MODULES = ("diffusers_schedulers", "published_code", "stochastic")
_STEPS = 10
_ROWS, _MEMORY = 64, 13  # of the one program that runs all our tables

PROCESSES = {
  "vp": (processes.vp_linear(), grids.quadratic),
  "vp_uniform": (processes.vp_linear(), grids.uniform),
  "edm": (processes.edm(), grids.karras),
  "vp to zero": (
    processes.vp_linear(),
    functools.partial(grids.quadratic, to_zero=True),
  ),
  "edm to zero": (
    processes.edm(),
    functools.partial(grids.karras, to_zero=True),
  ),
}


class Problem(NamedTuple):
  """What both sides are given.

  Attributes:
    process: the forward process.
    grid: f64[n + 1] times; the last one has sigma > 0 unless it is "to zero".
    x: f64[batch, d], the samples at grid[0].
    model: the exact denoiser.
    code: folder with the authors' code, or None.
  """

  process: processes.GaussianProcess
  grid: np.ndarray
  x: np.ndarray
  model: Any
  code: pathlib.Path | None

  @property
  def alpha(self) -> np.ndarray:
    """Alpha on the grid, f64[n + 1]."""
    return self.process.alpha(self.grid)

  @property
  def sigma(self) -> np.ndarray:
    """Sigma on the grid, f64[n + 1]."""
    return self.process.sigma(self.grid)

  @property
  def levels(self) -> np.ndarray:
    """Sigma / alpha on the grid, f64[n + 1]: what peers call sigmas."""
    return self.process.noise_level(self.grid)

  def answer(self, x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact (x0, eps) at x and the time t, in float64."""
    pair = _answer(self.model, jnp.asarray(np.asarray(x)), float(t))
    return np.array(pair.x0), np.array(pair.eps)


class Pair(NamedTuple):
  """What a peer returns.

  Attributes:
    ours: our table.
    theirs: f64[batch, d], their samples.
    scale: what our table's start is multiplied by.
  """

  ours: tables.Tableau
  theirs: np.ndarray
  scale: float = 1.0


class Peer(NamedTuple):
  """One line of the comparison.

  Attributes:
    solver: our name.
    library: "diffusers", or the repository of the published code.
    implementation: what of it, with its options.
    problem: key of `PROCESSES`.
    compare: Problem -> Pair.
    note: what was set by hand, or why we differ on purpose.
    differs: whether we differ on purpose, so that the bar is not asked of it.
    needs: file of the published code, relative to --code, or "".
  """

  solver: str
  library: str
  implementation: str
  problem: str
  compare: Callable[[Problem], Pair]
  note: str
  differs: bool
  needs: str


PEERS: list[Peer] = []


def peer(
  solver: str,
  library: str,
  implementation: str,
  *,
  process: str = "vp",
  note: str = "",
  differs: bool = False,
  needs: str = "",
) -> Callable[[Callable[[Problem], Pair]], Callable[[Problem], Pair]]:
  """Registers a comparison; arguments are those of `Peer`."""

  def register(compare):
    PEERS.append(
      Peer(
        solver, library, implementation, process, compare, note, differs, needs
      )
    )
    return compare

  return register


def load() -> list[Peer]:
  """Imports all modules of peers and returns the registry."""
  for name in MODULES:
    importlib.import_module(f"{__name__}.{name}")
  return PEERS


def available(one: Peer, code: pathlib.Path | None) -> bool:
  """Returns whether the peer's implementation is there."""
  if one.needs:
    return code is not None and (code / one.needs).exists()
  return importlib.util.find_spec(one.library) is not None


def difference(one: Peer, code: pathlib.Path | None = None) -> float:
  """Returns the largest |ours - theirs| over theirs' root mean square.

  Runs in float64.
  """
  with jax.enable_x64(True):
    problem = make(one.problem, code)
    pair = one.compare(problem)
    table = tables.pad(pair.ours, _ROWS, _MEMORY)
    ours = sampling.sample(
      jax.random.key(0),
      problem.model,
      table,
      jnp.asarray(pair.scale * problem.x),
      length=pair.ours.nfe,
    )
  theirs = np.asarray(pair.theirs)
  if theirs.dtype != np.float64:
    raise TypeError(f"{one.implementation} returned {theirs.dtype}, no float64")
  return float(
    np.abs(np.asarray(ours) - theirs).max() / np.sqrt(np.mean(theirs**2))
  )


def make(name: str, code: pathlib.Path | None = None) -> Problem:
  """Returns the problem of a process: g16, 32 noises, ten steps."""
  process, grid = PROCESSES[name]
  model = _model(name)
  x = process.prior(jax.random.key(1), (32, 16), dtype=jnp.float64)
  return Problem(process, grid(process, _STEPS), np.array(x), model, code)


@functools.cache
def _model(name):
  return oracles.exact(oracles.g16(), PROCESSES[name][0])


@jax.jit
def _answer(model, x, t):
  return model(x, t)

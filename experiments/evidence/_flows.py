"""Exact flows that several systems are measured on: noises, truth, errors.

Errors are medians over trajectories of the distance to the converged ODE: the
mean is dominated by the few that switch modes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables

NOISES = 256
_TRUTH_STEPS = 600  # of RK4 in log-SNR, twice as many move nothing by 1e-8
_ROWS, _MEMORY = 64, 13


class Flow(NamedTuple):
  """A model, where it starts, and where its ODE ends, [batch, d]."""

  process: processes.GaussianProcess
  model: Any
  start: jax.Array
  end: jax.Array


@functools.cache
def flow(name: str, seed: int = 0) -> Flow:
  """Returns the flow of `oracles.g2` or `g16` under VP-linear, in float64."""
  with jax.enable_x64(True):
    process = processes.vp_linear()
    model = oracles.exact(getattr(oracles, name)(), process)
    x = process.prior(
      jax.random.key(seed),
      (NOISES, {"g2": 2, "g16": 16}[name]),
      dtype=jnp.float64,
    )
    table = solvers.runge_kutta(
      process,
      grids.log_snr(process, _TRUTH_STEPS),
      method="rk4",
      output="v",
    )
    return Flow(process, model, x, _run(model, table, x, table.nfe))


def error(on: Flow, table: tables.Tableau) -> float:
  """Returns the median over trajectories of the rmse to the flow's end."""
  with jax.enable_x64(True):
    rows = max(table.nfe, _ROWS)
    memory = _MEMORY if table.nfe <= _ROWS else table.memory
    padded = tables.pad(table, rows, memory)
    end = _run(on.model, padded, on.start, table.nfe)
    rmse = jnp.sqrt(jnp.mean((end - on.end) ** 2, axis=1))
    return float(np.median(rmse))


def _run(model, table, x, length):
  return sampling.sample(jax.random.key(0), model, table, x, length=length)

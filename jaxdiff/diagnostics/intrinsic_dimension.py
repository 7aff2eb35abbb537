r"""Intrinsic dimension of data, estimated from a learned field.

By the flow: the Jacobian Y = d x_sigma / d x_start of the probability-flow ODE
stretches along the manifold until sigma is below its scale and then no more,
while across it lengths go on shrinking in proportion to sigma. The dimension is
the number of singular values whose slope d log s / d log sigma, by regression
over [sigma_small, 5 sigma_small], is below 1/2.

By the denoiser: eigenvalues of (the symmetric part of) d x0 / d x, times alpha,
at a small sigma are near 1 along the manifold and near 0 across it.

A gauge field turns one into the other and blurs both: conservative networks are
preferable here, though not for sampling. Reference: Horvat and Pfister (2024),
https://arxiv.org/abs/2402.03845, section 5.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import jacobians
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model


@checks.door
def flow_jacobian(
  model: Model,
  process: GaussianProcess,
  grid: np.ndarray,
  x: jax.Array,
  solver: Callable[..., Any] = solvers.heun,
) -> jax.Array:
  """Returns d x(grid[i + 1]) / d x(grid[0]), f[batch, n, d, d].

  Args:
    model: model(x, t) -> Prediction.
    process: the forward process.
    grid: f64[n + 1], falling, not into sigma = 0.
    x: f[batch, ...] at grid[0].
    solver: deterministic, with a fixed number of calls a step.

  Raises:
    ValueError: for a solver that draws noise, a grid that leaves the times of
      the process (what its network was trained on), or that ends at sigma = 0.
  """
  table = solver(process, grid)
  if table.stochastic:
    raise ValueError(
      "the flow's Jacobian is that of a deterministic solver, but this table"
      " draws noise; give a solver of the ODE (eta=0, churn=0)"
    )
  steps = len(grid) - 1
  if table.nfe % steps:
    raise ValueError(
      f"{table.nfe} calls are no fixed number for each of {steps} steps: the"
      " singular values vanish at sigma = 0, end the grid above it"
    )
  collect = sampling.every(table.nfe // steps)
  key = jax.random.key(0)  # nothing is drawn
  d = math.prod(x.shape[1:])

  def along(x, direction):
    path = lambda x: sampling.sample(key, model, table, x, collect=collect)[1]
    return jax.jvp(path, (x,), (direction,))[1].reshape(steps, len(x), d)

  basis = jnp.eye(d, dtype=x.dtype).reshape(d, 1, *x.shape[1:])
  whole = lambda e: control.like(jnp.broadcast_to(e, x.shape), x)
  columns = jax.vmap(lambda e: along(x, whole(e)))(basis)
  return jnp.transpose(columns, (2, 1, 3, 0))


@checks.door
def singular_trajectories(jacobian: jax.Array) -> jax.Array:
  """Returns the singular values over time, falling: f[batch, n, d]."""
  return jnp.linalg.svd(jacobian, compute_uv=False)


@checks.door
def dimension(
  singular: Any, sigma: ArrayLike, slope: float = 0.5, span: float = 5.0
) -> np.ndarray:
  """Returns the intrinsic dimension at every sample, i[batch]; on the host.

  Args:
    singular: f[batch, n, d], of `singular_trajectories`.
    sigma: f[n], the noise levels that they belong to, falling.
    slope: below it a direction is tangent.
    span: singular values are regressed on sigma up to span min(sigma).

  Raises:
    ValueError: if fewer than three noise levels lie in that span.
  """
  return np.sum(slopes(singular, sigma, span) < slope, axis=1)


@checks.door
def slopes(singular: Any, sigma: ArrayLike, span: float = 5.0) -> np.ndarray:
  """Returns d log s / d log sigma by regression, f64[batch, d]."""
  sigma = np.asarray(sigma, np.float64)
  used = sigma <= span * sigma.min() * (1 + 1e-9)
  if used.sum() < 3:
    raise ValueError(
      f"only {used.sum()} noise levels lie within a factor {span} of the"
      f" smallest, {sigma.min():.3g}; give the grid more steps there"
    )
  # of values that vanish (a collapsed direction) the slope is that of rounding
  s = np.maximum(np.asarray(singular, np.float64), 1e-30)
  log_sigma = np.log(sigma[used])
  centred = log_sigma - log_sigma.mean()
  return np.einsum("n,bnd->bd", centred, np.log(s[:, used])) / np.sum(
    centred**2
  )


@checks.door
def local_dimension(
  model: Model, process: GaussianProcess, x: jax.Array, t: ArrayLike
) -> jax.Array:
  """Returns how many eigenvalues of alpha d x0 / d x exceed 1/2, i32[batch].

  Args:
    model: model(x, t) -> Prediction.
    process: the forward process.
    x: f[batch, ...], noised data at t.
    t: a time whose sigma is small against the manifold's scale.
  """
  t = jnp.asarray(t, tree.compute_dtype(x.dtype))
  matrix = jacobians.jacobian(lambda x: ask(model, x, t).x0, x)
  symmetric = 0.5 * (matrix + jnp.swapaxes(matrix, 1, 2))
  values = process.alpha(t) * jnp.linalg.eigvalsh(symmetric)
  return jnp.sum(values > 0.5, axis=1)

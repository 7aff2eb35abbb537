r"""Log-likelihood of an interpolant's SDE by paths that run back from the data.

Along the backward SDE from X_1 = x1, dX = (b - eps s) dt + sqrt(2 eps) dW,

  log rho_1(x1) = E[ log rho_0(X_0) - int (div b_F + eps |s|^2) dt ],
  b_F = b + eps s,

exactly if b and s are those of the bridge. For a learned pair the right-hand
side is, by Girsanov and Jensen, a lower bound of the log-likelihood of the
learned forward SDE with drift b_F. (Albergo et al. 2023, section 2.5.) That of
the ODE needs no paths: `likelihood.with_divergence` on any table.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import likelihood
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.interpolants.bridge import Interpolant
from jaxdiff.interpolants.transport import transport
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model


class Row(NamedTuple):
  """One step back: f32[n] each.

  Attributes:
    t: time of the call.
    h: length of the step.
    eps: diffusion.
    gamma: gamma(t).
    rate: gamma'(t).
  """

  t: Array
  h: Array
  eps: Array
  gamma: Array
  rate: Array


def log_likelihood(
  key: jax.Array,
  model: Model,
  interpolant: Interpolant,
  x1: jax.Array,
  log_prob0: Callable[[jax.Array], jax.Array],
  grid: ArrayLike,
  *,
  diffusion: ArrayLike = 1.0,
  probe: ArrayLike | None = None,
  index: ArrayLike | None = None,
) -> jax.Array:
  """Returns one estimate of log rho_1 for every row of x1, f[batch].

  Repeat rows (or keys) and average. Euler-Maruyama, one call and its
  divergence a step.

  Args:
    key: PRNG key. A sample's noise depends on it and on the sample's index.
    model: model(x, t) -> (v, eta).
    interpolant: the bridge, with latent noise.
    x1: f[batch, ...], points to judge.
    log_prob0: log rho_0(x) -> f[batch].
    grid: f64[n + 1], falling from 1 to 0.
    diffusion: eps > 0, a number or a function of t.
    probe: like x1, for Hutchinson's divergence; None takes it exactly.
    index: i32[batch], indices of the samples; 0, 1, ... by default.

  Raises:
    ValueError: for a grid that does not fall from 1 to 0, and as `transport`.
  """
  table = transport(interpolant, grid, method="euler", diffusion=diffusion)
  grid = np.asarray(grid, np.float64)
  if grid[0] != 1.0 or grid[-1] != 0.0:
    raise ValueError(
      "the likelihood is carried from x1 back to x0: the grid falls from 1 to"
      f" 0, got one from {grid[0]:.4g} to {grid[-1]:.4g}"
    )
  if not table.stochastic:
    raise ValueError(
      "diffusion must be positive here; the ODE's likelihood is"
      " likelihood.with_divergence(model) on its table"
    )
  values = diffusion(grid[:-1]) if callable(diffusion) else diffusion
  steps = Row(
    t=table.t,
    h=-np.diff(grid),
    eps=np.broadcast_to(values, table.t.shape),
    gamma=interpolant.gamma(table.t),
    rate=interpolant.gamma_dot(table.t),
  )
  x1 = jnp.asarray(x1)
  tree.batch_size(x1)
  index = control.numbers(x1, index)
  arrays, static = tree.partition(likelihood.with_divergence(model, probe))
  x0, change = _program(key, arrays, steps, x1, index, static=static)
  value = log_prob0(x0)
  checks.same_structure(value, change, "log_prob0(x0)", "the batch")
  return value - change


@functools.partial(jax.jit, static_argnames="static")
def _program(key, arrays, steps, x1, index, *, static):
  model = tree.combine(arrays, static)
  dtype = tree.compute_dtype(x1.dtype)
  steps = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), steps)

  def advance(key, row, state):
    x, change = state
    (v, minus_div_v), (eta, minus_div_eta) = model(state, row.t)
    ratio = row.eps / row.gamma  # eps s = -ratio eta
    drift = v + (row.rate + ratio) * eta
    divergence = -minus_div_v - (row.rate - ratio) * minus_div_eta
    score = tree.squared_norm(eta / row.gamma)
    z = tree.normal(key, x, index)
    x = x - row.h * drift + jnp.sqrt(2.0 * row.eps * row.h) * z
    return (x, change + row.h * (divergence + row.eps * score)), None

  start = (x1.astype(dtype), jnp.zeros_like(x1, dtype, shape=x1.shape[:1]))
  return sampling.run(key, advance, steps, start)[0]

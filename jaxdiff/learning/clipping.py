"""Learned times as log(alpha / sigma), clipped to the process."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.processes import GaussianProcess

_LEAST_LOG_SNR = -7.0  # where alpha(t_max) = 0, as grids do


def bounds(process: GaussianProcess) -> tuple[float, float]:
  """Returns the least and the largest finite log(alpha / sigma) in use."""
  ends = process.log_snr(np.asarray([process.t_max, process.t_min]))
  low, high = np.maximum(ends, _LEAST_LOG_SNR) if np.isinf(ends[0]) else ends
  return float(low), float(high)


def time_at(process: GaussianProcess, lam: jax.Array) -> jax.Array:
  """Returns the times of lam, moved to the nearer end if outside."""
  return process.log_snr_inverse(jnp.clip(lam, *bounds(process)))


def shift(process: GaussianProcess, t: jax.Array, by: jax.Array) -> jax.Array:
  """Returns the times whose log(alpha / sigma) is larger by `by`."""
  return time_at(process, process.log_snr(t) + by)

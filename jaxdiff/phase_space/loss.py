r"""Hybrid score matching in phase space: only the velocity's noise is learned.

  loss = E |eps_w(x_t, v_t, t) - eps_w|^2,

a mean over values, with x_t, v_t drawn given x0 alone: the first velocity is
integrated out, which removes its variance from the target and the singularity
at t = 0. Reference: Dockhorn et al. (2022), https://arxiv.org/abs/2112.07068,
eq. 8, with the weight that makes it this.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control
from jaxdiff.losses import times as times_lib
from jaxdiff.types import Model
from jaxdiff.types import PyTree

Loss = Callable[[jax.Array, PyTree, dict], tuple[jax.Array, dict]]


@checks.door
def hybrid(model: Model, *, times: times_lib.Times | None = None) -> Loss:
  """Returns loss(key, params, batch) -> (scalar, metrics).

  Args:
    model: a `phase_space.PhaseField`; its parameters are replaced.
    times: sampler times(key, n) -> t f[n]; uniform by default.
  """
  process = model.process
  times = times or times_lib.uniform(process)

  def loss(key: jax.Array, params: PyTree, batch: dict):
    if not isinstance(batch, dict) or "image" not in batch:
      raise ValueError('a batch is a dict with "image" f[batch, ...]')
    x0 = jnp.asarray(batch["image"])
    time_key, noise_key = jax.random.split(key)
    t = control.own_rows(lambda n: times(time_key, n), x0)
    state, eps = process.perturb(noise_key, x0, t)
    answer = dataclasses.replace(model, params=params)(state, t)
    value = jnp.mean((answer - eps) ** 2)
    return value, dict(loss=value)

  return loss

"""What each sampler returns with its batch over two devices, for samplers_test.

  python -m tests.guests.samplers_run SPLIT...

with two virtual devices. A SPLIT is auto or explicit, a mesh that x lies on, or
shard_map. Prints one JSON object: for every sampler and split how far its
samples lie from those on one device, over the largest of them, and over how
many devices they lie; or what was raised.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import NamedSharding

from jaxdiff import grids
from jaxdiff import interpolants
from jaxdiff import likelihood
from jaxdiff import oracles
from jaxdiff import phase_space
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import solvers
from tests.guests.run import model

KEY = jax.random.key(0)
EDM = processes.edm(0.05, 10.0)
GRID = grids.karras(EDM, 3)
NOISY = solvers.ddpm(EDM, GRID)
CHURNED = solvers.adasde(EDM, GRID, gammas=np.full(3, 0.1), points=2)
CLD = phase_space.CriticallyDamped()
BRIDGE = interpolants.interpolant(gamma="brownian")
STATS = oracles.fit(np.random.default_rng(0).normal(size=(20, 2)))
LEVELS = samplers.ladder(0.05, 10.0, 4)


@functools.cache
def finish():
  build = lambda t: solvers.ddim(EDM, [t, 0.0])
  return samplers.finishers(build, EDM, LEVELS)


def noise(x):
  """The log-density of every level at x, up to what they share."""
  square = jnp.sum(x**2, axis=1, keepdims=True)
  return -0.5 * square / (1.0 + LEVELS**2) - jnp.log(1.0 + LEVELS**2)


def log_prob(x):
  return -0.5 * jnp.sum(x**2, axis=1)


def chained(x, index):
  levels = jnp.full_like(index, 2)
  return samplers.dmcmc(
    KEY,
    model,
    finish(),
    samplers.Chain(x, levels),
    process=EDM,
    posterior=noise,
    levels=LEVELS,
    skip=2,
    index=index,
  )[0][0]


def carried(x, index):
  velocity = lambda x, t: (-x, 0.5 * x)
  return interpolants.log_likelihood(
    KEY, velocity, BRIDGE, x / 10, log_prob, [1.0, 0.5, 0.0], index=index
  )


# x [batch, 2] and the samples' indices -> samples
CALLS = {
  "predictor_corrector": lambda x, index: samplers.predictor_corrector(
    KEY, model, NOISY, x, process=EDM, index=index
  )[0],
  "adaptive": lambda x, index: samplers.adaptive(
    KEY, model, None, x, process=EDM, rtol=0.1, atol=0.1, index=index
  )[0],
  "picard": lambda x, index: samplers.picard(
    KEY, model, NOISY, x, process=EDM, window=2, index=index
  )[0],
  "side_by_side": lambda x, index: samplers.side_by_side(
    KEY, model, CHURNED, x, process=EDM, index=index
  )[0],
  "langevin": lambda x, index: samplers.langevin(
    KEY, jnp.negative, 3, x, step=0.1, index=index
  )[0],
  "adjusted": lambda x, index: samplers.langevin(
    KEY, jnp.negative, 3, x, step=0.1, log_prob=log_prob, index=index
  )[0],
  "dmcmc": chained,
  "teleport_sample": lambda x, index: samplers.teleport_sample(
    KEY, model, NOISY, x, process=EDM, stats=STATS, index=index
  )[0],
  "addim": lambda x, index: samplers.addim(
    KEY, model, GRID, x, process=EDM, index=index
  )[0],
  "phase_space": lambda x, index: (
    phase_space.sample(
      KEY,
      lambda state, t: 0.1 * state.x,
      [1.0, 0.5, 0.1],
      phase_space.Phase(x, x),
      process=CLD,
      index=index,
    )[0].x
  ),
  "interpolants": carried,
  "likelihood": lambda x, index: (
    likelihood.log_likelihood(
      KEY, model, EDM, x, solver=solvers.euler, grid=GRID, index=index
    ).log_prob
  ),
}


def split(call, x, index, how):
  kind = AxisType.Auto if how == "auto" else AxisType.Explicit
  mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
  over = NamedSharding(mesh, jax.P("data"))
  x, index = jax.device_put((x, index), over)
  if how == "shard_map":
    spec = jax.P("data")
    call = jax.jit(
      jax.shard_map(call, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    )
  return call(x, index)


def compared(call, splits):
  x = EDM.prior(KEY, (4, 2))
  index = jnp.arange(4, dtype=jnp.int32)
  alone = np.asarray(call(x, index))
  found = {}
  for how in splits:
    try:
      out = split(call, x, index, how)
      away = np.max(abs(np.asarray(out) - alone)) / np.max(abs(alone))
      devices = len(out.sharding.device_set)
      found[how] = dict(away=float(away), devices=devices)
    except Exception as error:  # what is raised is the result
      found[how] = f"{type(error).__name__}: {str(error)[:300]}"
  return found


if __name__ == "__main__":
  splits = sys.argv[1:]
  print(json.dumps({k: compared(call, splits) for k, call in CALLS.items()}))

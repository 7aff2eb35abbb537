"""Every call under every transform on every mesh, for guest_test.py.

  python -m tests.guests.run CASE...

with eight virtual devices. A case is CALLS-TRANSFORM-MESH-DEVICES, as in
samples-shard_map-explicit-4; CALLS are samples or updates. A mesh is auto or
explicit, or auto_set and explicit_set, inside jax.set_mesh. Prints one JSON
object: for every case and call how far what is returned lies from what the
plain call returns on one device (0 only for equal bits), or what was raised.
"""

import contextlib
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import NamedSharding

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import parallel
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import training
from jaxdiff import tree

BATCH, LANES, BROKEN = 16, 2, 3  # two samples for each of eight devices
EDM = processes.edm(0.05, 10.0)
KEY = jax.random.key(0)
TABLE = solvers.dpmpp_2m(EDM, grids.karras(EDM, 3))
NOISY = solvers.heun_churn(EDM, grids.karras(EDM, 3), churn=1.0)
KEPT = sampling.both(
  sampling.every(2, sampling.denoised),
  sampling.both(sampling.nonfinite_since, sampling.first_nonfinite),
)
SAMPLES = ("table", "stochastic", "guided", "collected")
UPDATES = ("trained", "accumulated", "distilled")


def model(x, t, label=None):
  """Elementwise: a mesh must not change a bit of what is sampled."""
  t = tree.expand(t, x)
  v = 1.0 + t * t
  mean = 0.0 if label is None else jnp.where(label == 2, 0.0, label)[:, None]
  x0 = mean + (x - mean) / v
  return predictions.Prediction(x0, (x - x0) / t)


def sampled(name, x, label, index=None):
  """Returns what one call samples, leaves with the batch in front or second."""
  kept = None
  if name == "guided":
    guide = guidance.cfg(model, label=label, null=2, scale=2.0)
    x = sampling.sample(KEY, guide, NOISY, x, index=index)
  elif name == "collected":
    # one sample is broken from the first step on
    x = jnp.where((label == BROKEN)[:, None], jnp.nan, x)
    x, kept = sampling.sample(KEY, model, NOISY, x, index=index, collect=KEPT)
  else:
    table = NOISY if name == "stochastic" else TABLE
    x = sampling.sample(KEY, model, table, x, index=index)
  if kept is None:
    return dict(x=x)
  kept, (since, first) = kept
  return dict(x=x, kept=kept, since=since, first=first[None])


def student():
  network = networks.MLP((8,), 4)
  params = network.init(KEY, jnp.zeros((1, 2)), jnp.zeros(1))["params"]
  return denoisers.from_linen(network, params, EDM)


def method():
  """Returns DMD, of two players that move in one update, one of them twice."""
  return distillation.dmd(
    model, student(), optimizer=optax.adam(1e-2), fake_steps=2
  )


def begin(name):
  if name == "distilled":
    return distillation.init_state(KEY, method())
  return training.init_state(KEY, student().params, optax.adam(1e-2))


def update_of(name, **options):
  if name == "distilled":
    return distillation.make_update(method(), **options)
  parts = 2 if name == "accumulated" else 1
  return training.make_update(
    losses.denoising(student()), optax.adam(1e-2), accumulate=parts, **options
  )


def updated(update, state, batch):
  after, metrics = update(state, batch)
  return dict(params=after.params, ema=after.ema_params, said=metrics)


def arguments(names):
  """Returns (states, batch) or (x, label) of all lanes, [LANES, ...]."""
  x = EDM.prior(KEY, (LANES * BATCH, 2)).reshape(LANES, BATCH, 2)
  if names == SAMPLES:
    label = jnp.asarray([0, 1, 0, 1, 0, BROKEN, 0, 1] + [0, 1] * 4)
    return x, jnp.stack([label] * LANES)
  stack = lambda v: jnp.stack([v] * LANES)
  states = {name: jax.tree.map(stack, begin(name)) for name in names}
  return states, dict(image=x / 10.0)


def calls(names, **options):
  """Returns the function of these arguments that makes all the calls."""
  if names == SAMPLES:
    return lambda *args: {name: sampled(name, *args) for name in names}
  update = {name: update_of(name, **options) for name in names}
  return lambda states, batch: {
    name: updated(update[name], states[name], batch) for name in names
  }


def lane(tree, i=0):
  return jax.tree.map(lambda v: v[i], tree)


def batch_axis(path):
  return 1 if path[-1].key == "kept" else 0


def shard_mapped(f, args, mesh, names):
  split, whole = jax.P("data"), jax.P()
  if names == UPDATES:
    return jax.shard_map(f, mesh=mesh, in_specs=(whole, split), out_specs=whole)
  spec = lambda path, _: jax.P(*[None] * batch_axis(path), "data")
  out = jax.tree_util.tree_map_with_path(spec, jax.eval_shape(f, *args))
  return jax.shard_map(f, mesh=mesh, in_specs=(split, split), out_specs=out)


def pmapped(names, devices):
  cut = lambda v: v.reshape(devices, BATCH // devices, *v.shape[1:])
  options = dict(axis_name="data", devices=jax.devices()[:devices])
  args = lane(arguments(names))
  if names == UPDATES:
    f = jax.pmap(calls(names, axis_name="data"), in_axes=(None, 0), **options)
    return lane(f(args[0], jax.tree.map(cut, args[1])), devices - 1)
  # no type says which part of the batch this is: the indices do
  index = jnp.arange(BATCH).reshape(devices, -1)
  parts = jax.pmap(calls(names), **options)(*map(cut, args), index)
  whole = lambda path, v: np.concatenate(v, batch_axis(path))
  return jax.tree_util.tree_map_with_path(whole, parts)


@functools.cache
def plain(names, i=0):
  """Returns what the calls return by themselves, on one device."""
  return jax.device_get(calls(names)(*lane(arguments(names), i)))


def mesh_of(kind, devices):
  axis = AxisType.Auto if kind.startswith("auto") else AxisType.Explicit
  return jax.make_mesh((devices,), ("data",), axis_types=(axis,))


def laid_out(args, mesh, names, lanes):
  """Returns the arguments over a mesh, the batch split, states copied."""
  spec = jax.P(None, "data") if lanes else jax.P("data")
  split, whole = NamedSharding(mesh, spec), NamedSharding(mesh, jax.P())
  specs = (whole if names == UPDATES else split, split)
  return jax.device_put(args, specs)


def found(names, transform, kind, devices):
  """Returns what the calls return under a transform on a mesh."""
  if transform == "pmap":
    return pmapped(names, devices)
  mesh = mesh_of(kind, devices)
  lanes = transform == "vmap"
  plain_args = arguments(names) if lanes else lane(arguments(names))
  args = laid_out(plain_args, mesh, names, lanes)
  options = {}
  if transform == "shardings" and names == UPDATES:
    layout = parallel.replicated(mesh), parallel.batch_sharding(mesh)
    options = dict(shardings=layout)
  f = calls(names, **options)
  with jax.set_mesh(mesh) if "set" in kind else contextlib.nullcontext():
    if lanes:
      return jax.jit(jax.vmap(f))(*args)
    if transform == "shard_map":
      return jax.jit(shard_mapped(f, plain_args, mesh, names))(*args)
    return jax.jit(f)(*args) if transform == "jit" else f(*args)


def distance(name, got, want):
  """Returns the largest difference of two results; 0 for equal bits."""
  if name in SAMPLES:
    for v in (got, want):  # each device has a first step of its own
      v |= {k: np.min(v[k]) for k in v if k == "first"}
    same = lambda a, b: np.array_equal(a, b, equal_nan=True)
    if jax.tree.all(jax.tree.map(same, got, want)):
      return 0.0
  gap = lambda a, b: np.max(
    abs(np.nan_to_num(a) - np.nan_to_num(b)) / np.maximum(abs(b), 1e-2)
  )
  gaps = jax.tree.leaves(jax.tree.map(gap, got, want))
  return max(1e-30, *map(float, gaps))


def row(case):
  """Returns {name: distance from the plain call, or what was raised}."""
  which, transform, kind, devices = case.split("-")
  names = SAMPLES if which == "samples" else UPDATES
  try:
    got = jax.device_get(found(names, transform, kind, int(devices)))
  except Exception as error:  # what is raised is the result
    return dict.fromkeys(names, f"{type(error).__name__}: {str(error)[:300]}")
  lanes = range(LANES) if transform == "vmap" else [None]
  gaps = dict.fromkeys(names, 0.0)
  for i in lanes:
    own, want = got if i is None else lane(got, i), plain(names, i or 0)
    for name in names:
      gap = distance(name, dict(own[name]), dict(want[name]))
      gaps[name] = max(gaps[name], gap)
  return gaps


if __name__ == "__main__":
  print(json.dumps({case: row(case) for case in sys.argv[1:]}))

"""A tiny distillation as a program, for tests of devices and of kills.

  XLA_FLAGS=--xla_force_host_platform_device_count=4 python \
      -m tests.distillation.run 1 2 2s 4 4s
  python -m tests.distillation.run <directory> <steps> <seconds per batch>

The first prints JSON, for every number of devices (s: the state is split over
them) the losses, what a device holds of the state, how many rows of noise it
draws, and how many arrays as long as the whole batch its program makes. The
second trains with checkpoints and prints the digest of the final state.
"""

import dataclasses
import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import parallel
from jaxdiff import processes
from jaxdiff import training
from tests.training import run as training_run

PROCESS = processes.edm(0.02, 20.0)
TEACHER = oracles.exact(
  oracles.mixture(np.eye(4)[:3] - 0.3, [0.2] * 3, [0.5, 0.3, 0.2]), PROCESS
)
BATCH = 24  # no other size here is 24, 12 or 6


def student(key):
  """Returns a perceptron of points of four coordinates."""
  network = networks.MLP((32, 32), 16)
  params = network.init(key, jnp.zeros((1, 4)), jnp.zeros(1))["params"]
  return denoisers.from_linen(network, params, PROCESS)


def watched(seen):
  """Returns a one-step generator that notes the shards of its noise."""
  scale = float(PROCESS.sigma(PROCESS.t_max))

  def generate(key, model, batch):
    z = distillation.generators.noise(key, batch, PROCESS)
    note = lambda sharding: seen.append(sharding.shard_shape(z.shape)[0])
    jax.debug.inspect_array_sharding(z, callback=note)
    labels = distillation.generators.label(batch)
    return model(scale * z, PROCESS.t_max, *labels).x0

  return generate


def method(key, **options):
  """Returns DMD with two fake steps that remembers its loss."""
  found = distillation.dmd(
    TEACHER,
    student(key),
    optimizer=optax.adam(1e-3, b1=0.0),
    fake_steps=2,
    **options,
  )
  remember = lambda memory, metrics, nets: {
    "loss": 0.9 * memory["loss"] + 0.1 * metrics["loss"],
    "updates": memory["updates"] + 1,
  }
  return dataclasses.replace(
    found,
    memory={"loss": 0.0, "updates": 0},
    remember=remember,
    frozen=found.frozen | {"table": np.zeros((64, 64), np.float32)},
  )


def batches():
  """Returns batches of points; DMD's generator reads their shape alone."""
  draw = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
  return data.batches({"image": draw}, BATCH, seed=0)


def on_mesh(devices, sharded, updates=3):
  """Returns the losses of a run on a mesh, and how it was laid out."""
  seen = []
  begin = lambda: distillation.init_state(
    jax.random.key(1), method(jax.random.key(0))
  )
  mesh = parallel.data_mesh(devices)
  abstract = jax.eval_shape(begin)
  layout = (
    parallel.fully_sharded(abstract, mesh, smallest=64)
    if sharded
    else jax.tree.map(lambda _: parallel.replicated(mesh), abstract)
  )
  update = distillation.make_update(
    method(jax.random.key(0), generator=watched(seen)),
    shardings=(layout, parallel.batch_sharding(mesh)),
  )
  state = jax.jit(begin, out_shardings=layout)()
  values, program = [], None
  with data.to_device(batches(), parallel.batch_sharding(mesh)) as iterator:
    for _ in range(updates):
      before, batch = state, next(iterator)
      # compiled once: other shapes or layouts than the first are refused
      program = program or update.lower(state, batch).compile()
      state, metrics = program(update.frozen, state, batch)
      values.append([float(metrics[name]) for name in update.losses])
      assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
  leaves = jax.tree.leaves((state._replace(key=()), update.frozen))
  held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
  return dict(
    devices=devices,
    sharded=sharded,
    losses=values,
    memory=float(state.loss_params["memory"]["loss"]),
    share=held / sum(leaf.nbytes for leaf in leaves),
    rows=seen,
    whole=len(re.findall(rf"\[{BATCH}[\],]", program.as_text())),
  )


@functools.cache
def program():
  """Returns (method, update): compiled once for all tests."""
  found = method(jax.random.key(0))
  return found, distillation.make_update(found)


def main(directory, steps, seconds=0.0, every=1):
  """Trains with checkpoints; returns the digest of the final state."""
  found, update = program()
  opened = checkpoints.open(f"{directory}/checkpoints")
  try:
    state = training.train(
      distillation.init_state(jax.random.key(1), found),
      update,
      training_run.Slow(batches(), seconds),
      steps=steps,
      checkpoints=opened,
      every=every,
      log_every=5,
      on_metrics=training.csv_writer(f"{directory}/metrics.csv"),
      progress=False,
    )
  finally:
    opened.close()
  return training_run.digest(state)


if __name__ == "__main__":
  first, *rest = sys.argv[1:]
  if first[0].isdigit():
    layouts = [(int(v.strip("s")), v.endswith("s")) for v in (first, *rest)]
    print(json.dumps([on_mesh(*layout) for layout in layouts]))
  else:
    print(main(first, int(rest[0]), float(rest[1])))

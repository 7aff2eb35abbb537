r"""Batch statistics after an update on one device and on two, for nnx_test.py.

  XLA_FLAGS=--xla_force_host_platform_device_count=2 \
    python -m tests.guests.nnx_run

Prints two lists: means and variances, of one device and of two.
"""

import json

import jax

from jaxdiff import losses
from jaxdiff import parallel
from jaxdiff import training
from tests.guests import nnx_test


def statistics(mesh):
  """Returns the running means and variances after one update on a mesh."""
  model = nnx_test.made(rate=0.0)
  whole, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
  update = training.make_update(
    losses.denoising(model), nnx_test.SGD, shardings=(whole, split)
  )
  state = jax.device_put(nnx_test.begun(model), whole)
  batch = parallel.shard_batch(nnx_test.BATCH, mesh)
  norm = nnx_test.plain(update(state, batch)[0].model_state)["norm"]
  return [*norm["mean"].tolist(), *norm["var"].tolist()]


if __name__ == "__main__":
  devices = jax.devices()
  meshes = (
    jax.sharding.Mesh(devices[:n], ("data",)) for n in (1, len(devices))
  )
  print(json.dumps([statistics(mesh) for mesh in meshes]))

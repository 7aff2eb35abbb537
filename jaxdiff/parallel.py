"""Devices: a mesh with a `data` axis, and batches laid out over it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

PyTree = Any


def data_mesh(
  devices: int | Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh of one axis, `data`.

  Args:
    devices: how many of the devices, or which; all of them by default.

  Raises:
    ValueError: if there are fewer devices than asked for.
  """
  there = jax.devices()
  if devices is None:
    devices = there
  elif isinstance(devices, int):
    if not 1 <= devices <= len(there):
      raise ValueError(
        f"asked for {devices} devices, but there are {len(there)}; on a CPU"
        " set XLA_FLAGS=--xla_force_host_platform_device_count=N before jax"
        " is first used"
      )
    devices = there[:devices]
  return Mesh(np.asarray(devices), ("data",))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis over `data`."""
  return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of parameters: a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Returns the batch laid out over the mesh.

  Raises:
    ValueError: if a leaf's batch is not a multiple of the devices; it is named.
  """
  n = mesh.shape["data"]
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    if leaf.shape[0] % n:
      raise ValueError(
        f"leaf {jax.tree_util.keystr(path) or 'batch'} has {leaf.shape[0]}"
        f" samples, which {n} devices cannot share equally; choose a batch"
        f" size that is a multiple of {n}"
      )
  return jax.device_put(batch, batch_sharding(mesh))

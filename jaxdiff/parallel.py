"""Device meshes with a `data` axis, and shardings over them.

Batches are split over the axis. Parameters are copied to every device, or, if
they do not fit, split over the same axis and gathered where they are used
(fully sharded, ZeRO-3: Rajbhandari et al. 2020): jit inserts the collectives.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxdiff import checks
from jaxdiff import control
from jaxdiff.types import PyTree


@checks.door
def initialize(
  coordinator: str,
  process_count: int | None = None,
  process_index: int | None = None,
) -> None:
  """Joins this process to the others of a job, before anything uses a device.

  Args:
    coordinator: "host:port" of process 0; "auto" asks the cluster (Slurm, GKE,
      Cloud TPU) for this and the rest.
    process_count: how many processes there are.
    process_index: which one this is, 0 <= process_index < process_count.

  Raises:
    ValueError: if a coordinator is named, but not who is asking.
  """
  if coordinator == "auto":
    jax.distributed.initialize()
    return
  if process_count is None or process_index is None:
    raise ValueError(
      f"the coordinator {coordinator!r} needs process_count and process_index,"
      f" got {process_count} and {process_index}; give both, the index another"
      ' one in each process, or coordinator="auto" where the cluster tells'
    )
  jax.distributed.initialize(coordinator, process_count, process_index)


@checks.door
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


@checks.door
def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis over `data`."""
  return NamedSharding(mesh, PartitionSpec("data"))


@checks.door
def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Returns the sharding of parameters: a copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


@checks.door
def fully_sharded(
  tree: PyTree, mesh: Mesh | AbstractMesh, smallest: int = 4096
) -> PyTree:
  """Returns shardings that leave each device its part of every large leaf.

  A leaf is split along its longest axis that the devices can share equally;
  one that has none, or is small, is copied to every device.

  Args:
    tree: tree of arrays or ShapeDtypeStructs: parameters, or a whole
      TrainState.
    mesh: with an axis `data`.
    smallest: numbers in the smallest leaf that is split.
  """
  n = mesh.shape["data"]

  def sharding(leaf: PyTree) -> NamedSharding:
    shape = leaf.shape
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    axes = [] if key else [i for i, d in enumerate(shape) if d and not d % n]
    if not axes or int(np.prod(shape)) < smallest:
      return replicated(mesh)
    axis = max(axes, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

  return jax.tree.map(sharding, tree)


@dataclasses.dataclass(frozen=True)
class Gathered:
  """A network apply(params, x, ...) that gathers sharded params at every call.

  Left to itself the compiler gathers them once, before a loop of calls, and
  every device then holds all of them for the whole run; and it may split the
  arithmetic of a layer instead of its batch. Here each call gathers its own, of
  which nothing is left after it, and the batch stays split.

  Attributes:
    apply: the network, a function of (params, x, ...).
    mesh: that the parameters are split over.
  """

  apply: Callable[..., Any]
  mesh: Mesh

  def __call__(
    self, params: PyTree, x: PyTree, *args: Any, **named: Any
  ) -> Any:
    """Returns apply(params, x, ...)."""
    # what depends on the loop's state cannot be moved out of the loop
    params, x = jax.lax.optimization_barrier((params, x))
    params = control.constrain(params, replicated(self.mesh))
    x = control.constrain(x, batch_sharding(self.mesh))
    return self.apply(params, x, *args, **named)


@checks.door
def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Returns the batch laid out over the mesh.

  With several processes each gives its own rows of the global batch.

  Raises:
    ValueError: if a leaf's batch is not a multiple of the devices; it is named.
  """
  n = len(mesh.local_devices)
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    if leaf.shape[0] % n:
      raise ValueError(
        f"leaf {jax.tree_util.keystr(path) or 'batch'} has {leaf.shape[0]}"
        f" samples, which {n} devices cannot share equally; choose a batch"
        f" size that is a multiple of {n}"
      )
  sharding = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(
    lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch
  )

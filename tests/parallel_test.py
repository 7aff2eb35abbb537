"""How trees are laid out over a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec

from jaxdiff import parallel


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((3, 3, 64, 128), PartitionSpec(None, None, None, "data")),
    ((3, 3, 128, 64), PartitionSpec(None, None, "data")),
    ((128, 3), PartitionSpec("data")),
    ((100, 99), PartitionSpec()),  # 8 devices share neither axis
    ((64,), PartitionSpec()),  # small
    ((), PartitionSpec()),
  ],
)
def test_the_longest_axis_that_devices_share_equally_is_split(shape, spec):
  mesh = AbstractMesh((8,), ("data",))
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
  assert parallel.fully_sharded(leaf, mesh, smallest=100).spec == spec


def test_keys_are_copied_to_every_device():
  mesh = AbstractMesh((8,), ("data",))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 64))
  assert parallel.fully_sharded(keys, mesh, 1).spec == PartitionSpec()


def test_a_batch_that_devices_cannot_share_names_its_leaf():
  mesh = parallel.data_mesh(1)
  batch = dict(image=np.zeros((4, 2)), label=np.zeros(3))
  parallel.shard_batch(batch, mesh)
  mesh = type("Mesh", (), dict(local_devices=[0, 1]))
  with pytest.raises(ValueError, match=r"label.* 3 samples.* 2 devices"):
    parallel.shard_batch.__wrapped__(batch, mesh)

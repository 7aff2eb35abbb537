r"""A tiny training on meshes of 1 to 8 virtual devices, as a program.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python -m tests.training.scale_run

Prints JSON: for every layout the losses, the first numbers of the parameters,
and the bytes of the state on one device.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import parallel
from jaxdiff import processes
from jaxdiff import training


def run(devices, sharded):
  network = networks.ResidualMLP(32, 1, 2, 16)
  init = lambda key: network.init(key, jnp.zeros((1, 4)), jnp.zeros(1))
  abstract = jax.eval_shape(init, jax.random.key(0))["params"]
  model = denoisers.from_linen(network, abstract, processes.edm())
  # Adam divides a gradient by its own size: where the terms of one cancel, the
  # order of their sum, which is the layout's, decides a whole step. eps bounds
  # what a rounding can do to a step by lr / eps of it.
  optimizer = optax.adam(1e-2, eps=1e-2)
  begin = lambda: training.init_state(
    jax.random.key(1), init(jax.random.key(0))["params"], optimizer
  )
  mesh = parallel.data_mesh(devices)
  state = jax.eval_shape(begin)
  layout = (
    parallel.fully_sharded(state, mesh, smallest=64)
    if sharded
    else jax.tree.map(lambda _: parallel.replicated(mesh), state)
  )
  update = training.make_update(
    losses.denoising(model),
    optimizer,
    accumulate=2,
    shardings=(layout, parallel.batch_sharding(mesh)),
  )
  state = jax.jit(begin, out_shardings=layout)()
  draw = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
  iterator = data.to_device(
    data.batches(dict(image=draw), 16, seed=0), parallel.batch_sharding(mesh)
  )
  values = []
  for _ in range(4):
    before = state
    state, metrics = update(state, next(iterator))
    values.append(float(metrics["loss"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
  iterator.close()
  leaves = jax.tree.leaves((state.params, state.opt_state, state.ema_params))
  held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
  whole = sum(leaf.nbytes for leaf in leaves)
  head = np.concatenate(
    [np.ravel(leaf)[:50] for leaf in jax.tree.leaves(state.ema_params)]
  )
  return dict(
    devices=devices,
    sharded=sharded,
    losses=values,
    head=head.tolist(),
    share=held / whole,
  )


if __name__ == "__main__":
  layouts = [(1, False), (2, False), (8, False), (4, True), (8, True)]
  print(json.dumps([run(*layout) for layout in layouts]))

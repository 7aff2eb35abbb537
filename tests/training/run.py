"""A tiny training run as a program of its own, for tests that kill it.

  python -m tests.training.run <directory> <steps> <seconds per batch>

Prints the digest of the final state.
"""

import functools
import hashlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checkpoints
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import training


class Slow:
  """A data iterator that takes its time, so that a kill meets the run."""

  def __init__(self, iterator, seconds):
    self.iterator, self.seconds = iterator, seconds
    self.get_state, self.set_state = iterator.get_state, iterator.set_state

  def __next__(self):
    time.sleep(self.seconds)
    return next(self.iterator)


@functools.cache
def program(width):
  """Returns (params, optimizer, update): compiled once for all tests."""
  network = networks.MLP((width,), 8, num_classes=3)
  x, c = jnp.zeros((1, 2)), jnp.zeros(1)
  params = jax.jit(network.init)(jax.random.key(0), x, c)["params"]
  model = denoisers.from_linen(network, params, processes.edm())
  loss = losses.denoising(model, num_classes=3)
  optimizer = optax.adam(1e-2)
  return params, optimizer, training.make_update(loss, optimizer)


def parts(seconds=0.0, width=8):
  """Returns (state, update, iterator) of a run on points."""
  params, optimizer, update = program(width)
  state = training.init_state(jax.random.key(1), params, optimizer)
  draw = np.random.default_rng(0)
  source = dict(
    image=draw.normal(size=(40, 2)).astype(np.float32),
    label=draw.integers(0, 3, 40).astype(np.int32),
  )
  return state, update, Slow(data.batches(source, 16, seed=2), seconds)


def digest(state):
  """Returns a hash of every bit of a state."""
  state = state._replace(key=jax.random.key_data(state.key))
  parts = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
  return hashlib.sha256(b"".join(parts)).hexdigest()


def main(directory, steps, seconds, every=1):
  state, update, iterator = parts(seconds)
  opened = checkpoints.open(f"{directory}/checkpoints")
  state = training.train(
    state,
    update,
    iterator,
    steps=steps,
    checkpoints=opened,
    every=every,
    log_every=5,
    on_metrics=training.csv_writer(f"{directory}/metrics.csv"),
    progress=False,
  )
  opened.close()
  return digest(state)


if __name__ == "__main__":
  print(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))

"""Generators: backward simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import oracles
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_backward_simulation_asks_at_every_call_of_the_sampler(name):
  """With a teacher of one point the samples are that point at every call."""
  process = cases.PROCESSES[name]
  point = oracles.exact(oracles.gaussian(np.ones(2), 0.0), process)
  grid = grids.karras(process, 3, to_zero=True)
  seen = []

  def model(x, t, *label):
    seen.append(t)
    return point(x, t)

  generate = distillation.generators.backward_simulation(process, grid)
  batch = {"image": jnp.zeros((64, 2))}
  x = generate(jax.random.key(0), model, batch)
  np.testing.assert_allclose(x, np.ones((64, 2)), rtol=1e-4)
  assert len(seen) == 3
  assert set(np.asarray(seen[-1]).tolist()) == set(
    grid[:-1].astype(seen[-1].dtype).tolist()
  )
  generate = distillation.generators.backward_simulation(
    process, grid, last=True
  )
  generate(jax.random.key(0), model, batch)
  np.testing.assert_allclose(seen[-1], np.full(64, grid[-2]), rtol=1e-6)

"""Jumps along the ODE: composition, DDIM, what a network is told."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import oracles
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.distillation.parts.jumps import flow_map
from tests.distillation import cases


def test_exact_jumps_compose_and_tend_to_the_denoiser(x64):
  model = cases.exact_student()
  x = jax.random.normal(jax.random.key(0), (4, 2)) * 5.0
  t, u, s = 9.0, 1.7, 0.1
  ends = [(1.0, v) for v in (t, s)]
  law = oracles.gaussian(np.zeros(2), cases.V)

  @jax.jit
  def moved(x):
    middle = flow_map(model, x, t, u)
    return (
      flow_map(model, x, t, s),
      flow_map(model, middle, u, s),
      flow_map(model, x, t, t),
      model(x, t).x0,
      model(x, t, until=t - 1e-6).x0,
    )

  there, twice, nowhere, mean, near = moved(x)
  np.testing.assert_allclose(there, oracles.flow_map(law, x, *ends), rtol=1e-12)
  np.testing.assert_allclose(twice, there, rtol=1e-12)
  np.testing.assert_array_equal(nowhere, x)
  np.testing.assert_allclose(mean, cases.V * x / (cases.V + t**2), rtol=1e-12)
  np.testing.assert_allclose(near, mean, rtol=1e-7)


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_a_jump_is_a_step_of_ddim_and_nothing_where_it_begins(name, x64):
  process = cases.PROCESSES[name]
  model = oracles.exact(oracles.g2(), process)
  t, s = (float(process.time_at(v)) for v in (2.0, 0.3))
  x = jax.random.normal(jax.random.key(0), (5, 2), jnp.float64)
  predicted = model(x, t)
  there = distillation.jump(process, predicted, x, t, s)
  table = solvers.ddim(process, np.asarray([t, s]))
  expected = sampling.sample(jax.random.key(0), model, table, x)
  np.testing.assert_allclose(there, expected, rtol=1e-12)
  np.testing.assert_array_equal(
    distillation.jump(process, predicted, x, t, t), x
  )


class _Echo(nn.Module):
  """Returns what it was told: the two times in the two values of a sample."""

  @nn.compact
  def __call__(self, x, c, label=None):
    self.param("unused", nn.initializers.zeros, ())
    return jnp.broadcast_to(c, x.shape)


def test_along_tells_the_jumps_of_the_table():
  model = denoisers.from_linen(
    _Echo(), {"unused": jnp.zeros(())}, cases.EDM, prediction="x0", jumps=True,
    time="t",
  )  # fmt: skip
  grid = np.asarray([20.0, 3.0, 0.5, 0.02])
  bound = distillation.along(model, cases.EDM, grid, gamma=0.0)
  for t, s in zip(grid, grid[1:]):
    told = bound(jnp.zeros((1, 2)), jnp.asarray(t, jnp.float32)).x0
    np.testing.assert_allclose(told[0], [t, s], rtol=1e-6)
  own = model(jnp.zeros((1, 2)), 3.0).x0  # an ordinary denoiser: told t twice
  np.testing.assert_allclose(own[0], [3.0, 3.0])
  with pytest.raises(ValueError, match="told one time alone"):
    distillation.along(dataclasses.replace(model, jumps=False), cases.EDM, grid)
  with pytest.raises(ValueError, match="until=0.5 says where to jump"):
    dataclasses.replace(model, jumps=False)(jnp.zeros((1, 2)), 1.0, until=0.5)

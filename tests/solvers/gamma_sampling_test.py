"""Gamma sampling: DDIM as a limit, marginals of a point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import sampling
from jaxdiff import solvers
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_gamma_zero_is_ddim(name, x64):
  process = cases.PROCESSES[name]
  grid = grids.karras(process, 4)
  model = oracles.exact(oracles.g2(), process)
  x = process.prior(jax.random.key(0), (3, 2), dtype=jnp.float64)
  draw = lambda table: sampling.sample(jax.random.key(1), model, table, x)
  table = solvers.gamma_sampling(process, grid, gamma=0.0)
  assert not table.stochastic
  np.testing.assert_allclose(
    draw(table), draw(solvers.ddim(process, grid)), rtol=1e-10
  )


@pytest.mark.parametrize("name", cases.PROCESSES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("to_zero", [False, True])
def test_gamma_sampling_keeps_the_marginals_of_a_point(name, gamma, to_zero):
  """With data at a point every gamma has the variance sigma'^2 at each time."""
  process = cases.PROCESSES[name]
  grid = grids.karras(process, 4, to_zero=to_zero)
  table = solvers.gamma_sampling(process, grid, gamma=gamma)
  mean, variance = process.alpha(grid[0]), process.sigma(grid[0]) ** 2
  for i, t in enumerate(grid[1:]):
    carry, gain = table.state[i, 1, 0], table.history[i, 1, 0]
    mean = carry * mean + gain
    variance = carry**2 * variance + table.noise[i, 2] ** 2
    assert mean == pytest.approx(process.alpha(t), rel=1e-9)
    assert variance == pytest.approx(process.sigma(t) ** 2, rel=1e-9, abs=1e-18)


def test_gamma_one_renoises_by_what_the_end_lacks():
  grid = np.asarray([20.0, 1.0, 0.02])
  table = solvers.gamma_sampling(cases.EDM, grid)
  assert table.noise[0, 2] == pytest.approx(np.sqrt(1.0 - 0.02**2))
  assert table.noise[1, 2] == 0.0
  np.testing.assert_allclose(solvers.jump_times(cases.EDM, grid), [0.02, 0.02])
  np.testing.assert_allclose(
    solvers.jump_times(cases.EDM, grid, 0.6), [0.8, 0.02], rtol=1e-12
  )


def test_gamma_is_checked():
  with pytest.raises(ValueError, match="got gamma=1.5"):
    solvers.gamma_sampling(cases.EDM, grids.karras(cases.EDM, 2), gamma=1.5)

"""Calls side by side: the samples of the table, in fewer rounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables

PROCESSES = {
  "edm": processes.edm(),
  "vp": processes.vp_linear(),
  "flow": processes.rectified_flow(),
}


def table_of(process, points=3, noisy=False, to_zero=True):
  grid = grids.karras(process, 6, to_zero=to_zero)
  build = solvers.adasde if noisy else solvers.epd
  inner = solvers.building.inner_steps(process, grid)
  options = {"gammas": np.full(inner, 0.1)} if noisy else {}
  return build(process, grid, points=points, **options), inner


@pytest.mark.parametrize("noisy", [False, True], ids=["epd", "adasde"])
@pytest.mark.parametrize("name", PROCESSES)
def test_it_returns_what_sample_returns(name, noisy, x64):
  """With steps out of alpha = 0 and into sigma = 0, which are single calls."""
  process = PROCESSES[name]
  model = oracles.exact(oracles.g2(), process)
  table, inner = table_of(process, noisy=noisy)
  assert table.stochastic == noisy
  key, index = jax.random.key(3), jnp.arange(5, 13)
  x = process.prior(jax.random.key(0), (8, 2), dtype=jnp.float64)
  known = sampling.sample(key, model, table, x, index=index)
  got, info = samplers.side_by_side(
    key, model, table, x, process=process, index=index
  )
  np.testing.assert_allclose(got, known, rtol=1e-9, atol=1e-11)
  ends = table.nfe - 4 * inner
  assert info == (2 * inner + ends, table.nfe)


def test_a_shape_and_a_tree_are_samples_as_of_sample():
  process = PROCESSES["edm"]
  model = oracles.exact(oracles.g2(), process)
  table, _ = table_of(process, points=2)
  key = jax.random.key(1)
  known = sampling.sample(key, model, table, (4, 2), process=process)
  got, _ = samplers.side_by_side(key, model, table, (4, 2), process=process)
  np.testing.assert_allclose(got, known, rtol=1e-4, atol=1e-5)
  of_tree = lambda v, t: tuple(
    {k: model(leaf, t)[j] for k, leaf in v.items()} for j in (0, 1)
  )
  x = process.prior(jax.random.key(0), (4, 2))
  got, _ = samplers.side_by_side(
    key, of_tree, table, {"a": x, "b": -x}, process=process
  )
  known = sampling.sample(key, model, table, x)
  np.testing.assert_allclose(got["a"], known, rtol=1e-4, atol=1e-5)


def test_the_model_is_met_in_two_places_of_the_program():
  """A first call, and one batch for all others, however many they are."""
  process = PROCESSES["edm"]
  exact = oracles.exact(oracles.g2(), process)
  seen = []

  def model(x, t):
    seen.append(None)  # once for every place in the program, not every call
    return exact(x, t)

  x = process.prior(jax.random.key(0), (4, 2))
  for points in (2, 5):
    table, _ = table_of(process, points=points, to_zero=False)
    seen.clear()
    samplers.side_by_side(jax.random.key(0), model, table, x, process=process)
    assert len(seen) == 2, points


def test_mistakes_are_told():
  process = PROCESSES["edm"]
  model = oracles.exact(oracles.g2(), process)
  grid = grids.karras(process, 4)
  x = process.prior(jax.random.key(0), (4, 2))
  call = functools.partial(
    samplers.side_by_side, jax.random.key(0), model, process=process
  )
  for table in (
    solvers.ddim(process, grid),
    solvers.heun(process, grid),
    solvers.unipc(process, grid),
    solvers.epd(process, grid, points=1),
    tables.concat(
      solvers.epd(process, grid[:3], points=2),
      solvers.epd(process, grid[2:], points=3),
    ),
  ):
    with pytest.raises(ValueError, match="runs tables whose steps ask once"):
      call(tableau=table, x=x)
  wide = solvers.epd(process, grid)
  wide = tables.Tableau(wide.t, *(leaf[..., None] for leaf in wide[1:]))
  with pytest.raises(ValueError, match="without data dimensions"):
    call(tableau=wide, x=x)
  with pytest.raises(TypeError):
    call(tableau=grid, x=x)

"""The consistency function, its distances and its clock."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff.distillation.parts import consistency
from tests.distillation import cases


@pytest.mark.parametrize(
  ("name", "jumping"),
  [("edm", False), ("edm", True), ("vp", False), ("flow", True)],
)
def test_the_consistency_function_is_x_at_its_end(name, jumping, x64):
  process = cases.PROCESSES[name]
  model = cases.network(process, jumps=jumping)
  x = jax.random.normal(jax.random.key(0), (3, 2))
  t = jnp.full(3, process.t_min)
  np.testing.assert_array_equal(consistency.function(model, x, t), x)
  moved = consistency.function(model, x, jnp.full(3, process.t_max))
  assert np.all(np.isfinite(moved))
  assert np.all(moved != x)


def test_the_jump_is_the_parametrization_of_consistency_models(x64):
  """c_out is theirs, c_skip differs by t_min t (t^2 - d^2) / (t^2 + d^2)^2."""
  t = jnp.asarray([0.02, 0.1, 1.0, 7.0, 20.0])
  d, e = 0.7, cases.EDM.t_min
  network = lambda params, x, c: jnp.full_like(x, params)

  @jax.jit
  def f(x, out):
    model = denoisers.from_function(network, out, cases.EDM, sigma_data=d)
    return consistency.function(model, jnp.full((5, 1), x), t)[:, 0]

  skip, out = f(1.0, 0.0), f(0.0, 1.0)
  np.testing.assert_allclose(
    out, d * (t - e) / np.sqrt(d**2 + t**2), rtol=1e-12, atol=1e-15
  )
  np.testing.assert_allclose(skip, (d**2 + e * t) / (d**2 + t**2), rtol=1e-12)
  theirs = d**2 / (d**2 + (t - e) ** 2)
  assert float(skip[0]) == float(theirs[0]) == 1.0
  np.testing.assert_allclose(
    skip - theirs, e * t * (t**2 - d**2) / (t**2 + d**2) ** 2, atol=2e-3
  )


def test_distances(x64):
  x, y = jnp.asarray([[3.0, 4.0], [0.0, 0.0]]), jnp.zeros((2, 2))

  @jax.jit
  def measured(x, y):
    total = lambda x, y, h: consistency.distance(x, y, h).sum()
    return [
      (consistency.distance(x, y, h), *jax.grad(total, (0, 1))(x, y, h))
      for h in (None, 0.0, 0.3)
    ]

  c = np.sqrt(2 * 0.3**2)
  expected = (12.5, 5.0, np.sqrt(25 + c**2) - c)
  for far, (value, slope, of_aim) in zip(expected, measured(x, y), strict=True):
    np.testing.assert_allclose(value, [far, 0.0], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(slope[1], [0.0, 0.0])
    assert np.all(slope[0] > 0)
    np.testing.assert_array_equal(of_aim, np.zeros((2, 2)))


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_the_clock_makes_karras_grids(name, x64):
  process = cases.PROCESSES[name]
  place, time = consistency.karras_clock(process)
  n, i = 10, jnp.arange(11.0)
  grid = grids.karras(process, n)[::-1]
  np.testing.assert_allclose(time(i / n), grid, rtol=1e-9)
  np.testing.assert_allclose(place(jnp.asarray(grid)), i / n, atol=1e-9)
  t, s = consistency.neighbours((i + 0.3) / n, n, time)
  np.testing.assert_allclose(t, np.append(grid[1:], grid[-1]), rtol=1e-9)
  np.testing.assert_allclose(s, np.append(grid[:-1], grid[-2]), rtol=1e-9)

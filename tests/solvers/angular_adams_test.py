"""Adams in the angle, and its grid."""

import jax
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables

PROCESSES = {
  "edm": processes.edm(),
  "vp_linear": processes.vp_linear(),
  "vp_cosine": processes.vp_cosine(),
  "flow": processes.rectified_flow(),
}
every_process = pytest.mark.parametrize("name", PROCESSES)


def theta(process, t):
  return np.arctan2(process.sigma(t), process.alpha(t))


@every_process
@pytest.mark.parametrize("calls", [1, 3, 8])
def test_gaussian_data_of_its_variance_are_solved_exactly(name, calls, x64):
  """v = 0 there: any number of steps, from alpha = 0; at sigma = 0 x0 is."""
  process, std = PROCESSES[name], 0.3 * calls
  single = oracles.gaussian(np.zeros(2), np.full(2, std**2))
  model = oracles.exact(single, process)
  x = process.prior(jax.random.key(0), (16, 2), data_std=std, dtype=np.float64)
  ends = lambda t: (float(process.alpha(t)), float(process.sigma(t)))
  for to_zero in (False, True):
    grid = grids.angular(process, calls, to_zero=to_zero)
    table = solvers.angular_adams(process, grid, order=1, data_std=std)
    padded = tables.pad(table, 8, 5)
    out = sampling.sample(jax.random.key(1), model, padded, x, length=table.nfe)
    end = table.t[-1] if to_zero else process.t_min
    exact = oracles.flow_map(single, x, ends(process.t_max), ends(end))
    if to_zero:
      exact = process.alpha(process.t_zero) * model(exact, end).x0
    np.testing.assert_allclose(out, exact, atol=1e-12)


def test_without_corrector_it_is_exponential_adams_bashforth_in_v():
  process = processes.vp_linear()
  grid = grids.angular(process, 7)
  ours = solvers.angular_adams(process, grid, order=3, corrector=False)
  general = solvers.exponential_ab(
    process, grid, order=3, output="v", variable="own"
  )
  for leaf, other in zip(ours, tables.pad(general, memory=3), strict=True):
    np.testing.assert_allclose(leaf, other, atol=1e-14)


def test_the_corrector_of_order_one_is_the_trapezoidal_rule(x64):
  """In v and theta: a' = a + h (v + v') / 2 where y = a + h v was asked."""
  process = processes.edm()
  grid = np.asarray([2.0, 1.0, 0.5])
  table = solvers.angular_adams(process, grid, order=1)
  angle, r = theta(process, grid), np.hypot(grid, 1.0)
  h = angle[1] - angle[0]
  # row 1 corrects: a from y, then h R' / 2 of the last two outputs' difference
  carry, step = r[2] / r[1], (angle[2] - angle[1]) * r[2]
  np.testing.assert_allclose(table.state[1], [[carry, 0.0]] * 2)
  np.testing.assert_allclose(
    table.history[1, 0],
    [carry * r[1] * h / 2 + step, -carry * r[1] * h / 2],
  )


@every_process
def test_the_grid_has_equal_steps_in_its_clock(name):
  process = PROCESSES[name]
  scale, bend, floor = 1.3, 0.4, 0.01
  grid = grids.angular(process, 9, scale=scale, bend=bend, floor=floor)
  phi = np.arctan2(process.sigma(grid), scale * process.alpha(grid))
  phi *= 2 / np.pi
  steps = np.diff(phi + bend * np.log(phi + floor))
  np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
  assert grid[0] == process.t_max
  assert grid[-1] == process.t_min


def test_the_grid_to_zero_is_one_sweep_while_it_stays_above_t_min():
  flow = processes.rectified_flow()
  few = grids.angular(flow, 8, to_zero=True)
  phi = np.arctan2(few, 1.7 * (1 - few)) * 2 / np.pi
  steps = np.diff(phi + 0.5 * np.log(phi + 0.0042))
  np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
  many = grids.angular(flow, 300, to_zero=True)
  assert many[-2] == flow.t_min
  assert many[-1] == 0.0
  assert len(many) == 301


@pytest.mark.parametrize("name", ["scale", "bend", "floor"])
def test_the_grid_refuses_what_is_not_positive(name):
  with pytest.raises(ValueError, match="must be positive"):
    grids.angular(processes.edm(), 5, **{name: 0.0})
  with pytest.raises(ValueError, match="high not negative"):
    grids.angular(processes.edm(), 5, high=-0.1)


@every_process
def test_the_term_of_high_noise_is_that_of_the_clock(name):
  """Up to where levels stand for 300 scale; alpha = 0 among them."""
  process, scale, high = PROCESSES[name], 1.3, 0.2
  grid = grids.angular(process, 9, scale=scale, floor=0.01, high=high)
  level = np.minimum(np.tan(theta(process, grid)), 300 * scale)
  phi = np.arctan(level / scale) * 2 / np.pi
  clock = phi + 0.5 * np.log(phi + 0.01)
  clock += 0.5 * high * np.log1p((level / scale) ** 2)
  steps = np.diff(clock)
  np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
  assert grid[0] == process.t_max
  assert grid[-1] == process.t_min
  flat = grids.angular(process, 9, scale=scale, floor=0.01, high=1e-12)
  without = grids.angular(process, 9, scale=scale, floor=0.01)
  np.testing.assert_allclose(flat[1:], without[1:], rtol=1e-2)
  assert grid[1] > without[1]  # more of the calls are at high noise

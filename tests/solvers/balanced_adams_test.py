"""Adams in the clock that bounds what errors at high noise do."""

import jax
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers

PROCESSES = {
  "edm": processes.edm(),
  "vp_linear": processes.vp_linear(),
  "flow": processes.rectified_flow(t_max=0.99),
}
every_process = pytest.mark.parametrize("name", PROCESSES)


@every_process
@pytest.mark.parametrize("corrector", [False, True])
def test_without_a_slope_it_is_adams_in_the_angle(name, corrector):
  process = PROCESSES[name]
  grid = grids.angular(process, 7)
  options = dict(order=3, corrector=corrector, data_std=0.6)
  ours = solvers.balanced_adams(process, grid, slope=0.0, **options)
  angular = solvers.angular_adams(process, grid, **options)
  for leaf, other in zip(ours, angular, strict=True):
    np.testing.assert_allclose(leaf, other, atol=1e-12)


@every_process
@pytest.mark.parametrize("slope", [0.15, 0.7, 1.0])
def test_gaussian_data_of_its_variance_are_solved_exactly(name, slope, x64):
  """F = 0 there, at any noise level and for any slope."""
  process, std = PROCESSES[name], 0.8
  single = oracles.gaussian(np.zeros(2), np.full(2, std**2))
  model = oracles.exact(single, process)
  x = process.prior(jax.random.key(0), (16, 2), data_std=std, dtype=np.float64)
  grid = grids.angular(process, 3, high=0.2)
  table = solvers.balanced_adams(process, grid, data_std=std, slope=slope)
  out = sampling.sample(jax.random.key(1), model, table, x)
  ends = lambda t: (float(process.alpha(t)), float(process.sigma(t)))
  exact = oracles.flow_map(single, x, ends(grid[0]), ends(grid[-1]))
  np.testing.assert_allclose(out, exact, atol=1e-12)


@pytest.mark.parametrize("slope", [0.3, 0.7, 1.0])
def test_the_clock_is_the_integral_of_its_rate(slope):
  """One step of order one in it: w = R' (u' - u), du = S dl / (s^2 + l^2)."""
  process, s = processes.edm(), 0.6
  grid = np.asarray([20.0, 0.3])
  table = solvers.balanced_adams(
    process, grid, order=1, data_std=s, slope=slope
  )
  level = np.geomspace(20.0, 0.3, 200_001)
  rate = np.hypot(s, slope * level) / (s**2 + level**2)
  integral = np.trapezoid(rate, level)
  np.testing.assert_allclose(
    table.history[0, 0, 0], np.hypot(s, 0.3) * integral, rtol=1e-8
  )


@pytest.mark.parametrize("slope", [0.15, 0.7])
def test_an_error_of_eps_is_bounded_by_the_slope(slope):
  """An error e of eps is -l e of x0; what F makes of it is at most e / c."""
  process, s = processes.edm(), 0.6
  grid = grids.log_snr(process, 30)
  table = solvers.balanced_adams(process, grid, data_std=s, slope=slope)
  made = table.output[:, 1] - table.t * table.output[:, 0]
  assert abs(made).max() <= 1.0 / slope
  angular = solvers.angular_adams(process, grid, data_std=s)
  made = angular.output[:, 1] - angular.t * angular.output[:, 0]
  assert abs(made).max() > 100.0


@pytest.mark.parametrize(
  ("options", "said"),
  [(dict(data_std=0.0), "data_std"), (dict(slope=1.5), r"slope .*\[0, 1\]")],
)
def test_what_it_cannot_take_is_refused(options, said):
  process = processes.edm()
  with pytest.raises(ValueError, match=said):
    solvers.balanced_adams(process, grids.karras(process, 5), **options)

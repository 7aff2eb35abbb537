"""ResShift's schedule."""

import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import processes
from tests.distillation import cases


def _eta(steps, kappa=2.0, p=0.3, last=0.999):
  """Returns eta_1..eta_T as the paper writes it: b0^beta_t sqrt(eta_1)."""
  first = (0.04 / kappa) ** 2
  t = np.arange(1, steps + 1)
  b0 = np.exp(np.log(last / first) / (2 * (steps - 1)))
  beta = ((t - 1) / (steps - 1)) ** p * (steps - 1)
  return (np.sqrt(first) * b0**beta) ** 2


def test_resshift_is_gaussian_in_the_residual_and_its_steps_are_a_grid():
  steps = 15
  grid = grids.power_log(cases.RESSHIFT, steps, to_zero=True)
  eta = _eta(steps)[::-1]
  np.testing.assert_allclose(grid[:-1] ** 2, eta, rtol=1e-12)
  assert grid[-1] == 0.0
  np.testing.assert_allclose(
    cases.RESSHIFT.alpha(grid[:-1]), 1 - eta, rtol=1e-9
  )
  np.testing.assert_allclose(cases.RESSHIFT.sigma(grid[:-1]), 2 * np.sqrt(eta))
  t = np.linspace(cases.RESSHIFT.t_min, cases.RESSHIFT.t_max, 9)
  np.testing.assert_allclose(
    cases.RESSHIFT.log_snr_inverse(cases.RESSHIFT.log_snr(t)), t, rtol=1e-12
  )
  h = 1e-6
  rates = np.asarray(cases.RESSHIFT.rates(t[1:-1]))
  for rate, f in zip(rates, (cases.RESSHIFT.alpha, cases.RESSHIFT.sigma)):
    slope = (f(t[1:-1] + h) - f(t[1:-1] - h)) / (2 * h)
    np.testing.assert_allclose(rate, slope, rtol=1e-8)


def test_resshift_is_checked():
  with pytest.raises(ValueError, match="eta_max = 1.2"):
    processes.resshift(eta_max=1.2)
  with pytest.raises(ValueError, match="eta rises from eta_min"):
    processes.resshift(eta_min=0.5, eta_max=0.1)
  with pytest.raises(ValueError, match="kappa"):
    processes.resshift(kappa=0.0)
  with pytest.raises(ValueError, match="cannot end at t_min = 0"):
    grids.power_log(processes.ve(), 4)

"""Solvers since 2024 that need no training, each against its published loop.

PFDiff, RX-DPM, CAB and STORK, in float64 on a mixture of two Gaussians, and
what tells them from what was there before.
"""

import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import processes
from jaxdiff import solvers
from tests.solvers.public_updates_test import answer
from tests.solvers.public_updates_test import EDM
from tests.solvers.public_updates_test import FLOW
from tests.solvers.public_updates_test import play
from tests.solvers.public_updates_test import START
from tests.solvers.public_updates_test import VP


def check(table, process, expected, rtol=1e-10):
  np.testing.assert_allclose(play(table, process), expected, rtol=rtol)


def ddim(process, x, eps, t, s):
  x0 = (x - process.sigma(t) * eps) / process.alpha(t)
  return process.alpha(s) * x0 + process.sigma(s) * eps


def eps_at(process, x, t):
  return answer(x, process.alpha(t), process.sigma(t))[1]


# --- PFDiff ------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP, EDM], ids=["vp", "edm"])
@pytest.mark.parametrize(("skip", "ahead"), [(1, 1), (2, 1), (3, 2), (3, 3)])
def test_pfdiff_is_the_authors_loop_on_equal_times(process, skip, ahead):
  """Theirs walks a fine grid: one place, then skip + 1 of them a call."""
  groups = 4
  fine = np.linspace(process.t_max, process.t_min, 2 + groups * (skip + 1))
  x, i, buffer = process.sigma(fine[0]) * START, 0, None
  calls = 0
  while i < len(fine) - 1:
    if buffer is None:
      buffer = eps_at(process, x, fine[0])
      x, i = ddim(process, x, buffer, fine[0], fine[1]), 1
    else:
      place = ddim(process, x, buffer, fine[i], fine[i + ahead])
      buffer = eps_at(process, place, fine[i + ahead])
      to = fine[i + skip + 1]
      x, i = ddim(process, x, buffer, fine[i], to), i + skip + 1
    calls += 1
  coarse = fine[np.append(0, 1 + (skip + 1) * np.arange(groups + 1))]
  table = solvers.pfdiff(process, coarse, skip=skip, ahead=ahead)
  assert table.nfe == calls == groups + 1
  check(table, process, x)


def test_pfdiff_takes_the_slope_of_the_middle():
  """An eps that is linear in rho is integrated exactly, but in the first step.

  Of EDM alpha = 1 and rho = t.
  """
  grid = grids.uniform(EDM, 6)
  table = solvers.pfdiff(EDM, grid)
  eps = table.t
  gained = table.history[:, 0]
  total = gained[:, 0] @ eps + gained[1:, 1] @ eps[:-1]
  exact = 0.5 * (grid[-1] ** 2 - grid[0] ** 2)
  of_ddim = np.diff(grid)[0] * grid[0] - 0.5 * (grid[1] ** 2 - grid[0] ** 2)
  np.testing.assert_allclose(total - exact, of_ddim, rtol=1e-9)


# --- RX-DPM ------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP, EDM], ids=["vp", "edm"])
@pytest.mark.parametrize("group", [2, 3])
def test_rx_dpm_is_the_authors_loop(process, group):
  """RX-Euler: the coefficients are the first row of an inverted 2x2 matrix."""
  grid = grids.karras(process, 3 * group + 1)
  rho = process.noise_level(grid)
  x = process.sigma(grid[0]) * START
  for start in range(0, len(grid) - 1, group):
    inside = grid[start : start + group + 1]
    fine, first = x, None
    for t, s in zip(inside[:-1], inside[1:], strict=True):
      eps = eps_at(process, fine, t)
      first = eps if first is None else first
      fine = ddim(process, fine, eps, t, s)
    if len(inside) <= group:  # the rest is not extrapolated
      x = fine
      continue
    coarse = ddim(process, x, first, inside[0], inside[-1])
    h = np.diff(rho[start : start + group + 1])
    matrix = np.asarray([[1.0, 1.0], [1.0, np.sum((h / h.sum()) ** 2)]])
    weights = np.linalg.inv(matrix)[0]
    x = weights[0] * coarse + weights[1] * fine
  table = solvers.rx_dpm(process, grid, group=group)
  assert table.nfe == 3 * group + 1 and table.memory == group
  check(table, process, x)


# --- CAB ---------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("process", [VP, FLOW], ids=["vp", "flow"])
def test_cab_is_the_authors_loop(process, order):
  """Their weights of order 3 written out, of y = x / alpha."""
  grid = grids.karras(process, 8)[1:]
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  x, theta, h, f = sigma[0] * START, 0.9, np.diff(sigma / alpha), []
  for i in range(len(h)):
    f.insert(0, eps_at(process, x, grid[i]))
    y, r = x / alpha[i], h[i] / h[i - 1]
    if i == 0:
      y = y + h[0] * f[0]
    elif order == 2 or i == 1:
      y = y + h[i] * ((1.0 + 0.5 * r) * f[0] - 0.5 * r * f[1])
    else:
      a, b, c = h[i], h[i - 1], h[i - 2]
      w0 = (a * a / 3 + 0.5 * a * (2 * b + c) + b * (b + c)) / (b * (b + c))
      w1 = -a * (2 * a + 3 * b + 3 * c) / (6 * b * c)
      w2 = a * (2 * a + 3 * b) / (6 * c * (b + c))
      y = y + h[i] * (w0 * f[0] + w1 * f[1] + w2 * f[2])
    if i > 1:
      q = h[i - 1] / h[i - 2]
      y = y + theta * h[i] * (f[0] - (1.0 + q) * f[1] + q * f[2])
    x = alpha[i + 1] * y
  check(solvers.cab(process, grid, order=order), process, x)


def test_cab_without_correction_is_adams_bashforth_of_the_noise_level():
  grid = grids.karras(EDM, 8)
  one = solvers.cab(EDM, grid, order=3, theta=0.0)
  other = solvers.deis(EDM, grid, order=3, variant="rho_ab")
  np.testing.assert_allclose(one.history, other.history, rtol=1e-10, atol=1e-12)


# --- STORK -------------------------------------------------------------------


def gegenbauer(j):
  if j < 2:
    return [1.0, 1.0 / 3.0][j]
  return 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3))


@pytest.mark.parametrize("derivatives", [1, 2, 3])
@pytest.mark.parametrize("s", [4, 50])
def test_stork_is_the_authors_loop_on_equal_steps(s, derivatives):
  """Velocities of their sub-steps by finite differences, at their places."""
  grid = np.linspace(0.98, 0.05, 9)
  dt = grid[0] - grid[1]
  x, v = grid[0] * START, []
  for t in grid[:-1]:
    x0, eps = answer(x, 1.0 - t, t)
    v.insert(0, eps - x0)
    known = min(derivatives, len(v) - 1)
    d = [  # in falling time, whose differences are of the past
      [v[0], 0.0, 0.0, 0.0],
      [v[0], (v[1] - v[0]) / dt, 0.0, 0.0] if known > 0 else None,
      [
        v[0],
        (-v[2] + 4 * v[1] - 3 * v[0]) / (2 * dt),
        (v[2] - 2 * v[1] + v[0]) / dt**2,
        0.0,
      ]
      if known > 1
      else None,
      [
        v[0],
        (2 * v[3] - 9 * v[2] + 18 * v[1] - 11 * v[0]) / (6 * dt),
        (-v[3] + 4 * v[2] - 5 * v[1] + 2 * v[0]) / dt**2,
        (v[3] - 3 * v[2] + 3 * v[1] - v[0]) / dt**3,
      ]
      if known > 2
      else None,
    ][known]
    before = y = x
    for j in range(1, s + 1):
      if j == 1:
        new = y - dt * 6 / ((s + 4) * (s - 1)) * v[0]
      else:
        part = 4 / 3 if j == 2 else (j - 1) ** 2 + (j - 1) - 2
        at = -part / (s**2 + s - 2) * dt
        taylor = d[0] + at * d[1] + at**2 / 2 * d[2] + at**3 / 6 * d[3]
        mu = (2 * j + 1) * gegenbauer(j) / (j * gegenbauer(j - 1))
        nu = -(j + 1) * gegenbauer(j) / (j * gegenbauer(j - 2))
        by = mu * 6 / ((s + 4) * (s - 1))
        back = -by * (1 - j * (j + 1) * gegenbauer(j - 1) / 2)
        new = mu * y + nu * before + (1 - mu - nu) * x
        new = new - dt * by * taylor - dt * back * v[0]
      before, y = y, new
    x = y
  table = solvers.stork(
    FLOW, grid, derivatives=derivatives, stages=s, published=True
  )
  check(table, FLOW, x, rtol=1e-8)


@pytest.mark.parametrize("stages", [3, 8, 50])
def test_stork_of_one_derivative_is_adams_bashforth_at_its_own_places(stages):
  """RKG2 integrates a line exactly; at the places of the code it does not."""
  grid = np.linspace(0.98, 0.05, 9)
  own = solvers.stork(FLOW, grid, derivatives=1, stages=stages)
  exact = solvers.adams_bashforth(FLOW, grid, order=2)
  np.testing.assert_allclose(own.history, exact.history, atol=1e-12)
  theirs = solvers.stork(
    FLOW, grid, derivatives=1, stages=stages, published=True
  )
  off = theirs.history[1, 0] - exact.history[1, 0]
  assert abs(off.sum()) < 1e-12 and off[0] * np.diff(grid)[0] < 0
  if stages == 50:  # by 0.0104 of the step's second moment, 1/2
    np.testing.assert_allclose(off[0] / np.diff(grid)[0], -0.01038, rtol=1e-3)


def test_stages_of_stork_integrate_the_linear_part_to_second_order():
  """Of eps = 0 a step keeps x as the product of its stages does."""
  process = processes.vp_linear()
  errors = []
  for n in (20, 40):
    grid = grids.uniform(process, n)
    table = solvers.stork(process, grid, output="eps", derivatives=1)
    kept = np.prod(table.state[:, 0, 0])
    exact = process.alpha(grid[-1]) / process.alpha(grid[0])
    errors.append(abs(kept / exact - 1.0))
  assert abs(np.log2(errors[0] / errors[1]) - 2.0) < 0.2, errors


def test_mistakes_are_told():
  grid = grids.karras(EDM, 4)
  for build, said in (
    (lambda: solvers.pfdiff(EDM, grid, skip=1, ahead=2), "from 1 to 1; got"),
    (lambda: solvers.pfdiff(EDM, grid, skip=0), "skip of pfdiff"),
    (lambda: solvers.rx_dpm(EDM, grid, group=1), "group of rx_dpm"),
    (lambda: solvers.cab(EDM, grid, order=4), "got 4"),
    (lambda: solvers.stork(EDM, grid, derivatives=4), "got 4"),
    (lambda: solvers.stork(EDM, grid, output="x0"), "'eps'; got 'x0'"),
    (lambda: solvers.stork(EDM, grid, stages=2), "stages of stork"),
  ):
    with pytest.raises(ValueError, match=said):
      build()

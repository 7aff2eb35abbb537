"""Solvers whose numbers are learned, at any numbers, against published loops.

NeuralSolver, DyWeight, EPD, AdaSDE and DC-Solver, in float64 on a mixture of
two Gaussians; without numbers each is a solver that was there before.
"""

import math

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

VP = processes.vp_linear(t_min=1e-6)  # holds the noise levels of EDM
RANDOM = np.random.default_rng(3)


def check(table, process, expected, rtol=1e-9):
  np.testing.assert_allclose(play(table, process), expected, rtol=rtol)


def same(one, other, atol=1e-12):
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=atol)


# --- NeuralSolver ------------------------------------------------------------


def test_neural_solver_is_the_authors_loop_of_a_flow():
  """Their time runs from noise to data, v = x0 - eps, and dt is a parameter."""
  n = 6
  c = 0.4 * RANDOM.normal(size=(n, n))
  dt = RANDOM.uniform(0.5, 1.5, n)
  dt *= 0.9 / dt.sum()
  x, t, past = START, 0.0, []
  for i in range(n):
    x0, eps = answer(x, t, 1.0 - t)
    past.append(x0 - eps)
    v = sum(c[i, j] * past[j] for j in range(i))
    v = v + (1.0 - sum(c[i, j] for j in range(i))) * past[-1]
    x, t = x + v * dt[i], t + dt[i]
  grid = 1.0 - np.append(0.0, np.cumsum(dt))
  table = solvers.neural_solver(FLOW, grid, coefficients=c)
  assert table.nfe == table.memory == n
  check(table, FLOW, x)


def test_without_coefficients_it_is_ddim_and_adams_bashforth_with_theirs():
  grid = grids.uniform(FLOW, 6)
  c = np.diag(np.full(5, -0.5), -1)
  table = solvers.neural_solver(FLOW, grid, coefficients=c)
  other = solvers.adams_bashforth(FLOW, grid, order=2)
  np.testing.assert_allclose(table.history[:, :, :2], other.history, atol=1e-12)
  check(
    solvers.neural_solver(FLOW, grid),
    FLOW,
    play(solvers.euler(FLOW, grid), FLOW),
  )
  for output in ("eps", "x0"):
    table = solvers.neural_solver(VP, grids.karras(VP, 5), output=output)
    check(table, VP, play(solvers.ddim(VP, grids.karras(VP, 5)), VP))


# --- DyWeight ----------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_dyweight_is_the_authors_loop(scaled):
  """Of EDM: weights that do not sum to one, times that are told scaled."""
  grid = grids.karras(EDM, 6)
  w = np.tril(0.03 * RANDOM.normal(size=(6, 6))) + np.eye(6)
  s = RANDOM.uniform(0.9, 1.1, 6) if scaled else np.ones(6)
  s[0] = 1.0
  x, true, slopes = grid[0] * START, grid[0], []
  for i in range(6):
    t = true
    d = answer(x, 1.0, s[i] * t)[0]
    slopes.append((x - d) / t)
    x = x + (grid[i + 1] - t) * sum(w[i, j] * slopes[j] for j in range(i + 1))
    true = t + w[i].sum() * (grid[i + 1] - t)
  table = solvers.dyweight(EDM, grid, weights=w, scales=s)
  assert table.nfe == table.memory == 6
  check(table, EDM, x)


def test_dyweight_of_other_processes_is_the_same_method():
  """At the same noise levels, in x / alpha."""
  grid = VP.time_at(grids.karras(EDM, 6))[1:]
  w = np.tril(0.1 * RANDOM.normal(size=(5, 5))) + np.eye(5)
  s = RANDOM.uniform(0.95, 1.05, 5)
  levels = VP.noise_level(grid)
  one = solvers.dyweight(VP, grid, weights=w, scales=s)
  other = solvers.dyweight(EDM, levels, weights=w, scales=s)
  moved = solvers.transfer(other, EDM, VP, t_end=levels[-1])
  # where the grid ends the level reached may be another
  for a, b in zip(one[:2], moved[:2], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-8)
  np.testing.assert_allclose(one.history, moved.history, rtol=1e-7, atol=1e-12)


def test_weights_of_adams_bashforth_are_ipndm_and_none_are_ddim():
  grid = grids.karras(EDM, 6)
  w = np.diag(np.full(6, 1.5)) + np.diag(np.full(5, -0.5), -1)
  w[0, 0] = 1.0
  table = solvers.dyweight(EDM, grid, weights=w)
  known = solvers.ipndm(EDM, grid, order=2)
  np.testing.assert_allclose(table.history[:, :, :2], known.history, rtol=1e-10)
  assert not table.history[:, :, 2:].any()
  grid = grids.karras(VP, 6)
  check(solvers.dyweight(VP, grid), VP, play(solvers.ddim(VP, grid), VP))


# --- EPD ---------------------------------------------------------------------


@pytest.mark.parametrize("points", [1, 2, 3])
def test_epd_is_the_authors_loop(points):
  grid = grids.karras(EDM, 5)
  r = RANDOM.uniform(0.1, 0.9, (5, points))
  w = RANDOM.dirichlet(np.ones(points), 5) * RANDOM.uniform(0.9, 1.1, (5, 1))
  s = RANDOM.uniform(0.95, 1.05, (5, points))
  x = grid[0] * START
  for i in range(5):
    t, to = grid[i], grid[i + 1]
    slope = (x - answer(x, 1.0, t)[0]) / t
    new = x
    for j in range(points):
      m = to ** r[i, j] * t ** (1.0 - r[i, j])
      place = x + (m - t) * slope
      d = (place - answer(place, 1.0, s[i, j] * m)[0]) / m
      new = new + w[i, j] * (to - t) * d
    x = new
  table = solvers.epd(EDM, grid, points=points, places=r, weights=w, scales=s)
  assert table.nfe == 5 * (points + 1) and table.memory == points
  check(table, EDM, x)
  levels = VP.time_at(grid[1:])
  one = solvers.epd(
    VP, levels, points=points, places=r[1:], weights=w[1:], scales=s[1:]
  )
  other = solvers.epd(
    EDM, grid[1:], points=points, places=r[1:], weights=w[1:], scales=s[1:]
  )
  moved = solvers.transfer(other, EDM, VP, t_end=grid[-1])
  check(one, VP, play(moved, VP), rtol=1e-6)


@pytest.mark.parametrize("process", [EDM, VP], ids=["edm", "vp"])
def test_one_place_in_the_middle_is_dpm_solver_2(process):
  grid = grids.karras(process, 5)
  one = solvers.epd(process, grid, points=1)
  check(one, process, play(solvers.dpm_solver(process, grid, order=2), process))


# --- AdaSDE ------------------------------------------------------------------


@pytest.mark.parametrize("points", [1, 2])
def test_adasde_is_the_authors_loop(points):
  """Each step from a level raised by fresh noise; the same noise for both."""
  grid = grids.karras(EDM, 5, start=40.0)
  gamma = RANDOM.uniform(0.0, 0.3, 5)
  gamma[2] = 0.0
  r = RANDOM.uniform(0.1, 0.9, (5, points))
  w = RANDOM.dirichlet(np.ones(points), 5)
  s = RANDOM.uniform(0.95, 1.05, (5, points))
  z = RANDOM.normal(size=(5, *START.shape))
  x = grid[0] * START
  for i in range(5):
    t, to = (1.0 + gamma[i]) * grid[i], grid[i + 1]
    x = x + np.sqrt(t**2 - grid[i] ** 2) * z[i]
    slope = (x - answer(x, 1.0, t)[0]) / t
    new = x
    for j in range(points):
      m = to ** r[i, j] * t ** (1.0 - r[i, j])
      place = x + (m - t) * slope
      d = (place - answer(place, 1.0, s[i, j] * m)[0]) / m
      new = new + w[i, j] * (to - t) * d
    x = new
  options = dict(points=points, places=r, weights=w, scales=s)
  table = solvers.adasde(EDM, grid, gammas=gamma, **options)
  got = churned(table, EDM, grid[0] * START, z)
  np.testing.assert_allclose(got, x, rtol=1e-9)
  still = solvers.adasde(EDM, grid, **options)
  same(still, solvers.epd(EDM, grid, **options))
  # a process whose alpha varies: the same in x / alpha, but for its first step
  times = VP.time_at(grid)
  gamma[0] = 0.0
  one = solvers.adasde(VP, times, gammas=gamma, **options)
  first = VP.alpha(times[0]) * grid[0] * START
  moved = churned(one, VP, first, z) / VP.alpha(times[-1])
  table = solvers.adasde(EDM, grid, gammas=gamma, **options)
  known = churned(table, EDM, grid[0] * START, z)
  np.testing.assert_allclose(moved, known, rtol=1e-6)


def churned(table, process, y, z):
  """Walks a table that draws before the first call of every step."""
  calls = table.nfe // len(z)
  a, past = y, []
  for i, (t, output, state, history, noise) in enumerate(
    zip(*table, strict=True)
  ):
    assert not noise[1:].any()
    y = y + noise[0] * z[i // calls]
    past.insert(0, output @ answer(y, process.alpha(t), process.sigma(t)))
    h = np.stack(past[: history.shape[1]])
    y, a = state @ np.stack([y, a]) + history[:, : len(h)] @ h
  return a


# --- DC-Solver ---------------------------------------------------------------


def unipc_update(x, past, lam, alpha, sigma, order, model):
  """UniPC-bh2 of x0 as published: (x', the corrected x', the answer there).

  Args:
    x: the sample, at lam[-2].
    past: answers, the last at x's time.
    lam: of the past times and of the next; alpha and sigma likewise.
    alpha: see lam.
    sigma: see lam.
    order: p.
    model: x' -> x0, or None without a corrector.
  """
  h = lam[-1] - lam[-2]
  hh, b_h = -h, np.expm1(-h)
  r = [(lam[-3 - k] - lam[-2]) / h for k in range(order - 1)] + [1.0]
  d = [(past[-2 - k] - past[-1]) / r[k] for k in range(order - 1)]
  rows, right, phi = [], [], np.expm1(hh) / hh - 1.0
  for k in range(1, order + 1):
    rows.append(np.power(r, k - 1))
    right.append(phi * math.factorial(k) / b_h)
    phi = phi / hh - 1.0 / math.factorial(k + 1)
  rows, right = np.stack(rows), np.asarray(right)
  base = sigma[-1] / sigma[-2] * x - alpha[-1] * np.expm1(hh) * past[-1]
  predicts = (
    [0.5] if order == 2 else np.linalg.solve(rows[:-1, :-1], right[:-1])
  )
  ahead = base - alpha[-1] * b_h * sum(
    p * v for p, v in zip(predicts, d, strict=False)
  )
  if model is None:
    return ahead, None
  corrects = [0.5] if order == 1 else np.linalg.solve(rows, right)
  new = model(ahead)
  d.append(new - past[-1])
  return base - alpha[-1] * b_h * sum(
    p * v for p, v in zip(corrects, d, strict=True)
  ), new


@pytest.mark.parametrize("process", [VP, EDM], ids=["vp", "edm"])
@pytest.mark.parametrize("order", [2, 3])
def test_dc_solver_is_the_authors_loop(process, order):
  grid = grids.karras(process, 7)
  q = RANDOM.uniform(0.7, 1.4, 7)
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  lam = np.log(alpha / sigma)
  x = sigma[0] * START
  past = [answer(x, alpha[0], sigma[0])[0]]
  for i in range(7):
    if i > 1:
      to = q[i] * grid[i] + (1.0 - q[i]) * grid[i - 1]
      mixed = 0.0
      for k in range(3):
        term = past[-1 - k]
        for j in range(3):
          if j != k:
            gap = grid[i - k] - grid[i - j]
            term = term * (to - grid[i - j]) / gap
        mixed = mixed + term
      past[-1] = mixed
    p = min(order, i + 1, 7 - i)
    last = i == 6
    model = lambda v, i=i: answer(v, alpha[i + 1], sigma[i + 1])[0]
    to = slice(0, i + 2)
    x, new = unipc_update(
      x, past, lam[to], alpha[to], sigma[to], p, None if last else model
    )
    past.append(new)
  table = solvers.dc_solver(process, grid, ratios=q, order=order)
  assert table.nfe == table.memory == 7
  check(table, process, x, rtol=1e-8)


@pytest.mark.parametrize("output", ["x0", "eps"])
def test_ratios_of_one_are_unipc(output):
  grid = grids.karras(VP, 7)
  known = solvers.unipc(VP, grid, order=3, output=output)
  same(solvers.dc_solver(VP, grid, order=3, output=output), known)
  ones = solvers.dc_solver(VP, grid, ratios=np.ones(7), order=3, output=output)
  np.testing.assert_allclose(ones.history[:, :, :4], known.history, atol=1e-11)
  assert not ones.history[:, :, 4:].any()


def test_mistakes_are_told():
  grid = grids.karras(EDM, 4, to_zero=True)
  for build, said in (
    (
      lambda: solvers.neural_solver(EDM, grid, coefficients=np.eye(4)),
      r"coefficients must have the shape \(3, 3\) .* got \(4, 4\)",
    ),
    (lambda: solvers.neural_solver(EDM, grid, output="t"), "got 't'"),
    (
      lambda: solvers.dyweight(EDM, grid, weights=np.full((3, 3), np.nan)),
      "weights holds NaN",
    ),
    (lambda: solvers.dyweight(EDM, grid, scales=[1, 0, 1]), "above 0; got 0"),
    (lambda: solvers.epd(EDM, grid, points=0), "points of epd"),
    (
      lambda: solvers.epd(EDM, grid, points=1, places=[[0.5], [1.5], [0.5]]),
      "got places from 0.5 to 1.5",
    ),
    (lambda: solvers.adasde(EDM, grid, gammas=[0.1, -1, 0]), "got -1"),
    (lambda: solvers.dc_solver(EDM, grid, ratios=[1.0]), r"shape \(3,\)"),
    (lambda: solvers.dc_solver(EDM, grid, variant="bh3"), "got 'bh3'"),
  ):
    with pytest.raises(ValueError, match=said):
      build()

"""What every table promises, on the numbers alone: nothing is compiled here.

A step into sigma = 0 is the answer itself; between its calls a table holds the
sample that was accepted last; float32 changes less than the method errs by. In
NumPy, with an exact model, over all solvers, processes, grids and 1 to 20 steps
(each solver on each grid with one number of steps, all of them as slow tests).
"""

import itertools

import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff import tableau as tables
from tests.solvers.cases import CASES

PROCESSES = {
  "edm": processes.edm(),
  "vp_linear": processes.vp_linear(),
  "vp_cosine": processes.vp_cosine(),
  "rectified_flow": processes.rectified_flow(),
}
GRIDS = {
  "uniform": grids.uniform,
  "quadratic": grids.quadratic,
  "log_snr": grids.log_snr,
  "karras": grids.karras,
  "cosine": grids.cosine,
  "angular": grids.angular,
  "vp_quadratic": grids.vp_quadratic,
}
MEANS = np.asarray([[1.0, -0.5], [-1.0, 0.7], [0.4, 0.9]])
VARIANCES = np.asarray([[0.02, 0.01], [0.05, 0.02], [0.01, 0.3]])
SHARES = np.asarray([0.3, 0.5, 0.2])
START = np.random.default_rng(0).normal(size=(16, 2))  # of unit scale


def mixture(x, alpha, sigma, means=MEANS, variances=VARIANCES, shares=SHARES):
  """The exact (x0, eps) of a mixture of Gaussians, in x's precision.

  Args:
    x: f[m, batch, d], of m tables.
    alpha: f[m], beside sigma.
    sigma: f[m].
    means: f[k, d] of the mixture; variances likewise, shares f[k].
    variances: see means.
    shares: see means.
  """
  cast = lambda v: np.asarray(v, x.dtype)
  a, s = (cast(v)[:, None, None, None] for v in (alpha, sigma))
  m, v = cast(means), cast(variances)
  c = a * a * v + s * s
  off = x[:, :, None] - a * m
  log = np.log(cast(shares)) - 0.5 * np.sum(off**2 / c + np.log(c), axis=-1)
  p = np.exp(log - log.max(-1, keepdims=True))
  p = (p / p.sum(-1, keepdims=True))[..., None]
  pull = off / c
  return (p * (m + a * v * pull)).sum(2), (p * s * pull).sum(2)


def gaussian(x, alpha, sigma):
  return mixture(x, alpha, sigma, MEANS[:1], np.asarray([[0.5, 2.0]]), [1.0])


def point(x, alpha, sigma):
  """Data that never vary: (1, -0.5)."""
  return mixture(x, alpha, sigma, MEANS[:1], np.zeros((1, 2)), [1.0])


def walk(model, process, todo, dtype=np.float64, seed=0, start=START):
  """Runs tables side by side; returns their samples, [m, batch, d], and all.

  The second result is the list of what was accepted after every row.
  """
  n = max(table.nfe for table in todo)
  memory = max(table.memory for table in todo)
  padded = [tables.pad(table, n, memory) for table in todo]
  t, output, state, history, noise = (
    np.stack(leaf).astype(dtype) for leaf in zip(*padded, strict=True)
  )
  lengths = np.asarray([table.nfe for table in todo])
  alpha, sigma = (
    f(t.astype(np.float64)) for f in (process.alpha, process.sigma)
  )
  first = process.sigma(todo[0].t[0])
  y = np.array(np.broadcast_to(first * start, (len(todo), *start.shape)), dtype)
  a, h = y.copy(), np.zeros((memory, *y.shape), dtype)
  z = np.random.default_rng(seed).normal(size=(n, 2, *start.shape))
  z, kept = z.astype(dtype), []
  for i in range(n):
    on = np.flatnonzero(lengths > i)
    w = lambda leaf, at=(on, i): leaf[at][:, None, None]
    now, anchor = y[on] + w(noise[..., 0]) * z[i, 0], a[on]
    x0, eps = model(now, alpha[on, i], sigma[on, i])
    f = w(output[..., 0]) * x0 + w(output[..., 1]) * eps
    h[:, on] = np.concatenate([f[None], h[:-1, on]])
    new = []
    for j in (0, 1):
      mixed = w(state[..., j, 0]) * now + w(state[..., j, 1]) * anchor
      for k in np.flatnonzero(history[on, i, j].any(0)):
        mixed = mixed + w(history[..., j, k]) * h[k, on]
      new.append(mixed + w(noise[..., 1 + j]) * z[i, 1])
    y[on], a[on] = new
    kept.append(a.copy())
  return a, kept


def cases(process, name, to_zero, every=False):
  """Yields (solver, steps, table): all solvers on one grid of a process."""
  turn = 7 * list(GRIDS).index(name) + 13 * to_zero
  for i, (solver, case) in enumerate(CASES.items()):
    for steps in range(1, 21) if every else [(3 * i + turn) % 20 + 1]:
      grid = GRIDS[name](process, steps, to_zero=to_zero)
      yield solver, steps, case.build(process, grid)


def true_end(process):
  """The ODE's own end at t_min, by 150 steps of the classical method."""
  if process.alpha(process.t_max) > 0:
    fine = grids.log_snr(process, 150)
  else:
    below = float(process.log_snr_inverse(-8.0))
    fine = grids.log_snr(process, 150, start=below)
    fine = np.append(process.t_max, fine)
  return walk(mixture, process, [solvers.rk4(process, fine)])[0][0]


def rms(v):
  return np.sqrt(np.mean(np.square(v), axis=(-1, -2)))


def ends_clean(table):
  """Whether the last row accepts a multiple of its own x0, and nothing else."""
  last = tables.take(table, slice(-1, None))
  return (
    not last.state.any()
    and not last.noise[:, 1:].any()  # churn before the call is its own
    and not last.history[:, :, 1:].any()
    and np.array_equal(last.output[0], [1.0, 0.0])
  )


@pytest.mark.parametrize("name", PROCESSES)
def test_the_step_into_sigma_zero_accepts_x0_of_its_call(name):
  """So that what never varies comes out exactly, of every solver and grid."""
  process = PROCESSES[name]
  for grid in GRIDS:
    todo = list(cases(process, grid, True))
    bad = [(s, n) for s, n, table in todo if not ends_clean(table)]
    assert not bad, (grid, bad)
  out, _ = walk(point, process, [table for *_, table in todo])
  right = np.broadcast_to(MEANS[0] * process.alpha(process.t_zero), out.shape)
  np.testing.assert_allclose(out, right, rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_tables_made_from_tables_end_as_clean(name):
  process = PROCESSES[name]
  grid = grids.karras(process, 6, to_zero=True)
  inner = grids.karras(process, 6)
  one = solvers.ddim(process, grid)
  level = float(process.noise_level(grid[3]))
  made = {
    "restart": solvers.restart(
      process, grid, intervals=[(level, 3 * level, 2, 1)], solver=solvers.unipc
    ),
    "final_step": solvers.final_step(
      solvers.unipc(process, inner), process, inner, "denoise"
    ),
    "langevin": solvers.with_langevin(process, one, np.full((6, 1), 1e-3)),
    "noise": solvers.inject_noise(solvers.heun(process, grid), process, 0.1),
    "annealed": solvers.annealed_langevin(process, grid[1:]),
    "gamma": solvers.gamma_sampling(process, grid, gamma=0.5),
    "churn": solvers.heun_churn(process, grid, churn=20.0),
    "free": solvers.analytical_first_step(
      solvers.unipc(process, grid[1:]), process
    )[0],
    "reversed": solvers.transfer(
      solvers.unipc(process, grid[1:]), process, process, process.t_zero
    ),
  }
  for calls in (1, 2, 5, 8, 10, 12, 20):
    made["default", calls] = solvers.default(process, calls, to_zero=True)
  assert not [name for name, table in made.items() if not ends_clean(table)]


@pytest.mark.parametrize("name", ["edm", "vp_linear"])
def test_what_is_kept_after_a_call_is_at_the_time_of_the_next(name):
  """a changes once a step, and then to the sample at the step's end.

  The solution passes every time of the grid; what was accepted lies next to
  the place where the next step begins, not to that where the last one began.
  """
  process = PROCESSES[name]  # where noise and data are of one size
  grid = np.asarray(process.log_snr_inverse(np.linspace(-1.5, 0.7, 41)))
  scale = np.sqrt(process.alpha(grid) ** 2 * 0.5 + process.sigma(grid) ** 2)
  other = np.sqrt(process.alpha(grid) ** 2 * 2.0 + process.sigma(grid) ** 2)
  alpha = process.alpha(grid)[:, None, None]
  spread = np.stack([scale, other], -1)[:, None]
  first = process.sigma(grid[0]) * START - alpha[0] * MEANS[0]
  path = alpha * MEANS[0] + first * spread / spread[0]
  deterministic = {
    n: c for n, c in CASES.items() if c.order and not c.two_states
  }
  # with gamma = 2 the method errs by as much as a step of this grid is long
  options = lambda n: {"gamma": 1.5} if n.startswith("gradient") else {}
  todo = [
    c.build(process, grid, **options(n)) for n, c in deterministic.items()
  ]
  _, kept = walk(gaussian, process, todo)
  for i, (solver, table) in enumerate(zip(deterministic, todo, strict=True)):
    done, last = 0, process.sigma(grid[0]) * START
    for row in range(table.nfe):
      now = kept[row][i]
      done += not np.array_equal(now, last)
      off = rms(path[max(done - 1, 0) : done + 1] - now)
      assert off[-1] < 0.7 * off[0] or not done, (solver, row, off)
      last = now
    assert done == len(grid) - 1, solver


@pytest.mark.parametrize("name", ["edm", "vp_linear"])
def test_what_two_states_keep_is_at_one_of_both_ends_of_a_step(name):
  """The sample before, or the other one; after the last call the result."""
  process = PROCESSES[name]
  grid = np.asarray(process.log_snr_inverse(np.linspace(-1.5, 0.7, 41)))
  # but EDICT, whose error is as large as its steps are
  coupled = {n: c for n, c in CASES.items() if c.two_states and n != "edict"}
  todo = [c.build(process, grid) for c in coupled.values()]
  _, kept = walk(gaussian, process, todo)
  # the solution at every time of the grid
  fine = solvers.rk4(process, grid)
  _, path = walk(gaussian, process, [fine])
  path = [process.sigma(grid[0]) * START, *(a[0] for a in path[3::4])]
  for i, (case, table) in enumerate(zip(coupled.values(), todo, strict=True)):
    each = case.calls_per_step
    for row in range(table.nfe):
      step = row // each
      off = rms(np.stack(path[step : step + 2]) - kept[row][i])
      apart = rms(path[step + 1] - path[step])
      assert off.min() < 0.8 * apart, (table.nfe, row, off, apart)
    assert off[-1] < 0.8 * apart


@pytest.mark.parametrize("name", ["edm", "vp_cosine"])
def test_every_row_ends_a_step_or_leaves_the_accepted_sample_alone(name):
  """Of all tables, the noisy ones too; noise before a call may be accepted."""
  process = PROCESSES[name]
  for solver, steps, table in cases(process, "karras", False):
    same = lambda leaf: leaf[:, 0] == leaf[:, 1]
    state, history, noise = table.state, table.history, table.noise
    ends = same(state).all(1) & same(history).all(1)
    ends &= noise[:, 1] == noise[:, 2]
    leaves = ~history[:, 1].any(1) & (noise[:, 2] == 0)
    leaves &= state[:, 1].sum(1) == 1.0
    if solver == "heun_churn":  # asks next at a rescaled place
      leaves |= state[:, 1, 1] == 1.0
    if solver == "adasde":  # likewise, by a factor
      y, a = (np.concatenate([state, history], 2)[:, j] for j in (0, 1))
      ends |= np.isclose(y * a[:, 1:2], a * y[:, 1:2], rtol=1e-12).all(1)
    if CASES[solver].two_states:  # of which each row may change one
      leaves[:-1] = True
    assert (ends | leaves).all(), (solver, steps, np.flatnonzero(~ends))
    assert ends[-1], solver


def check_float32(process, grid, to_zero, every):
  done = list(cases(process, grid, to_zero, every))
  todo = [table for *_, table in done]
  high, _ = walk(mixture, process, todo)
  low, _ = walk(mixture, process, todo, np.float32)
  apart = rms(low.astype(np.float64) - high)
  error = rms(high - true_end(process))
  bad = []
  for (solver, steps, table), d, e in zip(done, apart, error, strict=True):
    # a noisy path errs from no other; its rounding is compared with the data
    most = 1e-3 if table.stochastic else max(1e-4, min(e, 1e-2))
    most = max(most, 1e-5 * e)  # a method that has blown up
    if solver == "pndm" and steps < 5:  # as published: it errs by up to 2000
      continue
    if CASES[solver].two_states:  # which may run apart, on few steps
      most = max(most, 1e-2 * e)
    if not d <= most:
      bad.append((solver, grid, steps, to_zero, float(d), float(e)))
  assert not bad, bad


@pytest.mark.parametrize("name", PROCESSES)
def test_float32_changes_a_sample_less_than_the_method_errs_by(name):
  """And by less than 1/100 of the data at all; 1e-4 is counted as none."""
  for i, grid in enumerate(GRIDS):
    check_float32(PROCESSES[name], grid, bool(i % 2), False)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "to_zero"), list(itertools.product(PROCESSES, [False, True]))
)
def test_float32_changes_no_sample_of_1_to_20_steps(name, to_zero):
  for grid in GRIDS:
    check_float32(PROCESSES[name], grid, to_zero, True)


def test_orders_are_lowered_where_errors_would_grow_and_nowhere_else():
  """Polynomials in t, on steps that grow from alpha = 0; DEIS's own grids."""
  process = PROCESSES["vp_cosine"]
  used = lambda table: (table.history[:, 0] != 0).sum(1)
  table = solvers.deis(process, grids.karras(process, 18))
  assert used(table)[:4].tolist() == [1, 1, 2, 3] and used(table)[-1] == 4
  assert (used(table)[4:] < 4).any()
  linear = PROCESSES["vp_linear"]
  for make in (grids.quadratic, grids.uniform, grids.log_snr):
    for steps in (5, 10, 20):
      full = used(solvers.deis(linear, make(linear, steps)))
      np.testing.assert_array_equal(full, np.minimum(np.arange(steps) + 1, 4))

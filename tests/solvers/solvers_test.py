"""The solvers' mathematics: orders, exactness, limits, laws."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import numerics
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.solvers.building import adams_bashforth
from tests.solvers.cases import CASES

DETERMINISTIC = [n for n, c in CASES.items() if c.order]
STOCHASTIC = [n for n, c in CASES.items() if c.weak_order]
NATIVE = (  # whose own formula holds where alpha = 0
  "euler",
  "heun",
  "midpoint",
  "rk4",
  "adams_bashforth_2",
  "adams_bashforth_3",
  "angular_ab_3",
  "angular_adams_2",
  "angular_adams_4",
  "gradient_estimation_flow",
  "heunpp2_flow",
  "euler_ancestral_rf",
  "neural_solver",
)
ROWS = 2000
GRIDS = {"log_snr": grids.log_snr, "uniform": grids.uniform}

PROCESSES = {
  "edm": processes.edm(),
  "vp_linear": processes.vp_linear(),
  "vp_cosine": processes.vp_cosine(),
  "sub_vp": processes.sub_vp(),
  "ve": processes.ve(),
  "rectified_flow": processes.rectified_flow(),
  "pair": processes.from_alpha_sigma(
    lambda t: jnp.cos(1.5 * t), lambda t: jnp.sin(1.5 * t), 1e-3, 1.0, 0.0
  ),
}
INSIDE = {  # alpha > 0 throughout
  "edm": processes.edm(0.05, 20.0),
  "vp_linear": processes.vp_linear(),
  "ve": processes.ve(0.05, 20.0),
  "rectified_flow": processes.rectified_flow(0.01, 0.95),
}


# --- running tables, in one compiled program for each model ------------------


@jax.jit
def _walk(model, rows, state, length):
  index = jnp.arange(state.y.shape[0])
  advance = sampling.table_advance(model, index)
  return sampling.run(jax.random.key(0), advance, rows, state, length=length)[0]


def walk(model, table, x, history=(), first=0, n=ROWS):
  """Runs rows `first` and on from x, given the outputs of earlier calls.

  Args:
    model: the model.
    table: the whole table.
    x: (y, a) at row `first`.
    history: outputs of the calls 0..first - 1.
    first: first row to run.
    n: rows to pad to.
  """
  memory = max(5, table.memory)
  y, a = x
  ring = np.zeros((memory, *y.shape))
  for call, output in enumerate(history):
    ring[call % memory] = output
  rest = tables.take(table, slice(first, None))
  padded = tables.pad(rest, n, memory)
  rows = sampling.rows_of(padded, jnp.float64, first)
  state = sampling.State(jnp.asarray(y), jnp.asarray(a), jnp.asarray(ring))
  return np.asarray(_walk(model, rows, state, rest.nfe).a)


def run(model, table, x, n=ROWS):
  return walk(model, table, (x, x), n=n)


def rmse(x, y):
  return np.sqrt(np.mean((x - y) ** 2))


def noise(process, n=32, d=2, t=None):
  return np.asarray(
    process.prior(jax.random.key(1), (n, d), t, dtype=jnp.float64)
  )


# --- orders ------------------------------------------------------------------


@functools.cache
def problem(name, grid):
  """A model, a start, its exact states at any times of the order grids."""
  process = (
    processes.edm(0.05, 20.0)
    if grid == "log_snr"
    else (processes.edm(1.0, 5.0))
  )
  if name == "gaussian":
    single = oracles.gaussian([1.0, -0.5], [0.25, 1.5])
    model = oracles.exact(single, process)
    x = noise(process)
    ends = lambda t: (process.alpha(t), process.sigma(t))
    truth = lambda t: np.stack(
      [oracles.flow_map(single, x, ends(process.t_max), ends(s)) for s in t]
    )
    return process, model, x, truth
  model = oracles.exact(oracles.g2(), process)
  x = noise(process)

  def truth(t):
    """States at the times t by 320 RK4 steps from one to the next."""
    states, y = [x], x
    for start, end in zip(t[:-1], t[1:], strict=True):
      steps = 320 if start / end > 2 else 40
      fine = start * (end / start) ** np.linspace(0, 1, steps + 1)
      y = run(model, solvers.rk4.build(process, fine), y)
      states.append(y)
    return np.stack(states)

  return process, model, x, truth


@functools.cache
def end_state(name, grid):
  process, model, x, truth = problem(name, grid)
  return truth(np.geomspace(process.t_max, process.t_min, 4))[-1]


def build_open(name, process, grid):
  """The table without lowered last steps, which would cap its order."""
  options = {"lower_order_final": False} if name.startswith("unip") else {}
  return CASES[name].build(process, grid, **options)


@pytest.mark.parametrize("target", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_from_exact_history(name, target, x64):
  """The slope of the error is the declared order, within 0.2.

  Multistep tables start from an exact history: from a cold start their first
  step, of first order, caps them at order 2.
  """
  case = CASES[name]
  process, model, x, truth = problem(target, case.grid)
  multistep = case.calls_per_step == 1
  sizes = [640, 1280] if multistep else [160, 320]
  if case.order > 4:
    sizes = [320, 640]  # soon at the rounding
  if case.calls_per_step > 5:
    sizes = [80, 160]  # of the rows that there are
  if case.grid == "uniform":  # a short range of noise, soon at the rounding
    sizes = [320, 640]
  errors = []
  for n in sizes:
    grid = GRIDS[case.grid](process, n)
    table = build_open(name, process, grid)
    done = 0  # steps of which the outputs are given
    if multistep and case.order > 1:
      done = 4 + case.warm_up[0] if case.warm_up[0] else table.memory
    first = case.calls(done)
    at = table.t[[case.calls(i) for i in range(done + 1)]]
    states = truth(at)
    outputs = [np.zeros_like(x)] * first  # those of stages are not used again
    for i in range(done):
      pair = model(jnp.asarray(states[i]), at[i])
      w = table.output[case.calls(i)]
      outputs[case.calls(i)] = np.asarray(w[0] * pair.x0 + w[1] * pair.eps)
    corrects = first and any(
      np.any(leaf[first, 0] != leaf[first, 1])
      for leaf in (table.state, table.history)
    )
    anchor = states[done - 1] if corrects else states[done]
    start = (states[done], anchor)
    out = walk(model, table, start, outputs, first)
    errors.append(rmse(out, end_state(target, case.grid)))
  slope = np.log2(errors[0] / errors[1])
  # on linear flows the midpoint rule gains an order in EDM's time; two steps
  # of DDIM, extrapolated, are nearly one of it
  higher = {"midpoint": 3.0, "rx_dpm": 3.0} if target == "gaussian" else {}
  print(name, target, round(slope, 3))
  assert abs(slope - higher.get(name, case.order)) < 0.2, (errors, slope)


@pytest.mark.parametrize("name", ["dpmpp_3m", "deis_3", "deis_4"])
def test_cold_start_caps_multistep_at_order_two(name, x64):
  """On a grid that begins where the flow bends; at sigma = 20 it shows late."""
  process, model, x, _ = problem("gaussian", "uniform")
  exact = end_state("gaussian", "uniform")
  error = lambda n: rmse(
    run(model, build_open(name, process, grids.log_snr(process, n)), x), exact
  )
  slope = np.log2(error(640) / error(1280))
  assert abs(slope - 2.0) < 0.2, slope


def test_ipndm_is_second_order_on_a_graded_grid(x64):
  """Its weights are those of equal steps, right to first order elsewhere."""
  process, model, x, _ = problem("gaussian", "log_snr")
  exact = end_state("gaussian", "log_snr")
  error = lambda n: rmse(
    run(model, solvers.ipndm(process, grids.log_snr(process, n)), x), exact
  )
  assert abs(np.log2(error(640) / error(1280)) - 2.0) < 0.1


def test_published_3m_is_second_order_and_ours_third(x64):
  process, model, x, truth = problem("mixture", "log_snr")
  exact = end_state("mixture", "log_snr")

  def slope(published):
    errors = []
    for n in (320, 640):
      grid = grids.log_snr(process, n)
      table = solvers.dpmpp_3m(process, grid, published=published)
      states = truth(grid[:4])
      outputs = [
        np.asarray(model(jnp.asarray(states[i]), grid[i]).x0) for i in range(3)
      ]
      out = walk(model, table, (states[3], states[3]), outputs, 3)
      errors.append(rmse(out, exact))
    return np.log2(errors[0] / errors[1])

  assert abs(slope(False) - 3.0) < 0.15
  assert slope(True) < 2.3


@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order_by_exact_propagation(name, x64):
  """Mean and variance of the samples converge; nothing is sampled."""
  process = processes.edm(0.05, 20.0)
  single = oracles.gaussian([1.0, -0.5, 0.0], [0.25, 1.5, 4.0])
  case = CASES[name]
  errors = []
  for n in (80, 160, 320):
    table = case.build(process, grids.log_snr(process, n))
    mean, variance = oracles.propagate(table, process, single)
    true = single.variances[0] + 0.05**2
    errors.append(
      np.abs(mean - single.means[0]).max() + np.abs(variance - true).max()
    )
  slope = np.log2(errors[-2] / errors[-1])
  assert abs(slope - case.weak_order) < 0.2, errors


# --- exactness ---------------------------------------------------------------


def polynomial_model(process, coefficients, variable, half):
  """A model whose x0 or eps is a polynomial of time, whatever x is."""

  def model(x, t):
    u = variable(t)
    value = sum(c * u**j for j, c in enumerate(coefficients))
    value = jnp.broadcast_to(value, x.shape)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if half == "x0":
      return predictions.Prediction(value, (x - alpha * value) / sigma)
    return predictions.Prediction((x - sigma * value) / alpha, value)

  return model


def polynomial_solution(process, coefficients, x, start, end, half):
  """Closed form of the flow when x0 (eps) is a polynomial of lambda (rho)."""
  a, s = process.alpha, process.sigma
  if half == "x0":
    low, high = process.log_snr(start), process.log_snr(end)
    integral = mpmath.quad(
      lambda u: (
        mpmath.exp(u) * sum(c * u**j for j, c in enumerate(coefficients))
      ),
      [low, high],
    )
    return s(end) / s(start) * x + s(end) * float(integral)
  low, high = process.noise_level(start), process.noise_level(end)
  integral = sum(
    c * (high ** (j + 1) - low ** (j + 1)) / (j + 1)
    for j, c in enumerate(coefficients)
  )
  return a(end) / a(start) * x + a(end) * integral


EXACT = {  # degree of the polynomial that each method integrates exactly
  "ddim": ("x0", 0),
  "dpmpp_2m": ("x0", 0),
  "dpmpp_3m": ("x0", 2),
  "unipc_2": ("x0", 0),
  "unipc_exact": ("x0", 2),
  "dpm_solver_2": ("eps", 0),
  "dpm_solver_3": ("eps", 0),
  "ipndm_4": ("eps", 0),
  "deis_2": ("eps", 0),
  "deis_3": ("eps", 0),
  "deis_4": ("eps", 0),
  "lms": ("eps", 3),
  "unipc_2_eps": ("eps", 0),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_for_polynomials_of_its_variable(name, x64):
  """Constant answers are integrated exactly, polynomials up to the degree."""
  half, degree = EXACT[name]
  process = processes.edm(0.1, 5.0)
  grid = np.sort(
    np.append(np.random.default_rng(0).uniform(0.1, 5.0, 7), [0.1, 5.0])
  )[::-1]
  coefficients = [0.7, -0.3, 0.2, 0.05][: degree + 1]
  variable = (lambda t: -jnp.log(t)) if half == "x0" else (lambda t: t)
  model = polynomial_model(process, coefficients, variable, half)
  if name == "unipc_exact":
    table = solvers.unipc(
      process, grid, order=3, exact=True, lower_order_final=False
    )
  else:
    table = CASES[name].build(process, grid)
  first = degree if degree else 0  # the warm-up has lower degree
  x = np.asarray([[1.3], [-0.4]])
  at = lambda i: polynomial_solution(
    process, coefficients, x, grid[0], grid[i], half
  )
  outputs = [
    np.full_like(x, np.polyval(coefficients[::-1], float(variable(grid[i]))))
    for i in range(first)
  ]
  start = at(first)
  if name == "unipc_exact":  # what the first row corrects is a prediction
    options = dict(order=3, exact=True, lower_order_final=False)
    plain = solvers.unipc(process, grid, corrector=False, **options)
    weights = plain.history[first - 1, 0]
    start = plain.state[first - 1, 0, 0] * at(first - 1)
    start = start + sum(w * f for w, f in zip(weights, outputs[::-1]))
  rows = sampling.rows_of(
    tables.take(tables.pad(table, memory=5), slice(first, None)),
    jnp.float64,
    first,
  )
  ring = np.zeros((5, *x.shape))
  for i, output in enumerate(outputs):
    ring[i % 5] = output
  state = sampling.State(start, start, ring)
  out, _ = sampling.run(
    jax.random.key(0),
    sampling.table_advance(model, jnp.arange(2)),
    rows,
    jax.tree.map(jnp.asarray, state),
  )
  np.testing.assert_allclose(out.a, at(len(grid) - 1), rtol=1e-11)


@pytest.mark.parametrize("name", INSIDE)
def test_first_order_members_are_ddim(name, x64):
  """DPM-Solver-1, tAB0, iPNDM-1, UniP-1, one step of 2M: all are DDIM."""
  process = INSIDE[name]
  grid = grids.log_snr(process, 6)
  model = oracles.exact(oracles.g2(), process)
  x = noise(process)
  ddim = run(model, solvers.ddim(process, grid), x, 20)
  for table in (
    solvers.dpm_solver(process, grid, order=1),
    solvers.deis(process, grid, order=1),
    solvers.ipndm(process, grid, order=1),
    solvers.unipc(process, grid, order=1, corrector=False),
    solvers.unipc(process, grid, order=1, corrector=False, output="eps"),
  ):
    np.testing.assert_allclose(run(model, table, x, 20), ddim, atol=1e-12)
  one = grid[:2]
  np.testing.assert_allclose(
    run(model, solvers.dpmpp_2m(process, one), x, 20),
    run(model, solvers.ddim(process, one), x, 20),
    atol=1e-12,
  )
  if name in ("edm", "rectified_flow"):  # straight paths in t
    euler = run(model, solvers.euler(process, grid), x, 20)
    np.testing.assert_allclose(euler, ddim, atol=1e-12)


def test_ddim_equals_the_cancellation_free_transfer_of_pndm(x64):
  process = processes.vp_linear()
  grid = grids.uniform(process, 7)
  table = solvers.ddim(process, grid)
  rng = np.random.default_rng(0)
  x, eps = rng.standard_normal((2, 100))
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
    bt, bs = process.alpha(t) ** 2, process.alpha(s) ** 2
    transfer = x + (bs - bt) * (
      x / (np.sqrt(bt) * (np.sqrt(bt) + np.sqrt(bs)))
      - eps / (np.sqrt(bt) * (np.sqrt((1 - bs) * bt) + np.sqrt((1 - bt) * bs)))
    )
    x0 = (x - process.sigma(t) * eps) / process.alpha(t)
    row = table.state[i, 0, 0] * x + table.history[i, 0, 0] * x0
    np.testing.assert_allclose(row, transfer, rtol=1e-9, atol=1e-10)


def test_transfer_is_a_semigroup_in_a_constant_eps(x64):
  """One DDIM step is two, through any time between, while eps stays."""
  process = processes.vp_linear()
  model = polynomial_model(process, [0.8], lambda t: t, "eps")
  x = noise(process)
  step = lambda grid: sampling.sample(
    jax.random.key(0), model, solvers.ddim(process, grid), x
  )
  whole = step([0.9, 0.1])
  for middle in (0.2, 0.75):
    parts = step([0.9, middle, 0.1])
    np.testing.assert_allclose(parts, whole, atol=1e-12)


@pytest.mark.parametrize(
  "name",
  [
    "ddim",
    "dpmpp_2m",
    "dpmpp_3m",
    "unipc_3",
    "dpm_solver_3",
    "ipndm_4",
    "deis_1",
  ],
)
def test_reparameterizing_the_process_changes_nothing(name, x64):
  """On the same noise levels x / alpha is the same for VP, VE, EDM and flow."""
  levels = np.geomspace(15.0, 0.05, 8)
  outs = []
  for process in INSIDE.values():
    grid = grids.from_noise_levels(process, levels)
    if name == "deis_1":
      table = solvers.deis(process, grid, order=1)
    else:
      table = CASES[name].build(process, grid)
    x = noise(processes.edm(), t=15.0) * process.alpha(grid[0])
    out = run(oracles.exact(oracles.g2(), process), table, x, 40)
    outs.append(out / process.alpha(grid[-1]))
  for out in outs[1:]:
    np.testing.assert_allclose(out, outs[0], rtol=1e-9, atol=1e-9)


def test_heun_is_algorithm_1_of_edm(x64):
  process = processes.edm()
  grid = grids.karras(process, 9, to_zero=True)
  model = oracles.exact(oracles.g2(), process)
  x = noise(process)
  table = solvers.heun(process, grid)
  assert table.nfe == 2 * 9 - 1
  y = x
  for t, s in zip(grid[:-1], grid[1:], strict=True):
    d = (y - np.asarray(model(jnp.asarray(y), t).x0)) / t
    e = y + (s - t) * d
    if s > 0:
      d2 = (e - np.asarray(model(jnp.asarray(e), s).x0)) / s
      e = y + (s - t) * (d + d2) / 2
    y = e
  np.testing.assert_allclose(run(model, table, x, 40), y, rtol=1e-12)


@pytest.mark.parametrize(("churn", "s_min"), [(3.0, 0.05), (30.0, 0.0)])
def test_heun_with_churn_is_algorithm_2_of_edm(churn, s_min, x64):
  """Step by step with the same noise, churn inside [s_min, s_max] only.

  The second case meets the cap of gamma, and churns the step into sigma = 0.
  """
  process = processes.edm()
  n = 9
  grid = grids.karras(process, n, to_zero=True)
  model = oracles.exact(oracles.g2(), process)
  s_max, s_noise = 50.0, 1.003
  table = solvers.heun_churn(
    process, grid, churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise
  )
  key = jax.random.key(0)
  x = y = noise(process)
  call = 0
  for t, s in zip(grid[:-1], grid[1:], strict=True):
    inside = s_min <= t <= s_max
    gamma = min(churn / n, np.sqrt(2) - 1) if inside else 0.0
    z = tree.normal(
      jax.random.fold_in(jax.random.fold_in(key, call), 0), jnp.asarray(y)
    )
    t_hat = t + gamma * t
    y = y + np.sqrt(t_hat**2 - t**2) * s_noise * np.asarray(z)
    d = (y - np.asarray(model(jnp.asarray(y), t_hat).x0)) / t_hat
    e = y + (s - t_hat) * d
    call += 1
    if s > 0:
      d2 = (e - np.asarray(model(jnp.asarray(e), s).x0)) / s
      e = y + (s - t_hat) * (d + d2) / 2
      call += 1
    y = e
  assert call == table.nfe
  np.testing.assert_allclose(run(model, table, x, 40), y, rtol=1e-9)


@pytest.mark.parametrize("name", INSIDE)
def test_churn_zero_is_heun(name, x64):
  process = INSIDE[name]
  grid = grids.log_snr(process, 5)
  model = oracles.exact(oracles.g2(), process)
  x = noise(process)
  churned = solvers.heun_churn(process, grid, churn=0.0)
  np.testing.assert_allclose(
    run(model, churned, x, 20),
    run(model, solvers.heun(process, grid), x, 20),
    rtol=1e-12,
  )


@pytest.mark.parametrize("name", INSIDE)
def test_churn_keeps_the_marginals_of_every_process(name, x64):
  """Also where alpha varies, and x has to be rescaled with the new noise.

  The amount of churn is fixed and the steps are many: a fixed gamma for each
  step would leave the bias of one step of Heun, however many there are.
  """
  process = INSIDE[name]
  single = oracles.gaussian([0.5], [2.0])
  grid = grids.from_noise_levels(process, np.geomspace(10.0, 0.1, 1000))
  table = solvers.heun_churn(process, grid, churn=20.0, s_max=9.0)
  mean, variance = oracles.propagate(table, process, single)
  alpha, sigma = process.alpha(grid[-1]), process.sigma(grid[-1])
  np.testing.assert_allclose(mean, alpha * 0.5, rtol=1e-3)
  np.testing.assert_allclose(variance, alpha**2 * 2 + sigma**2, rtol=1e-3)
  assert np.count_nonzero(table.noise) > 900


@pytest.mark.parametrize("name", ["vp_linear", "rectified_flow"])
def test_churn_leaves_the_first_call_alone_where_alpha_varies(name, x64):
  """No step precedes it that could rescale x; where alpha = 1 none need."""
  process = INSIDE[name]
  grid = grids.log_snr(process, 5)
  table = solvers.heun_churn(process, grid, churn=2.0)
  assert table.t[0] == grid[0]
  assert (table.noise[:, 0] > 0).tolist() == [False] * 2 + [True, False] * 4
  straight = solvers.heun_churn(processes.edm(), [5.0, 2.0, 1.0], churn=0.2)
  assert straight.t[0] == pytest.approx(5.5) and straight.noise[0, 0] > 0


# --- coefficients ------------------------------------------------------------


def test_2m_holds_the_line_through_two_answers_at_the_middle_of_a_step(x64):
  """The line in lambda, also on uneven steps; the first holds its answer."""
  process = processes.vp_linear()
  grid = grids.quadratic(process, 7)
  alpha, lam = process.alpha(grid), process.log_snr(grid)
  h = np.diff(lam)
  table = solvers.dpmpp_2m(process, grid)
  held = table.history[:, 0] / (-alpha[1:] * np.expm1(-h))[:, None]
  np.testing.assert_allclose(held[0], [1.0, 0.0], atol=1e-12)
  np.testing.assert_allclose(held.sum(1), 1.0, rtol=1e-12)
  place = held[1:, 0] * lam[1:-1] + held[1:, 1] * lam[:-2]
  np.testing.assert_allclose(place, lam[1:-1] + h[1:] / 2, rtol=1e-11)


def test_3m_equals_the_divided_differences_with_the_factor_two(x64):
  process = processes.edm(0.01, 50.0)
  rng = np.random.default_rng(1)
  lam = np.cumsum(rng.uniform(0.2, 1.0, 9)) - 3.0
  grid = np.exp(-lam)
  table = solvers.dpmpp_3m(process, grid)
  h = np.diff(lam)
  for i in range(2, len(h)):
    r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
    a = np.asarray([1, -1, 0]) / r0
    b = np.asarray([0, 1, -1]) / r1
    d1 = a + r0 / (r0 + r1) * (a - b)
    d2 = 2 * (a - b) / (r0 + r1)
    p2 = 1 + np.expm1(-h[i]) / h[i]
    p3 = p2 / h[i] - 0.5
    expected = -np.expm1(-h[i]) * np.asarray([1, 0, 0]) + p2 * d1 - p3 * d2
    np.testing.assert_allclose(table.history[i, 0], expected, atol=1e-11)


def test_published_3m_has_the_weights_of_the_public_code(x64):
  """D0, D1 and D2 as they are there, on uneven steps; 1M and 2M come before."""
  process = processes.edm(0.01, 50.0)
  lam = np.cumsum(np.random.default_rng(1).uniform(0.2, 1.0, 9)) - 3.0
  grid = np.exp(-lam)
  table = solvers.dpmpp_3m(process, grid, published=True)
  second = solvers.dpmpp_2m(process, grid)
  np.testing.assert_allclose(
    table.history[:2, 0, :2], second.history[:2, 0], rtol=1e-11
  )
  np.testing.assert_array_equal(table.history[:2, 0, 2], 0.0)
  for i in range(2, 8):
    h, h0, h1 = (
      lam[i + 1] - lam[i],
      lam[i] - lam[i - 1],
      lam[i - 1] - lam[i - 2],
    )
    r0, r1 = h0 / h, h1 / h
    newest, older, oldest = np.eye(3)
    d1_0, d1_1 = (newest - older) / r0, (older - oldest) / r1
    d1 = d1_0 + (r0 / (r0 + r1)) * (d1_0 - d1_1)
    d2 = (1.0 / (r0 + r1)) * (d1_0 - d1_1)
    expected = (
      -(np.exp(-h) - 1.0) * newest
      + ((np.exp(-h) - 1.0) / h + 1.0) * d1
      - ((np.exp(-h) - 1.0 + h) / h**2 - 0.5) * d2
    )
    np.testing.assert_allclose(table.history[i, 0], expected, atol=1e-11)


def test_deis_in_the_clock_of_another_process_is_that_process_deis(x64):
  clock = processes.edm(0.05, 20.0)
  levels = np.geomspace(15.0, 0.05, 6)
  expected = solvers.deis(clock, levels, clock=clock)
  for process in (processes.vp_linear(), processes.rectified_flow()):
    grid = grids.from_noise_levels(process, levels)
    table = solvers.deis(process, grid, clock=clock)
    np.testing.assert_allclose(
      table.history / process.alpha(grid[1:])[:, None, None],
      expected.history,
      rtol=1e-8,
    )
    own = solvers.deis(process, grid)
    assert np.abs(own.history[-1] / table.history[-1] - 1).max() > 0.01


def test_deis_integrates_polynomials_in_its_clock_exactly(x64):
  process = processes.vp_linear()
  grid = grids.quadratic(process, 8)
  table = solvers.deis(process, grid, order=4)
  rho = lambda t: mpmath.sqrt(mpmath.expm1(mpmath.mpf(0.1) * t + 9.95 * t**2))
  for i in (3, 6):
    t, s = grid[i], grid[i + 1]
    for j in range(4):
      exact = mpmath.quad(
        lambda u, j=j: u**j * mpmath.diff(rho, u), mpmath.linspace(t, s, 5)
      )
      ours = table.history[i, 0] @ grid[i - np.arange(4)] ** j
      np.testing.assert_allclose(
        ours / process.alpha(s), float(exact), rtol=1e-9
      )


def test_deis_takes_vp_time_where_the_process_is_not_vp():
  """On EDM it is the table of the VP process of the same noise levels."""
  clock = processes.vp_linear_covering(0.002, 80.0)
  levels = grids.karras(processes.edm(), 9)
  same_levels = grids.from_noise_levels(clock, levels)
  vp = solvers.deis(clock, same_levels)
  edm = solvers.deis(processes.edm(), levels)
  scale = clock.alpha(same_levels[1:])[:, None, None]
  np.testing.assert_allclose(edm.history, vp.history / scale, rtol=1e-8)
  # and not the one in t = sigma, which is another variant's
  rho = solvers.deis(processes.edm(), levels, variant="rho_ab")
  assert np.abs(edm.history[-1] / rho.history[-1] - 1).max() > 0.01
  for process in (processes.vp_linear(), processes.vp_cosine()):
    grid = grids.log_snr(process, 7)
    own = solvers.deis(process, grid, clock=process)
    np.testing.assert_array_equal(
      solvers.deis(process, grid).history, own.history
    )


def test_deis_in_the_time_of_edm_has_the_closed_form_of_rho_ab(x64):
  process = processes.edm(0.1, 10.0)
  grid = grids.karras(process, 6)
  table = solvers.deis(process, grid, order=2, clock=process)
  for i in range(1, 6):
    step, back = grid[i + 1] - grid[i], grid[i] - grid[i - 1]
    bend = step**2 / (2 * back)
    np.testing.assert_allclose(
      table.history[i, 0], [step + bend, -bend], rtol=1e-11
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equal_steps_give_the_adams_bashforth_weights(order, x64):
  process = processes.edm(1.0, 9.0)
  grid = grids.uniform(process, 8)
  deis = solvers.deis(process, grid, order=order, variant="rho_ab")
  ipndm = solvers.ipndm(process, grid, order=order)
  weights = adams_bashforth(order)
  assert abs(weights.sum() - 1) < 1e-15
  np.testing.assert_allclose(deis.history[-1, 0], -weights, rtol=1e-10)
  np.testing.assert_allclose(ipndm.history, deis.history, atol=1e-10)


@pytest.mark.parametrize("output", ["x0", "eps"])
def test_unipc_of_both_variants_agrees_when_the_system_is_solved(output, x64):
  """With the exact solve B cancels, so bh1 and bh2 are one method."""
  process = processes.vp_linear()
  grid = grids.log_snr(process, 7)
  build = functools.partial(
    solvers.unipc, process, grid, order=3, output=output, exact=True
  )
  for a, b in zip(build(variant="bh1"), build(variant="bh2"), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unip_2_takes_half_a_difference_times_the_variants_b(variant, x64):
  """B(h) = h in the first variant of the paper, e^h - 1 in the second."""
  process = processes.edm(0.05, 20.0)
  grid = grids.karras(process, 6)
  lam = process.log_snr(grid)
  table = solvers.unipc(
    process, grid, order=2, variant=variant, corrector=False
  )
  for i in range(1, 5):
    z = lam[i] - lam[i + 1]
    node = (lam[i - 1] - lam[i]) / (lam[i + 1] - lam[i])
    b = z if variant == "bh1" else np.expm1(z)
    np.testing.assert_allclose(table.history[i, 0, 1], -b / (2 * node))


def test_orders_of_unipc_rise_from_one_and_fall_again_at_the_end():
  """A corrector takes the calls of its own step's predictor and one more."""
  process = processes.edm()
  grid = grids.karras(process, 6)
  count = lambda w: np.count_nonzero(w, axis=-1).tolist()
  build = functools.partial(solvers.unipc, process, grid, order=3)
  table = build(corrector=False)
  assert count(table.history[:, 0]) == [1, 2, 3, 3, 2, 1]
  table = build(corrector=False, lower_order_final=False)
  assert count(table.history[:, 0]) == [1, 2, 3, 3, 3, 3]
  assert count(build().history[1:5, 1]) == [2, 3, 4, 4]
  table = solvers.unipc(process, grids.karras(process, 7), order=4)
  assert count(table.history[1:6, 1]) == [2, 3, 4, 5, 4]


@pytest.mark.parametrize(
  ("name", "highest"), [("unipc", 3), ("deis", 4), ("ipndm", 4)]
)
def test_without_an_order_it_is_the_highest_that_the_steps_allow(name, highest):
  process, build = processes.edm(), getattr(solvers, name)
  for steps in (1, 2, 3, 4, 6):
    grid = grids.karras(process, steps)
    one, other = (
      build(process, grid),
      build(process, grid, order=min(highest, steps)),
    )
    for a, b in zip(one, other, strict=True):
      np.testing.assert_array_equal(a, b)


def test_unip_without_shortcut_is_the_exponential_multistep(x64):
  process = processes.edm(0.05, 20.0)
  grid = grids.karras(process, 7)
  lam = process.log_snr(grid)
  table = solvers.unipc(
    process,
    grid,
    order=3,
    corrector=False,
    exact=True,
    lower_order_final=False,
  )
  for i in range(2, 7):
    h = lam[i + 1] - lam[i]
    nodes = (lam[i - np.arange(3)] - lam[i]) / h
    expected = h * numerics.exponential_weights(nodes, -h)
    np.testing.assert_allclose(table.history[i, 0, :3], expected, rtol=1e-9)


def test_orders_for_budget_spend_it_all():
  for calls in range(1, 40):
    assert sum(solvers.orders_for_budget(calls)) == calls
  assert solvers.orders_for_budget(9) == (3, 3, 2, 1)
  assert solvers.orders_for_budget(10) == (3, 3, 3, 1)
  assert solvers.orders_for_budget(11) == (3, 3, 3, 2)


def test_every_step_of_dpm_solver_has_the_order_given_for_it():
  process = processes.vp_linear()
  grid = grids.log_snr(process, 3)
  table = solvers.dpm_solver(process, grid, order=[3, 1, 2])
  steps = [
    solvers.dpm_solver(process, grid[i : i + 2], order=order)
    for i, order in enumerate([3, 1, 2])
  ]
  assert [step.nfe for step in steps] == [3, 1, 2]
  for a, b in zip(table, tables.concat(*steps), strict=True):
    np.testing.assert_array_equal(a, b)


# --- stochastic limits -------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", INSIDE)
def test_ddim_keeps_the_marginals_of_a_point_mass(name, eta, x64):
  """For data at one point the variance is sigma^2 at any step count."""
  process = INSIDE[name]
  single = oracles.gaussian([1.5], [0.0])
  for n in (1, 2, 7):
    grid = grids.log_snr(process, n)
    table = solvers.ddim(process, grid, eta=eta)
    mean, variance = oracles.propagate(table, process, single)
    np.testing.assert_allclose(mean, 1.5 * process.alpha(grid[-1]), rtol=1e-10)
    np.testing.assert_allclose(
      variance, process.sigma(grid[-1]) ** 2, rtol=1e-9
    )


def test_eta_one_is_ddpm_and_eta_zero_draws_nothing(x64):
  process = processes.vp_linear()
  grid = grids.uniform(process, 9, to_zero=True)
  for a, b in zip(
    solvers.ddim(process, grid, eta=1.0),
    solvers.ddpm(process, grid),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
  assert not solvers.ddim(process, grid, eta=0.0).stochastic


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_the_textbook_posterior(variance, x64):
  """Ho et al. (2020), eq. 7 with beta_i from the products of alphas."""
  process = processes.vp_linear()
  grid = grids.uniform(process, 20)
  table = solvers.ddpm(process, grid, variance=variance)
  bar = process.alpha(grid) ** 2
  beta = 1 - bar[:-1] / bar[1:]
  x0_weight = np.sqrt(bar[1:]) * beta / (1 - bar[:-1])
  x_weight = np.sqrt(1 - beta) * (1 - bar[1:]) / (1 - bar[:-1])
  posterior = beta * (1 - bar[1:]) / (1 - bar[:-1])
  std = np.sqrt(posterior if variance == "small" else beta)
  np.testing.assert_allclose(table.history[:, 0, 0], x0_weight, rtol=1e-9)
  np.testing.assert_allclose(table.state[:, 0, 0], x_weight, rtol=1e-9)
  np.testing.assert_allclose(table.noise[:, 1], std, rtol=1e-9)


def test_ddpm_mean_is_score_sdes_ancestral_mean(x64):
  """(x + beta s) / sqrt(1 - beta), with the score of the x0 prediction."""
  process = processes.vp_linear()
  grid = grids.uniform(process, 10)
  table = solvers.ddpm(process, grid)
  x, x0 = np.random.default_rng(0).standard_normal((2, 50))
  for i in range(10):
    alpha, sigma = process.alpha(grid[i]), process.sigma(grid[i])
    beta = 1 - (alpha / process.alpha(grid[i + 1])) ** 2
    score = -(x - alpha * x0) / sigma**2
    mean = (x + beta * score) / np.sqrt(1 - beta)
    ours = table.state[i, 0, 0] * x + table.history[i, 0, 0] * x0
    np.testing.assert_allclose(ours, mean, rtol=1e-8, atol=1e-10)


# --- ends, grids, budgets ----------------------------------------------------

ALL_GRIDS = {
  "uniform": grids.uniform,
  "quadratic": grids.quadratic,
  "log_snr": grids.log_snr,
  "karras": grids.karras,
  "cosine": grids.cosine,
  "quadratic_vp": functools.partial(
    grids.quadratic, clock=processes.vp_linear_covering(0.002, 80.0)
  ),
}


@pytest.mark.parametrize(
  "process_name",
  [  # one program for each, which compiles for long
    name
    if name in ("edm", "rectified_flow")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in PROCESSES
  ],
)
def test_every_solver_on_every_grid_is_finite_and_keeps_its_nfe(process_name):
  """1..10 steps, to t_min and to sigma = 0, in float32, all in one program."""
  process = PROCESSES[process_name]
  model = oracles.exact(oracles.g2(), process)
  x = process.prior(jax.random.key(0), (2, 2))
  todo = []
  for grid_name, make in ALL_GRIDS.items():
    if process_name == "pair" and grid_name not in ("uniform", "karras"):
      continue  # its inverse is found by bisection, slowly
    for steps in (1, 2, 3, 4, 7, 10):
      to_zero = (steps + len(grid_name)) % 2 == 0
      grid = make(process, steps, to_zero=to_zero)
      for name, case in CASES.items():
        table = case.build(process, grid)
        inner = solvers.building.inner_steps(process, grid)
        if (
          name in NATIVE
          and process.alpha(grid[0]) == 0
          and not (steps == 1 and to_zero)
        ):
          inner += 1
        ends = steps - inner
        expected = case.calls(inner) + ends
        assert table.nfe == expected, (name, grid_name, steps, to_zero)
        todo.append((name, grid_name, steps, table))
  key = jax.random.key(1)
  stacked, lengths = tables.stack([table for *_, table in todo])

  @jax.jit
  def run_all(stacked, lengths):
    one = lambda args: sampling.sample(
      key, model, tables.Tableau(*args[0]), x, length=args[1]
    )
    return jax.lax.map(one, (tuple(stacked), lengths))

  stacked = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), stacked)
  out = np.asarray(run_all(stacked, jnp.asarray(lengths)))
  bad = [todo[i][:3] for i in range(len(todo)) if not np.isfinite(out[i]).all()]
  assert not bad, bad[:10]


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_last_step_into_sigma_zero_is_the_answer_itself(name, x64):
  """A point mass is hit exactly, also in one step, by all that denoise."""
  process = processes.vp_linear()
  model = oracles.exact(oracles.gaussian([0.7, -0.2], [0.0, 0.0]), process)
  x = noise(process)
  for steps in (1, 3):
    grid = grids.karras(process, steps, to_zero=True)
    out = run(model, CASES[name].build(process, grid), x, 40)
    np.testing.assert_allclose(out, np.tile([0.7, -0.2], (32, 1)), atol=1e-12)


@pytest.mark.parametrize("process_name", ["vp_cosine", "rectified_flow"])
def test_the_first_step_out_of_alpha_zero_is_ddims(process_name):
  """x' = (sigma' / sigma) x + alpha' x0, for all that need a log-SNR."""
  process = PROCESSES[process_name]
  grid = grids.uniform(process, 4)
  assert process.alpha(grid[0]) == 0
  for name, case in CASES.items():
    if name in NATIVE:
      continue  # their own formula holds there
    first = tables.take(case.build(process, grid), slice(0, 1))
    assert first.t == grid[0] and not first.stochastic, name
    np.testing.assert_array_equal(first.output, [[1.0, 0.0]])
    carry = process.sigma(grid[1]) / process.sigma(grid[0])
    np.testing.assert_allclose(first.state[0], [[carry, 0.0]] * 2)
    np.testing.assert_allclose(first.history[0, :, 0], process.alpha(grid[1]))
    np.testing.assert_array_equal(first.history[0, :, 1:], 0.0)


def test_for_budget_never_exceeds_the_budget():
  process = processes.edm()
  for name, case in CASES.items():
    for calls in (1, 3, 8):
      table = solvers.for_budget(
        functools.partial(case.build, process),
        functools.partial(grids.karras, process),
        calls,
      )
      if table is None:
        assert calls < case.calls(1), name
      else:
        most = next(n for n in range(1, 10) if case.calls(n + 1) > calls)
        assert table.nfe == case.calls(most), name


# --- encoding ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "deis_3"])
def test_encoding_and_decoding_return_the_data_at_the_solvers_order(name, x64):
  process, model, _, _ = problem("gaussian", "log_snr")
  x = np.random.default_rng(0).standard_normal((32, 2))
  build = CASES[name].build

  def round_trip(n):
    grid = grids.log_snr(process, n)
    raw = {
      "ddim": solvers.ddim,
      "heun": solvers.heun,
      "dpmpp_2m": solvers.dpmpp_2m,
      "deis_3": solvers.deis,
    }[name]
    options = {"order": 3} if name == "deis_3" else {}
    code = run(model, solvers.encoder(raw, process, grid, **options), x)
    return rmse(run(model, build(process, grid), code), x)

  coarse, fine = round_trip(80), round_trip(160)
  order = min(CASES[name].order, 2)
  assert np.log2(coarse / fine) > order - 0.25


def test_the_latent_of_gaussian_data_has_its_closed_form(x64):
  process = processes.vp_linear()
  single = oracles.gaussian([0.3, -1.0], [[1.0, 0.6], [0.6, 2.0]])
  model = oracles.exact(single, process)
  x = np.random.default_rng(0).standard_normal((32, 2))
  grid = grids.log_snr(process, 300)
  code = run(model, solvers.encoder(solvers.rk4, process, grid), x)
  ends = lambda t: (process.alpha(t), process.sigma(t))
  exact = oracles.flow_map(single, x, ends(grid[-1]), ends(grid[0]))
  np.testing.assert_allclose(code, exact, atol=1e-5)


# --- mistakes ----------------------------------------------------------------


def test_mistakes_are_named():
  process = processes.edm()
  grid = grids.karras(process, 3)
  flow = processes.rectified_flow()
  with pytest.raises(ValueError, match=r"strictly decreasing.*grid\[0\]"):
    solvers.dpmpp_2m(process, grid[::-1])
  with pytest.raises(ValueError, match=r"strictly decreasing.*grid\[1\]"):
    solvers.dpmpp_2m(process, [3.0, 2.0, 2.0, 1.0])
  with pytest.raises(ValueError, match=r"grid\[0\] = 90 is outside.*80"):
    solvers.dpmpp_2m(process, [90.0, 2.0, 1.0])
  with pytest.raises(ValueError, match="NaN at index 1"):
    solvers.dpmpp_2m(process, [3.0, np.nan, 1.0])
  with pytest.raises(ValueError, match="at least two times"):
    solvers.dpmpp_2m(process, [3.0])
  for build in (solvers.deis, solvers.ipndm, solvers.unipc):
    with pytest.raises(ValueError, match=r"order 4 needs at least 4 steps.*3"):
      build(process, grid, order=4)
    with pytest.raises(ValueError, match=r"orders 1\.\.\d, got order=9"):
      build(process, grid, order=9)
  with pytest.raises(ValueError, match="dpm_solver's order"):
    solvers.dpm_solver(process, grid, order=4)
  with pytest.raises(ValueError, match="given 2 orders for 3 steps"):
    solvers.dpm_solver(process, grid, order=[2, 3])
  with pytest.raises(ValueError, match="eta=1.5"):
    solvers.ddim(process, grid, eta=1.5)
  with pytest.raises(ValueError, match="churn=-1"):
    solvers.heun_churn(process, grid, churn=-1)
  with pytest.raises(ValueError, match="variance must be one of"):
    solvers.ddpm(process, grid, variance="middle")
  with pytest.raises(ValueError, match="variant must be one of"):
    solvers.unipc(process, grid, variant="bh3")
  with pytest.raises(ValueError, match="output must be one of"):
    solvers.unipc(process, grid, output="v")
  with pytest.raises(ValueError, match="encoding starts from data"):
    solvers.encoder(solvers.ddim, flow, grids.uniform(flow, 4))
  with pytest.raises(ValueError, match="encoding starts from data"):
    clean = grids.karras(process, 4, to_zero=True)
    solvers.encoder(solvers.ddim, process, clean)
  with pytest.raises(ValueError, match="draws noise"):
    solvers.encoder(solvers.ddim, process, grid, eta=1.0)
  with pytest.raises(TypeError, match="traced"):
    jax.jit(lambda g: solvers.ddim(process, g))(grid)


@pytest.mark.parametrize("name", ["edm", "vp"])
def test_churn_adds_no_more_noise_than_the_process_reaches(name, x64):
  """A pair ends at t_max: the noise level there is all that can be asked."""
  if name == "edm":
    pair = processes.from_alpha_sigma(
      lambda t: 1.0 + 0.0 * t, lambda t: t, 0.1, 2.0
    )
  else:
    pair = processes.from_alpha_sigma(
      lambda t: jnp.cos(1.2 * t), lambda t: jnp.sin(1.2 * t), 0.05, 1.0
    )
  grid = grids.karras(pair, 6)
  table = solvers.heun_churn(pair, grid, churn=60.0)
  levels = np.append(grid[:-1], grid[-1])
  for i in range(0, table.nfe, 2):
    alpha, sigma = pair.alpha(table.t[i]), pair.sigma(table.t[i])
    before = alpha * pair.noise_level(levels[i // 2])
    np.testing.assert_allclose(
      before**2 + table.noise[i, 0] ** 2, sigma**2, rtol=1e-9
    )


def test_accepted_samples_of_churn_are_not_rescaled_ahead(x64):
  """What a step accepts is a sample at its own time, where alpha varies too."""
  process = processes.vp_linear()
  single = oracles.gaussian([0.7], [0.0])
  grid = grids.log_snr(process, 30)
  table = solvers.heun_churn(process, grid, churn=10.0)
  _, kept = sampling.sample(
    jax.random.key(0),
    oracles.exact(single, process),
    table,
    jnp.full((4000, 1), 0.7 * process.alpha(grid[0]))
    + process.sigma(grid[0]) * noise(processes.edm(), 4000, 1) / 80.0,
    collect=sampling.every(2),
  )
  for i, accepted in enumerate(np.asarray(kept)[:20]):  # Heun errs near t_min
    mean, std = 0.7 * process.alpha(grid[i + 1]), process.sigma(grid[i + 1])
    assert abs(accepted.mean() - mean) < 5 * std / np.sqrt(4000)
    assert abs(accepted.std() / std - 1) < 0.1


@pytest.mark.parametrize("name", ["ipndm_3", "unipc_2", "dpm_solver_3", "heun"])
def test_encoder_takes_catalogue_entries_and_partials(name, x64):
  process = processes.edm(0.1, 5.0)
  grid = grids.log_snr(process, 60)
  single = oracles.gaussian([1.0, -0.5], [0.25, 1.5])
  model = oracles.exact(single, process)
  x = np.random.default_rng(0).standard_normal((8, 2))
  table = solvers.encoder(CASES[name].build, process, grid)
  exact = oracles.flow_map(single, x, (1.0, 0.1), (1.0, 5.0))
  np.testing.assert_allclose(run(model, table, x), exact, atol=3e-2)
  with pytest.raises(TypeError, match="decorate your function with @jaxdiff"):
    solvers.encoder(lambda process, grid: None, process, grid)


def test_swapped_and_unfinished_arguments_are_told_apart():
  process = processes.edm()
  grid = grids.karras(process, 3)
  with pytest.raises(TypeError, match=r"dpmpp_2m\(process, grid\) takes a pro"):
    solvers.dpmpp_2m(grid, process)
  with pytest.raises(TypeError, match=r"call it: edm\(\)"):
    solvers.dpmpp_2m(processes.edm, grid)
  with pytest.raises(TypeError, match=r"karras\(process, n\) takes a process"):
    grids.karras(10, process)
  with pytest.raises(TypeError, match="start of karras.* is a traced value"):
    jax.jit(lambda s: grids.karras(process, 3, start=s))(2.0)
  with pytest.raises(ValueError, match="at least one call, got 0"):
    solvers.orders_for_budget(0)


def test_an_own_ve_process_may_end_at_minus_infinity(x64):
  low, high = np.log(0.01), np.log(50.0)
  own = processes.from_alpha_sigma(
    lambda t: 1.0 + 0.0 * t,
    lambda t: jnp.exp(low + (high - low) * t),
    0.0,
    1.0,
    -np.inf,
  )
  grid = grids.karras(own, 5, to_zero=True)
  ours = grids.karras(processes.ve(), 5, to_zero=True)
  np.testing.assert_allclose(grid[:-1], ours[:-1], rtol=1e-9)
  assert grid[-1] == -np.inf and solvers.dpmpp_2m(own, grid).nfe == 5

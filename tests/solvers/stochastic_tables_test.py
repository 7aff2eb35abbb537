"""The stochastic tables: laws by exact propagation, limits, equalities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import tree

INSIDE = {  # alpha > 0 throughout
  "edm": processes.edm(0.05, 20.0),
  "vp_linear": processes.vp_linear(),
  "ve": processes.ve(0.05, 20.0),
  "rectified_flow": processes.rectified_flow(0.01, 0.95),
}
UNEVEN = np.asarray([18.0, 7.0, 4.0, 2.5, 1.1, 0.6, 0.3, 0.07])
P, Q = "predictor", "corrector"


def canonical(table):
  """The table that takes from y wherever y = a, at the start of a step."""
  state = np.array(table.state)
  equal = [True] + [
    np.array_equal(state[i, 0], state[i, 1])
    and np.array_equal(table.history[i, 0], table.history[i, 1])
    and table.noise[i, 1] == table.noise[i, 2]
    for i in range(table.nfe - 1)
  ]
  state[equal, :, 0] += state[equal, :, 1]
  state[equal, :, 1] = 0.0
  return tables.pad(table._replace(state=state), memory=6)


def same(one, other, tolerance=1e-12):
  """Asserts that two tables do the same, leaf by leaf; 0 is bitwise."""
  one, other = canonical(one), canonical(other)
  for name, a, b in zip(one._fields, one, other, strict=True):
    np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance, err_msg=name
    )


def law(table, process, data=None, **start):
  data = oracles.gaussian([1.0, -0.5], [0.25, 1.5]) if data is None else data
  return oracles.propagate(table, process, data, **start)


# --- laws --------------------------------------------------------------------

# order of the law of a path that starts off the marginals, and so also of the
# noise of a step as it meets the next one
LAWS = {
  "dpmpp_2m_sde": (solvers.dpmpp_2m_sde, {}, 2),
  "dpmpp_2m_sde_heun": (solvers.dpmpp_2m_sde, {"solver_type": "heun"}, 2),
  "dpmpp_2m_sde_half": (solvers.dpmpp_2m_sde, {"eta": 0.5}, 2),
  "dpmpp_3m_sde": (solvers.dpmpp_3m_sde, {}, 2),
  "dpmpp_sde": (solvers.dpmpp_sde, {}, 2),
  "seeds_1": (solvers.seeds, {"order": 1}, 1),
  "seeds_1_eps": (solvers.seeds, {"order": 1, "output": "eps"}, 1),
  "seeds_2_eps": (solvers.seeds, {"output": "eps"}, 2),
  "seeds_3": (solvers.seeds, {"order": 3}, 2),
  "seeds_3_eps": (solvers.seeds, {"order": 3, "output": "eps"}, 2),
  "sa_1": (solvers.sa_solver, {P: 1, Q: 0}, 1),
  "sa_2": (solvers.sa_solver, {P: 2, Q: 0}, 2),
  "sa_1_1": (solvers.sa_solver, {P: 1, Q: 1}, 1),
  "sa_3_4": (solvers.sa_solver, {}, 2),
  "sa_half": (solvers.sa_solver, {"tau": 0.5}, 2),
  "er_sde_1": (solvers.er_sde, {"order": 1}, 1),
  "er_sde_2": (solvers.er_sde, {"order": 2}, 2),
  "er_sde_3": (solvers.er_sde, {"order": 3}, 2),
  "er_sde_4": (solvers.er_sde, {"order": 4}, 2),
  "ancestral": (solvers.dpmpp_2s_ancestral, {}, 1),
}


@pytest.mark.parametrize("name", LAWS)
def test_order_of_the_law_off_the_marginals(name):
  """Mean and variance from a start that is no marginal, by halving steps."""
  build, options, order = LAWS[name]
  process = processes.edm(0.05, 20.0)
  laws = []
  for n in (160, 320, 640):
    grid = grids.from_noise_levels(process, np.geomspace(3.0, 0.05, n + 1))
    start = dict(mean=np.asarray([3.0, -2.0]), variance=np.asarray([1.0, 0.1]))
    laws.append(
      np.stack(law(build(process, grid, **options), process, **start))
    )
  change = [abs(a - b).max() for a, b in zip(laws[:-1], laws[1:], strict=True)]
  assert abs(np.log2(change[0] / change[1]) - order) < 0.2, change


POINT = {  # one point: marginals exact at every number of steps
  "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
  "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
  "dpmpp_sde": solvers.dpmpp_sde,
  "ancestral": solvers.dpmpp_2s_ancestral,
  "seeds_1": functools.partial(solvers.seeds, order=1),
  "seeds_2": functools.partial(solvers.seeds, order=2),
  "seeds_3": functools.partial(solvers.seeds, order=3),
  "sa_solver": lambda p, g, eta: solvers.sa_solver(p, g, tau=eta**0.5),
  "er_sde": lambda p, g, eta: solvers.er_sde(
    p, g, phi=lambda s: s ** (1 + eta)
  ),
}


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", POINT)
def test_marginals_of_one_point_are_exact(name, eta):
  """sigma'^2 at any number of steps, under every process: alpha too."""
  point = oracles.gaussian([1.5], [0.0])
  for process in INSIDE.values():
    for n in (1, 2, 7):
      grid = grids.karras(process, n)
      mean, variance = law(POINT[name](process, grid, eta=eta), process, point)
      np.testing.assert_allclose(mean, 1.5 * process.alpha(grid[-1]), rtol=1e-9)
      np.testing.assert_allclose(
        variance, process.sigma(grid[-1]) ** 2, rtol=1e-8
      )


def test_noise_predicting_seeds_only_converges_on_one_point():
  """Its exponential is that of the drift without x's part in eps."""
  point, process = oracles.gaussian([1.5], [0.0]), processes.edm(0.5, 5.0)

  def error(n):
    table = solvers.seeds(
      process, grids.log_snr(process, n), order=1, output="eps"
    )
    return abs(law(table, process, point)[1][0] / 0.25 - 1)

  assert error(1) > 0.1
  assert abs(np.log2(error(400) / error(800)) - 1) < 0.1


# --- limits and equalities ---------------------------------------------------


@pytest.mark.parametrize("name", INSIDE)
def test_without_noise_they_are_the_tables_of_the_ode(name):
  process = INSIDE[name]
  grid = grids.karras(process, 7)
  same(
    solvers.dpmpp_2m_sde(process, grid, eta=0),
    solvers.dpmpp_2m(process, grid),
    1e-14,
  )
  same(
    solvers.dpmpp_3m_sde(process, grid, eta=0),
    solvers.dpmpp_3m(process, grid),
    1e-14,
  )
  for order in (1, 2, 3):
    same(
      solvers.seeds(process, grid, order=order, eta=0, output="eps"),
      solvers.dpm_solver(process, grid, order=order),
    )
  two_s = solvers.dpmpp_sde(process, grid, eta=0)
  same(two_s, solvers.dpmpp_2s_ancestral(process, grid, eta=0))
  same(
    solvers.dpmpp_2s_ancestral(process, grid, eta=0, output="eps"),
    solvers.dpm_solver(process, grid, order=2),
  )
  same(
    solvers.er_sde(process, grid, order=1, phi="ode"),
    solvers.ddim(process, grid),
  )
  for table in (two_s, solvers.sa_solver(process, grid, tau=0.0)):
    assert not table.stochastic
  # DPM-Solver++(2S) of Lu et al., Algorithm 1, r = 1/2
  alpha, sigma, lam = solvers.building.coefficients(process, grid)
  h = np.diff(lam)
  middle = process.log_snr_inverse(lam[:-1] + h / 2)
  np.testing.assert_allclose(two_s.t[1::2], middle)
  np.testing.assert_allclose(
    two_s.history[1::2, 0, 0], -alpha[1:] * np.expm1(-h), rtol=1e-12
  )
  np.testing.assert_allclose(two_s.history[1::2, 0, 1], 0.0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_er_sde_without_noise_integrates_x0_in_the_noise_level(order):
  """A polynomial of s of degree order - 1 comes out exact."""
  process = processes.edm(0.05, 20.0)
  table = solvers.er_sde(process, UNEVEN, order=order, phi="ode")
  i = order  # past the warm-up
  s, s_next = UNEVEN[i], UNEVEN[i + 1]
  for j in range(order):
    answers = UNEVEN[i - np.arange(order)] ** j
    # u' = (s'/s) u + s' int_{s'}^{s} x0(v) / v^2 dv
    power = j - 1
    exact = s_next * (
      np.log(s / s_next) if power == 0 else (s**power - s_next**power) / power
    )
    ours = table.history[i, 0] @ answers
    np.testing.assert_allclose(ours, exact, rtol=1e-9)


def test_sa_solver_at_tau_zero_is_unipc_solved_exactly():
  process = processes.vp_linear()
  grid = grids.karras(process, 8)
  for p in (1, 2, 3, 4):
    for final in (True, False):
      sa = solvers.sa_solver(
        process, grid, predictor=p, tau=0.0, lower_order_final=final
      )
      uni = solvers.unipc(
        process, grid, order=p, exact=True, lower_order_final=final
      )
      same(sa, uni, 1e-9)


def test_sa_predictor_is_the_sde_form_of_dpm_solver_pp():
  process = processes.vp_linear()
  grid = grids.karras(process, 8)
  build = functools.partial(
    solvers.sa_solver, process, grid, corrector=0, lower_order_final=False
  )
  for tau in (0.0, 0.6, 1.0):
    eta = tau**2
    same(
      build(predictor=2, tau=tau),
      solvers.dpmpp_2m_sde(process, grid, eta=eta, solver_type="heun"),
      1e-10,
    )
    same(
      build(predictor=3, tau=tau),
      solvers.dpmpp_3m_sde(process, grid, eta=eta),
      1e-10,
    )
    same(
      build(predictor=1, tau=tau),
      solvers.seeds(process, grid, order=1, eta=eta),
      1e-10,
    )
  few = build(predictor=2, tau=0.0, few_steps=True)
  bh1 = solvers.unipc(
    process,
    grid,
    order=2,
    variant="bh1",
    corrector=False,
    lower_order_final=False,
  )
  np.testing.assert_allclose(few.state[:, 0], bh1.state[:, 0], rtol=1e-10)
  np.testing.assert_allclose(
    few.history[:, 0], bh1.history[:, 0, :2], rtol=1e-9, atol=1e-12
  )


def test_first_order_members_are_ddpm():
  process = processes.vp_linear()
  grid = grids.log_snr(process, 6)
  ddpm = solvers.ddpm(process, grid)
  same(solvers.er_sde(process, grid, order=1, phi="sde"), ddpm, 1e-9)
  same(solvers.seeds(process, grid, order=1), ddpm, 1e-9)
  one = grid[:2]
  same(solvers.dpmpp_2m_sde(process, one), solvers.ddpm(process, one), 1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_euler_ancestral_is_ddim_with_eta(eta):
  """k-diffusion's step: Euler in sigma to sigma_down, noise of sigma_up."""
  process = processes.edm(0.05, 20.0)
  table = solvers.ddim(process, UNEVEN, eta=eta)
  x, x0 = np.random.default_rng(0).standard_normal((2, 9))
  for i, (s, s_next) in enumerate(zip(UNEVEN[:-1], UNEVEN[1:], strict=True)):
    up = min(s_next, eta * np.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
    down = np.sqrt(s_next**2 - up**2)
    step = x + (x - x0) / s * (down - s)
    ours = table.state[i, 0, 0] * x + table.history[i, 0, 0] * x0
    np.testing.assert_allclose(ours, step, rtol=1e-10)
    np.testing.assert_allclose(table.noise[i, 1], up, rtol=1e-10)


def test_dpmpp_sde_is_seeds_2_and_its_stage_shares_the_path():
  """Given all of W the end is that of k-diffusion's step, at eta = 1."""
  process = processes.edm(0.05, 20.0)
  table = solvers.dpmpp_sde(process, UNEVEN)
  same(table, solvers.seeds(process, UNEVEN, order=2), 0)
  s, s_next = UNEVEN[2], UNEVEN[3]
  middle = np.sqrt(s * s_next)
  rows = tables.take(table, slice(4, 6))
  stage_up = middle * np.sqrt(1 - (middle / s) ** 2)
  np.testing.assert_allclose(rows.noise[0, 1], stage_up)
  # the noise at the end: what the stage had, and what is new
  kept = rows.state[1, 0, 0] * rows.noise[0, 1]
  assert rows.noise[0, 2] == 0  # and the anchor has none of it
  up = s_next * np.sqrt(1 - (s_next / s) ** 2)
  np.testing.assert_allclose(np.hypot(kept, rows.noise[1, 1]), up)
  # Cov(W_r, W_1) = Var W_r in the clock 1 / s^2
  correlation = kept / up
  clock = (middle**-2 - s**-2) / (s_next**-2 - s**-2)
  np.testing.assert_allclose(correlation, np.sqrt(clock))


@pytest.mark.parametrize(
  "name", ["dpmpp_2m_sde", "sa_solver", "seeds", "er_sde"]
)
def test_reparameterizing_the_process_changes_nothing(name):
  """The law of x / alpha is one for all processes of the same noise levels."""
  levels = np.geomspace(15.0, 0.05, 8)
  laws = []
  for process in INSIDE.values():
    grid = grids.from_noise_levels(process, levels)
    table = getattr(solvers, name)(process, grid)
    alpha = process.alpha(grid[[0, -1]])
    mean, variance = law(
      table, process, mean=alpha[0] * np.ones(2), variance=(7 * alpha[0]) ** 2
    )
    laws.append(np.stack([mean / alpha[1], variance / alpha[1] ** 2]))
  for other in laws[1:]:
    np.testing.assert_allclose(other, laws[0], rtol=1e-8)


# --- SA-Solver's own ---------------------------------------------------------


def test_the_corrector_meets_the_noise_of_its_predictor(x64):
  """Step by step as published, PEC mode, from the same draws."""
  process = processes.vp_linear()
  grid = grids.karras(process, 6)
  alpha, sigma, lam = solvers.building.coefficients(process, grid)
  model = oracles.exact(oracles.g2(), process)
  tau, p, q = 0.8, 2, 3
  table = solvers.sa_solver(
    process, grid, predictor=p, corrector=q, tau=tau, lower_order_final=False
  )
  key = jax.random.key(3)
  x = np.asarray(process.prior(key, (5, 2), dtype=jnp.float64))
  ours = sampling.sample(key, model, table, x)
  inner = jax.random.fold_in(key, sampling._TAG)
  quad = np.polynomial.legendre.leggauss(40)

  def step(i, x, nodes, outputs, z):
    """x_{i+1} by quadrature of the variation of constants, and the noise."""
    h = lam[i + 1] - lam[i]
    u = lam[i] + h * (quad[0] + 1) / 2
    c = 1 + tau**2
    total = 0.0
    for k, node in enumerate(nodes):
      others = [lam[o] for o in nodes if o != node]
      basis = np.prod([(u - o) / (lam[node] - o) for o in others], axis=0)
      weight = np.sum(
        quad[1] * h / 2 * c * np.exp(c * (u - lam[i + 1])) * basis
      )
      total = total + alpha[i + 1] * weight * outputs[k]
    kept = sigma[i + 1] / sigma[i] * np.exp(-(tau**2) * h)
    fresh = sigma[i + 1] * np.sqrt(1 - np.exp(-2 * tau**2 * h))
    return kept * x + total + fresh * z

  y, outputs, z = x, {}, None
  for i in range(6):
    outputs[i] = np.asarray(model(jnp.asarray(y), grid[i]).x0)
    if i > 0:
      nodes = list(range(i, max(i - q, -1), -1))
      x = step(i - 1, x, nodes, [outputs[k] for k in nodes], z)
    z = np.asarray(
      tree.normal(
        jax.random.fold_in(jax.random.fold_in(inner, i), 1), jnp.asarray(x)
      )
    )
    nodes = list(range(i, max(i - p, -1), -1))
    y = step(i, x, nodes, [outputs[k] for k in nodes], z)
  np.testing.assert_allclose(ours, y, rtol=1e-9, atol=1e-9)


def test_tau_may_depend_on_time():
  """Without noise outside of a stretch, as the published defaults have it."""
  process = processes.edm(0.05, 20.0)
  grid = grids.karras(process, 8)
  table = solvers.sa_solver(
    process, grid, tau=lambda t: 1.0 if 0.3 < t < 5 else 0.0
  )
  inside = (grid[1:] > 0.3) & (grid[1:] < 5)
  np.testing.assert_array_equal(table.noise[:, 1] > 0, inside)


# --- Restart -----------------------------------------------------------------


def exact_step(process, grid, data):
  """The table whose steps are the exact flow of Gaussian data of one value."""
  v = float(data.variances[0, 0])
  rows = []
  for t, s in zip(grid[:-1], grid[1:], strict=True):
    alpha, sigma = (
      process.alpha(np.asarray([t, s])),
      process.sigma(np.asarray([t, s])),
    )
    total = alpha**2 * v + sigma**2
    ratio = np.sqrt(total[1] / total[0])
    # x0 = g x + (1 - alpha g) mu, g = alpha v / total; x' = ratio (x - alpha
    # mu) + alpha' mu = c x + w x0
    g = alpha[0] * v / total[0]
    w = (alpha[1] - ratio * alpha[0]) / (1 - alpha[0] * g)
    rows.append(tables.row(t, "x0", y=(0.0, ratio - w * g, w), a=None))
  return tables.concat(*rows)


@pytest.mark.parametrize("name", INSIDE)
def test_restart_with_the_exact_flow_keeps_the_marginals(name):
  """The injected noise is the forward process's, for any alpha."""
  process = INSIDE[name]
  data = oracles.gaussian([0.7], [2.0])
  grid = grids.from_noise_levels(process, np.geomspace(15.0, 0.1, 9))
  table = solvers.restart(
    process,
    grid,
    intervals=[(0.5, 2.0, 3, 2), (0.2, 6.0, 1, 3)],
    solver=lambda p, g: exact_step(p, g, data),
  )
  assert table.nfe == 8 + 3 * 2 + 1 * 3
  assert np.count_nonzero(table.noise) == 5
  mean, variance = law(table, process, data)
  alpha, sigma = process.alpha(grid[-1]), process.sigma(grid[-1])
  np.testing.assert_allclose(mean, 0.7 * alpha, rtol=1e-9)
  np.testing.assert_allclose(variance, alpha**2 * 2 + sigma**2, rtol=1e-9)
  # from any other start it is drawn to the marginals
  off = dict(mean=np.asarray([50.0]), variance=0.0)
  plain = exact_step(process, grid, data)
  drawn = abs(law(table, process, data, **off)[1] - variance)
  assert drawn < 0.3 * abs(law(plain, process, data, **off)[1] - variance)


def test_restart_is_algorithm_2(x64):
  """Heun with the stretch walked again, from the same noise, to sigma = 0."""
  process = processes.edm()
  grid = grids.karras(process, 8, to_zero=True)
  model = oracles.exact(oracles.g2(), process)
  at = 5
  table = solvers.restart(process, grid, intervals=[(grid[at], 3.0, 2, 2)])
  key = jax.random.key(5)
  x = np.asarray(process.prior(key, (4, 2), dtype=jnp.float64))
  out = sampling.sample(key, model, table, x)
  inner = jax.random.fold_in(key, sampling._TAG)
  call = 0

  def heun(x, times):
    nonlocal call
    for t, s in zip(times[:-1], times[1:], strict=True):
      d = (x - np.asarray(model(jnp.asarray(x), t).x0)) / t
      call += 1
      e = x + (s - t) * d
      if s > 0:
        d2 = (e - np.asarray(model(jnp.asarray(e), s).x0)) / s
        call += 1
        e = x + (s - t) * (d + d2) / 2
      x = e
    return x

  y = heun(x, grid[: at + 1])
  again = np.linspace(3.0 ** (1 / 7), grid[at] ** (1 / 7), 3) ** 7
  for _ in range(2):
    z = tree.normal(
      jax.random.fold_in(jax.random.fold_in(inner, call), 0), jnp.asarray(y)
    )
    y = y + np.sqrt(3.0**2 - grid[at] ** 2) * np.asarray(z)
    y = heun(y, again)
  y = heun(y, grid[at:])
  assert call == table.nfe
  np.testing.assert_allclose(out, y, rtol=1e-9, atol=1e-9)
  same(solvers.restart(process, grid), solvers.heun(process, grid), 0)


# --- adjusted DDIM -----------------------------------------------------------


@pytest.mark.parametrize(
  "name",
  [
    "edm",
    "rectified_flow",
    pytest.param("vp_linear", marks=pytest.mark.slow),
    pytest.param("ve", marks=pytest.mark.slow),
  ],
)
def test_addim_keeps_the_mean_square_of_gaussian_data(name, x64):
  """With match="sample" exactly, at any number of steps; DDIM loses it."""
  process = INSIDE[name]
  v, d = 0.7, 6
  model = oracles.exact(oracles.gaussian(np.zeros(d), v), process)
  moment = lambda x: float(jnp.mean(x**2))
  for n in (1, 5):
    grid = grids.log_snr(process, n)
    law = lambda t: process.alpha(t) ** 2 * v + process.sigma(t) ** 2
    x = process.prior(jax.random.key(0), (64, d), dtype=jnp.float64)
    x = x * jnp.sqrt(law(grid[0]) / moment(x))
    run = lambda x=x, grid=grid, **options: samplers.addim(
      None,
      model,
      grid,
      x,
      process=process,
      strength=1.0,
      data_variance=v,
      **options,
    )[0]
    np.testing.assert_allclose(
      moment(run(match="sample")), law(grid[-1]), rtol=1e-10
    )
    ddim = sampling.sample(
      jax.random.key(0), model, solvers.ddim(process, grid), x
    )
    assert moment(ddim) < 0.99 * law(grid[-1])
    assert moment(ddim) < moment(run())


def test_addim_is_the_published_step_and_ddim_without_strength(x64):
  process = processes.vp_linear()
  grid = grids.uniform(process, 5, to_zero=True)
  model = oracles.exact(oracles.g2(), process)
  x = process.prior(jax.random.key(0), (7, 2), dtype=jnp.float64)
  y = np.asarray(x)
  for t, s in zip(grid[:-1], grid[1:], strict=True):
    alpha, sigma = (
      process.alpha(np.asarray([t, s])),
      process.sigma(np.asarray([t, s])),
    )
    x0 = np.asarray(model(jnp.asarray(y), t).x0)
    eps = (y - alpha[0] * x0) / sigma[0]
    spread = 0.1 / (2 + (alpha[0] / sigma[0]) ** 2)
    extra = (alpha[1] - alpha[0] * sigma[1] / sigma[0]) ** 2 * spread
    norm = np.sum(eps**2, axis=1, keepdims=True)
    c = np.sqrt(sigma[1] ** 2 + 2 / norm * extra)
    y = alpha[1] * x0 + (c * eps if s > 0 else 0)
  run = functools.partial(samplers.addim, None, model, grid, x, process=process)
  np.testing.assert_allclose(run()[0], y, 1e-10)
  plain, info = run(strength=0.0, collect=sampling.every(1))
  ddim = sampling.sample(
    jax.random.key(0), model, solvers.ddim(process, grid), x
  )
  np.testing.assert_allclose(plain, ddim, atol=1e-12)
  assert info.kept.shape == (5, 7, 2) and info.nfe == 5


def test_addim_keeps_dtype_and_trees():
  process = processes.edm()
  oracle = oracles.exact(oracles.g2(), process)

  def model(x, t):
    answers = {k: oracle(v, t) for k, v in x.items()}
    half = lambda name: {k: getattr(a, name) for k, a in answers.items()}
    return predictions.Prediction(half("x0"), half("eps"))

  x = {
    "a": process.prior(jax.random.key(0), (3, 2), dtype=jnp.bfloat16),
    "b": process.prior(jax.random.key(1), (3, 2)),
  }
  grid = grids.karras(process, 3)
  out, _ = samplers.addim(None, model, grid, x, process=process)
  assert out["a"].dtype == jnp.bfloat16 and out["b"].dtype == jnp.float32


# --- published coefficients, mistakes ----------------------------------------


def test_published_coefficients_differ_where_their_files_say():
  process = processes.edm(0.05, 20.0)
  grid = grids.karras(process, 60)
  ours = solvers.dpmpp_3m_sde(process, grid)
  theirs = solvers.dpmpp_3m_sde(process, grid, published=True)
  same(tables.take(ours, slice(2)), tables.take(theirs, slice(2)), 0)
  h = -np.diff(np.log(grid))[10]
  change = (theirs.history - ours.history)[10, 0]
  # half of the second derivative of x0 is missing: an error of order h^3
  curvature = change @ (np.log(grid[10 - np.arange(3)]) - np.log(grid[10])) ** 2
  assert 0.2 * h**3 < abs(curvature) < h**3
  ours = solvers.er_sde(process, grid)
  theirs = solvers.er_sde(process, grid, published=True)
  np.testing.assert_allclose(theirs.noise, ours.noise, rtol=1e-12)
  assert 1e-6 < abs(theirs.history - ours.history).max() < 0.1


def test_mistakes_are_named():
  process = processes.edm()
  grid = grids.karras(process, 4)
  flow, model = solvers.restart, lambda x, t: (x, x)
  for build in (
    solvers.dpmpp_2m_sde,
    solvers.dpmpp_3m_sde,
    solvers.dpmpp_sde,
    solvers.seeds,
  ):
    with pytest.raises(ValueError, match=r"eta is the variance.*eta=-1"):
      build(process, grid, eta=-1)
  with pytest.raises(ValueError, match="eta=1.5"):
    solvers.dpmpp_2s_ancestral(process, grid, eta=1.5)
  with pytest.raises(ValueError, match="solver_type must be one of"):
    solvers.dpmpp_2m_sde(process, grid, solver_type="end")
  with pytest.raises(ValueError, match="order of seeds must be one of"):
    solvers.seeds(process, grid, order=4)
  with pytest.raises(ValueError, match=r"in \(0, 1\); got r=1"):
    solvers.dpmpp_sde(process, grid, r=1.0)
  with pytest.raises(ValueError, match="needs at least 5 steps"):
    solvers.sa_solver(process, grid, predictor=5)
  with pytest.raises(ValueError, match="got corrector=9"):
    solvers.sa_solver(process, grid, corrector=9)
  with pytest.raises(
    ValueError, match=r"tau must be at least 0, got -1.0 at t"
  ):
    solvers.sa_solver(process, grid, tau=-1.0)
  with pytest.raises(ValueError, match="phi must be one of 'ode'"):
    solvers.er_sde(process, grid, phi="er_sde_9")
  with pytest.raises(ValueError, match=r"phi\(s\) / s must not fall"):
    solvers.er_sde(process, grid, phi=lambda s: s**0.5)
  with pytest.raises(ValueError, match="inside of the grid"):
    flow(process, grid, intervals=[(3.0, 2.0, 1, 1)])
  with pytest.raises(ValueError, match="inside of the grid"):
    flow(process, grid, intervals=[(3.0, 200.0, 1, 1)])
  with pytest.raises(ValueError, match=r"steps >= 1 and times >= 1"):
    flow(process, grid, intervals=[(0.1, 2.0, 0, 1)])
  with pytest.raises(ValueError, match="take a finer grid"):
    flow(process, [80.0, 20.0, 0.002], intervals=[(12.0, 15.0, 1, 1)])
  addim = functools.partial(
    samplers.addim, None, model, grid, jnp.zeros((1, 2)), process=process
  )
  with pytest.raises(ValueError, match="match must be one of"):
    addim(match="both")
  with pytest.raises(ValueError, match="data_variance > 0"):
    addim(data_variance=0)

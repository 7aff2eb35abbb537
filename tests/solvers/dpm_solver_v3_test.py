"""DPM-Solver-v3: what its statistics are, its limits, and its exactness."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import interpolate

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.learning import v3_statistics as estimation
from jaxdiff.solvers import v3_statistics

PROCESS = processes.edm(0.02, 20.0)
MEAN = np.asarray([1.0, -0.5, 0.3])
VARIANCE = np.asarray([0.25, 1.5, 0.01])
INSIDE = {
  "edm": PROCESS,
  "vp_linear": processes.vp_linear(),
  "rectified_flow": processes.rectified_flow(0.01, 0.95),
}
KEY = jax.random.key(0)


def noise(process, d, n=8):
  return process.prior(KEY, (n, d), dtype=jnp.float64)


def sample(model, table, x):
  """Runs a table; of one model few programs serve them all."""
  rows = next(n for n in (8, 80, 800) if n >= table.nfe / 4) * 4
  padded = tables.pad(table, rows, 5)
  return np.asarray(sampling.sample(KEY, model, padded, x, length=table.nfe))


# --- exactness on Gaussian data ----------------------------------------------


def one_step_error(process, m):
  """Of one first-order step from noise to data, against the closed form."""
  single = oracles.gaussian(MEAN, VARIANCE)
  grid = np.asarray([process.t_max, process.t_min])
  statistics = v3_statistics.of_gaussian(process, MEAN, VARIANCE, m=m)
  table = solvers.dpm_solver_v3(process, grid, statistics)
  model = solvers.recentred(
    oracles.exact(single, process), process, grid, statistics
  )
  x = noise(process, 3)
  ends = [(process.alpha(t), process.sigma(t)) for t in grid]
  return abs(sample(model, table, x) - oracles.flow_map(single, x, *ends)).max()


@pytest.mark.parametrize("name", INSIDE)
def test_one_step_is_exact_on_gaussian_data(name, x64):
  """With a mean and a variance for each coordinate, under every process."""
  assert one_step_error(INSIDE[name], 601) < 1e-9


def test_only_the_interpolation_of_the_curves_errs(x64):
  """It falls more than 8-fold with every doubling: splines, not trapezoids."""
  errors = [one_step_error(PROCESS, m) for m in (101, 201, 401)]
  assert errors[0] < 1e-6
  assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_without_b_centred_data_is_exact_and_other_is_not(x64):
  grid = np.asarray([20.0, 0.02])
  x = noise(PROCESS, 3)
  for mean, exact in ((0.0 * MEAN, True), (MEAN, False)):
    single = oracles.gaussian(mean, VARIANCE)
    statistics = v3_statistics.of_gaussian(PROCESS, mean, VARIANCE)
    table = solvers.dpm_solver_v3(PROCESS, grid, statistics)
    out = sample(oracles.exact(single, PROCESS), table, x)
    truth = oracles.flow_map(single, x, (1.0, 20.0), (1.0, 0.02))
    assert (abs(out - truth).max() < 1e-9) == exact


@pytest.mark.parametrize("order", [1, 2, 3])
def test_b_makes_the_solver_blind_to_translations(order, x64):
  """v3 on shifted data is v3 on the data, shifted: at any steps and order."""
  shift = np.asarray([3.0, -1.0])
  data = oracles.g2()
  moved = dataclasses.replace(data, means=data.means + shift)
  grid = grids.log_snr(PROCESS, 5)
  outs = []
  for mixture, mean in ((data, np.zeros(2)), (moved, shift)):
    statistics = v3_statistics.of_gaussian(PROCESS, mean, 2.0)
    table = solvers.dpm_solver_v3(
      PROCESS, grid, statistics, order=order, corrector=True
    )
    model = solvers.recentred(
      oracles.exact(mixture, PROCESS), PROCESS, grid, statistics
    )
    outs.append(sample(model, table, noise(PROCESS, 2) + mean) - mean)
  np.testing.assert_allclose(outs[1], outs[0], atol=1e-8)


def test_to_sigma_zero_and_from_alpha_zero_a_point_is_hit(x64):
  """The ends are @solver's own rows, which the translation leaves alone."""
  process = processes.rectified_flow()
  point = oracles.gaussian([0.7, -0.2], [0.0, 0.0])
  grid = grids.uniform(process, 5, to_zero=True)
  statistics = v3_statistics.of_gaussian(process, [0.6, -0.3], [0.1, 0.2])
  table = solvers.dpm_solver_v3(process, grid, statistics)
  model = solvers.recentred(
    oracles.exact(point, process), process, grid, statistics
  )
  out = sample(model, table, noise(process, 2))
  np.testing.assert_allclose(out, np.tile([0.7, -0.2], (8, 1)), atol=1e-12)
  assert table.nfe == 5 and table.history.shape[3:] == (2,)


# --- limits ------------------------------------------------------------------


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize(("kind", "half"), [("data", "x0"), ("noise", "eps")])
def test_degenerate_statistics_are_dpm_solver_and_plus_plus(
  name, kind, half, x64
):
  """Order 1 is DDIM, order p the exponential multistep method of order p."""
  process = INSIDE[name]
  grid = grids.karras(process, 6)
  statistics = v3_statistics.degenerate(process, kind)
  build = functools.partial(
    solvers.dpm_solver_v3, process, grid, statistics, corrector=False
  )
  model, x = oracles.exact(oracles.g2(), process), noise(process, 2)
  ddim = sample(model, solvers.ddim(process, grid), x)
  first = sample(model, build(order=1), x)
  np.testing.assert_allclose(first, ddim, atol=1e-11)
  for order in (2, 3):
    multistep = solvers.unipc(
      process, grid, order=order, corrector=False, exact=True, output=half
    )
    out = sample(model, build(order=order), x)
    np.testing.assert_allclose(out, sample(model, multistep, x), atol=1e-9)
  # with UniPC's corrector: one more node, no pseudo derivatives
  pc = solvers.unipc(
    process, grid, order=1, exact=True, output=half, lower_order_final=False
  )
  ours = build(order=1, corrector=True)
  np.testing.assert_allclose(
    sample(model, ours, x), sample(model, pc, x), atol=1e-9
  )


def test_any_statistics_give_the_same_limit(x64):
  """The curves choose a parametrization; the flow is one."""
  model, x = oracles.exact(oracles.g2(), PROCESS), noise(PROCESS, 2)
  fine = solvers.rk4(PROCESS, grids.log_snr(PROCESS, 200))
  truth = sample(model, fine, x)
  rng = np.random.default_rng(0)
  lam = v3_statistics.nodes(PROCESS, 40)
  curves = rng.uniform(-0.5, 1.0, (3, 40, 2))
  curves[1] -= 0.5
  statistics = v3_statistics.ModelStatistics(lam, *curves)
  errors = []
  for n in (300, 600):
    grid = grids.log_snr(PROCESS, n)
    table = solvers.dpm_solver_v3(PROCESS, grid, statistics, order=2)
    moved = solvers.recentred(model, PROCESS, grid, statistics)
    errors.append(np.sqrt(np.mean((sample(moved, table, x) - truth) ** 2)))
  assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.3, errors


def test_corrector_keeps_what_is_extrapolated(x64):
  """N = sigma eps - l x of the call goes on; only the sample is corrected."""
  statistics = v3_statistics.of_gaussian(PROCESS, 0.0, 2.0)
  grid = grids.log_snr(PROCESS, 6)
  build = functools.partial(
    solvers.dpm_solver_v3, PROCESS, grid, statistics, order=2
  )
  table, plain = build(corrector=True), build(corrector=False)
  np.testing.assert_array_equal(table.output, plain.output)
  l = 1.0 / (2.0 / grid[:-1] ** 2 + 1.0)
  # F = N / alpha, whatever pair (x0, eps) the call answers at x
  x0, eps = np.random.default_rng(0).standard_normal((2, 6))
  f = table.output[:, 0] * x0 + table.output[:, 1] * eps
  x = x0 + grid[:-1] * eps
  np.testing.assert_allclose(f, grid[:-1] * eps - l * x, atol=1e-12)
  # the state is carried alike; corrected rows weigh the calls otherwise
  np.testing.assert_array_equal(table.state, plain.state)
  weighs = lambda t: np.any(t.history[:, 0, :2] != plain.history[:, 0], axis=1)
  assert not weighs(table)[0] and weighs(table)[1:].all()
  partly = build(corrector=1.0)  # at sigma > 1 alone
  np.testing.assert_array_equal(weighs(partly)[1:], grid[1:-1] > 1.0)
  assert table.nfe == 6


def test_corrector_is_for_few_calls_by_default():
  statistics = v3_statistics.of_gaussian(PROCESS)
  memory = lambda n: (
    solvers.dpm_solver_v3(PROCESS, grids.log_snr(PROCESS, n), statistics).memory
  )
  assert memory(10) == 4 and memory(11) == 3


def test_pseudo_derivatives_are_the_leading_newton_differences():
  """They agree with the exact ones up to two nodes, and differ at three."""
  statistics = v3_statistics.of_gaussian(PROCESS, 0.0, 2.0)
  grid = grids.karras(PROCESS, 6)
  build = functools.partial(
    solvers.dpm_solver_v3, PROCESS, grid, statistics, corrector=False
  )
  two = [build(order=2, pseudo=p).history for p in (False, True)]
  np.testing.assert_allclose(*two, rtol=1e-9)
  three = [build(order=3, pseudo=p).history[:, 0] for p in (False, True)]
  change = three[1] - three[0]
  assert abs(change[:2]).max() < 1e-9 < abs(change[2:-2]).max()
  np.testing.assert_allclose(abs(change).max(axis=1)[-2:], 0.0, atol=1e-9)


@pytest.mark.parametrize(
  ("order", "low", "high"), [(2, 1.7, 2.6), (3, 2.6, 3.8)]
)
def test_measured_order_at_few_steps(order, low, high, x64):
  """Between 20 and 40 steps on the mixture, from statistics of the mixture."""
  model, x = oracles.exact(oracles.g2(), PROCESS), noise(PROCESS, 2, 128)
  statistics = mixture_statistics()
  truth = sample(model, solvers.rk4(PROCESS, grids.log_snr(PROCESS, 200)), x)

  def error(n):
    grid = grids.log_snr(PROCESS, n)
    table = solvers.dpm_solver_v3(
      PROCESS,
      grid,
      statistics,
      order=order,
      corrector=False,
      lower_order_final=False,
    )
    moved = solvers.recentred(model, PROCESS, grid, statistics)
    return np.sqrt(np.mean((sample(moved, table, x) - truth) ** 2))

  slope = np.log2(error(20) / error(40))
  assert low < slope < high, slope


# --- the estimation ----------------------------------------------------------


@functools.cache
def mixture_statistics():
  data, _ = oracles.g2().sample(jax.random.key(1), 256)
  return estimation.estimate(
    KEY,
    oracles.exact(oracles.g2(), PROCESS),
    PROCESS,
    data.astype(float),
    m=201,
  )


@pytest.mark.parametrize("name", INSIDE)
def test_estimates_on_gaussian_data_are_the_closed_form(name, x64):
  process = INSIDE[name]
  single = oracles.gaussian(MEAN, VARIANCE)
  data, _ = single.sample(jax.random.key(1), 16)
  ours = estimation.estimate(
    KEY, oracles.exact(single, process), process, data.astype(float), m=61
  )
  exact = v3_statistics.of_gaussian(process, MEAN, VARIANCE, m=61)
  np.testing.assert_allclose(ours.l, exact.l, atol=1e-12)
  np.testing.assert_array_equal(ours.s, 0.0)  # f does not vary
  np.testing.assert_allclose(ours.b, exact.b, atol=1e-3)
  assert ours.schedule == exact.schedule


def test_batches_do_not_change_the_estimates(x64):
  """Nor does their coming as a list; another key does."""
  data, _ = oracles.g2().sample(jax.random.key(1), 24)
  data = data.astype(float)
  model = oracles.exact(oracles.g2(), PROCESS)
  run = functools.partial(
    estimation.estimate, KEY, model, PROCESS, m=21, trace="exact"
  )
  one = run(data, batch=24)
  for other in (run(data, batch=12), run([data[:12], data[12:]])):
    for name in "lsb":
      np.testing.assert_allclose(
        getattr(other, name), getattr(one, name), rtol=1e-9, atol=1e-12
      )
  other = estimation.estimate(
    jax.random.key(9), model, PROCESS, data, m=21, batch=24
  )
  assert abs(other.l - one.l).max() > 1e-3


def test_hutchinson_is_exact_for_diagonal_jacobians_and_else_close(x64):
  single = oracles.gaussian(MEAN, VARIANCE)
  data, _ = single.sample(jax.random.key(1), 8)
  run = functools.partial(
    estimation.estimate, KEY, process=PROCESS, m=21, trace="hutchinson"
  )
  ours = run(oracles.exact(single, PROCESS), data=data.astype(float))
  exact = v3_statistics.of_gaussian(PROCESS, MEAN, VARIANCE, m=21)
  np.testing.assert_allclose(ours.l, exact.l, atol=1e-12)
  model = oracles.exact(oracles.g2(), PROCESS)
  data, _ = oracles.g2().sample(jax.random.key(1), 1000)
  rough = run(model, data=data.astype(float), batch=1000).l
  fine = estimation.estimate(
    KEY, model, PROCESS, data.astype(float), m=21, batch=1000
  ).l
  assert 0 < abs(rough - fine).max() < 0.1


def test_f1_is_the_derivative_of_f_along_the_flow(x64):
  """The regression (s, b) is that of centred differences along RK4 paths."""
  data, _ = oracles.g2().sample(jax.random.key(1), 64)
  data = np.asarray(data, np.float64)
  model = oracles.exact(oracles.g2(), PROCESS)
  m = 201
  ours = estimation.estimate(KEY, model, PROCESS, jnp.asarray(data), m=m)
  key = jax.random.fold_in(KEY, estimation._TAG)
  eps = np.asarray(tree.normal(jax.random.fold_in(key, 0), jnp.asarray(data)))
  l_of = interpolate.CubicSpline(ours.lam, ours.l)
  f_of = lambda x, lam: (
    np.exp(-lam) * np.asarray(model(jnp.asarray(x), np.exp(-lam)).eps)
    - l_of(lam) * x
  )
  for k in (40, 100, 165):
    lam = ours.lam[k]
    x = data + np.exp(-lam) * eps
    h = 1e-3
    sides = []
    for end in (lam - h, lam + h):  # sigma rises, or falls
      path = np.exp(-np.linspace(lam, end, 5))
      table = solvers.rk4.build(PROCESS, path)
      sides.append(f_of(sample(model, table, jnp.asarray(x)), end))
    f, slope = f_of(x, lam), (sides[1] - sides[0]) / (2 * h)
    centred = f - f.mean(0)
    s = (centred * slope).sum(0) / (centred**2).sum(0)
    np.testing.assert_allclose(ours.s[k], s, rtol=1e-4, atol=1e-5)
    b = slope.mean(0) - s * f.mean(0)
    np.testing.assert_allclose(ours.b[k], b, rtol=1e-4, atol=1e-5)


# --- files, tables of several shapes, mistakes -------------------------------


def test_statistics_are_saved_and_belong_to_their_process(tmp_path):
  statistics = v3_statistics.of_gaussian(PROCESS, MEAN, VARIANCE, m=11)
  path = tmp_path / "statistics.npz"
  v3_statistics.save(path, statistics._replace(note="cfg 4"))
  again = v3_statistics.load(path, PROCESS, note="cfg 4")
  for name in ("lam", "l", "s", "b"):
    np.testing.assert_array_equal(
      getattr(again, name), getattr(statistics, name)
    )
  assert v3_statistics.load(path, processes.edm(0.05, 5.0)).note == "cfg 4"
  with pytest.raises(ValueError, match=r"estimated under NoiseLevel.*LinearVP"):
    v3_statistics.load(path, processes.vp_linear())
  with pytest.raises(ValueError, match=r"statistics of 'cfg 4', asked was 'x'"):
    v3_statistics.load(path, note="x")
  np.savez(path, lam=np.zeros(3))
  with pytest.raises(ValueError, match="holds no model statistics"):
    v3_statistics.load(path)


def test_tables_of_scalars_join_tables_of_coordinates(x64):
  """A leaf without data dimensions is the same for every coordinate."""
  statistics = v3_statistics.of_gaussian(PROCESS, [0.0, 0.0], [0.5, 2.0])
  grid = grids.log_snr(PROCESS, 6)
  first = solvers.ddim(PROCESS, grid[:4])
  second = solvers.dpm_solver_v3(PROCESS, grid[3:], statistics)
  model, x = oracles.exact(oracles.g2(), PROCESS), noise(PROCESS, 2)
  both = tables.concat(first, second)
  assert both.state.shape == (6, 2, 2, 2)
  np.testing.assert_allclose(
    sample(model, both, x),
    sample(model, second, jnp.asarray(sample(model, first, x))),
    rtol=1e-12,
  )
  stacked, lengths = tables.stack([first, second])
  assert stacked.output.shape == (2, 3, 2, 2) and lengths.tolist() == [3, 3]
  wide = v3_statistics.of_gaussian(PROCESS, np.zeros(3))
  with pytest.raises(ValueError, match="samples of different shapes"):
    tables.concat(second, solvers.dpm_solver_v3(PROCESS, grid[3:], wide))


def test_mistakes_are_named():
  grid = grids.log_snr(PROCESS, 4)
  build = functools.partial(solvers.dpm_solver_v3, PROCESS, grid)
  good = v3_statistics.of_gaussian(PROCESS, m=11)
  with pytest.raises(TypeError, match="takes a model's statistics, got None"):
    build(None)
  narrow = v3_statistics.of_gaussian(PROCESS, span=(-1.0, 1.0))
  with pytest.raises(ValueError, match=r"cover log-SNRs from -1 to 1, but.*-2"):
    build(narrow)
  other = processes.vp_linear()
  with pytest.raises(ValueError, match="estimated under LinearVP"):
    build(v3_statistics.of_gaussian(other, span=(-4.0, 5.0)))
  with pytest.raises(ValueError, match="order 5|orders 1..3"):
    build(good, order=5)
  with pytest.raises(ValueError, match="estimate it from more samples"):
    build(good._replace(s=np.full(11, 1e5)))
  with pytest.raises(ValueError, match="estimate it from more samples"):
    build(good._replace(b=np.full(11, np.nan)))
  with pytest.raises(ValueError, match=r"statistics.s must have shape \(11,\)"):
    build(good._replace(s=np.zeros(4)))
  with pytest.raises(ValueError, match="at least 4 rising log-SNRs"):
    build(good._replace(lam=good.lam[::-1]))
  with pytest.raises(ValueError, match="kind must be one of"):
    v3_statistics.degenerate(PROCESS, "v")
  with pytest.raises(ValueError, match="variance of data is positive"):
    v3_statistics.of_gaussian(PROCESS, variance=0.0)
  model = oracles.exact(oracles.g2(), PROCESS)
  with pytest.raises(ValueError, match="trace must be one of"):
    estimation.estimate(KEY, model, PROCESS, jnp.zeros((2, 2)), trace="all")
  with pytest.raises(ValueError, match="need data"):
    estimation.estimate(KEY, model, PROCESS, iter(()))

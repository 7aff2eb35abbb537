"""Predictor-corrector, controllable generation, and the tables under them."""

import functools
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.samplers.predictor_corrector import calls
from tests import ROOT
from tests import virtual_devices

KEY = jax.random.key(0)
VE = processes.ve()
EDM = processes.edm()
CURVES = {
  "ve": VE,
  "vp": processes.vp_linear(),
  "sub_vp": processes.sub_vp(),
  "edm": EDM,
  "flow": processes.rectified_flow(0.01, 0.95),
}
every_curve = pytest.mark.parametrize("name", CURVES)


# --- the processes -----------------------------------------------------------


@pytest.mark.parametrize("name", ["ve", "vp", "sub_vp"])
def test_marginals_solve_the_moment_equations_of_the_sde(name):
  """RK4 on dm/dt = f m, dv/dt = 2 f v + g^2; sub-VP's own g^2 included."""
  process = CURVES[name]
  t = np.linspace(0.05, 1.0, 4001)
  beta = lambda s: 0.1 + 19.9 * s
  decay = lambda s: np.exp(-2 * (0.1 * s + 9.95 * s**2))
  f = lambda s: 0.0 if name == "ve" else -0.5 * beta(s)
  g2 = {
    "ve": lambda s: 2 * np.log(5000.0) * (0.01 * 5000.0**s) ** 2,
    "vp": beta,
    "sub_vp": lambda s: beta(s) * (1 - decay(s)),
  }[name]
  rate = lambda s, u: np.asarray([f(s) * u[0], 2 * f(s) * u[1] + g2(s)])
  u = np.asarray([process.alpha(t[0]), process.sigma(t[0]) ** 2])
  h = t[1] - t[0]
  for s in t[:-1]:
    a = rate(s, u)
    b = rate(s + h / 2, u + h / 2 * a)
    c = rate(s + h / 2, u + h / 2 * b)
    u = u + h / 6 * (a + 2 * b + 2 * c + rate(s + h, u + h * c))
  np.testing.assert_allclose(u[0], process.alpha(1.0), rtol=1e-8)
  np.testing.assert_allclose(u[1], process.sigma(1.0) ** 2, rtol=1e-8)
  np.testing.assert_allclose(process.diffusion(t) ** 2, g2(t), rtol=1e-9)
  np.testing.assert_allclose(process.drift(np.ones(3), 0.4), f(0.4), rtol=1e-12)


def test_sub_vp_has_less_noise_than_vp():
  t = np.linspace(1e-3, 1.0, 50)
  sub, vp = CURVES["sub_vp"], CURVES["vp"]
  assert (sub.sigma(t) < vp.sigma(t)).all()
  np.testing.assert_allclose(sub.sigma(t), vp.sigma(t) ** 2, rtol=1e-12)


# --- the predictors as tables ------------------------------------------------


@every_curve
@pytest.mark.parametrize("build", ["reverse_diffusion", "euler_maruyama"])
def test_predictors_are_the_papers_formulas(name, build):
  """Through the score, from the paper's f_i and G_i."""
  process = CURVES[name]
  grid = grids.log_snr(process, 7)
  table = getattr(solvers, build)(process, grid)
  x, eps = np.random.default_rng(0).standard_normal((2, 5))
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
    if build == "reverse_diffusion":  # x = (1 + f) x' + G z, forwards
      ratio = process.alpha(t) / process.alpha(s)
      f, g2 = ratio - 1, process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2
    else:
      f = (t - s) * process.drift(np.ones(1), t)
      g2 = (t - s) * process.diffusion(t) ** 2
    expected = x - f * x + g2 * (-eps / process.sigma(t))
    ours = table.state[i, 0, 0] * x + table.history[i, 0, 0] * eps
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table.noise[i], [0, g2**0.5, g2**0.5], rtol=1e-9)


def test_reverse_diffusion_without_a_score_adds_the_variance_of_the_process():
  grid = grids.uniform(VE, 40, to_zero=True)
  table = solvers.reverse_diffusion(VE, grid)
  added = np.sum(table.noise[:, 1] ** 2)
  np.testing.assert_allclose(added, 50.0**2 - 0.01**2, rtol=1e-12)
  # and the last step, which is the mean alone, would have added sigma_min^2
  np.testing.assert_allclose(table.state[-1], 0.0)


@pytest.mark.parametrize(
  ("name", "variance"), [("ve", "small"), ("vp", "large")]
)
def test_ddpm_is_the_papers_ancestral_predictor(name, variance):
  process = CURVES[name]
  grid = grids.uniform(process, 9)
  table = solvers.ddpm(process, grid, variance=variance)
  x, x0 = np.random.default_rng(0).standard_normal((2, 5))
  for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
    score = -(x - process.alpha(t) * x0) / process.sigma(t) ** 2
    if name == "ve":
      hi, lo = process.sigma(t) ** 2, process.sigma(s) ** 2
      mean, noise = x + (hi - lo) * score, np.sqrt(lo * (hi - lo) / hi)
    else:
      beta = 1 - (process.alpha(t) / process.alpha(s)) ** 2
      mean, noise = (x + beta * score) / np.sqrt(1 - beta), np.sqrt(beta)
    ours = table.state[i, 0, 0] * x + table.history[i, 0, 0] * x0
    np.testing.assert_allclose(ours, mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(table.noise[i, 1], noise, rtol=1e-9)


# --- Langevin steps as rows --------------------------------------------------

SPREAD = oracles.gaussian(np.zeros(4), [0.01, 0.1, 1.0, 10.0])


def recursion(n, snr):
  """Sheet's recursion of the variances: corrector, then predictor, VE."""
  c2 = SPREAD.variances[0]
  sigma2 = np.append(0.01 * 5000.0 ** np.linspace(1, 0, n), 0.0) ** 2
  v = c2 + sigma2[0]
  sizes = []
  for i in range(n):
    w, gap = c2 + sigma2[i], sigma2[i] - sigma2[i + 1]
    if snr:
      e = 2 * snr**2 * len(c2) / np.sum(v / w**2)
      v = (1 - e / w) ** 2 * v + 2 * e
      sizes.append([e])
    v = (1 - gap / w) ** 2 * v + (gap if i < n - 1 else 0.0)
  return v, np.asarray(sizes)


def test_a_chain_with_correctors_is_a_table_and_its_law_exact():
  n = 50
  expected, sizes = recursion(n, 0.16)
  grid = grids.uniform(VE, n, to_zero=True)
  plain = solvers.reverse_diffusion(VE, grid)
  table = solvers.with_langevin(VE, plain, sizes)
  assert table.nfe == 2 * n
  _, variance = oracles.propagate(table, VE, SPREAD)
  np.testing.assert_allclose(variance, expected, rtol=1e-9)
  np.testing.assert_allclose(
    oracles.propagate(plain, VE, SPREAD)[1], recursion(n, 0.0)[0], rtol=1e-9
  )


@pytest.mark.slow
def test_simulated_chains_have_the_propagated_variance():
  """2e5 chains, at fixed step sizes: within four standard errors."""
  n, chains = 30, 200_000
  sizes = recursion(n, 0.16)[1]
  grid = grids.uniform(VE, n, to_zero=True)
  table = solvers.with_langevin(VE, solvers.reverse_diffusion(VE, grid), sizes)
  _, variance = oracles.propagate(table, VE, SPREAD)
  start = VE.prior(jax.random.key(1), (chains, 4))
  start = start * np.sqrt(SPREAD.variances[0] + 50.0**2) / 50.0
  model = oracles.exact(SPREAD, VE)
  out = sampling.sample(KEY, model, table, start.astype(jnp.float32))
  error = np.var(np.asarray(out, np.float64), axis=0) / variance - 1
  assert (abs(error) < 4 * np.sqrt(2 / chains)).all(), error


@every_curve
def test_langevin_keeps_the_marginal_up_to_its_step_size(name):
  """The stationary variance of a step e on N(0, w) is w / (1 - e / 2w)."""
  process = CURVES[name]
  single = oracles.gaussian([0.0], [0.5])
  t = 0.5 * (process.t_min + process.t_max)
  w = 0.5 * process.alpha(t) ** 2 + process.sigma(t) ** 2
  e = 0.1 * w
  table = solvers.langevin(process, np.full(400, t), e)
  _, variance = oracles.propagate(table, process, single)
  np.testing.assert_allclose(variance, w / (1 - e / (2 * w)), rtol=1e-9)


# --- predictor-corrector -----------------------------------------------------


def toy(x, t):
  """Exact for N(0, 1), one operation a number."""
  variance = 1.0 + t * t
  return predictions.Prediction(x / variance, x * (t / variance))


def counting(model):
  """The model, and the list of the times it was called at (eagerly)."""
  seen = []

  def counted(x, t):
    jax.debug.callback(lambda s: seen.append(np.asarray(s)), t)
    return model(x, t)

  return counted, seen


@pytest.mark.parametrize("build", ["reverse_diffusion", "dpmpp_2m"])
def test_without_a_corrector_it_is_sample(build):
  table = getattr(solvers, build)(EDM, grids.karras(EDM, 6, to_zero=True))
  ours, info = samplers.predictor_corrector(
    KEY, toy, table, (8, 3), process=EDM, corrector_steps=0
  )
  assert info == sampling.WalkInfo(table.nfe)
  theirs = sampling.sample(KEY, toy, table, (8, 3), process=EDM)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_step_is_the_papers():
  """One row, one corrector step, against the formulas in the score."""
  table = solvers.reverse_diffusion(EDM, [2.0, 1.0])
  x = EDM.prior(KEY, (6, 3), 2.0)
  seen = []

  def spy(x, t):
    jax.debug.callback(lambda *v: seen.append(v), x, t)
    return toy(x, t)

  for norm in ("sample", "batch"):
    seen.clear()
    out, _ = samplers.predictor_corrector(
      KEY, spy, table, x, process=EDM, snr=0.3, norm=norm
    )
    jax.effects_barrier()
    assert len(seen) == 2
    (first, _), (moved, t) = seen
    assert float(t) == 2.0
    first, moved = np.asarray(first), np.asarray(moved)
    score = -first / 5.0
    key = jax.random.fold_in(sampling.stream(KEY), 0)  # of row 0
    key = jax.random.fold_in(jax.random.fold_in(key, 2), 0)  # its corrector
    z = np.asarray(tree.normal(jax.random.fold_in(key, 0), jnp.asarray(first)))
    lengths = [np.linalg.norm(v, axis=1) for v in (z, score)]
    if norm == "batch":
      lengths = [np.mean(v) for v in lengths]
    e = np.broadcast_to(2 * (0.3 * lengths[0] / lengths[1]) ** 2, (6,))[:, None]
    np.testing.assert_allclose(
      moved, first + e * score + np.sqrt(2 * e) * z, rtol=2e-5, atol=2e-5
    )
    # the last row is its mean: without noise
    mean = moved + 3.0 * (-moved / 5.0)
    np.testing.assert_allclose(out, mean, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
  ("build", "steps", "corrector"),
  [
    ("reverse_diffusion", 5, 2),
    ("heun", 4, 1),
    ("rk4", 2, 3),
    ("dpmpp_2m", 6, 1),
  ],
)
def test_the_calls_are_counted(build, steps, corrector):
  """Correctors move accepted samples only, not the stages within a step."""
  table = getattr(solvers, build)(EDM, grids.karras(EDM, steps))
  model, seen = counting(toy)
  x, info = samplers.predictor_corrector(
    KEY, model, table, (2, 3), process=EDM, corrector_steps=corrector
  )
  x.block_until_ready()
  jax.effects_barrier()
  assert len(seen) == calls(table, corrector) == table.nfe + corrector * steps
  assert info.nfe == len(seen)


def test_a_sample_is_its_own_whatever_the_batch():
  table = solvers.reverse_diffusion(EDM, grids.karras(EDM, 5, to_zero=True))
  run = functools.partial(
    samplers.predictor_corrector, KEY, toy, table, process=EDM
  )
  whole, _ = run((6, 3))
  part, _ = run((2, 3), index=jnp.asarray([3, 5]))
  np.testing.assert_allclose(part, whole[jnp.asarray([3, 5])], rtol=1e-5)


def test_the_batch_mean_of_a_mapped_batch_is_that_of_all():
  """pmean over the mapped axis makes two halves one batch."""
  table = solvers.reverse_diffusion(EDM, grids.karras(EDM, 5, to_zero=True))
  x = EDM.prior(KEY, (6, 3))
  run = functools.partial(
    samplers.predictor_corrector, KEY, toy, table, process=EDM, norm="batch"
  )
  halves = jax.vmap(
    lambda x, index: run(x, index=index, axis_name="data")[0], axis_name="data"
  )(x.reshape(2, 3, 3), jnp.arange(6).reshape(2, 3))
  whole, _ = run(x)
  np.testing.assert_allclose(halves.reshape(6, 3), whole, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_the_batch_mean_is_global_over_virtual_devices():
  """A batch laid out over four devices has one corrector step size."""
  program = textwrap.dedent("""
    import jax, numpy as np
    from jaxdiff import grids, parallel, predictions, processes, samplers
    from jaxdiff import solvers
    edm = processes.edm()
    def model(x, t):
      v = 1.0 + t * t
      return predictions.Prediction(x / v, x * (t / v))
    table = solvers.reverse_diffusion(edm, grids.karras(edm, 5, to_zero=True))
    x = edm.prior(jax.random.key(0), (8, 3))
    run = lambda x: samplers.predictor_corrector(
      jax.random.key(0), model, table, x, process=edm, norm="batch")[0]
    out = run(parallel.shard_batch(x, parallel.data_mesh(4)))
    assert len(out.sharding.device_set) == 4, out.sharding
    np.testing.assert_allclose(out, run(x), rtol=2e-5, atol=1e-6)
  """)
  done = subprocess.run(
    [sys.executable, "-c", program],
    env=virtual_devices.environment(4),
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]


def test_other_ratios_and_tables_share_one_program(compiled):
  grid = grids.karras(EDM, 5, to_zero=True)
  run = lambda table, snr: samplers.predictor_corrector(
    KEY, toy, table, (2, 3), process=EDM, snr=snr
  )
  run(solvers.reverse_diffusion(EDM, grid), 0.1)
  compiled.clear()
  run(solvers.ddpm(EDM, grid), 0.2)
  assert "jit(_sample)" not in compiled


@pytest.mark.slow
def test_a_corrector_pulls_a_wrong_start_to_the_marginal():
  """Started with thrice the noise, the corrected chain forgets it sooner."""
  process = processes.edm(0.1, 5.0)
  single = oracles.gaussian(np.zeros(64), np.ones(64))
  model = oracles.exact(single, process)
  table = solvers.reverse_diffusion(process, grids.log_snr(process, 20))
  x = 3.0 * process.prior(KEY, (128, 64))
  spread = lambda steps: float(
    jnp.std(
      samplers.predictor_corrector(
        KEY, model, table, x, process=process, corrector_steps=steps
      )[0]
    )
  )
  assert abs(spread(5) - 1.0) < 0.5 * abs(spread(0) - 1.0)


# --- controllable generation -------------------------------------------------


def test_known_coordinates_come_out_as_they_are_known():
  known = jnp.asarray([[1.5, 0.0, -2.0]])
  mask = jnp.asarray([1, 0, 1])
  table = solvers.reverse_diffusion(EDM, grids.karras(EDM, 8, to_zero=True))
  out, _ = samplers.predictor_corrector(
    KEY,
    toy,
    table,
    (5, 3),
    process=EDM,
    project=samplers.inpaint(EDM, known, mask),
  )
  np.testing.assert_allclose(out[:, 0], 1.5, rtol=1e-6)
  np.testing.assert_allclose(out[:, 2], -2.0, rtol=1e-6)
  assert np.std(out[:, 1]) > 0.1


def test_known_coordinates_have_the_marginal_at_every_time():
  process = CURVES["vp"]
  project = samplers.inpaint(process, jnp.full((20_000, 2), 1.5), [1, 0])
  x = jnp.zeros((20_000, 2))
  for t in (0.2, 0.7):
    out = project(KEY, x, jnp.asarray(t), jnp.arange(20_000))
    assert (out[:, 1] == 0).all()
    mean, std = 1.5 * process.alpha(t), process.sigma(t)
    assert abs(out[:, 0].mean() - mean) < 4 * std / np.sqrt(20_000)
    assert abs(out[:, 0].std() / std - 1) < 4 / np.sqrt(2 * 20_000)


def test_colours_come_out_with_the_given_grey():
  grey = jax.random.uniform(KEY, (4, 5, 5, 1))
  project = samplers.colorize(EDM, grey)
  basis = project.basis
  np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)
  np.testing.assert_allclose(basis[0], 3**-0.5)
  table = solvers.reverse_diffusion(EDM, grids.karras(EDM, 8, to_zero=True))
  out, _ = samplers.predictor_corrector(
    KEY, toy, table, (4, 5, 5, 3), process=EDM, project=project
  )
  np.testing.assert_allclose(out.mean(-1, keepdims=True), grey, atol=1e-5)
  assert np.std(out[..., 0] - out[..., 1]) > 0.1


def test_the_last_projection_is_at_the_end_of_a_table_that_keeps_noise():
  times = []

  def project(key, x, t, index):
    del key, index
    jax.debug.callback(lambda s: times.append(float(s)), t)
    return x

  grid = [2.0, 1.0, 0.5]
  table = solvers.reverse_diffusion(EDM, grid)
  samplers.predictor_corrector(
    KEY, toy, table, jnp.ones((2, 3)), process=EDM, project=project, t_end=0.5
  )[0].block_until_ready()
  jax.effects_barrier()
  # the start; corrector and predictor of both steps
  assert times == [2.0, 2.0, 1.0, 1.0, 0.5]


def component_log_prob(process, which):
  """log p_t(component | x) of g2, by Bayes' rule from its densities."""
  data = oracles.g2()
  single = oracles.gaussian(data.means[which], data.variances[which])

  def log_prob(x, t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    joint = data.log_weights[which] + single.log_prob(x, alpha, sigma)
    return joint - data.log_prob(x, alpha, sigma)

  return log_prob


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_the_exact_classifier_makes_the_conditional_model(name, x64):
  process = CURVES[name]
  model = oracles.exact(oracles.g2(), process)
  model = guidance.classifier_guided(
    model, component_log_prob(process, 1), process
  )
  guided = jax.jit(lambda x, t: model(x, t))
  exact = oracles.exact(oracles.g2(), process, jnp.full(16, 1))
  conditional = jax.jit(lambda x, t: exact(x, t))
  for t in (process.t_min * 0.7 + process.t_max * 0.3, process.t_max):
    x = process.perturb(KEY, oracles.g2().sample(KEY, 16)[0], t)[0]
    ours, theirs = guided(x, jnp.asarray(t)), conditional(x, jnp.asarray(t))
    np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(ours.eps, theirs.eps, rtol=1e-7, atol=1e-8)
    each = jnp.full(16, t)  # a time for every sample
    np.testing.assert_allclose(guided(x, each).x0, theirs.x0, atol=1e-7)


def test_a_classifier_answers_one_number_a_sample():
  """The sum of all logits would have a gradient too, of nothing."""
  logits = lambda x, t: jnp.zeros((x.shape[0], 3))
  guided = guidance.classifier_guided(toy, logits, EDM)
  with pytest.raises(ValueError, match=r"shape \(4,\), got \(4, 3\)"):
    guided(jnp.zeros((4, 2)), 1.0)


@pytest.mark.slow
def test_the_classifier_guides_samples_to_the_class_asked_for():
  guided = guidance.classifier_guided(
    oracles.exact(oracles.g2(), EDM), component_log_prob(EDM, 2), EDM
  )
  table = solvers.reverse_diffusion(EDM, grids.karras(EDM, 40, to_zero=True))
  out, _ = samplers.predictor_corrector(
    KEY, guided, table, (2000, 2), process=EDM, norm="batch", snr=0.1
  )
  means = oracles.g2().means
  nearest = np.argmin(
    np.linalg.norm(np.asarray(out)[:, None] - means, axis=-1), axis=1
  )
  assert np.mean(nearest == 2) >= 0.99


# --- mistakes ----------------------------------------------------------------


def test_mistakes_are_named():
  grid = grids.karras(EDM, 4)
  table = solvers.reverse_diffusion(EDM, grid)
  run = functools.partial(
    samplers.predictor_corrector, KEY, toy, table, (2, 3), process=EDM
  )
  for snr in (0.0, -1.0, 1.5):
    with pytest.raises(ValueError, match=r"snr is a ratio within \(0, 1\]"):
      run(snr=snr)
  with pytest.raises(ValueError, match="norm must be one of"):
    run(norm="max")
  with pytest.raises(ValueError, match="corrector_steps must be at least 0"):
    run(corrector_steps=-1)
  pc = samplers.predictor_corrector
  apart = solvers.unipc(EDM, grid)
  apart.state[:-1, 1] = [0.5, 0.5]
  with pytest.raises(ValueError, match="no step of this table ends with a = y"):
    pc(KEY, toy, apart, (2, 3), process=EDM)
  with pytest.raises(TypeError, match="takes a model"):
    pc(KEY, table, toy, (2, 3), process=EDM)
  with pytest.raises(TypeError, match="a Tableau there, got the function"):
    pc(KEY, toy, toy, (2, 3), process=EDM)
  with pytest.raises(TypeError, match="takes a model"):
    pc(KEY, 3, table, (2, 3), process=EDM)
  with pytest.raises(TypeError, match=r"call it: edm\(\)"):
    pc(KEY, toy, table, (2, 3), process=processes.edm)
  with pytest.raises(TypeError, match="dtype int32"):
    pc(KEY, toy, table, jnp.ones((2, 3), jnp.int32), process=EDM)
  with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
    pc(KEY, toy, table, jnp.ones((2, 3)), process=EDM, index=jnp.arange(3))
  with pytest.raises(TypeError, match="index numbers the samples"):
    pc(KEY, toy, table, jnp.ones((2, 3)), process=EDM, index=jnp.ones(2))
  with pytest.raises(ValueError, match="the signal exceeds the noise"):
    pc(KEY, toy, tables.take(table, slice(3, 4)), (2, 3), process=EDM)
  with pytest.raises(TypeError, match="the tableau is traced"):
    jax.jit(lambda t: pc(KEY, toy, t, (2, 3), process=EDM))(table)
  with pytest.raises(ValueError, match="1 where a value is known and 0"):
    samplers.inpaint(EDM, jnp.ones(3), [0.5, 1, 0])
  with pytest.raises(ValueError, match=r"shape \(4,\) does not broadcast"):
    samplers.inpaint(EDM, jnp.ones(3), jnp.ones(4))
  with pytest.raises(ValueError, match="grey values with one channel"):
    samplers.colorize(EDM, jnp.ones((2, 8, 8, 3)))
  with pytest.raises(TypeError, match="second, got float"):
    guidance.classifier_guided(toy, 1.0, EDM)
  with pytest.raises(ValueError, match="size of at least 0"):
    solvers.langevin(EDM, 1.0, -0.1)
  with pytest.raises(ValueError, match="one-step table"):
    solvers.with_langevin(EDM, solvers.heun(EDM, grid), np.ones((8, 1)))
  with pytest.raises(ValueError, match=r"shape \(4, m\), got \(3, 1\)"):
    solvers.with_langevin(EDM, table, np.ones((3, 1)))

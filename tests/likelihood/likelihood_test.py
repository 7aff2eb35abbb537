"""Densities along the ODE, against those that are known exactly."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import grids
from jaxdiff import likelihood
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.likelihood import ode
from tests.solvers.cases import CASES

KEY = jax.random.key(0)
EDM = processes.edm(0.05, 20.0)
MIX = oracles.g2()
density = functools.partial(likelihood.log_likelihood, KEY)


def law(data, process, t):
  """The exact log-density of the noisy data at t."""
  alpha, sigma = process.alpha(t), process.sigma(t)
  return lambda x: data.log_prob(x, jnp.asarray(alpha), jnp.asarray(sigma))


@functools.cache
def problem(name):
  """(process, model, x at t_min, exact log p, log-density at t_max), f64."""
  process = {
    "edm": EDM,
    "vp": processes.vp_linear(t_min=0.01),
    "sub_vp": processes.sub_vp(t_min=0.01),
    "flow": processes.rectified_flow(0.02, 0.98),
  }[name]
  clean = MIX.sample(KEY, 32)[0].astype(jnp.float64)
  x, _ = process.perturb(jax.random.key(1), clean, process.t_min)
  model = oracles.exact(MIX, process)
  exact = law(MIX, process, process.t_min)(x)
  return process, model, x, exact, law(MIX, process, process.t_max)


# --- the density -------------------------------------------------------------


@pytest.mark.parametrize("name", ["edm", "sub_vp"])
def test_the_density_of_a_mixture_is_exact(name, x64):
  process, model, x, exact, prior = problem(name)
  ours = density(
    model, process, x, trace="exact", prior=prior, rtol=1e-6, atol=1e-6
  )
  np.testing.assert_allclose(ours.log_prob, exact, atol=1e-4)
  assert (ours.nfe > 0).all()


@pytest.mark.parametrize(
  ("name", "order", "steps"),
  [
    pytest.param("ddim", 1, 40, marks=pytest.mark.slow),
    ("dpmpp_2m", 2, 80),
    pytest.param("rk4", 4, 80, marks=pytest.mark.slow),
    ("dpm_solver_3", 3, 40),
  ],
)
def test_every_table_has_its_own_order_in_the_density(name, order, steps, x64):
  """The volume is one more coordinate; exponential integrators included."""
  process, model, x, exact, prior = problem("edm")

  def error(n):
    ours = density(
      model,
      process,
      x,
      trace="exact",
      prior=prior,
      solver=CASES[name].build,
      grid=grids.log_snr(process, n),
    )
    return float(jnp.sqrt(jnp.mean((ours.log_prob - exact) ** 2)))

  slope = np.log2(error(steps) / error(2 * steps))
  assert abs(slope - order) < 0.3, slope


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_the_volume_obeys_the_velocity_and_the_pair_its_identity(name, x64):
  """alpha X0 + sigma EPS = L, and alpha' X0 + sigma' EPS = dL / dt."""
  process, model, x, _, _ = problem(name)
  t = 0.4 * process.t_min + 0.6 * process.t_max
  volume = jnp.linspace(-3.0, 3.0, 32)
  s = 0.7
  both = likelihood.Augmented(model, None, s, process=process)
  answer = jax.jit(lambda m, *state: m(state, jnp.asarray(t)))(both, x, volume)
  x0, eps = answer.x0[1], answer.eps[1]
  alpha, sigma = process.alpha(t), process.sigma(t)
  alpha_dot, sigma_dot = process.rates(t)
  np.testing.assert_allclose(alpha * x0 + sigma * eps, volume, atol=1e-10)

  def velocity(v):
    pair = model(v[None], jnp.asarray(t))
    return (alpha_dot * pair.x0 + sigma_dot * pair.eps)[0]

  trace = lambda v: jnp.trace(jax.jacfwd(velocity)(v))
  divergence = jax.jit(jax.vmap(trace))(x)
  log_std = lambda u: (
    0.5 * jnp.log((process.alpha(u) * s) ** 2 + process.sigma(u) ** 2)
  )
  expected = divergence - 2 * jax.grad(log_std)(jnp.asarray(t))
  np.testing.assert_allclose(
    alpha_dot * x0 + sigma_dot * eps, expected, rtol=1e-8, atol=1e-9
  )


def isotropic(variance):
  """The exact model of N(0, variance) under EDM, of few operations."""

  def model(x, t):
    total = variance + jnp.square(t)
    each = lambda v: v.reshape(v.shape + (1,) * (x.ndim - v.ndim))
    return predictions.Prediction(
      each(variance / total) * x, each(t / total) * x
    )

  return model


def test_isotropic_gaussians_of_the_reference_need_no_steps(x64):
  """With data_std that of the data D = 0: two DDIM steps give it exactly.

  And Hutchinson with +-1 has no variance: the Jacobian is a multiple of I.
  """
  model = isotropic(0.49)
  x = jax.random.normal(KEY, (8, 3), jnp.float64)
  run = functools.partial(
    density, model, EDM, x, prior=lambda z: jnp.zeros(len(z))
  )
  coarse = run(data_std=0.7, solver=solvers.ddim, grid=grids.log_snr(EDM, 2))
  high, low = (0.49 + t**2 for t in (20.0, 0.05))
  np.testing.assert_allclose(
    coarse.log_prob, 1.5 * math.log(high / low), rtol=1e-12
  )
  for trace in ("exact", "hutchinson"):
    fine = run(trace=trace, data_std=1.0, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(
      fine.log_prob, 1.5 * math.log(high / low), atol=1e-6
    )


@pytest.mark.slow
def test_hutchinson_is_unbiased(x64):
  """Over many probes of one point, within four standard errors."""
  process, model, x, exact, prior = problem("edm")
  point = jnp.broadcast_to(x[:1], (4096, 2))
  for probe in ("rademacher", "gaussian"):
    ours = density(
      model,
      process,
      point,
      probe=probe,
      prior=prior,
      solver=solvers.rk4,
      grid=grids.log_snr(process, 40),
    ).log_prob
    assert ours.std() > 0.01
    gap = ours.mean() - exact[0]
    assert abs(gap) < 4 * ours.std() / 64 + 1e-4


def test_a_probe_is_the_samples_own_and_fixed():
  like = jnp.zeros((4, 5))
  whole = ode._probe(KEY, like, None, "rademacher")
  assert set(np.unique(whole)) == {-1.0, 1.0}
  part = ode._probe(KEY, like[:1], jnp.asarray([2]), "rademacher")
  np.testing.assert_array_equal(part[0], whole[2])


def test_an_exact_trace_of_many_dimensions_goes_in_parts():
  """100 dimensions are more than are differentiated at once."""
  d, s = 100, 0.8
  model = isotropic(s**2)
  both = likelihood.Augmented(model, None, s, process=EDM)
  _, divergence = both._divergence(jnp.ones((2, d)), jnp.asarray(1.3))
  np.testing.assert_allclose(divergence, d * s**2 / (s**2 + 1.3**2), rtol=1e-5)


def test_images_and_single_precision():
  x = jax.random.normal(KEY, (3, 2, 2, 3))
  ours = density(isotropic(1.0), EDM, x, prior=law_of_unit_data)
  exact = stats.norm(scale=math.sqrt(1 + 0.05**2)).logpdf(np.asarray(x))
  np.testing.assert_allclose(ours.log_prob, exact.sum((1, 2, 3)), rtol=1e-4)
  assert ours.log_prob.dtype == jnp.float32
  assert ours.latent.shape == x.shape


def law_of_unit_data(z):
  return EDM.prior_log_prob(z, data_std=1.0)


def test_the_prior_has_the_density_it_draws_from():
  for process in (EDM, processes.vp_linear(), processes.ve()):
    for data_std in (0.0, 0.5):
      scale = math.hypot(
        process.sigma(process.t_max), data_std * process.alpha(process.t_max)
      )
      x = process.prior(KEY, (6, 2, 2), data_std=data_std)
      expected = stats.norm(scale=scale).logpdf(np.asarray(x)).sum((1, 2))
      ours = process.prior_log_prob(x, data_std=data_std)
      np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_the_latent_is_the_unique_code_and_decodes_to_the_data(x64):
  """Gaussian data: the code is x scaled by the standard deviations."""
  data = oracles.gaussian([0.0, 0.0], [0.25, 4.0])
  model = oracles.exact(data, EDM)
  x = jax.random.normal(KEY, (8, 2), jnp.float64)
  code = density(model, EDM, x, rtol=1e-7, atol=1e-7, trace="exact").latent
  v = data.variances[0]
  scale = np.sqrt((v + 20.0**2) / (v + 0.05**2))
  np.testing.assert_allclose(code, x * scale, rtol=1e-5)
  table = solvers.rk4(EDM, grids.log_snr(EDM, 200))
  back = sampling.sample(KEY, model, table, code)
  np.testing.assert_allclose(back, x, atol=1e-4)


# --- bits --------------------------------------------------------------------


def test_bits_of_uniform_pixels_are_those_of_their_levels():
  """A uniform density gives log2(levels) bits, whatever the range."""
  for low, high, levels in ((-1.0, 1.0, 256), (0.0, 1.0, 256), (0.0, 4.0, 16)):
    log_prob = -48 * math.log(high - low)
    bits = likelihood.bits_per_dim(log_prob, 48, step=(high - low) / levels)
    assert bits == pytest.approx(math.log2(levels))
  # the paper's offset for data in [-1, 1], and that of x / 127.5 - 1
  assert likelihood.bits_per_dim(0.0, 3) == pytest.approx(7.0)
  scaled = likelihood.bits_per_dim(0.0, 3, step=1 / 127.5)
  assert scaled == pytest.approx(math.log2(127.5))


def test_a_cell_is_lower_bounded_by_the_mean_of_its_density():
  """Jensen: E log p + log(step) <= log P(cell), close for a smooth density."""
  levels, sd = 64, 0.4
  pixels = jnp.full((20_000, 1), 40)
  x = likelihood.dequantize(KEY, pixels, levels=levels)
  assert x.min() >= -1 + 80 / 64 and x.max() < -1 + 82 / 64
  law = stats.norm(scale=sd)
  edges = law.cdf([-1 + 80 / 64, -1 + 82 / 64])
  bits = likelihood.bits_per_dim(
    law.logpdf(np.asarray(x)).mean(), 1, step=2 / levels
  )
  exact = -math.log2(edges[1] - edges[0])
  assert exact - 1e-3 < bits < exact + 1e-2


def test_dequantized_pixels_stay_in_their_cells_and_are_their_own():
  pixels = jnp.arange(256, dtype=jnp.int32).reshape(64, 4)
  x = likelihood.dequantize(KEY, pixels)
  back = np.floor((np.asarray(x, np.float64) + 1) * 128)
  np.testing.assert_array_equal(back, pixels)
  assert x.min() >= -1 and x.max() < 1
  part = likelihood.dequantize(KEY, pixels[5:6], index=jnp.asarray([5]))
  np.testing.assert_array_equal(part[0], x[5])


# --- mistakes ----------------------------------------------------------------


@pytest.mark.parametrize(
  ("levels", "low"), [(2 / 255, -1.0), (1 / 255, 0.0), (1.0, 0.0)]
)
def test_data_on_levels_are_said_to_have_no_density(levels, low):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1))
  x = np.float32(low + levels * pixels)
  with pytest.warns(UserWarning, match=r"dequantize\(key, pixels\)"):
    ode._warn_of_levels(jnp.asarray(x))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    spread = likelihood.dequantize(KEY, jnp.asarray(pixels, jnp.uint8))
    ode._warn_of_levels(spread)
    ode._warn_of_levels(jnp.zeros((8, 16)))  # a constant is no lattice
    jax.jit(lambda v: ode._warn_of_levels(v) or v)(x)


def test_mistakes_are_named():
  model = oracles.exact(MIX, EDM)
  x = jnp.ones((2, 2))
  with pytest.raises(TypeError, match="dtype int32 has no density.*dequantize"):
    density(model, EDM, jnp.ones((2, 2), jnp.int32))
  with pytest.raises(ValueError, match="trace must be one of"):
    density(model, EDM, x, trace="full")
  with pytest.raises(ValueError, match="probe must be one of"):
    density(model, EDM, x, probe="cauchy")
  with pytest.raises(ValueError, match="a solver needs a grid"):
    density(model, EDM, x, solver=solvers.rk4)
  with pytest.raises(ValueError, match="a grid belongs to a solver"):
    density(model, EDM, x, grid=grids.log_snr(EDM, 4))
  with pytest.raises(ValueError, match="goes from 10 to 0.05"):
    grid = grids.log_snr(EDM, 4, start=10.0)
    density(model, EDM, x, solver=solvers.rk4, grid=grid)
  with pytest.raises(ValueError, match="draws noise"):
    grid = grids.log_snr(EDM, 4)
    density(model, EDM, x, solver=solvers.ddpm, grid=grid)
  with pytest.raises(TypeError, match="a model there.*swapped with process"):
    density(EDM, model, x)
  with pytest.raises(TypeError, match="takes integers 0..255, got dtype float"):
    likelihood.dequantize(KEY, x)
  with pytest.raises(ValueError, match=r"must lie in 0\.\.15, got 3\.\.16"):
    likelihood.dequantize(KEY, jnp.asarray([[3, 16]]), levels=16)
  with pytest.raises(ValueError, match="step is a distance"):
    likelihood.bits_per_dim(0.0, 3, step=0.0)

"""Processes: closed forms, inverses, rates, the SDE, float32, randomness."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxdiff import numerics
from jaxdiff import processes
from jaxdiff import tree
from tests.processes.cases import CASES
from tests.processes.cases import every_process
from tests.processes.cases import PROCESSES

mpmath.mp.dps = 40
KEY = jax.random.key(3)


def times(process, n=13, last=1.0):
  """Returns n times from t_min to last * t_max, dense near t_min."""
  low = max(process.t_min, 1e-6)
  return np.geomspace(low, last * process.t_max, n)


def exactly(f, t):
  return np.array([float(f(mpmath.mpf(float(v)))) for v in t])


# --- the curve ---------------------------------------------------------------


@every_process
def test_alpha_sigma_and_log_snr_are_their_closed_forms(name):
  process, alpha, sigma = CASES[name]
  t = times(process)
  np.testing.assert_allclose(
    process.alpha(t), exactly(alpha, t), rtol=1e-13, atol=1e-16
  )
  np.testing.assert_allclose(process.sigma(t), exactly(sigma, t), rtol=1e-13)
  t = times(process, last=0.999)
  lam = exactly(lambda s: mpmath.log(alpha(s) / sigma(s)), t)
  np.testing.assert_allclose(process.log_snr(t), lam, rtol=1e-13, atol=1e-13)
  np.testing.assert_allclose(process.noise_level(t), np.exp(-lam), rtol=1e-12)


@every_process
def test_log_snr_inverse_is_the_inverse(name):
  process = PROCESSES[name]
  t = times(process, last=0.999)
  lam = process.log_snr(t)
  close = lambda value, exact, atol=1e-15: np.testing.assert_allclose(
    value, exact, rtol=1e-12, atol=atol
  )
  close(process.log_snr_inverse(lam), t)
  close(process.time_at(np.exp(-lam)), t)
  middle = 0.5 * (lam[1:] + lam[:-1])
  close(process.log_snr(process.log_snr_inverse(middle)), middle, atol=1e-12)


@every_process
def test_rates_are_the_derivatives(name):
  process, alpha, sigma = CASES[name]
  t = times(process)
  alpha_dot, sigma_dot = process.rates(t)
  slope = lambda f: lambda s: mpmath.diff(f, s, h=mpmath.mpf("1e-15"))
  np.testing.assert_allclose(
    alpha_dot, exactly(slope(alpha), t), rtol=1e-12, atol=1e-15
  )
  np.testing.assert_allclose(
    sigma_dot, exactly(slope(sigma), t), rtol=1e-12, atol=1e-14
  )


def test_time_zero_has_no_noise():
  for name, process in PROCESSES.items():
    with np.errstate(all="raise"):
      assert process.sigma(process.t_zero) == 0, name
      assert process.alpha(process.t_zero) == 1, name
      assert process.log_snr(process.t_zero) == np.inf, name
    if name != "vp_covering":  # whose sigma vanishes twice: beta(0) < 0
      assert process.time_at(0.0) == pytest.approx(process.t_zero, abs=1e-15)
  nowhere = processes.from_alpha_sigma(lambda t: 1.0, lambda t: t, 0.1, 1.0)
  assert math.isnan(nowhere.t_zero)


def test_vp_linear_covering_covers_its_range_exactly():
  for low, high, t_min in [(0.002, 80.0, 1e-3), (0.01, 150.0, 1e-2)]:
    process = processes.vp_linear_covering(low, high, t_min)
    ends = process.noise_level(np.array([t_min, 1.0]))
    np.testing.assert_allclose(ends, [low, high], rtol=1e-11)


def test_sub_vp_std_is_one_minus_m_squared_and_below_vp():
  t = np.linspace(1e-3, 1, 101)
  m, std = processes.sub_vp().alpha(t), processes.sub_vp().sigma(t)
  np.testing.assert_array_equal(m, processes.vp_linear().alpha(t))
  np.testing.assert_allclose(std, 1 - m**2, rtol=1e-11)
  assert (std < processes.vp_linear().sigma(t)).all()


def test_cosine_ends_are_exact_and_never_negative():
  builtin, user = PROCESSES["vp_cosine"], PROCESSES["pair"]
  for process in (builtin, user):
    for one in (np.float64(1.0), jnp.float32(1.0)):
      assert process.alpha(one) == 0
      assert process.sigma(one) == 1
      assert process.log_snr(one) == -jnp.inf
    for before in (np.nextafter(1.0, 0.0), np.nextafter(np.float32(1), 0)):
      assert process.alpha(jnp.asarray(before, jnp.float32)) >= 0
  assert processes.vp_cosine().time_at(np.inf) == 1.0
  assert 0 < builtin.alpha(np.nextafter(1.0, 0.0)) < 1e-15


def test_log_snr_of_vp_stays_finite_where_exp_would_overflow_float32():
  process = processes.vp_linear(0.1, 250.0)
  lam = process.log_snr(jnp.float32(1.0))
  assert float(lam) == pytest.approx(float(process.log_snr(1.0)), rel=1e-6)


# --- the SDE -----------------------------------------------------------------


SMOOTH = [name for name in CASES if name != "vp_discrete"]


@pytest.mark.parametrize("name", SMOOTH)
def test_moment_equations_of_the_sde_integrate_to_alpha_and_sigma(name):
  # dm/dt = f m, dV/dt = 2 f V + g^2, by RK4 from t_min
  process = PROCESSES[name]
  # f = d log(alpha) / dt is (nearly) singular where alpha (nearly) ends
  last = 0.95 if process.alpha(process.t_max) < 0.002 else 1.0
  n = 4000
  root = np.linspace(process.t_min**0.5, (last * process.t_max) ** 0.5, n + 1)
  t = root**2  # small steps where sigma rises like a root
  nodes = np.sort(np.concatenate([t, 0.5 * (t[1:] + t[:-1])]))
  f = process.drift(np.ones_like(nodes), nodes)
  g2 = process.diffusion(nodes) ** 2
  m, v = float(process.alpha(t[0])), float(process.sigma(t[0])) ** 2
  for i in range(n):
    h = t[i + 1] - t[i]
    rate = lambda j, m, v: (f[j] * m, 2 * f[j] * v + g2[j])
    j = 2 * i
    a1, b1 = rate(j, m, v)
    a2, b2 = rate(j + 1, m + h / 2 * a1, v + h / 2 * b1)
    a3, b3 = rate(j + 1, m + h / 2 * a2, v + h / 2 * b2)
    a4, b4 = rate(j + 2, m + h * a3, v + h * b3)
    m += h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)
    v += h / 6 * (b1 + 2 * b2 + 2 * b3 + b4)
  assert m == pytest.approx(float(process.alpha(t[-1])), rel=1e-8)
  assert v == pytest.approx(float(process.sigma(t[-1])) ** 2, rel=1e-8)


def test_discrete_betas_are_hit_at_their_steps_and_joined_by_lambda():
  betas = np.linspace(1e-4, 0.02, 1000)
  process = processes.vp_discrete(betas)
  steps = np.arange(1, 1001) / 1000
  square = np.cumprod(1 - betas)
  np.testing.assert_allclose(process.alpha(steps) ** 2, square, rtol=1e-12)
  np.testing.assert_allclose(process.sigma(steps) ** 2, 1 - square, rtol=1e-10)
  middle = 0.5 * (steps[1:] + steps[:-1])
  lam = process.log_snr(steps)
  np.testing.assert_allclose(
    process.log_snr(middle), 0.5 * (lam[1:] + lam[:-1]), rtol=1e-12
  )
  # sigma -> 0 linearly before the first step
  ratio = process.noise_level(np.asarray([0.00025, 0.0005, 0.001]))
  np.testing.assert_allclose(ratio / ratio[-1], [0.25, 0.5, 1.0], rtol=1e-12)
  assert process.sigma(process.t_zero) == 0


SCALED = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


def test_no_signal_is_left_after_a_last_beta_of_1():
  betas = processes.zero_terminal_snr(SCALED)
  process = processes.vp_discrete(betas)
  assert betas[-1] == 1
  root = np.sqrt(np.cumprod(1 - SCALED))
  root = (root - root[-1]) * root[0] / (root[0] - root[-1])
  steps = np.arange(1, 1001) / 1000
  np.testing.assert_allclose(process.alpha(steps), root, atol=1e-13)
  np.testing.assert_allclose(
    process.sigma(steps), np.sqrt(1 - root**2), rtol=1e-10
  )
  for one in (1.0, jnp.float32(1.0)):
    assert process.alpha(one) == 0 and process.sigma(one) == 1
    assert process.log_snr(one) == -np.inf
  assert process.time_at(np.inf) == 1.0
  # alpha / sigma falls linearly to 0 within the last step
  level = process.noise_level(np.asarray([0.999, 0.9995, 0.99975]))
  np.testing.assert_allclose(level / level[0], [1.0, 2.0, 4.0], rtol=1e-9)


@pytest.mark.parametrize("interpolation", ["log_snr", "noise_level"])
@pytest.mark.parametrize("silent", [False, True])
def test_every_form_of_a_discrete_process_is_one_smooth_curve(
  interpolation, silent
):
  """Between the steps; also where the first begins and the last one ends."""
  betas = np.append(np.linspace(0.01, 0.6, 11), 1.0 if silent else 0.7)
  process = processes.vp_discrete(betas, interpolation=interpolation)
  t = (np.arange(48) + 0.5) / 48  # no step is a multiple of this
  lam = process.log_snr(t)
  assert (np.diff(lam) < 0).all()
  np.testing.assert_allclose(process.log_snr_inverse(lam), t, rtol=1e-12)
  alpha, sigma = process.alpha(t), process.sigma(t)
  np.testing.assert_allclose(np.log(alpha / sigma), lam, rtol=1e-10, atol=1e-13)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-13)
  h = 1e-6
  for f, rate in zip((process.alpha, process.sigma), process.rates(t)):
    slope = (f(t + h) - f(t - h)) / (2 * h)
    np.testing.assert_allclose(rate, slope, rtol=1e-7, atol=1e-9)
  for f, rate in zip(
    (process.alpha, process.sigma), process.rates(jnp.float32(1.0))
  ):
    for end in (process.t_min, 1.0):
      assert np.isfinite(jax.grad(f)(jnp.float32(end)))
    assert np.isfinite(rate)


def test_steps_are_joined_as_in_other_libraries():
  """k-diffusion's sigma_to_t and diffusers' Euler, written out."""
  square = np.cumprod(1 - SCALED)
  sigmas = np.sqrt((1 - square) / square)
  step = np.asarray([0.0, 17.25, 400.5, 731.9, 999.0])
  by_log = processes.vp_discrete(SCALED)
  found = by_log.noise_level((step + 1) / 1000)
  low = np.floor(step).astype(int)
  high, w = np.ceil(step).astype(int), step - np.floor(step)
  logs = np.log(sigmas)
  mine = np.exp((1 - w) * logs[low] + w * logs[high])
  np.testing.assert_allclose(found, mine, rtol=1e-12)
  np.testing.assert_allclose(1000 * by_log.time_at(mine) - 1, step, atol=1e-9)
  linear = processes.vp_discrete(
    alphas_cumprod=square, interpolation="noise_level"
  )
  theirs = np.interp(step, np.arange(1000), sigmas)
  found = linear.noise_level((step + 1) / 1000)
  np.testing.assert_allclose(found, theirs, rtol=1e-10)
  np.testing.assert_allclose(1000 * linear.time_at(theirs) - 1, step, atol=1e-7)
  assert abs(theirs / mine - 1).max() > 1e-7


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(), "in their place; got neither"),
    (dict(betas=SCALED, alphas_cumprod=SCALED), "got both"),
    (
      dict(alphas_cumprod=[0.9, 0.95]),
      r"\[1\] = 0.95 follows 0.9",
    ),
    (dict(alphas_cumprod=[1.0, 0.9]), r"alphas_cumprod\[0\] = 1 follows 1"),
    (dict(alphas_cumprod=[0.9, np.nan]), "= nan follows 0.9"),
    (dict(alphas_cumprod=0.9), r"two steps or more.*shape \(\)"),
    (dict(betas=[1.0, 0.1, 0.1]), r"betas\[0\] = 1"),
    (dict(betas=SCALED, interpolation="sigma"), "'log_snr', 'noise_level'"),
  ],
)
def test_a_table_of_steps_that_is_none_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    processes.vp_discrete(**options)


@pytest.mark.parametrize(
  ("betas", "message"),
  [
    ([0.1], "two steps or more"),
    ([0.1, 1.0], r"betas\[1\] = 1; a cosine schedule is capped"),
    ([0.0, 0.1], r"inside \(0, 1\)"),
  ],
)
def test_discrete_betas_outside_of_0_1_are_refused(betas, message):
  with pytest.raises(ValueError, match=message):
    processes.vp_discrete(betas)


def test_ve_adds_the_variance_between_its_ends_and_no_drift():
  process = processes.ve(0.01, 50.0)
  added = numerics.gauss_legendre(lambda t: process.diffusion(t) ** 2, 0, 1)
  assert added == pytest.approx(50.0**2 - 0.01**2, rel=1e-12)
  assert not process.drift(np.ones(3), 0.4).any()


def test_coefficients_of_score_sde_are_recovered():
  beta = lambda t: 0.1 + 19.9 * t
  t = np.linspace(0.01, 1, 7)
  m = processes.vp_linear().alpha(t)
  for process, square in [
    (processes.vp_linear(), beta(t)),
    (processes.sub_vp(), beta(t) * (1 - m**4)),
  ]:
    np.testing.assert_allclose(process.diffusion(t) ** 2, square, rtol=1e-12)
    drift = process.drift(np.full_like(t, 3.0), t)
    np.testing.assert_allclose(drift, -1.5 * beta(t), rtol=1e-12)


def test_drift_broadcasts_a_batch_of_times_and_keeps_the_dtype(x64):
  process = processes.vp_linear()
  t = np.array([0.1, 0.7])
  for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
    x = jnp.ones((2, 3, 4), dtype)
    assert process.drift(x, 0.5).dtype == dtype
    assert process.drift(x, jnp.asarray(t)).dtype == dtype
  drift = process.drift(np.ones((2, 3, 4)), t)
  np.testing.assert_allclose(drift[1], process.drift(np.ones((3, 4)), 0.7))


# --- on a device, in float32 -------------------------------------------------


@every_process
def test_float32_is_accurate_near_t_zero(name):
  process = PROCESSES[name]
  t = np.geomspace(1e-5, 0.99, 12).astype(np.float32) * process.t_max
  if name == "vp_covering":  # defined from t_min on only
    t = t[t >= process.t_min]
  t = t.astype(np.float32)
  alpha, sigma, lam = jax.jit(
    lambda t: (process.alpha(t), process.sigma(t), process.log_snr(t))
  )(t)
  assert alpha.dtype == sigma.dtype == lam.dtype == jnp.float32
  # B(t) of the covering process is a difference of nearly equal numbers
  rtol = 1e-5 if name == "vp_covering" else 3e-6
  np.testing.assert_allclose(alpha, process.alpha(t), rtol=rtol)
  np.testing.assert_allclose(sigma, process.sigma(t), rtol=rtol)
  np.testing.assert_allclose(lam, process.log_snr(t), rtol=rtol, atol=rtol)


@every_process
def test_gradients_are_finite_and_equal_the_rates(name):
  process = PROCESSES[name]
  t = jnp.asarray(times(process, 5), jnp.float32)
  slope = lambda f: jax.vmap(jax.grad(f))
  alpha_dot, sigma_dot = process.rates(np.asarray(t))
  np.testing.assert_allclose(
    slope(process.alpha)(t)[:-1], alpha_dot[:-1], rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    slope(process.sigma)(t)[:-1], sigma_dot[:-1], rtol=1e-4, atol=1e-6
  )
  assert np.isfinite(slope(process.alpha)(t)).all()
  assert np.isfinite(slope(process.sigma)(t)).all()
  lam_dot = slope(process.log_snr)(t[:-1])
  inverse = slope(process.log_snr_inverse)(process.log_snr(t[:-1]))
  np.testing.assert_allclose(lam_dot * inverse, 1.0, rtol=1e-4)


@every_process
def test_host_values_are_float64_and_arrays_keep_their_dtype(name, x64):
  process = PROCESSES[name]
  for f in (
    process.alpha,
    process.sigma,
    process.log_snr,
    process.noise_level,
    process.diffusion,
  ):
    assert f(np.float32(0.5)).dtype == np.float64
    assert not isinstance(f(0.5), jax.Array)
    assert f(jnp.float32(0.5)).dtype == jnp.float32
    assert f(jnp.full((2,), 0.5, jnp.float64)).dtype == jnp.float64


@every_process
def test_host_values_do_not_change_inside_a_trace(name):
  process = PROCESSES[name]
  outside = float(process.log_snr(0.3))
  seen = []

  @jax.jit
  def traced(x):
    seen.append(float(process.log_snr(0.3)))
    return x

  traced(jnp.zeros(()))
  assert seen == [outside]


# --- perturb and prior -------------------------------------------------------


@every_process
def test_perturb_is_alpha_x0_plus_sigma_eps(name):
  process = PROCESSES[name]
  x0 = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
  t = np.linspace(process.t_min, process.t_max, 5).astype(np.float32)
  x, eps = process.perturb(KEY, x0, t)
  column = lambda v: v[:, None, None]
  exact = column(process.alpha(t)) * x0 + column(process.sigma(t)) * eps
  np.testing.assert_allclose(x, exact, rtol=1e-5, atol=1e-5)
  one, _ = process.perturb(KEY, x0, float(t[2]))
  np.testing.assert_allclose(one[2], x[2], rtol=1e-6)


def test_perturbed_point_mass_has_the_moments_of_the_marginal():
  process, n = processes.vp_linear(), 40_000
  x, _ = process.perturb(KEY, np.full((n, 1), 1.5, np.float32), 0.4)
  alpha, sigma = float(process.alpha(0.4)), float(process.sigma(0.4))
  assert abs(x.mean() - 1.5 * alpha) < 4 * sigma / n**0.5
  assert abs(x.var() - sigma**2) < 4 * sigma**2 * (2 / n) ** 0.5


def test_noise_of_a_sample_does_not_depend_on_its_batch():
  process = processes.edm()
  x0 = jnp.arange(16, dtype=jnp.float32).reshape(8, 2)
  _, eps = process.perturb(KEY, x0, 2.0)
  _, alone = process.perturb(KEY, x0[7:], 2.0, index=[7])
  np.testing.assert_array_equal(eps[7], alone[0])
  shuffled = np.array([3, 1, 4])
  _, some = process.perturb(KEY, x0[shuffled], 2.0, index=shuffled)
  np.testing.assert_array_equal(some, eps[shuffled])
  start = process.prior(KEY, (8, 2))
  last = process.prior(KEY, (1, 2), index=np.array([7]))
  np.testing.assert_array_equal(start[7], last[0])


def test_perturb_takes_trees_and_any_floating_dtype():
  process = processes.rectified_flow()
  x0 = {
    "a": jnp.ones((4, 3), jnp.bfloat16),
    "b": jnp.ones((4,), jnp.float32),
    "c": np.ones((4, 2)),  # float64 on the host is float32 here
  }
  x, eps = process.perturb(KEY, x0, np.full(4, 0.5, np.float32))
  assert [v.dtype for v in x.values()] == [jnp.bfloat16, jnp.float32] + [
    jnp.float32
  ]
  np.testing.assert_allclose(x["b"], 0.5 + 0.5 * eps["b"], rtol=1e-6)
  assert np.unique(np.concatenate([eps["b"], eps["c"].ravel()])).size == 12


def test_prior_is_noise_of_the_scale_of_x_t():
  process = processes.vp_linear()
  noise = tree.normal(KEY, jax.ShapeDtypeStruct((6, 2), jnp.float32))
  equal = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  equal(process.prior(KEY, (6, 2)), float(process.sigma(1.0)) * noise)
  equal(processes.edm().prior(KEY, (6, 2)), 80.0 * noise)
  scale = math.hypot(float(process.sigma(0.3)), 0.5 * float(process.alpha(0.3)))
  equal(process.prior(KEY, (6, 2), t=0.3, data_std=0.5), scale * noise)
  traced = jax.jit(lambda s: process.prior(KEY, (6, 2), t=0.3, data_std=s))
  equal(traced(0.5), scale * noise)
  half = process.prior(KEY, (6, 2), dtype=jnp.bfloat16)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    half, process.prior(KEY, (6, 2)).astype(jnp.bfloat16)
  )


# --- identity ----------------------------------------------------------------


def _alpha(t):
  return jnp.cos(t)


def _sigma(t):
  return jnp.sin(t)


def test_equal_processes_share_a_compilation():
  traces = []

  @functools.partial(jax.jit, static_argnums=0)
  def sigma(process, t):
    traces.append(process)
    return process.sigma(t)

  pair = lambda nan: processes.from_alpha_sigma(_alpha, _sigma, 0.1, 1.0, nan)
  for process in (
    processes.vp_linear(),
    processes.vp_linear(0.1, 20),
    dataclasses.replace(processes.vp_linear(t_max=0.5), t_max=1.0),
    pair(math.nan),
    pair(float("nan")),
  ):
    sigma(process, jnp.float32(0.5))
  assert len(traces) == 2
  for process in (processes.sub_vp(), processes.vp_linear(t_min=1e-4)):
    sigma(process, jnp.float32(0.5))
  assert len(traces) == 4


# --- refusals ----------------------------------------------------------------


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: processes.edm(80.0, 0.002), "t_min < t_max"),
    (lambda: processes.edm(math.nan, 1.0), "sigma_min .* finite"),
    (lambda: processes.edm(0.0), r"sigma\(0.0\) = 0.0.*to_zero"),
    (lambda: processes.rectified_flow(t_max=1.5), r"alpha\(1.5\) = -0.5"),
    (lambda: processes.ve(50.0, 0.01), "must fall from t_min to t_max"),
    (lambda: processes.vp_linear(-1.0), r"sigma\(t_min\) must be positive"),
  ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_process_refuses_a_schedule_that_is_none(build, message):
  with pytest.raises(ValueError, match=message):
    build()


@pytest.mark.parametrize(
  ("alpha", "sigma", "message"),
  [
    (lambda t: t, lambda t: 1 - t, r"must fall strictly.*alpha\(1 - t\)"),
    (lambda t: 0.5 - t, lambda t: t, r"alpha\(t\) must be .* alpha\(0.5.* = -"),
    (lambda t: 1.0, lambda t: jnp.log(t), r"sigma\(t\) must be at least 0"),
    (lambda t: jnp.nan, lambda t: t, "alpha.* = nan"),
    (lambda t: 1.0, lambda t: jnp.round(4 * t) / 4 + 0.1, "fall strictly"),
  ],
)
def test_a_user_pair_is_refused_where_it_fails(alpha, sigma, message):
  with pytest.raises(ValueError, match=message):
    processes.from_alpha_sigma(alpha, sigma, 0.01, 1.0)


def test_perturb_refuses_integers_and_wrong_indices():
  process = processes.edm()
  with pytest.raises(TypeError, match=r"uint8.*127\.5"):
    process.perturb(KEY, np.zeros((2, 4), np.uint8), 1.0)
  with pytest.raises(ValueError, match=r"shape \(2,\), got \(1,\)"):
    process.perturb(KEY, np.zeros((2, 4), np.float32), 1.0, index=[0])
  with pytest.raises(ValueError, match="no shape of samples"):
    process.prior(KEY, ())

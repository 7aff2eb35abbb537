"""PFGM++: its kernel, its limits, and that everything takes it unchanged."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate
from scipy import stats

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau
from tests.solvers.cases import CASES

KEY = jax.random.key(5)
DRAWS = 20_000


def beta_prime(square, n, d):
  """Returns the p value of square / d under BetaPrime(n / 2, d / 2)."""
  return stats.kstest(
    np.asarray(square, np.float64) / d, stats.betaprime(n / 2, d / 2).cdf
  ).pvalue


# --- the kernel --------------------------------------------------------------


@pytest.mark.parametrize("d", [0.5, 1.0, 16.0, 2048.0])
def test_the_radius_is_beta_prime(d):
  process = processes.pfgmpp(d)
  x0 = jnp.full((DRAWS, 3), 2.0)
  x, eps = jax.jit(process.perturb)(KEY, x0, 5.0)
  assert beta_prime(jnp.sum(((x - x0) / 5.0) ** 2, axis=1), 3, d) > 0.01
  np.testing.assert_allclose(x, x0 + 5.0 * eps, rtol=1e-5, atol=1e-5)


def test_the_prior_is_the_kernel_at_the_origin():
  process = processes.pfgmpp(8.0)
  x = process.prior(KEY, (DRAWS, 4))
  assert beta_prime(jnp.sum((x / 80.0) ** 2, axis=1), 4, 8.0) > 0.01
  np.testing.assert_array_equal(
    process.log_prior(x), process.log_kernel(x, jnp.zeros_like(x), 80.0)
  )


def test_sample_starts_from_the_prior_of_the_process():
  process = processes.pfgmpp(4.0)
  model = oracles.exact(oracles.Empirical(np.zeros((1, 2))), process)
  table = solvers.ddim(process, [80.0, 40.0])  # halves x exactly
  x = sampling.sample(KEY, model, table, (DRAWS, 2), process=process)
  assert beta_prime(jnp.sum((x / 40.0) ** 2, axis=1), 2, 4.0) > 0.01


def test_all_leaves_of_a_sample_are_stretched_alike():
  like = dict(a=jnp.zeros((7, 2)), b=jnp.zeros((7, 3, 1)))
  eps = jax.jit(processes.StudentT(3.0).draw)(KEY, like)
  z = processes.Normal().draw(KEY, like)
  stretch = eps["a"] / z["a"]
  assert np.ptp(np.asarray(stretch[:, 0])) > 0.1
  for ratio in (stretch, (eps["b"] / z["b"])[..., 0]):
    np.testing.assert_allclose(
      ratio, np.broadcast_to(stretch[:, :1], ratio.shape), rtol=1e-5
    )


def test_noise_depends_on_key_and_index_alone():
  draw = jax.jit(processes.StudentT(3.0).draw)
  whole = draw(KEY, jnp.zeros((8, 2)))
  part = draw(KEY, jnp.zeros((3, 2)), jnp.asarray([6, 0, 3]))
  # to rounding: a vectorized exponential ends in another bit than a scalar one
  np.testing.assert_allclose(part, whole[np.asarray([6, 0, 3])], rtol=1e-6)


@pytest.mark.parametrize("d", [1.0, 40.0, 1e6])
def test_the_log_kernel_is_the_paper_formula(d):
  process = processes.pfgmpp(d)
  x, x0 = jnp.asarray([[0.3, -1.0, 2.0]]), jnp.asarray([[0.1, 0.2, 0.3]])
  n, sigma = 3, 0.7
  r2 = mpmath.mpf(sigma) ** 2 * mpmath.mpf(d)
  square = sum(
    (mpmath.mpf(float(a)) - mpmath.mpf(float(b))) ** 2
    for a, b in zip(x[0], x0[0], strict=True)
  )
  with mpmath.workdps(40):
    exact = (
      mpmath.mpf(d) / 2 * mpmath.log(r2)
      + mpmath.loggamma((n + mpmath.mpf(d)) / 2)
      - mpmath.loggamma(mpmath.mpf(d) / 2)
      - mpmath.mpf(n) / 2 * mpmath.log(mpmath.pi)
      - (n + mpmath.mpf(d)) / 2 * mpmath.log(square + r2)
    )
  value = process.log_kernel(x, x0, sigma)[0]
  assert float(value) == pytest.approx(float(exact), rel=2e-6)


def test_the_kernel_integrates_to_one_and_d_1_is_cauchy(x64):
  x0 = jnp.zeros((1, 1))

  def density(process):
    log = jax.jit(lambda x: process.log_kernel(x, x0, 0.5)[0])
    return lambda x: float(jnp.exp(log(jnp.full((1, 1), x))))

  p = density(processes.pfgmpp(4.0))
  edges = [-5e3, -50.0, -5.0, 0.0, 5.0, 50.0, 5e3]
  total = sum(
    integrate.quad(p, a, b, limit=200)[0]
    for a, b in zip(edges[:-1], edges[1:], strict=True)
  )
  assert total == pytest.approx(1.0, abs=1e-6)
  x = np.linspace(-40.0, 40.0, 101)[:, None]
  cauchy = processes.pfgmpp(1.0).log_kernel(x, np.zeros_like(x), 0.5)
  np.testing.assert_allclose(
    np.exp(cauchy), stats.cauchy(scale=0.5).pdf(x[:, 0]), rtol=1e-12
  )


# --- limits ------------------------------------------------------------------


def test_the_denoiser_tends_to_the_gaussian_one_like_1_over_d(x64):
  data = oracles.digits_empirical()
  x0 = jnp.asarray(data.data[::90], jnp.float64)
  x = processes.edm().perturb(KEY, x0, 2.0)[0]
  limit = oracles.exact(data, processes.edm())(x, 2.0).x0
  gaps = []
  for d in (2048.0, 1e5, 1e7):
    model = oracles.exact(data, processes.pfgmpp(d))
    gaps.append(float(abs(model(x, 2.0).x0 - limit).max()))
  assert 1e-3 < gaps[0] < 5e-2
  np.testing.assert_allclose(gaps[1] / gaps[2], 100.0, rtol=0.01)


def test_none_is_edm_bit_for_bit():
  process = processes.pfgmpp(None)
  assert process == processes.edm()
  network = networks.MLP(features=(8,))
  params = network.init(KEY, jnp.zeros((1, 4)), jnp.zeros(1))["params"]
  batch = dict(image=jax.random.normal(KEY, (16, 4)))
  values = []
  for p in (process, processes.edm()):
    model = denoisers.from_linen(network, params, p)
    values.append(jax.jit(losses.denoising(model))(KEY, params, batch)[0])
  assert values[0] == values[1]


def test_the_normal_part_has_the_key_path_of_edm():
  x0 = jnp.zeros((6, 3))
  z = processes.edm().perturb(KEY, x0, 1.0)[1]
  near = processes.pfgmpp(1e6).perturb(KEY, x0, 1.0)[1]
  np.testing.assert_allclose(near, z, rtol=1e-2)


# --- the field ---------------------------------------------------------------


@pytest.mark.parametrize("d", [1.0, 5.0])
def test_the_ode_moves_the_marginals(d, x64):
  """On the line no mass crosses a path: F_sigma(x_sigma) is constant."""
  data = np.asarray([[-1.0], [-1.0], [1.0]])
  process = processes.pfgmpp(d, 0.02, 20.0)
  model = oracles.exact(oracles.Empirical(data), process)
  rank = np.linspace(0.05, 0.95, 19)
  below = lambda x, sigma: stats.t(d).cdf((x - data[:, 0]) / sigma).mean(-1)
  lower, upper = np.full(19, -1e4), np.full(19, 1e4)
  for _ in range(80):  # quantiles of the noisy mixture
    x = 0.5 * (lower + upper)
    less = below(x[:, None], 20.0) < rank
    lower, upper = np.where(less, x, lower), np.where(less, upper, x)
  table = solvers.rk4(process, grids.log_snr(process, 400))
  end = sampling.sample(KEY, model, table, x[:, None])
  # a path on the edge of two points is not resolved by any step
  inside = below(np.asarray(end), 0.02)
  assert np.median(abs(inside - rank)) < 1e-5
  assert abs(inside - rank).max() < 1e-2


def test_the_oracle_is_the_posterior_mean_of_the_kernel(x64):
  process = processes.pfgmpp(6.0)
  data = jax.random.normal(KEY, (12, 3), jnp.float64)
  model = oracles.exact(oracles.Empirical(np.asarray(data)), process)
  x, sigma = data[:4] + 0.8, 0.6
  log = jnp.stack(
    [process.log_kernel(x, jnp.broadcast_to(y, x.shape), sigma) for y in data]
  )
  weights = jax.nn.softmax(log, axis=0)
  np.testing.assert_allclose(model(x, sigma).x0, weights.T @ data, rtol=1e-10)


def test_the_oracle_error_is_orthogonal_to_what_it_knows():
  """E (x0 - x0(x)) f(x) = 0 for draws of the process, any f."""
  process = processes.pfgmpp(3.0)
  points = np.asarray([[0.0, 0.0], [1.0, 0.5], [-0.5, 1.0]], np.float32)
  model = oracles.exact(oracles.Empirical(points), process)
  pick = jax.random.randint(KEY, (DRAWS,), 0, 3)
  x0 = jnp.asarray(points)[pick]
  x = process.perturb(jax.random.fold_in(KEY, 1), x0, 0.7)[0]
  error = np.asarray(x0 - model(x, 0.7).x0)
  for f in (1.0, np.tanh(np.asarray(x)), np.asarray(model(x, 0.7).x0)):
    values = (error * f).sum(1)
    assert abs(values.mean()) < 4.0 * values.std() / math.sqrt(DRAWS)


# --- everything takes it -----------------------------------------------------


@pytest.mark.parametrize("name", list(CASES))
def test_every_table_is_edms_and_noise_is_refused(name):
  case = CASES[name]
  process, edm = processes.pfgmpp(64.0), processes.edm()
  grid = grids.karras(edm, 6, to_zero=True)
  if case.order:
    ours, theirs = case.build(process, grid), case.build(edm, grid)
    for a, b in zip(ours, theirs, strict=True):
      np.testing.assert_array_equal(a, b)
  else:
    with pytest.raises(ValueError, match="normal (noise|step)"):
      case.build(process, grid)


@pytest.mark.slow
def test_one_network_is_trained_for_several_d_in_one_program():
  network = networks.MLP(features=(8,))
  params = network.init(KEY, jnp.zeros((1, 4)), jnp.zeros(1))["params"]
  batch = dict(image=jax.random.normal(KEY, (16, 4)))

  @jax.jit
  def loss(d):
    model = denoisers.from_linen(network, params, processes.edm())
    model = dataclasses.replace(model, process=processes.pfgmpp(d))
    return losses.denoising(model)(KEY, params, batch)[0]

  dims = (2.0, 16.0, 2048.0)
  together = jax.jit(jax.vmap(loss))(jnp.asarray(dims))
  np.testing.assert_allclose(together, [loss(d) for d in dims], rtol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4", "dpmpp_2m"])
def test_injected_noise_moves_the_start_of_every_step(name):
  """A point mass at 0: every stage is linear, a step scales x by t' / t."""
  process = processes.pfgmpp(None, 0.5, 8.0)
  grid = grids.log_snr(process, 4)
  table = CASES[name].build(process, grid)
  single = oracles.gaussian([0.0], 0.0)
  quiet = solvers.inject_noise(table, process, 0.0)
  law = lambda t: oracles.propagate(t, process, single, 0.0, 64.0)[1][0]
  assert law(quiet) == pytest.approx(law(table), rel=1e-12)
  noisy = solvers.inject_noise(table, process, 0.3)
  variance = 64.0
  for start, end in zip(grid[:-1], grid[1:], strict=True):
    variance = (variance + (0.3 * start) ** 2) * (end / start) ** 2
  assert law(noisy) == pytest.approx(variance, rel=1e-9)


# --- refusals ----------------------------------------------------------------


@pytest.mark.parametrize("d", [0.0, -3.0, math.nan, math.inf])
def test_d_must_be_positive(d):
  with pytest.raises(
    ValueError, match="(positive number|finite number.*) or None"
  ):
    processes.pfgmpp(d)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda p: p.diffusion(1.0), "no forward SDE"),
    (lambda p: p.drift(jnp.ones((1, 1)), 1.0), "no forward SDE"),
    (lambda p: solvers.heun(p, [640.0, 1.0]), "is a radius r, pass 80"),
    (lambda p: oracles.exact(oracles.g2(), p), "oracles.Empirical"),
    (
      lambda p: solvers.inject_noise(solvers.heun(p, [2.0, 1.0]), p, -1.0),
      "at least 0",
    ),
    (
      lambda p: solvers.inject_noise(
        tableau.row(2.0, "x0", y=(0.5, 0.0, 0.5), a=(0.4, 0.0, 0.6)), p, 0.1
      ),
      "no point begins a step",
    ),
    (
      lambda p: solvers.inject_noise(
        solvers.heun_churn(processes.edm(), [3.0, 2.0, 1.0], churn=1.0),
        p,
        0.1,
      ),
      "churn",
    ),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call(processes.pfgmpp(64.0))


def test_radius_is_the_name_of_the_paper_for_the_time():
  assert processes.pfgmpp(64.0).noise.radius(80.0) == 640.0

"""The Fokker-Planck residual, gauge freedom, and the dimension of data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import jacobians
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.diagnostics import fokker_planck
from jaxdiff.losses.fokker_planck import gradient

EDM = processes.edm(0.05, 20.0)
VP = processes.vp_linear()
OU = processes.from_alpha_sigma(
  lambda t: jnp.exp(-t),
  lambda t: jnp.sqrt(-0.5 * jnp.expm1(-2.0 * t)),
  0.01,
  5.0,
  0.0,
)
PROCESSES = {
  "edm": EDM,
  "vp": VP,
  "ou": OU,
  "flow": processes.rectified_flow(0.01, 0.95),
}


def mixture(d=2):
  rng = np.random.default_rng(0)
  return oracles.mixture(
    rng.standard_normal((3, d)), rng.uniform(0.05, 0.5, (3, d)), [3, 2, 1]
  )


def potential_of(law, process):
  return lambda x, t: law.log_prob(x, process.alpha(t), process.sigma(t))


def places(process, d=2, n=64, dtype=jnp.float64):
  keys = jax.random.split(jax.random.key(1), 3)
  t = jax.random.uniform(
    keys[0], (n,), dtype, 0.05 * process.t_max, 0.9 * process.t_max
  )
  x0 = mixture(d).sample(keys[1], n)[0].astype(dtype)
  return process.perturb(keys[2], x0, t)[0], t


@functools.partial(jax.jit, static_argnums=(0, 1))
def residual_of(u, process, x, t, probes=None):
  return losses.potential_residual(u, process, x, t, probes=probes)


# --- Jacobians ---------------------------------------------------------------


def test_jacobian_and_divergence_of_a_linear_field(x64):
  a = np.random.default_rng(0).standard_normal((6, 6))
  x = np.random.default_rng(1).standard_normal((5, 2, 3))
  field = lambda x: (x.reshape(5, 6) @ a.T).reshape(x.shape) ** 2 / 2
  y = x.reshape(5, 6) @ a.T
  expected = y[:, :, None] * a
  np.testing.assert_allclose(jacobians.jacobian(field, x), expected, rtol=1e-12)
  np.testing.assert_allclose(
    jacobians.divergence(field, x),
    np.trace(expected, axis1=1, axis2=2),
    rtol=1e-12,
  )


def test_hutchinson_is_unbiased_with_the_stated_variance(x64):
  a = np.random.default_rng(0).standard_normal((4, 4))
  x = jnp.zeros((1, 4))
  count = 4096
  probes = jacobians.rademacher(jax.random.key(0), x, count)
  one = jax.vmap(lambda v: jacobians.divergence(lambda x: x @ a.T, x, v[None]))
  draws = np.asarray(one(probes))[:, 0]
  variance = np.sum(np.triu(a + a.T, 1) ** 2)
  assert abs(draws.mean() - np.trace(a)) < 4 * np.sqrt(variance / count)
  assert draws.var() == pytest.approx(variance, rel=0.15)


def test_probes_of_a_sample_do_not_depend_on_the_batch():
  whole = jacobians.rademacher(jax.random.key(0), jnp.zeros((6, 3)), 2)
  part = jacobians.rademacher(
    jax.random.key(0), jnp.zeros((2, 3)), 2, index=np.asarray([4, 5])
  )
  np.testing.assert_array_equal(whole[:, 4:], part)


# --- Fokker-Planck -----------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_log_density_of_a_mixture_obeys_the_equation(x64, name):
  process, law = PROCESSES[name], mixture()
  x, t = places(process)
  u = potential_of(law, process)
  residual = residual_of(u, process, x, t)
  assert np.abs(residual).max() < 1e-9


def test_the_equation_holds_in_float32_too():
  x, t = places(OU, dtype=jnp.float32)
  u = potential_of(mixture(), OU)
  scale = np.abs(jax.jvp(lambda t: u(x, t), (t,), (jnp.ones_like(t),))[1])
  residual = residual_of(u, OU, x, t)
  assert np.abs(residual).max() < 1e-3 * max(1.0, scale.max())


def test_a_shift_of_the_potential_changes_the_residual_by_its_rate(x64):
  u = potential_of(mixture(), OU)
  shifted = lambda x, t: u(x, t) + jnp.sin(3.0 * t)
  x, t = places(OU)
  a, b = (residual_of(f, OU, x, t) for f in (u, shifted))
  np.testing.assert_allclose(b - a, 3.0 * np.cos(3.0 * t), atol=1e-10)


@pytest.mark.parametrize("name", ["ou", "vp"])
def test_the_residual_of_the_score_is_the_gradient_of_the_potentials(x64, name):
  process = PROCESSES[name]
  u = potential_of(mixture(), process)
  wrong = lambda x, t: u(x, t) + jnp.sin(x[:, 0] * x[:, 1]) * jnp.exp(-t)
  x, t = places(process)
  score = lambda x, t: gradient(wrong, x, t)
  by_score = jax.jit(lambda x: losses.score_residual(score, process, x, t))(x)
  by_potential = jax.jit(
    jax.grad(lambda x: residual_of(wrong, process, x, t).sum())
  )(x)
  assert np.abs(by_score).max() > 0.1
  np.testing.assert_allclose(by_score, by_potential, atol=1e-8)


def test_the_residual_of_an_exact_model_vanishes_for_any_gauge_of_time(x64):
  x, t = places(VP)
  model = oracles.exact(mixture(), VP)
  residual = jax.jit(lambda x: fokker_planck.residual(model, VP, x, t))(x)
  assert np.abs(residual).max() < 1e-8


def test_a_hutchinson_residual_is_unbiased(x64):
  u = potential_of(mixture(4), OU)
  wrong = lambda x, t: u(x, t) + jnp.sin(x[:, 0] * x[:, 1])
  x, t = places(OU, d=4, n=4)
  probes = jacobians.rademacher(jax.random.key(3), x, 2048)
  exact = residual_of(wrong, OU, x, t)
  one = lambda v: residual_of(wrong, OU, x, t, v[None])
  draws = np.asarray(jax.lax.map(one, probes))
  error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
  assert np.all(np.abs(draws.mean(axis=0) - exact) < 4 * error + 1e-12)
  assert np.all(error > 0)


@pytest.mark.slow
def test_residual_and_gap_grow_with_a_perturbation_of_the_potential():
  law = mixture()
  x0 = law.sample(jax.random.key(0), 800)[0]
  start = OU.perturb(jax.random.key(1), x0, jnp.float32(OU.t_max))[0]
  grid = grids.log_snr(OU, 40)
  ode, sde = solvers.dpmpp_3m(OU, grid), solvers.ddim(OU, grid, eta=1.0)

  def potential(params, x, t):
    u = law.log_prob(x, OU.alpha(t), OU.sigma(t))
    return u + params * jnp.sin(x @ jnp.asarray([3.0, 2.0])) * jnp.exp(-t)

  profile_of = jax.jit(
    lambda model, x0: fokker_planck.profile(
      jax.random.key(2), model, OU, x0, [0.1, 0.5, 1.0]
    )
  )
  sizes, gaps = [], []
  for size in (0.0, 0.2, 0.4):
    model = denoisers.from_potential(potential, jnp.float32(size), OU)
    profile = profile_of(model, x0[:100])
    sizes.append(float(jnp.mean(profile.residual)))
    gap = fokker_planck.ode_sde_gap(
      jax.random.key(3), model, ode, sde, start, x0
    )
    gaps.append(gap.ode_sde)
  assert sizes[0] < 1e-3 < sizes[1] < sizes[2]
  assert gaps[0] < gaps[1] < gaps[2]
  # the exact score has no gap: what remains is that of two finite samples
  assert gaps[0] < 1.25 * gap.floor


def test_the_one_sided_lipschitz_constant_of_a_gaussian_is_known(x64):
  law = oracles.gaussian([0.0, 0.0], [0.5, 2.0])
  x0 = law.sample(jax.random.key(0), 8)[0].astype(jnp.float64)
  model = oracles.exact(law, EDM)
  profile = jax.jit(
    lambda x0: fokker_planck.profile(
      jax.random.key(1), model, EDM, x0, [1.0, 2.0]
    )
  )(x0)
  expected = -1.0 / (2.0 + np.square([1.0, 2.0]))
  np.testing.assert_allclose(profile.lipschitz, expected, rtol=1e-9)
  assert np.abs(profile.residual).max() < 1e-9


def test_the_loss_of_the_exact_potential_has_no_residual(x64):
  law = mixture()
  potential = lambda params, x, t: (
    params + law.log_prob(x, OU.alpha(t), OU.sigma(t))
  )
  loss = losses.fokker_planck(
    potential, OU, box=4.0, collocation=64, boundary=1.0
  )
  x0 = law.sample(jax.random.key(0), 64)[0].astype(jnp.float64)
  total, metrics_ = jax.jit(loss)(
    jax.random.key(1), jnp.zeros(()), {"image": x0}
  )
  assert metrics_["residual"] < 1e-16
  assert metrics_["inside"] > 0.95
  assert 0 < metrics_["boundary"] < 1e-3
  np.testing.assert_allclose(
    total, metrics_["dsm"] + metrics_["boundary"] + 0.01 * metrics_["residual"]
  )
  # what score matching cannot go below: the conditional variance of the noise
  assert 0.1 < metrics_["dsm"] < 2.0


@pytest.mark.slow
def test_training_with_the_residual_lowers_it():
  network = networks.Potential((32, 32))
  apply = denoisers.LinenApply(network)
  x0 = mixture().sample(jax.random.key(0), 256)[0]
  params = jax.jit(network.init)(jax.random.key(1), x0, jnp.zeros(256))
  params = params["params"]
  loss = losses.fokker_planck(apply, OU, box=4.0, weight=1.0, collocation=128)

  @jax.jit
  def train(params):
    def step(params, i):
      grad, metrics_ = jax.grad(
        lambda p: loss(jax.random.key(i), p, {"image": x0}), has_aux=True
      )(params)
      params = jax.tree.map(lambda p, g: p - 3e-3 * g, params, grad)
      return params, metrics_["loss"]

    return jax.lax.scan(step, params, jnp.arange(60))

  _, values = train(params)
  assert values[-10:].mean() < 0.8 * values[:10].mean()


@functools.cache
def potential():
  """Returns a network, an input and its parameters."""
  network = networks.Potential((16, 16), embedding=8)
  x = jax.random.normal(jax.random.key(0), (4, 3))
  params = jax.jit(network.init)(jax.random.key(1), x, jnp.zeros(4))["params"]
  return network, x, params


@pytest.mark.parametrize("prediction", ["score", "edm", "eps"])
def test_a_potential_makes_a_conservative_model_that_samples(prediction):
  network, x, params = potential()
  time = "t" if prediction == "score" else "log_snr"
  model = denoisers.from_potential(
    denoisers.LinenApply(network),
    params,
    EDM,
    prediction=prediction,
    time=time,
  )
  denoised = lambda x: model(x, jnp.float32(1.0)).x0
  matrix = jax.jit(lambda x: jacobians.jacobian(denoised, x))(x)
  np.testing.assert_allclose(matrix, np.swapaxes(matrix, 1, 2), atol=1e-6)
  table = solvers.dpmpp_2m(EDM, grids.karras(EDM, 4))
  out = sampling.sample(jax.random.key(2), model, table, 20.0 * x)
  assert np.isfinite(out).all()


def test_refusals_of_the_fokker_planck_room():
  x, t = places(OU, dtype=jnp.float32)
  with pytest.raises(TypeError, match="score_residual"):
    losses.potential_residual(lambda x, t: x, OU, x, t)
  relu = lambda x, t: jnp.sum(jax.nn.relu(x), axis=1) + t
  with pytest.raises(ValueError, match="smooth activation"):
    losses.potential_residual(relu, OU, x, t)
  with pytest.raises(ValueError, match="singular"):
    losses.potential_residual(
      potential_of(mixture(), OU), OU, x, jnp.zeros(len(x))
    )
  with pytest.raises(ValueError, match="box"):
    losses.fokker_planck(lambda p, x, t: t, OU, box=0.0)
  with pytest.raises(ValueError, match="forward"):
    losses.fokker_planck(lambda p, x, t: t, OU, box=1.0, forward=2.0)
  with pytest.warns(UserWarning, match="lies within box"):
    fokker_planck.box_coverage(jax.random.key(0), OU, 10.0 * x, 1.0)
  assert fokker_planck.box_coverage(jax.random.key(0), OU, x, 50.0) == 1.0
  table = solvers.ddim(OU, grids.log_snr(OU, 4))
  model = oracles.exact(mixture(), OU)
  with pytest.raises(ValueError, match="without noise"):
    fokker_planck.ode_sde_gap(jax.random.key(0), model, table, table, x, x)
  vector = denoisers.from_potential(lambda p, x, t: p * x, 1.0, OU)
  with pytest.raises(TypeError, match="one number for each sample"):
    vector(x, t)


def test_exact_wasserstein_of_shifted_and_permuted_sets():
  x = np.random.default_rng(0).standard_normal((50, 2))
  order = np.random.default_rng(1).permutation(50)
  assert metrics.wasserstein_2(x, x[order]) == 0.0
  shift = np.asarray([3.0, -4.0])
  assert metrics.wasserstein_2(x, x[order] + shift) == pytest.approx(5.0)
  with pytest.raises(ValueError, match="sliced"):
    metrics.wasserstein_2(x, x[:10])
  with pytest.raises(ValueError, match="4000"):
    metrics.wasserstein_2(np.zeros((4001, 1)), np.zeros((4001, 1)))


@pytest.mark.parametrize("steps", [50, 200])
def test_euler_maruyama_follows_the_recursion_of_the_variance(steps):
  """One Gaussian under OU, by the scalar recursion written out."""
  c = 0.3
  grid = grids.uniform(OU, steps)
  table = solvers.euler_maruyama(OU, grid)
  v = np.exp(-10.0) * c + 0.5 * (1 - np.exp(-10.0))
  for t, h in zip(grid[:-1], -np.diff(grid)):
    marginal = np.exp(-2 * t) * c + 0.5 * (1 - np.exp(-2 * t))
    v = (1 + h * (1 - 1 / marginal)) ** 2 * v + h  # x + h (x + s) + sqrt(h) z
  law = oracles.gaussian([0.0], c)
  _, variance = oracles.propagate(table, OU, law)
  assert variance[0] == pytest.approx(v, rel=1e-12)

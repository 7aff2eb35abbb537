"""The law of the noise is the process's: drawn, scored, or refused with why."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from scipy import stats

from jaxdiff import denoisers
from jaxdiff import diagnostics
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import learning
from jaxdiff import likelihood
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.diagnostics import fields
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import trigflow
from jaxdiff.distillation.rcm import random_simulation
from jaxdiff.distillation.reflow import ends
from jaxdiff.distillation.score_mismatching import score_loss
from jaxdiff.distillation.sim import objective
from jaxdiff.distillation.sim import score_distance
from jaxdiff.predictions import Prediction
from jaxdiff.processes import schedules

KEY = jax.random.key(3)
EDM = processes.edm()


# --- densities ---------------------------------------------------------------


@pytest.mark.parametrize("d", [0.3, 16.0, 1999.0, 2001.0, 1e8, 1e16])
def test_the_log_density_at_the_origin_is_right_to_the_last_digits(d, x64):
  n = 3072
  with mpmath.workdps(60):
    a, b = mpmath.mpf(d) / 2, mpmath.mpf(n) / 2
    exact = mpmath.loggamma(a + b) - mpmath.loggamma(a)
    exact = float(exact - b * mpmath.log(2 * mpmath.pi * a))
  own = processes.StudentT(d).log_density(jnp.zeros((1, n)))
  traced = jax.jit(
    lambda d: processes.StudentT(d).log_density(jnp.zeros((1, n)))
  )(d)
  assert float(own[0]) == pytest.approx(exact, rel=1e-11)
  assert float(traced[0]) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("d", [1e12, 1e30, 1e300])
def test_the_prior_tends_to_the_normal_one_without_loss(d):
  process = processes.pfgmpp(d)
  x = EDM.prior(KEY, (4, 3072))
  chex.assert_trees_all_close(process.prior(KEY, x.shape), x, rtol=1e-5)
  for data_std in (0.0, 60.0):
    near, limit = (p.log_prior(x, None, data_std) for p in (process, EDM))
    np.testing.assert_allclose(near, limit, atol=0.01)
  tight = jax.grad(lambda x: process.log_prior(x).sum())(x)
  np.testing.assert_allclose(tight, -x / 6400.0, rtol=1e-4)


def test_both_names_of_the_prior_are_its_density():
  process = processes.pfgmpp(5.0)
  x = process.prior(KEY, (4, 3), data_std=40.0)
  scale = math.hypot(80.0, 40.0)
  exact = stats.multivariate_t(np.zeros(3), scale**2 * np.eye(3), df=5.0)
  for f in (process.log_prior, process.prior_log_prob):
    np.testing.assert_allclose(f(x, None, 40.0), exact.logpdf(x), rtol=1e-5)
  at = diagnostics.diffusion_time.standard_prior(process, 40.0)
  np.testing.assert_allclose(at(x, 80.0), exact.logpdf(x), rtol=1e-5)


@pytest.mark.parametrize("d", [1.0, 3.0, None])
def test_the_likelihood_of_a_point_mass_is_its_kernel(d):
  """The model is exact, so that log p at t_min is the density of the kernel."""
  process = processes.pfgmpp(d, 0.5, 80.0)
  centre = jnp.asarray([[0.3, -0.2, 0.1, 0.0]])

  def model(x, t):
    x0 = jnp.broadcast_to(centre, x.shape)
    return Prediction(x0, (x - x0) / jnp.reshape(t, (-1, 1)))

  x = centre + jnp.asarray([[0.2, 0.1, -0.4, 0.3], [2.0, 0.0, 0.0, 0.0]])
  found = likelihood.log_likelihood(
    KEY, model, process, x, trace="exact", data_std=0.0
  )
  exact = process.log_kernel(x, jnp.broadcast_to(centre, x.shape), 0.5)
  np.testing.assert_allclose(found.log_prob, exact, atol=0.03)


# --- draws -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ones:
  """A law whose draws are known: every value is 1."""

  def outside(self, t):
    return ""

  def draw(self, key, like, index=None):
    del key, index
    return jax.tree.map(lambda v: jnp.ones(v.shape, v.dtype), like)


ONES = processes.GaussianProcess(schedules.NoiseLevel(), 0.01, 8.0, Ones())
BATCH = {"image": jnp.zeros((3, 2)), "index": jnp.arange(3)}


def seen(x, t, *label):
  """A model that answers what it was shown."""
  del t, label
  return Prediction(x, jnp.zeros_like(x))


def last_call(x, t, *label):
  """A model whose every x0 is 0, so that the next call sees noise alone."""
  del label
  first = jnp.reshape(t, (-1, 1)) == 8.0
  return Prediction(jnp.where(first, 0.0, x), jnp.zeros_like(x))


def walked(p):
  """Returns where a table of one step that halves x begins and ends."""
  table = solvers.ddim(p, [8.0, 4.0])
  at = lambda t: jnp.reshape(t, (-1, 1))  # one for all, or one each
  nothing = lambda x, t: Prediction(jnp.zeros_like(x), x / at(t))
  return nothing, table


def reflowed(p):
  nothing, table = walked(p)
  return ends(KEY, nothing, p, table, BATCH)[0]


def taught(p):
  nothing, table = walked(p)
  return learning.teach(KEY, nothing, p, (3, 2), table).start


def sampled(p):
  nothing, table = walked(p)
  return 2.0 * sampling.sample(KEY, nothing, table, (3, 2), process=p)


def solved(p):
  nothing, table = walked(p)
  return 2.0 * samplers.picard(KEY, nothing, table, (3, 2), process=p)[0]


def simulated(p):
  times = lambda key, n: jnp.full(n, 8.0)
  return random_simulation(p, times, 1)(KEY, seen, BATCH)


DRAWS = {
  "one_step": lambda p: generators.one_step(p)(KEY, seen, BATCH),
  "noised_data": lambda p: generators.noised_data(
    p, lambda key, n: jnp.full(n, 8.0)
  )(KEY, seen, BATCH),
  "backward_simulation": lambda p: (
    2.0
    * generators.backward_simulation(p, np.asarray([8.0, 4.0, 0.0]), last=True)(
      KEY, last_call, BATCH
    )
  ),
  "random_simulation": simulated,
  "reflow": reflowed,
  "teach": taught,
  "sample": sampled,
  "picard": solved,
  "prior": lambda p: p.prior(KEY, (3, 2)),
  "perturb": lambda p: p.perturb(KEY, BATCH["image"], 8.0)[0],
}


@pytest.mark.parametrize("name", DRAWS)
def test_noise_is_drawn_by_the_process(name):
  np.testing.assert_allclose(DRAWS[name](ONES), np.full((3, 2), 8.0))


def test_the_wrong_noise_of_score_mismatching_is_the_process_s():
  """With one draw for all noises the right and the wrong answer agree."""
  model = denoisers.from_function(
    lambda params, x, c: 0.5 * params * x, jnp.ones(()), ONES, prediction="x0"
  )
  value = lambda kind: score_loss(
    KEY, model, BATCH["image"], np.asarray([2.0]), BATCH, mismatch=kind
  )[0]
  assert float(value("independent")) == float(value("none"))
  assert float(value("independent")) != float(value("opposite"))


def test_a_students_noise_is_the_one_that_sampling_starts_from():
  process = processes.pfgmpp(1.5)
  image = jnp.zeros((6, 2), jnp.float32)
  batch = {"image": image, "index": jnp.arange(6) + 4}
  x = generators.one_step(process)(KEY, seen, batch)
  expected = process.prior(KEY, (6, 2), index=batch["index"])
  np.testing.assert_allclose(x, expected, rtol=1e-6)


# --- what holds under any law ------------------------------------------------


@pytest.mark.parametrize("d", [1.0, 5.0])
@pytest.mark.parametrize("distance", ["squared", "huber"])
def test_the_implicit_gradient_is_that_of_the_divergence(distance, d, x64):
  """SIM and SiD under Student's t: points on a line against other points."""
  process = processes.pfgmpp(d, 0.1, 10.0)
  sigma = 0.8
  eps = stats.t(d).ppf((np.arange(20_000) + 0.5) / 20_000)[:, None]
  exact = lambda points: oracles.exact(oracles.Empirical(points), process)
  teacher = exact(jnp.asarray([[-1.0], [0.2], [1.5]]))
  c = 0.3
  slope_of, _ = score_distance(distance, c)
  value = objective(distance, c)
  now = jnp.asarray([[-0.4], [0.9]])

  def implicit(points):
    x0 = jnp.repeat(points, len(eps), axis=0)
    x_t = x0 + sigma * jnp.tile(eps, (2, 1))
    lam = jnp.full(len(x_t), -np.log(sigma))
    fake = exact(now)(x_t, sigma).x0
    return jnp.mean(value(x0, teacher(x_t, sigma).x0, fake, lam))

  def direct(points):
    x_t = jnp.repeat(now, len(eps), axis=0) + sigma * jnp.tile(eps, (2, 1))
    delta = teacher(x_t, sigma).x0 - exact(points)(x_t, sigma).x0
    return jnp.mean(slope_of(delta))

  one, other = (jax.jit(jax.grad(f))(now) for f in (implicit, direct))
  assert float(abs(other).max()) > 1e-3
  np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-5)


def test_the_ode_of_a_huge_dimension_is_edms():
  data = oracles.Empirical(np.asarray([[-1.0, 0.5], [1.0, 0.0]], np.float32))
  found = []
  for p in (EDM, processes.pfgmpp(1e30)):
    table = solvers.ddim(p, grids.karras(p, 4))
    x = EDM.prior(KEY, (8, 2))
    found.append(sampling.sample(KEY, oracles.exact(data, p), table, x))
  np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


# --- refusals ----------------------------------------------------------------


def student(p, **options):
  apply = networks.MLP(features=(4,))
  params = apply.init(KEY, jnp.zeros((1, 2)), jnp.zeros(1))["params"]
  return denoisers.from_linen(apply, params, p, **options)


def distil(name, **options):
  build, sgd = getattr(distillation, name), optax.sgd(0.1)
  return lambda p: build(student(p), student(p), optimizer=sgd, **options)


def stats_of_data():
  return oracles.fit(np.random.default_rng(0).normal(size=(8, 2)))


def potential(params, x, t):
  del params
  return -jnp.sum(x**2, axis=1) / (1.0 + t**2)


POINT = jnp.ones((2, 2))
GRID = np.asarray([4.0, 2.0, 1.0])
# name: a call that is right under normal noise; the last value, whether it is
# cheap enough to show that it is
DOORS = {
  "ddpm": (lambda p: solvers.ddpm(p, GRID), True),
  "heun_churn": (lambda p: solvers.heun_churn(p, GRID, churn=1.0), True),
  "gamma_sampling": (lambda p: solvers.gamma_sampling(p, GRID), True),
  "restart": (
    lambda p: solvers.restart(p, GRID, intervals=[(1.0, 2.0, 2, 1)]),
    True,
  ),
  "langevin": (lambda p: solvers.langevin(p, [1.0], [0.1]), True),
  "with_langevin": (
    lambda p: solvers.with_langevin(p, solvers.ddim(p, GRID), np.ones((2, 1))),
    True,
  ),
  "analytical_first_step": (
    lambda p: solvers.analytical_first_step(solvers.ddim(p, GRID), p, 1.0),
    True,
  ),
  "predictor_corrector": (
    lambda p: samplers.predictor_corrector(
      KEY, seen, solvers.ddim(p, GRID), POINT, process=p
    ),
    False,
  ),
  "addim": (
    lambda p: samplers.addim(KEY, seen, GRID, POINT, process=p),
    False,
  ),
  "ModelScore": (lambda p: samplers.ModelScore(seen, 1.0, p), True),
  "dmcmc": (
    lambda p: samplers.dmcmc(
      KEY,
      seen,
      samplers.finishers(lambda t: solvers.ddim(p, [t, 0.0]), p, GRID[::-1]),
      samplers.Chain(POINT, jnp.zeros(2, jnp.int32)),
      process=p,
      posterior=seen,
      levels=GRID[::-1],
    ),
    False,
  ),
  "teleport": (
    lambda p: samplers.teleport(stats_of_data(), POINT, p, 4.0, 2.0),
    True,
  ),
  "gaussian_prior": (
    lambda p: samplers.gaussian_prior(KEY, stats_of_data(), (2, 2), p),
    True,
  ),
  "teleport_sample": (
    lambda p: samplers.teleport_sample(
      KEY, seen, solvers.ddim(p, GRID), POINT, process=p, stats=stats_of_data()
    ),
    False,
  ),
  "choose_skip": (
    lambda p: samplers.choose_skip(KEY, seen, stats_of_data(), p, POINT, GRID),
    False,
  ),
  "classifier_guided": (
    lambda p: guidance.classifier_guided(seen, lambda x, t: x[:, 0], p),
    True,
  ),
  "losses.fokker_planck": (
    lambda p: losses.fokker_planck(potential, p, box=2.0),
    True,
  ),
  "potential_residual": (
    lambda p: losses.potential_residual(
      lambda x, t: potential(None, x, t), p, POINT, 1.0
    ),
    False,
  ),
  "score_residual": (
    lambda p: losses.score_residual(lambda x, t: -x, p, POINT, 1.0),
    False,
  ),
  "score_of": (lambda p: fields.score_of(seen, p), True),
  "elbo_curve": (
    lambda p: diagnostics.diffusion_time.elbo_curve(KEY, seen, p, POINT, [1.0]),
    False,
  ),
  "score_gap": (
    lambda p: diagnostics.diffusion_time.score_gap(
      KEY, seen, seen, p, POINT, [1.0]
    ),
    False,
  ),
  "audit": (
    lambda p: diagnostics.wasserstein_flow.audit(KEY, seen, p, POINT, [1.0]),
    False,
  ),
  "weighting": (
    lambda p: diagnostics.wasserstein_flow.weighting(p)(jnp.zeros(2)),
    True,
  ),
  "rotate": (
    lambda p: diagnostics.gauge.rotate(seen, np.zeros((2, 2)), p),
    True,
  ),
  "propagate": (
    lambda p: oracles.propagate(
      solvers.ddim(p, GRID), p, oracles.gaussian([0.0], 1.0)
    ),
    True,
  ),
  "drift": (lambda p: p.drift(POINT, 1.0), True),
  "diffusion": (lambda p: p.diffusion(1.0), True),
  "score": (lambda p: student(p, prediction="score"), True),
  "potential": (
    lambda p: denoisers.from_potential(potential, {}, p),
    True,
  ),
  "dmd": (distil("dmd"), True),
  "dmd2": (distil("dmd2", shape=(2,), layer="Dense_0"), True),
  "presto": (distil("presto", shape=(2,), layer="Dense_0"), True),
  "phased_dmd": (
    distil("phased_dmd", grid=np.asarray([80.0, 2.0, 0.5])),
    True,
  ),
  "rcm": (distil("rcm"), True),
  "instarevive": (distil("instarevive", t=2.0), True),
  "ddo": (distil("ddo"), True),
}


@pytest.mark.parametrize("name", DOORS)
def test_what_needs_normal_noise_refuses_another(name):
  """With the process, the reason and the mend; and takes the normal one."""
  call, cheap = DOORS[name]
  with pytest.raises(ValueError, match="normal noise|marginals") as refusal:
    call(processes.pfgmpp(8.0))
  said = str(refusal.value)
  if name != "choose_skip":  # what it asks for first is the exact model
    assert "pfgmpp(8.0), t in [0.002, 80] is StudentT(aug_dim=8.0)" in said
    assert "Mend: " in said
  if cheap:
    call(EDM)


def test_sign_matches_distributions_under_normal_noise_alone():
  noise = processes.StudentT(8.0)
  own = dict(prediction="x0", time="none")
  options = dict(optimizer=optax.sgd(0.1), sigma_in=2.0)
  p = processes.pfgmpp(8.0)
  assert p.noise == noise
  make = lambda p, **weights: distillation.sign(
    student(p), student(p, **own), **options, **weights
  )
  with pytest.raises(ValueError, match='the term "dmd" of sign'):
    make(p, w_dmd=1.0)
  make(p, w_dmd=0.0, w_flow=1.0)
  make(EDM, w_dmd=1.0)


def test_no_corrector_is_an_ode_under_any_noise():
  p = processes.pfgmpp(8.0)
  model = oracles.exact(oracles.Empirical(np.zeros((1, 2))), p)
  table = solvers.ddim(p, [80.0, 40.0])
  x, _ = samplers.predictor_corrector(
    KEY, model, table, (4, 2), process=p, corrector_steps=0
  )
  expected = sampling.sample(KEY, model, table, (4, 2), process=p)
  chex.assert_trees_all_close(x, expected, rtol=1e-5)


def test_a_model_moves_to_another_process_with_its_noise():
  p = processes.pfgmpp(8.0, 0.02, 20.0)
  model = oracles.exact(oracles.Empirical(np.ones((1, 2))), p)
  with pytest.raises(ValueError, match="noise=own.noise"):
    trigflow.under(model, processes.edm())
  flow = dataclasses.replace(processes.rectified_flow(), noise=p.noise)
  moved = trigflow.under(model, flow)
  np.testing.assert_allclose(moved(POINT, 0.5).x0, np.ones((2, 2)))
  velocity = trigflow.field(model, 1.0)(POINT, jnp.asarray(0.5))
  assert velocity.shape == (2, 2)


def test_a_table_that_draws_is_not_moved_to_another_noise():
  p = processes.pfgmpp(8.0)
  drawing = solvers.ddpm(EDM, GRID)
  with pytest.raises(ValueError, match="whose noise is StudentT"):
    solvers.transfer(drawing, EDM, p)
  solvers.transfer(solvers.ddim(EDM, GRID), EDM, p)


def test_statistics_see_the_noise_of_the_process():
  """Under a law of ones alpha x0 + sigma eps has no spread for one point."""
  asked = []

  def model(x, t):
    jax.debug.callback(lambda x, t: asked.append((x, t)), x, t)
    return Prediction(0.0 * x, x / t)

  learning.v3_statistics.estimate(KEY, model, ONES, jnp.zeros((2, 1)), m=4)
  jax.effects_barrier()
  assert asked
  for x, t in asked:
    np.testing.assert_allclose(x, np.full_like(x, t), rtol=1e-5)

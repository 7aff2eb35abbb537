"""Denoising MCMC: the Gibbs step, the chain, and each sample's own table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import training
from tests.solvers.cases import CASES

KEY = jax.random.key(0)
EDM = processes.edm(0.01, 50.0)
LEVELS = samplers.ladder(0.01, 50.0, 40)


def karras_heun(process, steps=2):
  return lambda first: solvers.heun(
    process, grids.karras(process, steps, start=first, to_zero=True)
  )


@functools.cache
def finish(name="heun"):
  if name == "heun":
    return samplers.finishers(karras_heun(EDM), EDM, LEVELS)
  build = CASES[name].build
  return samplers.finishers(
    lambda first: build(EDM, grids.karras(EDM, 4, start=first, to_zero=True)),
    EDM,
    LEVELS,
  )


def run(chain, model=None, posterior=None, **options):
  model = oracles.exact(oracles.g2(), EDM) if model is None else model
  if posterior is None:
    posterior = samplers.ExactPosterior(oracles.g2(), LEVELS)
  options = dict(process=EDM, posterior=posterior, levels=LEVELS) | options
  return samplers.dmcmc(KEY, model, finish(), chain, **options)


def clean(n=64):
  return oracles.g2().sample(jax.random.key(1), n)[0].astype(jnp.float32)


# --- the Gibbs step -----------------------------------------------------------


def test_the_conditional_of_one_gaussian_has_a_closed_form(x64):
  d, c2 = 5, 0.3
  single = oracles.gaussian(np.zeros(d), c2)
  x = jax.random.normal(KEY, (7, d), jnp.float64)
  w = c2 + LEVELS**2
  square = np.sum(np.asarray(x) ** 2, axis=1)[:, None]
  expected = -0.5 * d * np.log(w) - square / (2.0 * w)
  found = np.asarray(samplers.ExactPosterior(single, LEVELS)(x))
  shift = found - expected
  np.testing.assert_allclose(shift - shift[:, :1], 0.0, atol=1e-10)


def test_exact_alternation_leaves_the_noise_level_uniform():
  """x ~ p(x | sigma), then sigma ~ p(sigma | x): log sigma stays uniform."""
  n, law = 20000, oracles.g2()
  posterior = samplers.ExactPosterior(law, LEVELS)

  @jax.jit
  def alternate(key, level):
    keys = jax.random.split(key, 3)
    x = law.sample(keys[0], n)[0]
    sigma = jnp.asarray(LEVELS)[level][:, None]
    x = x + sigma * jax.random.normal(keys[1], x.shape)
    return jax.random.categorical(keys[2], posterior(x))

  level = jnp.arange(n) % len(LEVELS)
  for i in range(3):
    level = alternate(jax.random.fold_in(KEY, i), level)
  counts = np.bincount(np.asarray(level), minlength=len(LEVELS))
  assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.slow
def test_the_noise_classifier_learns_the_posterior():
  """Of one Gaussian: its cross entropy comes close to the exact one's."""
  d, levels = 8, samplers.ladder(0.05, 5.0, 12)
  single = oracles.gaussian(np.zeros(d), 0.25)
  network = networks.NoiseClassifier(len(levels), (32,))
  apply = lambda params, x: network.apply({"params": params}, x)
  params = network.init(KEY, jnp.zeros((1, d)))["params"]
  loss = losses.noise_classifier(apply, levels)
  exact = losses.noise_classifier(
    lambda params, x: samplers.ExactPosterior(single, levels)(x), levels
  )
  update = training.make_update(loss, optax.adam(1e-2), ema=0.9)
  state = training.init_state(KEY, params, optax.adam(1e-2))
  batch = lambda i: 0.5 * jax.random.normal(jax.random.key(i), (256, d))
  for i in range(200):
    state, _ = update(state, batch(i))
  test = 0.5 * jax.random.normal(jax.random.key(10**6), (8192, d))
  value, parts = loss(KEY, state.ema_params, test)
  best, least = exact(KEY, None, test)
  assert best < value + 1e-3 and value < best + 0.1 < np.log(12) - 0.5
  assert parts["log_error"] < 1.1 * least["log_error"]


# --- each sample's own table --------------------------------------------------


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc_2", "heun_churn"])
def test_samples_with_tables_of_their_own_are_as_if_run_alone(name):
  """Every one starts at its own level, and equals a run of its table alone."""
  model = oracles.exact(oracles.g2(), EDM)
  level = jnp.asarray([0, 3, 17, 39, 17])
  x = jnp.asarray(LEVELS)[level][:, None] * jax.random.normal(KEY, (5, 2))
  table = samplers.at_levels(finish(name), level, x.ndim)
  together = sampling.sample(KEY, model, table, x)
  for i, place in enumerate(level):
    alone = jax.tree.map(lambda leaf, p=int(place): leaf[p], finish(name))
    single = sampling.sample(
      KEY, model, alone, x[i : i + 1], index=jnp.asarray([i])
    )
    np.testing.assert_allclose(together[i], single[0], rtol=2e-5, atol=1e-6)


def test_without_moves_it_is_the_integrator_itself(x64):
  """From (x_T, sigma_max) and skip = 0: the table of sigma_max."""
  model = oracles.exact(oracles.g2(), EDM)
  noise = 50.0 * jax.random.normal(KEY, (64, 2))
  top = jnp.full(64, len(LEVELS) - 1, jnp.int32)
  x, info = run(samplers.Chain(noise, top), model, skip=0)
  vanilla = sampling.sample(KEY, model, karras_heun(EDM)(50.0), noise)
  np.testing.assert_allclose(x[0], vanilla, rtol=1e-10)
  assert info.nfe == 3 and info.visited.shape == (1, 0, 64)
  np.testing.assert_array_equal(info.chain.x, noise)


def test_finishing_tables_must_fit_the_ladder():
  with pytest.raises(ValueError, match="makes its first call at"):
    samplers.finishers(lambda first: karras_heun(EDM)(50.0), EDM, LEVELS)

  def uneven(first):
    return karras_heun(EDM, 2 if first < 1.0 else 3)(first)

  with pytest.raises(ValueError, match="from 3 to 5 calls"):
    samplers.finishers(uneven, EDM, LEVELS)


# --- the chain ----------------------------------------------------------------


def test_the_kept_level_is_the_smallest_that_was_visited():
  chain = samplers.start_chain(KEY, clean(), LEVELS)
  calls = []

  def counted(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return oracles.exact(oracles.g2(), EDM)(x, t)

  x, info = run(chain, counted, skip=5, outputs=3, eta=0.2)
  jax.effects_barrier()
  visited = np.asarray(info.visited)
  assert visited.shape == (3, 5, 64)
  np.testing.assert_allclose(info.sigma, LEVELS[visited.min(1)], rtol=1e-6)
  assert info.nfe == 5 + 3 and len(calls) == 3 * info.nfe
  assert len(np.unique(visited)) > 5
  assert np.isfinite(x).all()


def test_the_langevin_step_has_its_stationary_variance():
  """At a fixed level: w / (1 - eta / (4 w)), w = c^2 + sigma^2, 3 s.e."""
  n, c2, eta = 20000, 0.2, 0.9
  level = 20
  w = c2 + LEVELS[level] ** 2
  assert eta < 4.0 * w
  single = oracles.gaussian(np.zeros(1), c2)
  stay = lambda x: jax.nn.one_hot(jnp.full(n, level), len(LEVELS)) * 1e9
  chain = samplers.Chain(jnp.zeros((n, 1)), jnp.full(n, level, jnp.int32))
  _, info = run(chain, oracles.exact(single, EDM), stay, skip=40, eta=eta)
  expected = w / (1.0 - eta / (4.0 * w))
  assert (np.asarray(info.chain.level) == level).all()
  error = 3.0 * expected * np.sqrt(2.0 / n)
  assert abs(np.asarray(info.chain.x).var() - expected) < error
  assert expected > 1.3 * w


@pytest.mark.slow
def test_any_process_gives_the_same_chain():
  """In x / alpha VP of the same noise levels walks EDM's path."""
  vp = processes.vp_linear_covering(0.005, 60.0)
  chain = samplers.start_chain(KEY, clean(16), LEVELS)
  options = dict(skip=3, outputs=2, burn_in=(0.2, 0.1))
  _, one = run(chain, **options)
  posterior = samplers.ExactPosterior(oracles.g2(), LEVELS)
  heun_in_edm_time = lambda first: solvers.ddim(
    vp, grids.karras(vp, 3, start=first, to_zero=True)
  )
  _, other = samplers.dmcmc(
    KEY,
    oracles.exact(oracles.g2(), vp),
    samplers.finishers(heun_in_edm_time, vp, LEVELS),
    chain,
    process=vp,
    posterior=posterior,
    levels=LEVELS,
    **options,
  )
  same = np.mean(np.asarray(one.visited) == np.asarray(other.visited))
  assert same > 0.97  # a draw may fall on the other side of an edge
  agree = (np.asarray(one.visited) == np.asarray(other.visited)).all((0, 1))
  np.testing.assert_allclose(
    one.chain.x[agree], other.chain.x[agree], rtol=1e-2, atol=1e-3
  )


def test_a_chain_knows_its_key_and_its_index_alone():
  chain = samplers.start_chain(KEY, clean(8), LEVELS)
  whole, info = run(chain, skip=2, outputs=2)
  part = jax.tree.map(lambda v: v[5:], chain)
  some, own = run(part, skip=2, outputs=2, index=jnp.asarray([5, 6, 7]))
  np.testing.assert_array_equal(own.visited, info.visited[:, :, 5:])
  np.testing.assert_allclose(some, whole[:, 5:], rtol=1e-4)
  begin = samplers.start_chain(
    KEY, clean(8)[5:], LEVELS, index=jnp.asarray([5, 6, 7])
  )
  np.testing.assert_array_equal(begin.x, part.x)


def test_chains_sample_the_data():
  """Many outputs of few calls have the weights of the three modes."""
  chain = samplers.start_chain(KEY, clean(500), LEVELS)
  x, _ = run(chain, skip=4, outputs=8, eta=0.1, burn_in=[0.3] * 5)
  x = np.asarray(x).reshape(-1, 2)
  means = oracles.g2().means
  near = np.argmin(np.sum((x[:, None] - means) ** 2, axis=-1), axis=1)
  weights = np.bincount(near, minlength=3) / len(x)
  np.testing.assert_allclose(weights, [0.5, 0.3, 0.2], atol=0.06)


def test_the_mode_of_the_posterior_may_replace_the_draw():
  chain = samplers.start_chain(KEY, clean(16), LEVELS)
  _, info = run(chain, skip=1, gibbs="argmax")
  posterior = samplers.ExactPosterior(oracles.g2(), LEVELS)
  mode = jnp.argmax(posterior(info.chain.x), axis=1)
  np.testing.assert_array_equal(info.chain.level, mode)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(eta=0.0), "eta > 0, got eta=0.0"),
    (dict(burn_in=[0.1, -1.0]), r"burn_in=\[0.1, -1.0\]"),
    (dict(skip=0, outputs=2), "skip=0, outputs=2"),
    (dict(gibbs="mean"), "gibbs must be one of"),
    (dict(levels=LEVELS[:-1]), "for a ladder of"),
    (dict(levels=2.0 * LEVELS), "the model's process 0.01 to 50"),
    (dict(posterior=lambda x: jnp.zeros((64, 3))), r"answers with shape \(64,"),
  ],
)
def test_bad_input_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    run(samplers.start_chain(KEY, clean(), LEVELS), **options)


def test_a_ladder_rises_between_its_ends():
  assert LEVELS[-1] == pytest.approx(50.0) and LEVELS[0] > 0.01
  assert np.ptp(np.diff(np.log(LEVELS))) < 1e-12
  with pytest.raises(ValueError, match="sigma_min=2"):
    samplers.ladder(2.0, 1.0)
  with pytest.raises(ValueError, match=r"expected \(4, 12\)"):
    loss = losses.noise_classifier(lambda p, x: x, np.geomspace(1, 2, 12))
    loss(KEY, None, jnp.ones((4, 3)))


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan])
def test_a_chain_starts_from_a_positive_noise_level(sigma):
  with pytest.raises(ValueError, match="sigma.*(positive|finite)"):
    samplers.start_chain(KEY, clean(), LEVELS, sigma)


def test_a_chain_that_leaves_the_numbers_names_eta():
  chain = samplers.start_chain(KEY, clean(), LEVELS)
  with pytest.raises(FloatingPointError, match="eta = 1e\\+30"):
    run(chain, skip=8, eta=1e30, check_finite=True)

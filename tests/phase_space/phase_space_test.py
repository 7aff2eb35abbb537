"""Critically damped Langevin diffusion: kernel, model, splitting sampler."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from jaxdiff import metrics
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import phase_space
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.phase_space import sampler
from jaxdiff.phase_space.process import transition_covariance

KEY = jax.random.key(11)
CLD = phase_space.CriticallyDamped()
HEAVY = phase_space.CriticallyDamped(beta=3.0, mass=2.0, gamma=0.5)
PROCESSES = pytest.mark.parametrize("process", [CLD, HEAVY])


# --- the kernel --------------------------------------------------------------


def by_expm(process, t):
  """Returns mean weights [2, 2] and noise covariance of (x, v), by expm.

  Van Loan's block exponential of dx = v / M beta dt, dv = ..., with Gamma of
  the critical damping.
  """
  m, b = process.mass, process.beta
  friction = 2.0 * math.sqrt(m)
  a = b * np.asarray([[0.0, 1.0 / m], [-1.0, -friction / m]])
  d = np.diag([0.0, 2.0 * friction * b])
  block = np.block([[-a, d], [np.zeros((2, 2)), a.T]]) * t
  e = linalg.expm(block)
  mean = e[2:, 2:].T
  return mean, mean @ e[:2, 2:]


@PROCESSES
@pytest.mark.parametrize("t", [1e-3, 0.05, 0.3, 0.6])
def test_the_kernel_solves_the_sde(process, t):
  mean, noise = by_expm(process, t)
  first = np.diag([0.0, process.gamma * process.mass])
  covariance = mean @ first @ mean.T + noise
  k, root = process.kernel(t), math.sqrt(process.mass)
  np.testing.assert_allclose(
    [k.mean_x, root * k.mean_w], mean[:, 0], rtol=1e-9, atol=1e-11
  )
  factor = np.asarray([[k.l_xx, 0.0], [root * k.l_wx, root * k.l_ww]])
  np.testing.assert_allclose(
    factor @ factor.T, covariance, rtol=1e-6, atol=1e-9
  )


@pytest.mark.parametrize("gamma", [0.0, 0.04])
def test_float32_keeps_the_digits_of_the_kernel(gamma):
  process = phase_space.CriticallyDamped(gamma=gamma)
  t = np.geomspace(1e-5, 1.0, 40)
  wide = process.kernel(t)
  for name, value in (
    process.kernel(jnp.asarray(t, jnp.float32))._asdict().items()
  ):
    scale = np.maximum(abs(getattr(wide, name)), 1e-2 * np.sqrt(t))
    error = abs(np.asarray(value) - getattr(wide, name)) / scale
    assert error.max() < 3e-5, name


@PROCESSES
def test_the_prior_is_the_stationary_law(process):
  """From any data the law tends to it, and it does not move."""
  q_xx, q_xw, q_ww = transition_covariance(np.asarray(30.0))
  np.testing.assert_allclose([q_xx, q_xw, q_ww], [1.0, 0.0, 1.0], atol=1e-12)
  u = 0.7
  e = np.exp(-u) * np.asarray([[1 + u, u], [-u, 1 - u]])
  q = transition_covariance(np.asarray(u))
  q = np.asarray([[q[0], q[1]], [q[1], q[2]]])
  np.testing.assert_allclose(e @ e.T + q, np.eye(2), atol=1e-14)
  state = process.prior(KEY, (20_000, 1))
  assert float(state.x.std()) == pytest.approx(1.0, abs=0.02)
  assert float(state.v.var()) == pytest.approx(process.mass, rel=0.04)


def test_draws_have_the_law_of_the_kernel():
  t, n = 0.3, 20_000
  state, eps = CLD.perturb(KEY, jnp.full((n, 1), 1.5), t)
  k = CLD.kernel(t)
  w = state.v / math.sqrt(CLD.mass)
  found = np.cov(np.concatenate([state.x, w, eps], axis=1).T)
  l = np.asarray([[k.l_xx, 0.0], [k.l_wx, k.l_ww]])
  exact = np.block([[l @ l.T, l[:, 1:]], [l[:, 1:].T, np.ones((1, 1))]])
  np.testing.assert_allclose(found, exact, atol=0.03)
  assert float(state.x.mean()) == pytest.approx(1.5 * k.mean_x, abs=0.02)


def test_noise_depends_on_key_and_index_alone():
  x0 = jnp.zeros((5, 2))
  whole, _ = CLD.perturb(KEY, x0, 0.5)
  part, _ = CLD.perturb(KEY, x0[:2], 0.5, jnp.asarray([4, 1]))
  np.testing.assert_allclose(part.x, whole.x[np.asarray([4, 1])], rtol=1e-6)
  np.testing.assert_allclose(part.v, whole.v[np.asarray([4, 1])], rtol=1e-6)


# --- models ------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_the_oracle_is_the_gradient_of_the_density_in_v(full, x64):
  rng = np.random.default_rng(1)
  covariances = np.asarray([[0.3, 0.5], [1.0, 0.2]])
  if full:
    root = rng.standard_normal((2, 2, 2))
    covariances = root @ root.transpose(0, 2, 1)
  mixture = oracles.mixture([[1.0, 0.0], [-1.0, 2.0]], covariances, [0.3, 0.7])
  model = phase_space.exact_phase(mixture, HEAVY)
  state = phase_space.Phase(*rng.standard_normal((2, 6, 2)))
  t = 0.4

  @jax.jit
  def both(state):
    grad = jax.grad(
      lambda v: model.log_prob(phase_space.Phase(state.x, v), t).sum()
    )
    return model(state, t), grad(state.v)

  eps, gradient = both(jax.tree.map(jnp.asarray, state))
  scale = HEAVY.kernel(t).l_ww * math.sqrt(HEAVY.mass)
  np.testing.assert_allclose(eps, -scale * gradient, rtol=1e-9)


def test_the_density_is_normalized_over_phase_space():
  model = phase_space.exact_phase(
    oracles.mixture([[1.0], [-1.0]], [0.1, 0.2]), CLD
  )
  side = jnp.linspace(-6.0, 6.0, 401)
  x, v = (g.reshape(-1, 1) for g in jnp.meshgrid(side, side))
  p = jnp.exp(model.log_prob(phase_space.Phase(x, v), 0.2))
  assert float(p.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=1e-4)


def test_the_error_of_the_exact_model_is_orthogonal_to_the_state():
  """Its hybrid loss has no gradient: the regression is what is claimed."""
  n, target = 20_000, oracles.g2()
  model = phase_space.exact_phase(target, CLD)
  x0 = target.sample(KEY, n)[0]
  t = jax.random.uniform(jax.random.fold_in(KEY, 1), (n,), minval=0.01)
  state, eps = CLD.perturb(jax.random.fold_in(KEY, 2), x0, t)
  error = np.asarray(eps - model(state, t))
  for f in (1.0, np.asarray(state.x), np.asarray(state.v), np.sin(state.x)):
    values = (error * f).sum(1)
    assert abs(values.mean()) < 4.0 * values.std() / math.sqrt(n)


def test_a_network_of_zeros_is_exact_for_normal_data():
  zeros = lambda params, x, t: jnp.zeros_like(x)
  model = phase_space.phase_field(zeros, {}, CLD, sigma_data=0.5)
  exact = phase_space.exact_phase(oracles.gaussian([0.0, 0.0], 0.25), CLD)
  state = CLD.prior(KEY, (8, 2))
  for t in (0.01, 0.3, 1.0):
    np.testing.assert_allclose(
      model(state, t), exact(state, t), rtol=2e-4, atol=1e-6
    )


def test_a_network_is_trained():
  network = networks.MLP(features=(8,))
  params = network.init(KEY, jnp.zeros((1, 4)), jnp.zeros(1))["params"]
  apply = lambda params, x, t: network.apply({"params": params}, x, t)
  model = phase_space.phase_field(apply, params, CLD)
  loss = phase_space.hybrid(model)
  batch = dict(image=jax.random.normal(KEY, (16, 2)))
  value, grads = jax.jit(jax.value_and_grad(lambda p: loss(KEY, p, batch)[0]))(
    params
  )
  assert np.isfinite(value)
  assert any(np.any(g) for g in jax.tree.leaves(grads))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


# --- the sampler -------------------------------------------------------------


def gaussian_step(process, row, i, c, stages):
  """Returns the matrix and noise covariance of step i on N(0, c), in (x, w)."""
  t, h = row.t[i], row.h[i]
  k = process.kernel(t)
  e = np.asarray([k.mean_x, k.mean_w])
  l = np.asarray([[k.l_xx, 0.0], [k.l_wx, k.l_ww]])
  precision = np.linalg.inv(c * np.outer(e, e) + l @ l.T)
  half = row.half[i].reshape(2, 2)
  root = np.asarray([[row.root[i, 0], 0.0], row.root[i, 1:]])
  slope = np.zeros((2, 2))
  slope[1] = 4.0 * (np.asarray([0.0, 1.0]) - precision[1])
  push = np.eye(2) + h * slope
  if stages == 2:
    push = np.eye(2) + h * slope @ (np.eye(2) + 0.5 * h * slope)
  noise = root @ root.T
  return half @ push @ half, half @ push @ noise @ push.T @ half.T + noise


def law_of(process, t, c):
  k = process.kernel(t)
  e = np.asarray([k.mean_x, k.mean_w])
  l = np.asarray([[k.l_xx, 0.0], [k.l_wx, k.l_ww]])
  return c * np.outer(e, e) + l @ l.T


@pytest.mark.parametrize(("stages", "order"), [(1, 1), (2, 2)])
def test_weak_order(stages, order):
  """The covariance of (x, w), propagated exactly on Gaussian data."""
  process, c = phase_space.CriticallyDamped(t_min=0.05), 0.3
  n, errors = np.asarray([40, 80, 160]), []
  for count in n:
    row = sampler.rows(process, np.linspace(1.0, 0.05, count + 1))
    p = law_of(process, 1.0, c)
    for i in range(count):
      matrix, noise = gaussian_step(process, row, i, c, stages)
      p = matrix @ p @ matrix.T + noise
    errors.append(abs(p - law_of(process, 0.05, c)).max())
  slope = -np.polyfit(np.log(n), np.log(errors), 1)[0]
  assert slope == pytest.approx(order, abs=0.2)


@PROCESSES
def test_without_a_force_the_stationary_law_stays(process):
  """Data N(0, 1) with gamma = 1: the score cancels S, and A is exact."""
  still = phase_space.CriticallyDamped(process.beta, process.mass, 1.0)
  row = sampler.rows(still, np.linspace(1.0, 0.01, 4))
  p = np.eye(2)
  for i in range(3):
    matrix, noise = gaussian_step(still, row, i, 1.0, 1)
    p = matrix @ p @ matrix.T + noise
  np.testing.assert_allclose(p, np.eye(2), atol=1e-10)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_step_is_the_splitting(stages, x64):
  """One step of the program against matrices, with the noise it draws."""
  c, index = 0.3, jnp.arange(3)
  model = phase_space.exact_phase(oracles.gaussian([0.0], c), HEAVY)
  start = HEAVY.prior(KEY, (3, 1), dtype=jnp.float64)
  grid = np.asarray([0.8, 0.6])
  end, info = sampler.sample(
    KEY, model, grid, start, process=HEAVY, stages=stages
  )
  assert info.nfe == stages
  row, own = sampler.rows(HEAVY, grid), jax.random.fold_in(KEY, 0)
  half = row.half[0].reshape(2, 2)
  root = np.asarray([[row.root[0, 0], 0.0], row.root[0, 1:]])
  scale = math.sqrt(HEAVY.mass)

  def noise(tag):
    z = tree.normal(jax.random.fold_in(own, tag), start, index)
    return root @ np.concatenate([z.x.T, z.v.T])

  matrix, _ = gaussian_step(HEAVY, row, 0, c, stages)
  push = np.linalg.solve(half, matrix) @ np.linalg.inv(half)
  state = np.concatenate([start.x.T, start.v.T / scale])
  state = half @ push @ (half @ state + noise(0)) + noise(1)
  np.testing.assert_allclose(end.x[:, 0], state[0], rtol=1e-9)
  np.testing.assert_allclose(end.v[:, 0], scale * state[1], rtol=1e-9)


def test_a_mixture_is_sampled():
  n, target = 4096, oracles.g2()
  model = phase_space.exact_phase(target, CLD)
  grid = CLD.t_min + (1.0 - CLD.t_min) * np.linspace(1.0, 0.0, 101) ** 2
  state, info = sampler.sample(
    KEY, model, grid, (n, 2), process=CLD, collect=sampling.first_nonfinite
  )
  assert int(info.kept) == 100
  data, more = (target.sample(jax.random.key(i), n)[0] for i in (1, 2))
  distance = lambda a, b: float(metrics.sliced_wasserstein(KEY, a, b))
  assert distance(state.x, data) < 1.5 * max(distance(more, data), 0.04)


def test_samples_do_not_depend_on_the_batch():
  model = phase_space.exact_phase(oracles.g2(), CLD)
  grid = np.linspace(1.0, CLD.t_min, 6)
  run = functools.partial(sampler.sample, KEY, model, grid, process=CLD)
  whole, _ = run((4, 2))
  part, _ = run((1, 2), index=np.asarray([2]))
  np.testing.assert_allclose(part.x[0], whole.x[2], rtol=1e-4, atol=1e-5)


# --- refusals ----------------------------------------------------------------


def drawn(start, model=None, grid=(1.0, 0.5), process=CLD, **options):
  return sampler.sample(KEY, model, grid, start, process=process, **options)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: phase_space.CriticallyDamped(mass=0.0), "mass must be positive"),
    (lambda: phase_space.CriticallyDamped(beta=-1.0), "beta must be positive"),
    (lambda: phase_space.CriticallyDamped(gamma=-1.0), "first velocity"),
    (lambda: phase_space.CriticallyDamped(t_min=2.0), "t_min < t_max"),
    (lambda: sampler.rows(CLD, [0.5, 0.7]), "strictly decreasing"),
    (lambda: sampler.rows(CLD, [2.0, 0.7]), "outside of the process"),
    (
      lambda: drawn((2, 1), stages=3),
      "stages must be",
    ),
    (
      lambda: drawn(np.zeros((2, 1))),
      "Phase",
    ),
    (
      lambda: drawn(phase_space.Phase(jnp.zeros((2, 1)), jnp.zeros((2, 2)))),
      "the velocity",
    ),
    (
      lambda: drawn((2, 1), grid=[0.01, 0.005]),
      "the signal exceeds the noise",
    ),
    (
      lambda: drawn((2, 2), phase_space.exact_phase(oracles.g2(), HEAVY)),
      "the model is of CriticallyDamped",
    ),
    (
      lambda: phase_space.phase_field(lambda p, x, t: x[:, :1], {}, CLD)(
        CLD.prior(KEY, (2, 1)), 0.5
      ),
      "side by side",
    ),
    (
      lambda: phase_space.hybrid(phase_space.phase_field(None, {}, CLD))(
        KEY, {}, {}
      ),
      "a batch is a dict",
    ),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize(
  ("process", "start", "message"),
  [
    (processes.edm(), (2, 1), "CriticallyDamped"),
    (
      CLD,
      phase_space.Phase(jnp.zeros((2, 1), int), jnp.zeros((2, 1), int)),
      "floating point",
    ),
  ],
)
def test_other_kinds_are_refused(process, start, message):
  with pytest.raises(TypeError, match=message):
    drawn(start, process=process)


def test_a_model_may_know_other_times():
  model = phase_space.exact_phase(
    oracles.g2(), dataclasses.replace(CLD, t_min=0.2)
  )
  state, _ = drawn((2, 2), model)
  assert state.x.shape == (2, 2)

"""Stochastic interpolants: fields, laws of ODE and SDE, losses, bounds."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import interpolants
from jaxdiff import likelihood
from jaxdiff import metrics
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.interpolants import bridge as bridges

KEY = jax.random.key(7)
TWO_SIDED = [
  ("linear", "brownian"),
  ("linear", "quadratic"),
  ("linear", "none"),
  ("trig", "brownian"),
  ("encoding_decoding", "sin2"),
]
BROWNIAN = interpolants.interpolant("linear", "brownian", 2.0)


def ring():
  """The sheet's pair: two Gaussians, and five on a ring of radius 3."""
  angle = 2.0 * np.pi * np.arange(5) / 5
  places = 3.0 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  first = oracles.mixture([[-2.0, 0.0], [2.0, 0.0]], [0.25, 0.25])
  last = oracles.mixture(places, [0.09] * 5, [0.3, 0.25, 0.2, 0.15, 0.1])
  return first, last


@jax.jit
def everything(exact, x, t):
  """Returns (v, eta), b and s, compiled once for each bridge."""
  return exact(x, t), exact.velocity(x, t), exact.score(x, t)


@functools.cache
def exact_ring(bridge=BROWNIAN):
  return interpolants.exact_fields(bridge, *ring())


# --- the bridge --------------------------------------------------------------


@pytest.mark.parametrize(("path", "gamma"), TWO_SIDED)
def test_a_bridge_ends_where_it_should(path, gamma):
  bridge = interpolants.interpolant(path, gamma)
  x0, x1, z = (jax.random.normal(jax.random.key(i), (4, 2)) for i in range(3))
  for t, end in ((0.0, x0), (1.0, x1)):
    x = bridge.interpolate(jnp.float32(t), x0, x1, z)
    np.testing.assert_allclose(x, end, atol=1e-6)


@pytest.mark.parametrize(("path", "gamma"), [*TWO_SIDED, ("mirror", "sin2")])
def test_rates_are_the_derivatives(path, gamma):
  bridge = interpolants.interpolant(path, gamma, 0.7)
  t, h = np.linspace(0.05, 0.95, 18), 1e-6
  slope = lambda f: (f(t + h) - f(t - h)) / (2 * h)
  alpha, beta = bridge.path_rates(t)
  close = functools.partial(np.testing.assert_allclose, atol=1e-7)
  close(alpha, slope(bridge.alpha))
  close(beta, slope(bridge.beta))
  close(bridge.gamma_dot(t), slope(bridge.gamma))
  close(bridge.gamma_gamma_dot(t), bridge.gamma(t) * slope(bridge.gamma))


def test_gamma_gamma_dot_is_finite_at_the_ends_of_a_brownian_bridge():
  np.testing.assert_allclose(
    BROWNIAN.gamma_gamma_dot(np.asarray([0.0, 0.5, 1.0])), [1.0, 0.0, -1.0]
  )


@pytest.mark.parametrize("path", bridges.ONE_SIDED)
def test_one_sided_is_its_gaussian_process(path):
  bridge = interpolants.one_sided(path)
  process = interpolants.one_sided_process(path)
  t = np.linspace(0.01, 0.99, 9)
  np.testing.assert_allclose(bridge.beta(t), process.alpha(1 - t), rtol=1e-12)
  np.testing.assert_allclose(bridge.gamma(t), process.sigma(1 - t), rtol=1e-12)
  alpha, sigma = process.rates(1 - t)
  np.testing.assert_allclose(bridge.path_rates(t)[1], -alpha, rtol=1e-9)
  np.testing.assert_allclose(bridge.gamma_dot(t), -sigma, rtol=1e-9)


# --- closed forms ------------------------------------------------------------


@pytest.mark.parametrize(("path", "gamma"), TWO_SIDED)
def test_velocity_and_score_agree_with_the_pair(path, gamma, x64):
  bridge = interpolants.interpolant(path, gamma)
  exact = exact_ring(bridge)
  x = np.random.default_rng(0).standard_normal((16, 2)) * 2.0
  for t in (0.1, 0.37, 0.8):
    (v, eta), b, s = everything(exact, x, t)
    rate, scale = bridge.gamma_gamma_dot(t), bridge.gamma(t)
    if gamma == "none":
      assert not np.any(eta)
    np.testing.assert_allclose(eta, -scale * s, rtol=1e-9)
    np.testing.assert_allclose(b, v - rate * s, rtol=1e-10, atol=1e-12)
    mended = v + bridge.gamma_dot(t) * eta
    np.testing.assert_allclose(b, mended, rtol=1e-9, atol=1e-10)
  if gamma != "none":
    s_of_pair = interpolants.score(exact, bridge)(x, t)
    np.testing.assert_allclose(s_of_pair, s, rtol=1e-9)
  b_of_pair = interpolants.velocity(exact, bridge)(x, t)
  np.testing.assert_allclose(b_of_pair, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("path", ["linear", "encoding_decoding"])
def test_the_density_obeys_the_transport_equation(path, x64):
  """d rho / dt + div(b rho) = 0, divided by rho; s is grad log rho."""
  exact = exact_ring(interpolants.interpolant(path, "sin2", 0.5))

  @jax.jit
  def sides(x, t):
    rate = jax.jvp(lambda t: exact.log_prob(x, t), (t,), (1.0,))[1]
    b = lambda x: exact.velocity(x[None], t)[0]
    divergence = jax.vmap(lambda x: jnp.trace(jax.jacfwd(b)(x)))(x)
    _, b, s = everything(exact, x, t)
    gradient = jax.grad(lambda x: exact.log_prob(x, t).sum())(x)
    return rate, -divergence - jnp.sum(b * s, axis=1), s, gradient

  x = np.random.default_rng(0).standard_normal((8, 2)) * 2.0
  for t in (0.3, 0.7):
    rate, other, s, gradient = sides(x, t)
    np.testing.assert_allclose(rate, other, atol=1e-8)
    np.testing.assert_allclose(s, gradient, atol=1e-10)


def test_full_covariances_and_one_time_for_each_sample(x64):
  """Against the Gaussian regression written with dense matrices."""
  rng = np.random.default_rng(0)
  roots = rng.standard_normal((2, 3, 3))
  s0, s1 = roots @ roots.transpose(0, 2, 1)
  mu, nu = rng.standard_normal((2, 3))
  exact = interpolants.exact_fields(
    BROWNIAN, oracles.gaussian(mu, s0), oracles.gaussian(nu, s1)
  )
  t = np.asarray([0.2, 0.9])
  x = rng.standard_normal((2, 3))
  v, eta = exact(jnp.asarray(x), jnp.asarray(t))
  for i, u in enumerate(t):
    g2 = 2 * u * (1 - u)
    c = (1 - u) ** 2 * s0 + u**2 * s1 + g2 * np.eye(3)
    d = np.linalg.solve(c, x[i] - (1 - u) * mu - u * nu)
    expected = nu + u * s1 @ d - mu - (1 - u) * s0 @ d
    np.testing.assert_allclose(v[i], expected, rtol=1e-10)
    np.testing.assert_allclose(eta[i], np.sqrt(g2) * d, rtol=1e-10)


# --- laws of the tables ------------------------------------------------------

S0, S1 = np.asarray([0.5, 2.0, 1.0]), np.asarray([1.5, 0.3, 1.0])
MU, NU = np.asarray([1.0, -1.0, 0.0]), np.asarray([-0.5, 2.0, 0.0])


def law(bridge, table, backwards=False):
  """Returns mean and variance after the table, on Gaussian ends."""
  t = table.t[:, None]
  alpha, beta, gamma = bridge.alpha(t), bridge.beta(t), bridge.gamma(t)
  c = alpha**2 * S0 + beta**2 * S1 + gamma**2
  center = alpha * MU + beta * NU
  alpha_dot, beta_dot = bridge.path_rates(t)
  slope = (alpha_dot * alpha * S0 + beta_dot * beta * S1) / c
  v = alpha_dot * MU + beta_dot * NU - slope * center
  slopes = np.stack([slope, gamma / c], axis=1)
  shifts = np.stack([v, -gamma / c * center], axis=1)
  start = (NU, S1) if backwards else (MU, S0)
  return oracles.propagate_affine(table, slopes, shifts, *start)


def law_error(bridge, grid, **options):
  backwards = bool(grid[0] > grid[-1])
  table = interpolants.transport(bridge, grid, **options)
  mean, variance = law(bridge, table, backwards)
  target = (MU, S0) if backwards else (NU, S1)
  return max(abs(mean - target[0]).max(), abs(variance - target[1]).max())


@pytest.mark.parametrize(
  ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)]
)
def test_order_of_the_ode(method, order):
  bridge = interpolants.interpolant("trig", "quadratic", 2.0, t_min=0.0)
  n = np.asarray([20, 40, 80])
  e = [law_error(bridge, np.linspace(0, 1, k + 1), method=method) for k in n]
  slope = -np.polyfit(np.log(n), np.log(e), 1)[0]
  assert slope == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("backwards", [False, True])
def test_weak_order_of_the_sde(method, order, backwards):
  """Mean and variance, propagated exactly, reach the other end's."""
  bridge = interpolants.interpolant("linear", "quadratic", 16.0, t_min=0.0)
  eps = lambda t: 4.0 * (t * (1.0 - t)) ** 2  # eps / gamma stays finite
  safe = dataclasses.replace(bridge, t_min=1e-9)
  n = np.asarray([30, 60, 120])
  grid = lambda k: np.linspace(0, 1, k + 1)[:: -1 if backwards else 1]
  e = [law_error(safe, grid(k), method=method, diffusion=eps) for k in n]
  slope = -np.polyfit(np.log(n), np.log(e), 1)[0]
  assert slope == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(
  ("eps", "end"),
  [(0.0, 0.25), (0.0, 1.0), (0.25, 0.5), (1.0, 1.0), (4.0, 0.75)],
)
def test_ode_and_sdes_share_the_law_of_the_bridge(eps, end):
  table = interpolants.transport(
    BROWNIAN, np.linspace(0.0, end, 2001), method="euler", diffusion=eps
  )
  mean, variance = law(BROWNIAN, table)
  exact = (1 - end) ** 2 * S0 + end**2 * S1 + 2.0 * end * (1 - end)
  np.testing.assert_allclose(mean, (1 - end) * MU + end * NU, atol=0.02)
  np.testing.assert_allclose(variance, exact, rtol=0.02)


@functools.cache
def draws():
  """2,048 exact draws of both ends, the middle, and the last once more."""
  exact = exact_ring()
  middle, x0, x1 = exact.sample(KEY, 0.5, 2048)
  again, y0, y1 = exact.sample(jax.random.fold_in(KEY, 1), 0.5, 2048)
  return x0, middle, x1, y0, again, y1


@pytest.mark.parametrize(
  ("grid", "eps"),
  [
    ((0.0, 0.5), 0.0),
    ((0.0, 1.0), 0.0),
    ((0.0, 1.0), 1.0),
    ((1.0, 0.0), 1.0),
  ],
)
def test_a_mixture_reaches_the_two_sample_floor(grid, eps):
  x0, middle, x1, y0, again, y1 = draws()
  first = {0.0: x0, 1.0: x1}[grid[0]]
  last, other = {0.0: (y0, x0), 0.5: (again, middle), 1.0: (y1, x1)}[grid[1]]
  distance = jax.jit(lambda a, b: metrics.sliced_wasserstein(KEY, a, b))
  table = interpolants.transport(
    BROWNIAN, np.linspace(*grid, 401), method="euler", diffusion=eps
  )
  x = sampling.sample(KEY, exact_ring(), table, first)
  # the floor of 2,048 draws itself varies by a factor: the weights do
  floor = max(float(distance(last, other)), 0.08)
  assert distance(x, last) < 1.5 * floor


def test_one_sided_trig_is_ddim_of_vp_step_for_step(x64):
  """From the interpolant's own (v, eta), in x / b."""
  bridge = interpolants.one_sided("trig")
  target = oracles.g2()
  model = interpolants.as_denoiser(
    interpolants.exact_fields(bridge, None, target), bridge
  )
  process = interpolants.one_sided_process("trig")
  times = grids.uniform(process, 12)
  table = solvers.ddim(process, times)
  x = process.prior(KEY, (16, 2), dtype=jnp.float64)
  _, path = sampling.sample(KEY, model, table, x, collect=sampling.every(1))
  ratio = lambda t: np.tan(np.pi / 2 * t)  # sigma / alpha at DDIM's time
  denoise = oracles.exact(target, processes.edm())
  y = None
  for i, t in enumerate(times[1:]):
    alpha = np.cos(np.pi / 2 * t)
    if y is None:  # out of alpha = 0: x = z, and E[x1 | z] is the mean
      y = np.asarray(target.moments()[0]) + ratio(t) * np.asarray(x)
    else:
      before, now = ratio(times[i]), ratio(t)
      eps = np.asarray(denoise(jnp.asarray(y), before).eps)
      y = y + (now - before) * eps
    np.testing.assert_allclose(path[i] / alpha, y, rtol=1e-6, atol=1e-9)


# --- losses ------------------------------------------------------------------


def linear(params, x, t):
  """A network linear in x, constant in time."""
  del t
  return x @ params["w"] + params["b"]


@pytest.mark.parametrize("heads", [("v", "eta"), ("b", "s")])
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_gradient_vanishes_at_the_closed_form(heads, antithetic):
  """At one time, where the minimizer on Gaussian ends is linear in x."""
  u, n = 0.3, 4000
  bridge = BROWNIAN
  alpha, beta, g = 1 - u, u, float(bridge.gamma(u))
  c = alpha**2 * S0 + beta**2 * S1 + g**2
  center = alpha * MU + beta * NU
  v, eta = (beta * S1 - alpha * S0) / c, g / c
  rows = {
    "v": (v, NU - MU),
    "eta": (eta, 0.0 * MU),
    "b": (v + bridge.gamma_dot(u) * eta, NU - MU),
    "s": (-1.0 / c, 0.0 * MU),
  }
  w, shift = np.zeros((6, 6)), np.zeros(6)
  for k, head in enumerate(heads):
    slope, at_center = rows[head]
    w[k * 3 : k * 3 + 3, k * 3 : k * 3 + 3] = np.diag(slope)
    shift[k * 3 : k * 3 + 3] = at_center - slope * center
  params = dict(w=jnp.asarray(w, jnp.float32), b=jnp.asarray(shift, np.float32))
  model = interpolants.from_function(linear, params, bridge, heads)
  loss = interpolants.regression(
    model, antithetic=antithetic, times=lambda key, n: jnp.full((n,), u)
  )
  exact = interpolants.exact_fields(
    bridge, oracles.gaussian(MU, S0), oracles.gaussian(NU, S1)
  )
  _, x0, x1 = exact.sample(KEY, u, n)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None, 0, 0))
  def gradient(key, params, x0, x1):
    batch = dict(x0=x0[None], x1=x1[None])
    return jax.grad(lambda p: loss(key, p, batch)[0])(params)

  keys = jax.random.split(jax.random.fold_in(KEY, 2), n)
  for leaf in gradient(keys, params, x0, x1).values():
    leaf = np.asarray(leaf).reshape(n, -1)
    error = leaf.std(0) / np.sqrt(n) + 1e-7
    assert (abs(leaf.mean(0)) / error).max() < 4.5  # of 42 numbers


def test_antithetic_pairs_tame_the_ends():
  """The variance of L_b near t = 0 for a Brownian bridge."""
  params = dict(w=jnp.eye(4), b=jnp.ones(4))
  model = interpolants.from_function(linear, params, BROWNIAN, ("b", "s"))
  x = jax.random.normal(KEY, (64, 2))
  batch = dict(x0=x, x1=x + 1.0)

  def spread(antithetic):
    loss = interpolants.regression(
      model, antithetic=antithetic, times=lambda k, n: jnp.full((n,), 1e-3)
    )
    one = jax.jit(jax.vmap(lambda key: loss(key, params, batch)[0]))
    return float(one(jax.random.split(KEY, 200)).std())

  assert spread(True) < 0.05 * spread(False)


def test_a_network_learns_both_heads():
  network = networks.MLP(features=(8,))
  bridge = interpolants.interpolant("linear", "quadratic")
  init = network.init(KEY, jnp.zeros((1, 4)), jnp.zeros(1))["params"]
  apply = lambda params, x, t: network.apply({"params": params}, x, t)
  model = interpolants.from_function(apply, init, bridge)
  x0 = jax.random.normal(KEY, (32, 2))
  batch = dict(x0=x0, x1=x0 + 2.0)
  loss = interpolants.regression(model)
  value, grads = jax.jit(jax.value_and_grad(lambda p: loss(KEY, p, batch)[0]))(
    init
  )
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert any(np.any(g) for g in jax.tree.leaves(grads))
  v, eta = model(x0, 0.3)
  assert v.shape == eta.shape == x0.shape
  np.testing.assert_allclose(
    model(x0, 0.0).x0, model(x0, bridge.t_min).x0, rtol=1e-6
  )


# --- likelihood and bounds ---------------------------------------------------


def test_log_likelihood_along_the_ode_of_any_table(x64):
  exact = exact_ring()
  x1 = exact.sample(KEY, 0.0, 16)[2]
  model = likelihood.with_divergence(exact)
  table = interpolants.transport(
    dataclasses.replace(BROWNIAN, t_min=1e-5),
    1.0 - np.linspace(0, 1, 101) ** 2 * (3 - 2 * np.linspace(0, 1, 101)),
    method="rk4",
  )
  x0, change = sampling.sample(KEY, model, table, (x1, jnp.zeros(16)))
  value = exact.log_prob(x0, 0.0) - change
  np.testing.assert_allclose(value, exact.log_prob(x1, 1.0), atol=5e-3)


def test_hutchinson_is_unbiased_over_probes(x64):
  exact = exact_ring()
  x = np.random.default_rng(0).standard_normal((3, 2)) * 2.0
  state = (x, jnp.zeros(3))
  answer = jax.jit(lambda model: model(state, 0.4))
  whole = answer(likelihood.with_divergence(exact))
  signs = itertools.product((-1.0, 1.0), repeat=2)  # all Rademacher probes
  probes = [np.broadcast_to(s, x.shape) for s in signs]
  parts = [answer(likelihood.with_divergence(exact, p)) for p in probes]
  for half in (0, 1):
    mean = np.mean([p[half][1] for p in parts], axis=0)
    np.testing.assert_allclose(mean, whole[half][1], rtol=1e-9)
    np.testing.assert_allclose(parts[0][half][0], whole[half][0], rtol=1e-12)


def test_the_sde_estimates_the_likelihood():
  """Unbiased with exact fields: a mean over paths, and its standard error."""
  exact, paths = exact_ring(), 600
  points = np.repeat([[3.0, 0.2], [1.0, 2.0]], paths, axis=0)
  value = interpolants.log_likelihood(
    KEY,
    exact,
    BROWNIAN,
    jnp.asarray(points, jnp.float32),
    lambda x: exact.log_prob(x, 0.0),
    np.linspace(1.0, 0.0, 301),
    diffusion=lambda t: 2.0 * t * (1.0 - t) + 1e-3,
  )
  value = np.asarray(value).reshape(2, paths)
  truth = exact.log_prob(jnp.asarray(points[::paths], jnp.float32), 1.0)
  error = value.std(axis=1) / np.sqrt(paths)
  assert (error < 0.1).all()
  assert (abs(value.mean(axis=1) - truth) < 4.0 * error + 0.03).all()


def test_the_bound_holds_and_its_best_diffusion():
  """KL between Gaussians: the learned drift is wrong by a constant."""
  bridge, eps, shift = BROWNIAN, 0.7, np.asarray([0.3, 0.0, -0.2])
  ends = oracles.gaussian(MU, S0), oracles.gaussian(NU, S1)
  exact = interpolants.exact_fields(bridge, *ends)
  wrong = lambda x, t: exact(x, t)._replace(x0=exact(x, t).x0 + shift)
  _, x0, x1 = exact.sample(KEY, 0.5, 512)
  batch = dict(x0=x0, x1=x1)
  found = jax.jit(
    lambda: interpolants.errors(KEY, wrong, exact, bridge, batch, eps)
  )()
  tight, loose = interpolants.kl_bound(found, eps)
  square = float(np.sum(shift**2))
  assert tight == pytest.approx(square / (4 * eps), rel=1e-4)
  assert loose == pytest.approx(square / (2 * eps), rel=1e-4)
  table = interpolants.transport(
    bridge, np.linspace(0, 1, 1001), method="euler", diffusion=eps
  )
  # a constant error of the drift moves the mean alone; linearly, so twice
  t = table.t[:, None]
  h = 1.0 / 1000
  c = (1 - t) ** 2 * S0 + t**2 * S1 + 2 * t * (1 - t)
  slope = (t * S1 - (1 - t) * S0 + (1 - 2 * t) - eps) / c
  moved = 0.0
  for s in slope:
    moved = moved + h * (s * moved + shift)
  kl = 0.5 * np.sum(moved**2 / S1)
  assert 0.0 < kl < tight
  assert float(
    interpolants.best_diffusion(interpolants.Errors(8.0, 2.0, 0.0))
  ) == pytest.approx(2.0)


# --- the Schroedinger bridge -------------------------------------------------


def test_gaussian_bridge_solves_its_sde(x64):
  """Its drift, Euler-Maruyama in law, carries one Gaussian to the other."""
  s0 = np.asarray([[1.0, 0.4], [0.4, 0.5]])
  s1 = np.asarray([[0.3, -0.2], [-0.2, 0.9]])
  bridge = interpolants.schroedinger_gaussian(
    oracles.gaussian([1.0, 0.0], s0), oracles.gaussian([0.0, 2.0], s1), 0.3
  )
  n = 4000
  mean, covariance = bridge.mean0, s0
  for i in range(n):
    t, h = i / n, 1.0 / n
    at = lambda x, t=t: bridge.drift(np.asarray(x)[None], t)[0]
    offset = at(np.zeros(2))
    matrix = np.stack([at(e) - offset for e in np.eye(2)], axis=1)
    step = np.eye(2) + h * matrix
    mean = step @ mean + h * offset
    covariance = step @ covariance @ step.T + 0.6 * h * np.eye(2)
    if i + 1 == n // 2:
      middle = bridge.moments(0.5)
      np.testing.assert_allclose(mean, middle[0], atol=2e-3)
      np.testing.assert_allclose(covariance, middle[1], atol=2e-3)
  np.testing.assert_allclose(mean, [0.0, 2.0], atol=2e-3)
  np.testing.assert_allclose(covariance, s1, atol=2e-3)


def test_gaussian_bridge_has_the_markov_coupling():
  """Entropic optimality: log of the coupling's density has no more than a
  product term x0 . x1 / (2 eps) in both (Sinkhorn's form)."""
  eps = 0.4
  bridge = interpolants.schroedinger_gaussian(
    oracles.gaussian([0.0, 0.0], [0.5, 2.0]),
    oracles.gaussian([0.0, 0.0], [1.5, 0.3]),
    eps,
  )
  joint = np.block(
    [
      [bridge.covariance0, bridge.coupling],
      [bridge.coupling.T, bridge.covariance1],
    ]
  )
  cross = -np.linalg.inv(joint)[:2, 2:]
  np.testing.assert_allclose(cross, np.eye(2) / (2 * eps), atol=1e-9)


def control_cost(alpha, beta, gamma2, s0, s1, eps):
  """Returns int E |b_F|^2 / 2 dt of a bridge between centred Gaussians.

  On the line b_F = (C' / (2 C) - eps / C) x with C the variance of x_t.
  """
  t = (np.arange(20_000) + 0.5) / 20_000
  c = alpha(t) ** 2 * s0 + beta(t) ** 2 * s1 + gamma2(t)
  rate = np.gradient(c, t)
  return np.mean(0.5 * (rate / 2 - eps) ** 2 / c)


def test_the_objective_is_minus_the_control_cost(x64):
  """Estimated at the best u, for the linear bridge."""
  eps, s0, s1 = 0.5, 1.0, 0.4
  bridge = interpolants.interpolant("linear", "brownian", 1.0)
  variance = lambda t: (1 - t) ** 2 * s0 + t**2 * s1 + t * (1 - t)

  def u(x, t):
    rate = -2 * (1 - t) * s0 + 2 * t * s1 + 1 - 2 * t
    return ((rate / 2 - eps) / variance(t))[:, None] * x

  n = 20_000
  x0 = jax.random.normal(KEY, (n, 1)) * np.sqrt(s0)
  x1 = jax.random.normal(jax.random.fold_in(KEY, 1), (n, 1)) * np.sqrt(s1)
  batch = dict(x0=x0, x1=x1)
  objective = jax.jit(
    lambda shift: interpolants.schroedinger(
      KEY, bridge, lambda x, t: u(x, t) + shift, batch, eps
    )
  )
  value = objective(0.0)
  cost = control_cost(
    lambda t: 1 - t, lambda t: t, lambda t: t * (1 - t), s0, s1, eps
  )
  assert float(value) == pytest.approx(-cost, abs=0.02)
  assert objective(0.3) > value + 0.02


def test_the_bridge_of_least_cost_is_the_closed_form():
  eps, s0, s1 = 0.5, 1.0, 0.4
  exact = interpolants.schroedinger_gaussian(
    oracles.gaussian([0.0], s0), oracles.gaussian([0.0], s1), eps
  )
  c = float(exact.coupling[0, 0])
  latent = lambda t: 2 * t * (1 - t) * (eps + c)  # same law, ends uncoupled
  bent = lambda a: lambda t: latent(t) * (1 + a * t * (1 - t))
  cost = lambda gamma2: control_cost(
    lambda t: 1 - t, lambda t: t, gamma2, s0, s1, eps
  )
  best = cost(latent)
  assert cost(bent(0.3)) > best
  assert cost(bent(-0.3)) > best
  slope = (cost(bent(1e-3)) - cost(bent(-1e-3))) / 2e-3
  assert abs(slope) < 1e-5
  assert cost(lambda t: t * (1 - t)) > best


# --- refusals ----------------------------------------------------------------


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: interpolants.interpolant("bent"), "path must be one of"),
    (lambda: interpolants.interpolant("linear", "odd"), "gamma must be one of"),
    (lambda: interpolants.interpolant(a=0.0), "a is a factor"),
    (lambda: interpolants.interpolant("trig", "sin2"), "reaches gamma"),
    (lambda: interpolants.one_sided("mirror"), "path must be one of"),
    (
      lambda: bridges.from_functions(lambda t: 1 - t, lambda t: t, lambda t: t),
      "gamma_squared must be 0 at t = 0 and 0 at t = 1",
    ),
    (
      lambda: bridges.from_functions(
        lambda t: 1 - t, lambda t: 2 * t, lambda t: 0 * t
      ),
      "beta must be 0 at t = 0 and 1",
    ),
    (
      lambda: bridges.from_functions(
        lambda t: 1 - t, lambda t: t, lambda t: -t * (1 - t)
      ),
      "negative at t",
    ),
    (
      lambda: interpolants.transport(
        interpolants.interpolant(gamma="none"), [0.0, 1.0], diffusion=1.0
      ),
      "no score",
    ),
    (
      lambda: interpolants.transport(BROWNIAN, [0.0, 1.0], diffusion=-1.0),
      "eps >= 0",
    ),
    (
      lambda: interpolants.transport(
        BROWNIAN, [0.0, 1.0], diffusion=1.0, method="rk4"
      ),
      "ODE alone",
    ),
    (lambda: interpolants.transport(BROWNIAN, [0.0, 0.5, 0.5]), "strictly"),
    (lambda: interpolants.transport(BROWNIAN, [0.0, 1.5]), r"\[0, 1\]"),
    (lambda: interpolants.transport(BROWNIAN, [0.5]), "two times"),
    (
      lambda: BROWNIAN.interpolate(
        0.5, np.zeros((2, 3)), np.zeros((2, 2)), np.zeros((2, 2))
      ),
      "x0 has shape",
    ),
    (
      lambda: BROWNIAN.interpolate(0.5, None, np.zeros((2, 2)), None),
      "needs both",
    ),
    (
      lambda: interpolants.score(print, interpolants.interpolant(gamma="none")),
      "no score",
    ),
    (lambda: interpolants.as_denoiser(None, BROWNIAN), "two-sided"),
    (
      lambda: interpolants.from_function(linear, {}, BROWNIAN, ("v",)),
      "latent noise",
    ),
    (
      lambda: interpolants.from_function(linear, {}, BROWNIAN, ("w",)),
      "heads must be",
    ),
    (
      lambda: interpolants.regression(
        interpolants.from_function(linear, {}, BROWNIAN)
      )(KEY, {}, dict(x1=np.zeros((2, 2)))),
      "x0 and x1",
    ),
    (
      lambda: interpolants.log_likelihood(
        KEY, None, BROWNIAN, np.zeros((1, 2)), None, [1.0, 0.5]
      ),
      "from 1 to 0",
    ),
    (
      lambda: interpolants.log_likelihood(
        KEY, None, BROWNIAN, np.zeros((1, 2)), None, [1.0, 0.0], diffusion=0.0
      ),
      "with_divergence",
    ),
    (
      lambda: interpolants.kl_bound(interpolants.Errors(1.0, 1.0, 1.0), 0.0),
      "eps > 0",
    ),
    (lambda: interpolants.exact_fields(BROWNIAN, None, ring()[1]), "both"),
    (
      lambda: interpolants.exact_fields(
        BROWNIAN, oracles.gaussian([0.0], 1.0), ring()[1]
      ),
      "1 and 2 dimensions",
    ),
    (
      lambda: interpolants.schroedinger_gaussian(*ring(), 1.0),
      "single Gaussians",
    ),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_network_of_another_shape_is_refused():
  model = interpolants.from_function(lambda p, x, t: x[:, :1], {}, BROWNIAN)
  with pytest.raises(ValueError, match="last axis"):
    model(jnp.zeros((3, 2)), 0.5)

"""Phased DMD: unbiased targets, bridges, experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import oracles
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.distillation.phased_dmd import bridge
from jaxdiff.distillation.phased_dmd import further
from jaxdiff.distillation.phased_dmd import unbiased
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_the_target_of_a_phase_is_unbiased(name, x64):
  """E[v* | x_t] over a mixture of points is the velocity of the marginal."""
  process = cases.PROCESSES[name]
  s, t = (float(process.time_at(v)) for v in (1.0, 4.0))
  points, w = (
    np.asarray([-1.0, 0.0, 1.0, 2.0]),
    np.asarray([0.1, 0.4, 0.2, 0.3]),
  )
  x_t = np.linspace(-3.0, 3.0, 7)
  a, b = bridge(process, s, t)
  alpha, sigma = process.alpha(t), process.sigma(t)
  alpha_s, sigma_s = process.alpha(s), process.sigma(s)
  joint = w * np.exp(-0.5 * ((x_t[:, None] - alpha * points) / sigma) ** 2)
  p = joint / joint.sum(1, keepdims=True)
  x0 = p @ points
  velocity = (x_t - alpha * x0) / sigma - x0
  # x_s given x_t and x_0 is Gaussian, and the target is linear in it
  gain = a * sigma_s**2 / sigma**2
  x_s = alpha_s * points + gain * (x_t[:, None] - alpha * points)
  e = (x_t[:, None] - a * x_s) / b
  aim = unbiased(process, x_s, e, s, t)
  given = np.sum(p * (aim.eps - aim.x0), axis=1)
  np.testing.assert_allclose(given, velocity, rtol=1e-12, atol=1e-12)
  assert abs(np.sum(p * (e - x_s), axis=1) - velocity).max() > 0.1
  pair = alpha * np.asarray(aim.x0) + sigma * np.asarray(aim.eps)
  expected = np.broadcast_to(x_t[:, None], pair.shape)
  np.testing.assert_allclose(pair, expected, atol=1e-12)
  if name == "flow":  # the coefficients of the paper
    slope = (alpha_s**2 * sigma + alpha * sigma_s**2) / (alpha_s**2 * b)
    paper = slope * e - x_s / alpha_s
    np.testing.assert_allclose(aim.eps - aim.x0, paper, atol=1e-12)


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_without_noise_at_its_end_a_phase_is_denoising(name, x64):
  process = cases.PROCESSES[name]
  t = np.asarray([process.t_min, 0.5 * process.t_max, process.t_max])
  zero = process.t_zero
  a, b = bridge(process, zero, t)
  np.testing.assert_allclose(a, process.alpha(t), rtol=1e-12)
  np.testing.assert_allclose(b, process.sigma(t), rtol=1e-12)
  x, e = np.asarray([[0.3], [1.0], [2.0]]), np.asarray([[1.0], [-2.0], [0.5]])
  aim = unbiased(process, x, e, zero, t)
  np.testing.assert_allclose(aim.x0, x, rtol=1e-12)
  np.testing.assert_allclose(aim.eps, e, rtol=1e-12)


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_two_bridges_are_one(name, x64):
  process = cases.PROCESSES[name]
  s, m, t = (float(process.time_at(v)) for v in (0.3, 1.0, 4.0))
  (a1, b1), (a2, b2), (a, b) = (
    bridge(process, *ends) for ends in ((s, m), (m, t), (s, t))
  )
  assert a == pytest.approx(a1 * a2, rel=1e-12)
  assert b**2 == pytest.approx(b2**2 + (a2 * b1) ** 2, rel=1e-12)
  x = further(process, jnp.ones((1, 1)), jnp.full((1, 1), 2.0), s, t)
  assert float(x[0, 0]) == pytest.approx(a + 2.0 * b, rel=1e-12)


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_the_velocity_form_of_the_gradient_is_the_score_form(name, x64):
  """w (v_T - v_F) = -a (score_T - score_F), and DMD's x0 form is along it."""
  process = cases.PROCESSES[name]
  s, t = (float(process.time_at(v)) for v in (1.0, 4.0))
  teacher = oracles.exact(oracles.g2(), process)
  fake = oracles.exact(oracles.gaussian(np.zeros(2), 1.0), process)
  x = 3.0 * jnp.asarray(cases.SIX_POINTS["image"], jnp.float64)
  real, other = teacher(x, t), fake(x, t)
  a, _ = bridge(process, s, t)
  alpha, sigma = process.alpha(t), process.sigma(t)
  w = alpha * a / (alpha * sigma + sigma**2)
  velocity = lambda p: p.eps - p.x0
  given = w * (velocity(real) - velocity(other))
  score = lambda p: -p.eps / sigma
  np.testing.assert_allclose(
    given, -a * (score(real) - score(other)), rtol=1e-10, atol=1e-12
  )
  np.testing.assert_allclose(
    given, a * alpha / sigma**2 * (other.x0 - real.x0), rtol=1e-9, atol=1e-12
  )


@pytest.mark.parametrize(
  "name",
  ["edm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vp", "flow"))],
)
def test_one_phase_is_dmd(name):
  process = cases.PROCESSES[name]
  teacher, student = (
    oracles.exact(oracles.g2(), process),
    cases.network(process),
  )
  grid = [process.t_max, process.t_zero]
  one = distillation.phased_dmd(
    teacher, student, optimizer=cases.SGD, grid=grid, phases=1
  )
  dmd = distillation.dmd(teacher, student, optimizer=cases.SGD)
  fake = jax.tree.map(lambda p: p + 0.01, student.params)
  stacked = jax.tree.map(lambda p: p[None], fake)
  pairs = [
    (
      cases.gradient(one, player, cases.nets(one) | {"fake": stacked}),
      cases.gradient(dmd, player, cases.nets(dmd) | {"fake": {"score": fake}}),
    )
    for player in ("student", "fake")
  ]
  pairs[1] = pairs[1][0], pairs[1][1]["score"]
  for given, expected in pairs:
    assert not cases.is_zero(expected)
    for g, e in zip(*map(jax.tree.leaves, (given, expected)), strict=True):
      np.testing.assert_allclose(g[0], e, rtol=1e-4, atol=1e-6)


def _phases(**options):
  student = cases.network(cases.PROCESSES["flow"], prediction="flow")
  defaults = dict(
    optimizer=cases.SGD, grid=[1.0, 0.8, 0.6, 0.3, 0.0], updates=5
  )
  method = distillation.phased_dmd(student, student, **defaults | options)
  fake = jax.tree.map(lambda p: p + 0.01, method.params["fake"])
  return method, {"fake": fake}


@pytest.mark.parametrize("phases", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_phase_trains_its_expert_alone(phases):
  method, other = _phases(phases=phases)
  assert cases.is_zero(
    cases.gradient(method, "student")
  )  # fake score = teacher
  for player in ("student", "fake"):
    gradients = cases.gradients(method, player)
    for step, k in ((0, 0), (7, 1), (5 * phases, phases - 1), (99, phases - 1)):
      nets = cases.nets(method, step=jnp.asarray(step), **other)
      gradient = gradients(nets, cases.SIX_POINTS)
      moved = [
        not cases.is_zero(jax.tree.map(lambda g, i=i: g[i], gradient))
        for i in range(phases)
      ]
      assert moved == [i == k for i in range(phases)]


@pytest.mark.parametrize("scalar", [True, False])
def test_experts_answer_in_their_own_phases(scalar):
  model = cases.network(cases.PROCESSES["flow"], prediction="flow")
  both = [model.params, jax.tree.map(lambda p: 2.0 * p, model.params)]
  experts = distillation.Experts(
    jax.tree.map(lambda *p: jnp.stack(p), *both),
    distillation.with_params(model, None),
    (1.0, 0.6, 0.0),
  )
  times = np.asarray([1.0, 0.61, 0.6, 0.3, 0.6, 0.01], np.float32)
  x = cases.SIX_POINTS["image"]
  if scalar:
    given = jnp.stack(
      [experts(x[i : i + 1], t).x0[0] for i, t in enumerate(times)]
    )
  else:
    given = experts(x, jnp.asarray(times)).x0
  for i, t in enumerate(times):
    own = distillation.with_params(model, both[int(t <= 0.6)])
    np.testing.assert_allclose(given[i], own(x[i : i + 1], t).x0[0], rtol=1e-5)


def test_experts_are_sampled_by_any_table():
  """What DDIM makes is what the phases were trained as: the last one's x0."""
  method, _ = _phases(phases=2)
  grid = np.asarray([1.0, 0.8, 0.6, 0.3, 0.0])
  process = cases.PROCESSES["flow"]
  x = process.prior(cases.KEY, (6, 2))
  for model, table in (
    distillation.sampler(method.student, grid, gamma=0.0),
    (method.student, solvers.ddim(process, grid)),
  ):
    given = sampling.sample(cases.KEY, model, table, x)
    y = x
    for i, (t, s) in enumerate(zip(grid, grid[1:])):
      predicted = method.student.expert(i // 2)(y, t)
      y = distillation.jump(process, predicted, y, t, s)
    np.testing.assert_allclose(given, y, rtol=1e-4, atol=1e-5)


def test_phases_are_checked():
  flow = cases.PROCESSES["flow"]
  with pytest.raises(ValueError, match="strictly decreasing"):
    _phases(grid=[1.0, 0.3, 0.6, 0.0])
  with pytest.raises(ValueError, match="4 steps is not parted by phases=3"):
    _phases(phases=3)
  with pytest.raises(ValueError, match=r"need s < t, got s = 0.5 and t = 0.5"):
    unbiased(flow, np.ones((1, 1)), np.ones((1, 1)), 0.5, 0.5)
  with pytest.raises(ValueError, match="cannot end at pure noise"):
    bridge(flow, 1.0, 1.0)

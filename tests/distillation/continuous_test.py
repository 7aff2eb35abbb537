"""Consistency in continuous time, and other students of an ODE's velocity."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.distillation.mean_flow import correction
from jaxdiff.distillation.mean_flow import mean_velocity
from jaxdiff.distillation.parts import tangents
from jaxdiff.distillation.parts import trigflow
from jaxdiff.distillation.reflow import line
from jaxdiff.distillation.scm import field as field_of
from jaxdiff.distillation.scm import tangent
from jaxdiff.distillation.shortcut import lengths
from jaxdiff.distillation.shortcut import two_halves
from jaxdiff.networks import attention
from jaxdiff.networks import transformer
from jaxdiff.networks import unet
from jaxdiff.predictions import Prediction

D = 0.7  # sigma_data
PROCESSES = {
  "edm": processes.edm(0.02, 20.0),
  "vp": processes.vp_linear(),
  "flow": processes.rectified_flow(0.02, 0.95),
  "trig": trigflow.process(D, 0.02),
}
EDM = PROCESSES["edm"]
NAMES = [
  "edm",
  "flow",
  pytest.param("vp", marks=pytest.mark.slow),
  pytest.param("trig", marks=pytest.mark.slow),
]
SGD = optax.sgd(0.1)
TEACHER = oracles.exact(oracles.g2(), EDM)
BATCH = {"image": jax.random.normal(jax.random.key(9), (8, 2))}


def _student(process=EDM, *, jumps=False, dtype=jnp.float32, **options):
  """Returns a tiny network with parameters that are not zero anywhere."""
  module = networks.MLP(features=(8,), embedding=8)
  c = jnp.zeros((1, 2) if jumps else 1)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2)), c)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), dtype),
    shapes["params"],
  )
  return denoisers.from_linen(
    module, params, process, sigma_data=D, jumps=jumps, **options
  )


def _points(process, n=5, dtype=jnp.float64):
  """Returns (x, t): noised data at times all over the process."""
  levels = np.geomspace(0.05, 15.0, n)
  t = jnp.asarray(np.clip(process.time_at(levels), None, process.t_max), dtype)
  x0 = 0.6 * jax.random.normal(jax.random.key(1), (n, 2), dtype)
  x, _ = process.perturb(jax.random.key(2), x0, t)
  return x, t


def _map_of_gaussian(process, variance, jumps=False):
  """Returns the student that is the exact flow map of N(0, variance)."""

  def apply(params, x, c):
    spread = lambda t: jnp.sqrt(
      process.alpha(t) ** 2 * variance + process.sigma(t) ** 2
    )[:, None]
    if not jumps:
      return math.sqrt(variance) / spread(c) * x
    t, s = c[:, 0], c[:, 1]
    there = spread(s) / spread(t) * x
    ratio = (process.sigma(s) / process.sigma(t))[:, None]
    gain = process.alpha(s)[:, None] - process.alpha(t)[:, None] * ratio
    return (there - ratio * x) / gain

  return denoisers.from_function(
    apply,
    {},
    process,
    prediction="x0",
    time="t",
    sigma_data=D,
    jumps=jumps,
  )


# --- TrigFlow -----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_process_is_a_turn_by_an_angle(name, x64):
  process = PROCESSES[name]
  x, t = _points(process)
  eps = jnp.sin(5.0 * x)
  x0 = (x - process.sigma(t)[:, None] * eps) / process.alpha(t)[:, None]
  pair = Prediction(x0, eps)
  cos, sin = trigflow.turn(process, t, D)
  a = trigflow.angle(process, t, D)
  np.testing.assert_allclose(cos, np.cos(a), rtol=1e-12)
  np.testing.assert_allclose(sin, np.sin(a), rtol=1e-12)
  np.testing.assert_allclose(
    np.tan(a), process.sigma(t) / (D * process.alpha(t)), rtol=1e-10
  )
  v = trigflow.velocity(process, pair, t, D)
  alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
  edm = predictions.target("edm", pair.x0, pair.eps, alpha, sigma, D)
  np.testing.assert_allclose(v, -D * edm, rtol=1e-10)
  y = D * predictions.input_scale(alpha, sigma, D) * x
  back = cos[:, None] * y - sin[:, None] * v
  np.testing.assert_allclose(back, pair.x0, rtol=1e-9, atol=1e-12)


def test_models_carried_between_flow_trig_and_edm_agree(x64):
  levels = np.geomspace(0.05, 10.0, 6)
  z = jax.random.normal(jax.random.key(0), (6, 2), jnp.float64)
  for own, other in (("edm", "flow"), ("flow", "trig"), ("trig", "edm")):
    model = oracles.exact(oracles.g2(), PROCESSES[own])
    process = PROCESSES[other]
    t = jnp.asarray(process.time_at(levels))
    x = jnp.hypot(process.alpha(t), process.sigma(t))[:, None] * z
    told = trigflow.under(model, process)(x, t)
    exact = oracles.exact(oracles.g2(), process)(x, t)
    np.testing.assert_allclose(told.x0, exact.x0, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(told.eps, exact.eps, rtol=1e-9, atol=1e-12)


def test_the_process_of_trigflow_is_consistent(x64):
  process = trigflow.process(D)
  t = np.linspace(process.t_min, process.t_max, 9)
  np.testing.assert_allclose(
    process.log_snr_inverse(process.log_snr(t)), t, rtol=1e-12
  )
  h = 1e-6
  for f, rate in zip((process.alpha, process.sigma), process.rates(t)):
    np.testing.assert_allclose((f(t + h) - f(t - h)) / (2 * h), rate, atol=1e-9)
  assert process.alpha(process.t_max) == 0.0
  assert process.noise_level(process.t_min) == pytest.approx(0.002)
  x = process.prior(jax.random.key(0), (4000, 2))
  assert float(x.std()) == pytest.approx(D, rel=0.03)


def test_the_velocity_of_trigflow_is_finite_at_both_ends():
  flow = processes.rectified_flow()
  pair = Prediction(jnp.ones((2, 1)), jnp.full((2, 1), 2.0))
  v = trigflow.velocity(flow, pair, jnp.asarray([0.0, 1.0]), D)
  np.testing.assert_allclose(v[:, 0], [2.0 * D, -1.0], rtol=1e-6)
  field = trigflow.field(lambda x, t: Prediction(0.0 * x, x), D, EDM)
  assert np.isfinite(field(jnp.ones((1, 2)), jnp.asarray([math.pi / 2]))).all()


def test_bad_angles_and_scales_are_refused():
  field = trigflow.field(TEACHER, D)
  with pytest.raises(ValueError, match=r"inside \(0, pi / 2\], got 0.0"):
    field(jnp.ones((1, 2)), 0.0)
  with pytest.raises(ValueError, match="got 1.7"):
    field(jnp.ones((1, 2)), 1.7)
  with pytest.raises(TypeError, match="floating point, got int"):
    field(jnp.ones((1, 2)), jnp.asarray([1]))
  x = 2.0 * np.random.default_rng(0).standard_normal((500, 2))
  trigflow.check_sigma_data(x, 1.9)
  with pytest.raises(ValueError, match="deviation of the data is 1.95"):
    distillation.scm(TEACHER, _student(), optimizer=SGD, data=x)
  with pytest.raises(ValueError, match="deviation of the data is 1.95"):
    distillation.rcm(TEACHER, _student(), optimizer=SGD, data=x)


# --- derivatives along an ODE -------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_is_that_along_the_trajectory(name, x64):
  """Against differences of F at exact points of a Gaussian's trajectory."""
  process = PROCESSES[name]
  x, t = _points(process, dtype=jnp.float64)
  law = oracles.gaussian(np.asarray([0.3, -0.2]), 0.5)
  pair = oracles.exact(law, process)(x, t)
  field = field_of(_student(process, dtype=jnp.float64))
  ends = lambda t: (process.alpha(t)[:, None], process.sigma(t)[:, None])
  at = lambda s: field(oracles.flow_map(law, x, ends(t), ends(s)), s)
  h = 1e-5 * process.t_min
  slope = (at(t + h) - at(t - h)) / (2 * h)
  for mode in ("exact", "finite_difference"):
    rate = tangents.log_noise_rate(process, t)
    value, found = tangents.along_ode(field, process, x, t, pair, rate, mode)
    expected = rate[:, None] * slope
    np.testing.assert_allclose(value, field(x, t), rtol=1e-12)
    error = abs(found - expected).max() / abs(expected).max()
    assert float(error) < 1e-6, mode


@pytest.mark.parametrize("name", NAMES)
def test_clocks_are_what_their_names_say(name, x64):
  process = PROCESSES[name]
  _, t = _points(process)
  h = 1e-6 * t
  slope = lambda f: (f(t + h) - f(t - h)) / (2 * h)
  log_noise = slope(lambda t: -process.log_snr(t))
  flow = slope(lambda t: tangents.flow_time(process, t))
  one = tangents.log_noise_rate(process, t) * log_noise
  np.testing.assert_allclose(one, 1.0, rtol=1e-7)
  np.testing.assert_allclose(
    tangents.flow_rate(process, t) * flow, 1.0, rtol=1e-7
  )


def test_the_clock_is_the_rearrangement_of_the_paper(x64):
  """cos a sin a dF / da, the factor put in afterwards, is dF / du."""
  process = PROCESSES["trig"]
  x, a = _points(process)
  model = _student(process, dtype=jnp.float64)
  pair = oracles.exact(oracles.g2(), process)(x, a)
  field = field_of(model)
  velocity = trigflow.velocity(process, pair, a, D)  # dx / da, as y = x here
  _, plain = jax.jvp(field, (x, a), (velocity, jnp.ones_like(a)))
  expected = (jnp.cos(a) * jnp.sin(a))[:, None] * plain
  rate = tangents.log_noise_rate(process, a)
  _, found = tangents.along_ode(field, process, x, a, pair, rate)
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_networks_without_a_forward_mode_and_integer_times_are_refused():
  fused = jax.custom_vjp(lambda x: 3.0 * x)
  fused.defvjp(lambda x: (3.0 * x, None), lambda _, g: (3.0 * g,))
  x, t = jnp.ones((2, 1)), jnp.asarray([0.5, 2.0])
  pair = Prediction(x, 2.0 * x)  # dx / dt = eps under EDM
  along = lambda t, mode="exact": tangents.along_ode(
    lambda x, t: fused(x), EDM, x, t, pair, jnp.ones(2), mode
  )[1]
  with pytest.raises(TypeError, match='or choose jvp="finite_difference"'):
    along(t)
  slope = along(t, "finite_difference")
  np.testing.assert_allclose(slope, 6.0 * x, rtol=1e-3)
  with pytest.raises(ValueError, match="jvp must be one of 'exact'"):
    along(t, "central")
  with pytest.raises(TypeError, match="a time of training must be floating"):
    along(jnp.asarray([1, 2]))


# --- sCM ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_tangent_of_a_gaussians_flow_map_vanishes(name, x64):
  process, variance = PROCESSES[name], 0.6
  x, t = _points(process)
  model = _map_of_gaussian(process, variance)
  pair = oracles.exact(oracles.gaussian(np.zeros(2), variance), process)(x, t)
  _, g = tangent(model, x, t, pair)
  np.testing.assert_allclose(g, 0.0, atol=1e-12)
  wrong = tangent(_map_of_gaussian(process, 1.3), x, t, pair)[1]
  assert float(abs(wrong).max()) > 0.05


def test_the_velocity_of_the_data_is_the_teachers_in_the_mean(x64):
  """Data at +1 and -1: the tangents of both, by their odds given x."""
  law = oracles.mixture(np.asarray([[1.0], [-1.0]]), [0.0, 0.0], [0.3, 0.7])
  x = jnp.asarray([[0.2], [-1.1], [3.0]])
  t = jnp.asarray([0.7, 1.5, 6.0])
  mean = oracles.exact(law, EDM)(x, t).x0
  x0 = jnp.concatenate([mean, jnp.ones_like(x), -jnp.ones_like(x)])
  x, t = jnp.tile(x, (3, 1)), jnp.tile(t, 3)
  pair = Prediction(x0, (x - x0) / t[:, None])
  _, g = tangent(_map_of_gaussian(EDM, 0.8), x, t, pair)
  expected, above, below = g.reshape(3, 3, 1)
  odds = 0.5 * (1.0 + mean)  # of +1
  np.testing.assert_allclose(
    odds * above + (1.0 - odds) * below, expected, rtol=1e-11, atol=1e-12
  )


def test_without_warm_up_the_student_learns_the_teachers_velocity(x64):
  x, t = _points(EDM)
  pair, student = TEACHER(x, t), _student(dtype=jnp.float64)
  own, g = tangent(student, x, t, pair, r=0.0)
  cos, _ = trigflow.turn(EDM, t, D)
  aim = trigflow.velocity(EDM, pair, t, D) / D
  np.testing.assert_allclose(g, -(cos[:, None] ** 2) * (own - aim), rtol=1e-12)


def _grads(method, key, step=10**6, player="student", batch=BATCH, **nets):
  """Returns (value, metrics), gradients of a player's loss."""
  nets = {
    **method.frozen,
    **method.params,
    "student": method.student.params,
    "ema": method.student.params,
    "step": jnp.asarray(step),
    **nets,
  }
  loss = method.players[player].loss
  grads = jax.value_and_grad(loss, argnums=1, has_aux=True)
  # a teacher may be a plain function, which is no argument of a program
  return jax.jit(lambda params: grads(key, params, nets, batch))(nets[player])


@pytest.mark.slow
def test_the_gradient_is_that_of_the_normalised_tangent():
  """d loss / d F = -2 g / (|g| + c) / D, for every sample."""
  student = _student()
  times = lambda key, n: jnp.geomspace(0.1, 10.0, n)
  method = distillation.scm(TEACHER, student, optimizer=SGD, times=times, c=0.1)
  key = jax.random.key(0)
  (value, said), found = _grads(method, key)
  t = times(None, 8)
  x, _ = EDM.perturb(jax.random.split(key)[1], BATCH["image"], t)
  _, g = tangent(student, x, t, TEACHER(x, t))
  norm = jnp.linalg.norm(g, axis=1, keepdims=True)
  step = g / (norm + 0.1)
  answer = lambda p: field_of(dataclasses.replace(student, params=p))(x, t)
  pull = jax.vjp(answer, student.params)[1]
  (expected,) = pull(-2.0 * step / step.size)
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
  assert float(value) == pytest.approx(float(jnp.mean(step**2)), rel=1e-5)
  assert float(said["tangent"]) == pytest.approx(float(norm.mean()), rel=1e-5)
  assert float(_grads(method, key, step=99)[0][1]["warmup"]) == pytest.approx(
    0.01
  )


def test_a_sample_whose_tangent_is_not_finite_is_left_out():
  def broken(x, t):
    pair = TEACHER(x, t)
    bad = (jnp.arange(len(x)) == 0)[:, None]
    return Prediction(jnp.where(bad, jnp.nan, pair.x0), pair.eps)

  method = distillation.scm(broken, _student(), optimizer=SGD)
  (value, _), grads = _grads(method, jax.random.key(0))
  assert 0 < float(value) < 7 / 8 / 2  # |step|^2 < 1 of seven samples of two
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_a_learned_weight_begins_as_none():
  key = jax.random.key(0)
  plain = distillation.scm(TEACHER, _student(), optimizer=SGD)
  learned = distillation.scm(TEACHER, _student(), optimizer=SGD, adaptive=True)
  (one, _), grads = _grads(plain, key)
  (two, _), same = _grads(learned, key)
  assert float(one) == float(two)
  chex.assert_trees_all_equal(grads, same)
  _, slope = _grads(learned, key, player="weight")
  # d / du E e^-u l + u = 1 - E l at u = 0
  assert float(slope["bias"]) == pytest.approx(1.0 - float(one), rel=1e-5)


# --- rCM ----------------------------------------------------------------------


def test_rcm_without_matching_is_scm_bitwise():
  times = losses.times.log_normal(EDM, -1.0, 1.4)
  options = dict(optimizer=SGD, times=times, warmup=100)
  one = distillation.scm(TEACHER, _student(), **options)
  two = distillation.rcm(TEACHER, _student(), dmd_weight=0.0, **options)
  assert set(two.players) == {"student"}
  (value, _), grads = _grads(one, jax.random.key(0), 30)
  (same, _), other = _grads(two, jax.random.key(0), 30)
  assert float(value) == float(same)
  chex.assert_trees_all_equal(grads, other)


def test_rcm_without_consistency_is_dmd_after_its_warm_up():
  generator = distillation.generators.one_step(EDM)
  times = losses.times.uniform_log_snr(EDM)
  options = dict(optimizer=SGD, generator=generator)
  one = distillation.dmd(TEACHER, _student(), times=times, **options)
  two = distillation.rcm(
    TEACHER,
    _student(),
    scm_weight=0.0,
    dmd_weight=1.0,
    warmup=7,
    dmd_times=times,
    **options,
  )
  key = jax.random.key(0)
  fake = jax.tree.map(lambda p: 1.1 * p, two.params["fake"])
  (value, _), grads = _grads(
    one, jax.random.fold_in(key, 2), fake={"score": fake}
  )
  (same, said), other = _grads(two, key, 7, fake=fake)
  assert float(value) == pytest.approx(float(same), rel=1e-6)
  assert float(said["dmd"]) == float(same)
  chex.assert_trees_all_close(grads, other, rtol=1e-5, atol=1e-8)
  (nothing, _), rest = _grads(two, key, 6, fake=fake)
  assert float(nothing) == 0.0
  assert all(not leaf.any() for leaf in jax.tree.leaves(rest))
  assert not two.players["fake"].when(6)
  assert two.players["fake"].when(7)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_random_simulation_asks_at_falling_times(name):
  """With a teacher of one point the samples are that point."""
  process = PROCESSES[name]
  point = oracles.exact(oracles.gaussian(np.ones(2), 0.0), process)
  seen = []

  def model(x, t, *label):
    seen.append(t)
    return point(x, t)

  with jax.disable_jit():
    generate = distillation.random_simulation(
      process, losses.times.uniform_log_snr(process), 4
    )
    calls = set()
    for i in range(6):
      seen.clear()
      x = generate(jax.random.key(i), model, {"image": jnp.zeros((3, 2))})
      np.testing.assert_allclose(x, np.ones((3, 2)), rtol=2e-4, atol=2e-4)
      times = np.asarray(seen)
      np.testing.assert_allclose(times[0], process.t_max, rtol=1e-6)
      assert (np.diff(times, axis=0) <= 0).all()
      calls.add(len(seen))
  assert calls <= {1, 2, 3, 4}
  assert len(calls) > 1


def test_rcm_refuses_what_trains_nothing():
  with pytest.raises(ValueError, match="one of them is positive"):
    distillation.rcm(
      TEACHER, _student(), optimizer=SGD, scm_weight=0.0, dmd_weight=0.0
    )
  with pytest.raises(ValueError, match="got calls=0"):
    distillation.rcm(TEACHER, _student(), optimizer=SGD, calls=0)
  with pytest.raises(ValueError, match="velocity must be one of 'teacher'"):
    distillation.scm(TEACHER, _student(), optimizer=SGD, velocity="exact")
  with pytest.raises(ValueError, match="needs a teacher, got None"):
    distillation.scm(None, _student(), optimizer=SGD)


# --- MeanFlow, shortcuts ------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_velocity_of_a_gaussian_keeps_the_identity(name, x64):
  process, variance = PROCESSES[name], 0.6
  x, t = _points(process)
  s = jnp.asarray(process.time_at(0.5 * process.noise_level(t)))
  model = _map_of_gaussian(process, variance, jumps=True)
  pair = oracles.exact(oracles.gaussian(np.zeros(2), variance), process)(x, t)
  u = mean_velocity(model, x, t, s)
  less = correction(model, x, t, s, pair)
  assert float(abs(less).max()) > 1e-2
  np.testing.assert_allclose(u, pair.eps - pair.x0 - less, atol=1e-9)


@pytest.mark.parametrize(
  "velocity", ["teacher", pytest.param("data", marks=pytest.mark.slow)]
)
def test_mean_flow_without_jumps_is_flow_matching(velocity):
  process = PROCESSES["flow"]
  student = _student(process, jumps=True, prediction="flow")
  times = losses.times.uniform(process)
  teacher = oracles.exact(oracles.g2(), process)
  method = distillation.mean_flow(
    teacher,
    student,
    optimizer=SGD,
    velocity=velocity,
    times=times,
    share=1.0,
    power=0.0,
  )
  key = jax.random.key(0)
  (value, _), grads = _grads(method, key)
  *_, time_key, noise_key = jax.random.split(key, 5)
  t = times(time_key, 8)
  x, eps = process.perturb(noise_key, BATCH["image"], t)
  pair = teacher(x, t) if velocity == "teacher" else (BATCH["image"], eps)

  def matching(params):
    answer = dataclasses.replace(student, params=params)(x, t)
    error = losses.error(student, answer, *pair, t, "output")
    return 2.0 * error.mean()  # the sum over two values

  expected, same = jax.value_and_grad(matching)(student.params)
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  chex.assert_trees_all_close(grads, same, rtol=1e-4, atol=1e-5)


def test_students_of_mean_velocities_jump():
  for method in (distillation.mean_flow, distillation.shortcut):
    with pytest.raises(ValueError, match="jumps=True"):
      method(TEACHER, _student(), optimizer=SGD)
  student = _student(jumps=True)
  for method, bad, match in (
    (distillation.mean_flow, dict(share=1.5), "share is a part of the batch"),
    (distillation.shortcut, dict(share=1.0), "share is a part of the batch"),
    (distillation.shortcut, dict(levels=0), "levels counts the lengths"),
  ):
    with pytest.raises(ValueError, match=match):
      method(TEACHER, student, optimizer=SGD, **bad)


@pytest.mark.parametrize("name", NAMES)
def test_two_halves_of_an_exact_flow_map_are_the_whole(name, x64):
  process = PROCESSES[name]
  t, m, s, last = lengths(jax.random.key(0), process, 64, 3)
  tau = [tangents.flow_time(process, v) for v in (t, m, s)]
  np.testing.assert_allclose(tau[1], 0.5 * (tau[0] + tau[2]), rtol=1e-9)
  ends = tangents.flow_time(process, np.asarray([process.t_min, process.t_max]))
  length = (tau[0] - tau[2]) / (ends[1] - ends[0])
  level = np.log2(np.asarray(length))
  np.testing.assert_allclose(level, np.round(level), atol=1e-9)
  assert set(np.round(level)) == {0.0, -1.0, -2.0}
  np.testing.assert_array_equal(last, np.round(level) == -2.0)
  model = _map_of_gaussian(process, 0.6, jumps=True)
  x = jax.random.normal(jax.random.key(1), (64, 2), jnp.float64)
  x = x * jnp.hypot(process.alpha(t), process.sigma(t))[:, None]
  np.testing.assert_allclose(
    two_halves(model, x, t, m, s),
    mean_velocity(model, x, t, s),
    rtol=1e-7,
    atol=1e-8,
  )


def test_the_halves_of_the_shortest_jump_are_steps_of_the_velocity():
  """A student that answers x0 = how far it jumps; no length at the last."""

  def apply(params, x, c):
    return jnp.broadcast_to((c[:, 0] - c[:, 1])[:, None], x.shape)

  model = denoisers.from_function(
    apply, {}, EDM, prediction="x0", time="t", jumps=True
  )
  t, m, s = (jnp.asarray([v, v]) for v in (4.0, 2.0, 1.0))
  x = jnp.ones((2, 1))
  last = jnp.asarray([False, True])
  mean = two_halves(model, x, t, m, s, last=last)
  # eps = (x - x0) / t, and x_m = x0 + m eps
  far = 0.5 * ((1 - 2) / 4 - 2 + ((2 - 0.5) - 1) / 2 - 1)
  near = 0.5 * (1 / 4 + (1 / 2) / 2)
  np.testing.assert_allclose(mean[:, 0], [far, near], rtol=1e-6)


@pytest.mark.slow
def test_shortcuts_learn_velocities_and_halves():
  method = distillation.shortcut(TEACHER, _student(jumps=True), optimizer=SGD)
  (value, said), _ = _grads(method, jax.random.key(0))
  parts = 0.75 * said["flow"] + 0.25 * said["consistency"]
  assert float(value) == pytest.approx(float(parts), rel=1e-5)


# --- reflow -------------------------------------------------------------------


def test_the_reflow_of_a_gaussian_is_straight(x64):
  """x_0 = c x_T, so that v(z) = (1 - c) z / ((1 - tau) c + tau)."""
  process = processes.rectified_flow(1e-6)
  variance = 0.25
  law = oracles.exact(oracles.gaussian(np.zeros(2), variance), process)
  x = jax.random.normal(jax.random.key(0), (64, 2), jnp.float64)
  bent = distillation.straightness(law, process, x)
  assert float(bent) > 0.01
  c = math.sqrt(variance)

  def apply(params, z, tau):
    tau = tau[:, None]
    return (1.0 - c) * z / ((1.0 - tau) * c + tau)

  student = denoisers.from_function(
    apply, {}, process, prediction="flow", time="t"
  )
  straight = distillation.straightness(student, process, x)
  assert float(straight) < 1e-20
  bank = {"noise": x, "image": c * x}
  method = distillation.reflow(None, student, optimizer=SGD)
  (value, _), _ = _grads(method, jax.random.key(1), batch=bank)
  assert float(value) < 1e-25


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_lines_lead_from_the_noise_to_the_end_of_the_ode(name):
  process = PROCESSES[name]
  start = 3.0 * jax.random.normal(jax.random.key(0), (5, 2))
  x0 = jax.random.normal(jax.random.key(1), (5, 2))
  pair = line(process, start, x0)
  alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
  np.testing.assert_allclose(
    alpha * pair.x0 + sigma * pair.eps, start, rtol=1e-5, atol=1e-6
  )


@pytest.mark.slow
def test_a_bank_holds_what_is_drawn_on_the_fly():
  table = solvers.ddim(EDM, np.asarray([20.0, 1.0, 0.02]))
  student = _student()
  method = distillation.reflow(TEACHER, student, optimizer=SGD, table=table)
  key = jax.random.key(0)
  (value, _), _ = _grads(method, key)
  bank = distillation.pairs(
    jax.random.split(key)[0], TEACHER, EDM, table, BATCH
  )
  (same, _), _ = _grads(method, key, batch=bank)
  assert float(value) == pytest.approx(float(same), rel=1e-6)
  noisy = solvers.gamma_sampling(EDM, np.asarray([20.0, 1.0, 0.02]))
  with pytest.raises(ValueError, match="this table draws noise"):
    distillation.reflow(TEACHER, student, optimizer=SGD, table=noisy)


# --- attention ----------------------------------------------------------------


def _plain(q, k, v):
  return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def test_attention_by_blocks_has_the_values_tangents_and_gradients():
  keys = jax.random.split(jax.random.key(0), 7)
  draw = lambda key, n: jax.random.normal(key, (2, n, 3, 4))
  lengths = (5, 7, 7)  # seven keys do not divide into blocks of three
  args = tuple(map(draw, keys[:3], lengths))
  push = tuple(map(draw, keys[3:6], lengths))
  pull = draw(keys[6], 5)
  blocks = lambda *a: networks.attention_with_jvp(*a, block=3)

  @functools.partial(jax.jit, static_argnums=0)
  def both(f, args, push, pull):
    return jax.jvp(f, args, push), jax.vjp(f, *args)[1](pull)

  found, expected = (both(f, args, push, pull) for f in (blocks, _plain))
  chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="'cudnn_jvp'; got 'flash'"):
    attention.attend(*args, "flash")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["xla", "blocks", "unet"])
def test_attention_layers_go_through_jvp(which, x64):
  """Against central differences, in float64."""
  if which == "unet":
    module, shape = unet._Attention(4, jnp.float64), (2, 2, 3, 8)
  else:
    module = transformer.Attention(2, dtype=jnp.float64, implementation=which)
    shape = (2, 6, 8)
  x, dx = jax.random.normal(jax.random.key(0), (2, *shape), jnp.float64)
  params = module.init(jax.random.key(1), x)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: jnp.asarray(0.5 * rng.standard_normal(p.shape)), params
  )
  f = lambda x: module.apply(params, x)
  _, found = jax.jvp(f, (x,), (dx,))
  h = 1e-5
  expected = (f(x + h * dx) - f(x - h * dx)) / (2 * h)
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


# --- whole updates ------------------------------------------------------------

METHODS = {
  "scm": lambda **o: distillation.scm(adaptive=True, **o),
  "rcm": lambda **o: distillation.rcm(warmup=1, fake_steps=2, calls=2, **o),
  "mean_flow": distillation.mean_flow,
  "shortcut": distillation.shortcut,
  "reflow": lambda **o: distillation.reflow(steps=3, **o),
}


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("process", PROCESSES)
def test_updates_with_labels_train_a_student_that_any_table_runs(
  process, name, double
):
  process = PROCESSES[process]
  with jax.enable_x64(double):
    dtype = jnp.float64 if double else jnp.float32
    network = networks.MLP(features=(8,), embedding=8, num_classes=3)
    jumps = name in ("mean_flow", "shortcut")
    x = jnp.zeros((1, 2, 1), dtype)
    c = jnp.zeros((1, 2) if jumps else 1, dtype)
    params = network.init(jax.random.key(0), x, c, jnp.zeros(1, int))["params"]
    student = denoisers.from_linen(
      network, params, process, sigma_data=D, jumps=jumps
    )
    teacher = oracles.exact(oracles.g2(), process)
    method = METHODS[name](
      teacher=teacher, student=student, optimizer=optax.adam(1e-3)
    )
    state = distillation.init_state(jax.random.key(1), method)
    update = distillation.make_update(method)
    batch = {
      "image": jax.random.normal(jax.random.key(2), (8, 2, 1), dtype),
      "label": jnp.arange(8) % 3,
    }
    for _ in range(3):
      state, said = update(state, batch)
      assert float(said["skipped"]) == 0.0, said
    grid = np.asarray(process.time_at(np.asarray([10.0, 1.0, 0.05])))
    model, table = distillation.sampler(
      method.finished(state), grid, gamma=method.gamma
    )
    drawn = sampling.sample(
      jax.random.key(3), model, table, (4, 2, 1), process=process
    )
    assert np.isfinite(drawn).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_finite_where_there_is_no_signal_left(name):
  """At t = 1 a rectified flow has alpha = 0 and no finite log-SNR."""
  process = processes.rectified_flow()
  student = _student(process, jumps=name in ("mean_flow", "shortcut"))
  ends = lambda key, n: jnp.where(jnp.arange(n) % 2, process.t_max, 0.3)
  options = dict(dmd_times=ends) if name == "rcm" else {}
  method = METHODS[name](
    teacher=oracles.exact(oracles.g2(), process),
    student=student,
    optimizer=SGD,
    times=ends,
    **options,
  )
  for player in method.players:
    (value, _), grads = _grads(method, jax.random.key(0), player=player)
    assert np.isfinite(value), player
    for leaf in jax.tree.leaves(grads):
      assert np.isfinite(leaf).all(), player

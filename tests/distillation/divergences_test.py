"""SIM, SiD, SIGN and score mismatching: gradients, routing, closed forms."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import implicit

# the methods' names hide their modules
sid = sys.modules["jaxdiff.distillation.sid"]
sign = sys.modules["jaxdiff.distillation.sign"]
sim = sys.modules["jaxdiff.distillation.sim"]
smm = sys.modules["jaxdiff.distillation.score_mismatching"]

EDM = processes.edm(0.02, 20.0)
VP = processes.vp_cosine()
SGD = optax.sgd(0.1)


def _linear(params, x, c, *label):
  return x @ params


def _affine(params, x, c, *label):
  del label
  return x * params["scale"] + params["shift"] * (1.0 + c[:, None])


def _affine_model(process=EDM, **options):
  params = {"scale": jnp.asarray([0.9, 0.4]), "shift": jnp.asarray([0.1, -0.3])}
  return denoisers.from_function(
    _affine, params, process, **(dict(prediction="x0", time="t") | options)
  )


def _map(matrix):
  return denoisers.from_function(
    _linear, jnp.asarray(matrix), EDM, prediction="x0", time="none"
  )


def _batch(n=6, d=2, dtype=jnp.float32):
  x = jax.random.normal(jax.random.key(9), (n, d), dtype)
  return {"image": x, "index": jnp.arange(n)}


# --- SIM and SiD --------------------------------------------------------------


@pytest.mark.parametrize("name", sim.DISTANCES)
def test_the_implicit_gradient_is_that_of_the_divergence(name):
  pair = distillation.check_score_gradient(name, c=0.05, power=1.5)
  np.testing.assert_allclose(pair["implicit"], pair["direct"], rtol=1e-6)
  assert np.all(abs(pair["direct"]) > 0.1)


def test_a_teacher_that_stops_gradients_is_found_out():
  stopped = lambda model: lambda x, t: jax.lax.stop_gradient(model(x, t))
  with pytest.raises(RuntimeError, match="without stop_gradient"):
    distillation.check_score_gradient("squared", wrap=stopped)


def test_scores_project_to_the_score_of_the_kernel():
  """E u(x_t) (s(x_t) - grad log p(x_t | x0)) = 0 for every u."""
  m, s, sigma = 0.7, 0.6, 1.3
  z, w = np.polynomial.hermite_e.hermegauss(80)
  w = w / w.sum()
  x0 = m + s * z[:, None]
  eps = z[None, :]
  x = x0 + sigma * eps
  score = -(x - m) / (s**2 + sigma**2)
  for u in (lambda x: x, np.square, np.sin):
    mean = np.einsum("i,j,ij->", w, w, u(x) * (score + eps / sigma))
    assert abs(mean) < 1e-10


@pytest.mark.parametrize("name", sim.DISTANCES)
def test_slopes_are_the_table_of_the_docstring(name, x64):
  c, p = 0.3, 1.5
  y = np.random.default_rng(0).standard_normal((4, 3, 2))
  norm = np.sqrt(np.sum(y**2, axis=(1, 2), keepdims=True) + c**2)
  expected = {
    "squared": y,
    "huber": y / norm,
    "power": y * norm ** (p - 2),
    "l1": y / np.sqrt(y**2 + c**2),
  }
  d, slope = distillation.score_distance(name, c, p)
  np.testing.assert_allclose(slope(y), expected[name], rtol=1e-12)
  np.testing.assert_allclose(d(np.zeros_like(y)), 0.0, atol=1e-15)


def _loss(objective, teacher, fake, x0, key=0):
  times = losses.times.uniform_log_snr(fake.process)
  return implicit.matching(
    jax.random.key(key), x0, teacher, fake, times, {"image": x0}, objective
  )[0]


def test_the_pseudo_huber_loss_tends_to_the_squared_one(x64):
  teacher, fake = oracles.exact(oracles.g2(), EDM), _affine_model()
  x0 = _batch(dtype=jnp.float64)["image"]
  c = 1e5
  both = sim.objective("huber", c=c), sim.objective("squared")
  huber, squared = jax.jit(
    lambda x: [_loss(objective, teacher, fake, x) for objective in both]
  )(x0)
  np.testing.assert_allclose(c * huber, squared, rtol=1e-6)


@pytest.mark.parametrize("process", [EDM, VP], ids=["edm", "vp"])
def test_the_squared_distance_is_sid_at_alpha_one(process, x64):
  teacher = oracles.exact(oracles.g2(), process)
  fake = _affine_model(process)
  x0 = _batch(dtype=jnp.float64)["image"]
  key = jax.random.key(0)
  times = losses.times.uniform_log_snr(process)

  def by_hand(x0, alpha):
    time_key, noise_key = jax.random.split(key)
    t = times(time_key, len(x0))
    x, _ = process.perturb(noise_key, x0, t)
    real, other = teacher(x, t).x0, fake(x, t).x0
    w = 1 / jax.lax.stop_gradient(jnp.mean(abs(x0 - real), axis=1))
    each = (real - other) * (other - x0) + (1 - alpha) * (real - other) ** 2
    return jnp.mean(w * jnp.sum(each, axis=1))

  @jax.jit
  def both(x0):
    alike = sim.objective("squared", weighting="adaptive")
    pairs = [(sid.objective(alpha), alpha) for alpha in (1.0, 1.2)]
    return [
      (
        jax.value_and_grad(lambda x: _loss(own, teacher, fake, x))(x0),  # noqa: B023
        jax.value_and_grad(by_hand)(x0, alpha),
      )
      for own, alpha in [*pairs, (alike, 1.0)]
    ]

  for own, expected in both(x0):
    np.testing.assert_allclose(own[0], expected[0], rtol=1e-9)
    np.testing.assert_allclose(own[1], expected[1], rtol=1e-9, atol=1e-12)


def test_a_student_like_its_teacher_has_no_gradient():
  model = oracles.exact(oracles.g2(), EDM)
  every = [*map(sim.objective, sim.DISTANCES), sid.objective()]
  slopes = jax.jit(
    lambda x: [
      jax.value_and_grad(lambda x: _loss(o, model, model, x))(x)  # noqa: B023
      for o in every
    ]
  )
  for value, slope in slopes(_batch()["image"]):
    assert float(value) == 0.0
    np.testing.assert_array_equal(slope, np.zeros_like(slope))


def test_the_players_are_the_objective_and_denoising_of_samples():
  student, batch = _affine_model(VP), _batch()
  teacher = oracles.exact(oracles.g2(), VP)
  fake = denoisers.from_function(
    _affine, jax.tree.map(lambda p: 0.5 * p, student.params), VP,
    prediction="x0", time="t",
  )  # fmt: skip
  method = distillation.sid(teacher, student, optimizer=SGD, fake=fake)
  nets = {"teacher": teacher, "student": student.params, "fake": fake.params}
  key = jax.random.key(0)
  draw, match = jax.random.split(key)
  x0 = generators.one_step(VP, implicit.start(student))(draw, student, batch)
  times = losses.times.uniform_log_snr(VP)
  play = lambda name, params: jax.jit(method.players[name].loss)(
    key, params, nets, batch
  )
  own, said = play("student", student.params)
  expected, _ = jax.jit(
    lambda x0: implicit.matching(
      match, x0, teacher, fake, times, batch, sid.objective()
    )
  )(x0)
  assert float(own) == pytest.approx(float(expected), rel=1e-5)
  assert float(said["delta"]) > 0
  own, _ = play("fake", fake.params)
  expected, _ = jax.jit(losses.denoising(fake))(
    match, fake.params, batch | {"image": x0}
  )
  assert float(own) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("process", [EDM, VP], ids=["edm", "vp"])
def test_students_start_at_a_noise_level(process):
  model = _affine_model(process)
  t = implicit.start(model, 2.5)
  assert process.noise_level(t) == pytest.approx(2.5, rel=1e-6)


def test_sim_says_what_is_wrong():
  with pytest.raises(ValueError, match=r"needs c > 0, got c=0\.0"):
    distillation.score_distance("huber", c=0.0)
  with pytest.raises(ValueError, match="must be one of 'squared', 'huber'"):
    distillation.score_distance("cosine")
  with pytest.raises(ValueError, match=r"power must be at least 1, got 0\.5"):
    distillation.score_distance("power", power=0.5)
  with pytest.raises(ValueError, match="weighting must be one of"):
    sid.objective(weighting="edm")
  model = _affine_model()
  with pytest.raises(ValueError, match=r"sigma_init=80\.0 is outside"):
    distillation.sim(model, model, optimizer=SGD, sigma_init=80.0)


# --- SIGN ---------------------------------------------------------------------

ONTO = np.asarray([[0.36, 0.48], [0.48, 0.64]])  # onto (3, 4) / 5


def _sign(student, batch, teacher=None, key=0, **options):
  """Returns (terms, their gradients) of params by the method's own loss."""
  teacher = _affine_model() if teacher is None else teacher
  method = distillation.sign(teacher, student, optimizer=SGD, **options)
  nets = {"teacher": teacher, "ema": student.params, **method.params}
  nets["step"] = jnp.asarray(0)
  loss = method.players["student"].loss
  terms = lambda params: loss(jax.random.key(key), params, nets, batch)[1]
  return jax.jit(lambda p: (terms(p), jax.jacrev(terms)(p)))(student.params)


def test_a_projection_onto_the_data_is_a_minimum(x64):
  """On the line of (3, 4): rec, idem and the gradient of dmd vanish."""
  x = _batch(dtype=jnp.float64)["image"] @ ONTO
  sigma_in = 2.0
  law = oracles.mixture([[0.0, 0.0]], [sigma_in**2 * ONTO])  # that of f(z)
  teacher = oracles.exact(law, EDM)
  fake = denoisers.from_function(
    lambda p, x, c: oracles.exact(law, EDM)(x, c).x0,
    {},
    EDM,
    prediction="x0",
    time="t",
  )
  student = _map(ONTO)
  said, slopes = _sign(
    student, {"image": x}, teacher, fake=fake, sigma_in=sigma_in
  )
  assert float(said["rec"]) < 1e-12
  assert float(said["idem"]) < 1e-12
  np.testing.assert_allclose(slopes["dmd"], 0.0, atol=1e-12)


def test_the_identity_is_a_minimum_of_rec_and_idem():
  student = _map(np.eye(2, dtype=np.float32))
  teacher = oracles.exact(oracles.g2(), EDM)
  said, slopes = _sign(student, _batch(), teacher, fake=_affine_model())
  for name in ("rec", "idem"):
    assert float(said[name]) == 0.0
    np.testing.assert_array_equal(slopes[name], np.zeros((2, 2)))
  for name in ("dmd", "flow", "denoise"):  # these leave it
    assert np.abs(slopes[name]).max() > 1e-3


MATRIX = np.asarray([[0.8, 0.3], [-0.2, 0.6]], np.float32)


def _noise(batch, key=0, sigma_in=2.0):
  first = jax.random.split(jax.random.key(key), 6)[0]
  return sigma_in * generators.noise(first, batch, processes.edm())


ALONE = dict(w_dmd=0.0, w_flow=0.0)  # quicker to compile without them


def test_idempotence_reaches_the_inner_map_alone(x64):
  batch, student = _batch(dtype=jnp.float64), _map(MATRIX.astype(np.float64))
  _, slopes = _sign(student, batch, **ALONE)
  copy, z = student.params, _noise(batch)

  def explicit(params):
    y = z @ params
    return jnp.mean(jnp.square(y @ copy - y))

  expected = jax.jit(jax.grad(explicit))(student.params)
  np.testing.assert_allclose(slopes["idem"], expected, rtol=1e-13)


def test_tightness_reaches_the_outer_map_alone(x64):
  batch = _batch(dtype=jnp.float64)
  matrix = MATRIX.astype(np.float64)
  student = _map(matrix)
  _, slopes = _sign(
    student, batch, w_tight=1.0, allow_adversarial=True, tight_limit=None,
    **ALONE,
  )  # fmt: skip
  y = np.asarray(_noise(batch)) @ matrix
  outer = lambda m: -np.mean((y @ m - y) ** 2)
  for i, j in np.ndindex(2, 2):
    h = np.zeros((2, 2))
    h[i, j] = 1e-5
    slope = (outer(matrix + h) - outer(matrix - h)) / 2e-5
    assert float(slopes["tight"][i, j]) == pytest.approx(slope, rel=1e-5)


def test_tightness_stays_below_its_limit():
  batch, student = _batch(), _map(MATRIX)
  said, _ = _sign(student, batch, w_tight=1.0, allow_adversarial=True, **ALONE)
  y = _noise(batch) @ MATRIX
  free, most = -np.mean((y @ MATRIX - y) ** 2), 1.5 * float(said["rec"])
  assert said["tight"] == pytest.approx(most * np.tanh(free / most), rel=1e-5)


def test_rec_is_an_autoencoder_and_flow_without_a_step_is_nothing():
  batch, student = _batch(), _map(MATRIX)
  said, _ = _sign(student, batch, **ALONE)
  x = np.asarray(batch["image"])
  assert said["rec"] == pytest.approx(np.mean((x @ MATRIX - x) ** 2), rel=1e-6)
  t = jnp.full(len(x), 1.7)
  teacher = oracles.exact(oracles.g2(), EDM)
  start, end = sign.flow(jax.random.key(0), teacher, EDM, t, t, batch)
  f = sign.mapping(student)
  assert float(sign.distance(f(start), f(end))) == 0.0


@pytest.mark.parametrize("process", [EDM, VP], ids=["edm", "vp"])
def test_the_flow_ends_where_the_teacher_denoises(process, x64):
  """The last step leads into the data: x_s / alpha_s is the teacher's x0."""
  batch = _batch(dtype=jnp.float64)
  teacher = oracles.exact(oracles.g2(), process)
  t = jnp.full(6, float(process.time_at(0.7)))
  start, end = sign.flow(
    jax.random.key(0), teacher, process, t, jnp.full(6, process.t_zero), batch
  )
  x = process.alpha(0.0 * t[0] + t[0]) * start
  np.testing.assert_allclose(end, teacher(x, t).x0, rtol=1e-9)
  noise = (start - batch["image"]) / 0.7
  np.testing.assert_allclose(
    noise,
    generators.noise(jax.random.key(0), batch, process),
    rtol=1e-9,
    atol=1e-9,
  )


def test_maps_are_applied_again_and_again():
  x = _batch()["image"]
  student = _map(MATRIX)
  twice = distillation.project(student, x, 2)
  np.testing.assert_allclose(twice, x @ MATRIX @ MATRIX, rtol=1e-5, atol=1e-6)
  onto = distillation.idempotence_error(_map(ONTO.astype(np.float32)), x)
  np.testing.assert_allclose(onto, 0.0, atol=1e-6)
  double = distillation.idempotence_error(_map(2.0 * np.eye(2)), x)
  rms = np.sqrt(np.mean(np.square(x), axis=1))
  np.testing.assert_allclose(double, 2.0 * rms, rtol=1e-6)


def test_maps_begin_as_the_identity():
  module = networks.MLP(features=(8,), embedding=8, residual=True)
  x = _batch()["image"]
  params = module.init(jax.random.key(0), x, jnp.zeros(6))["params"]
  student = denoisers.from_linen(
    module, params, EDM, prediction="x0", time="none"
  )
  np.testing.assert_array_equal(distillation.project(student, x, 3), x)


def test_any_table_runs_a_map():
  student = _map(MATRIX)
  model, table = distillation.sampler(student, np.asarray([2.0, 0.0]))
  x = _batch()["image"]
  made = sampling.sample(jax.random.key(0), model, table, x)
  np.testing.assert_allclose(made, x @ MATRIX, rtol=1e-5, atol=1e-6)


def test_sign_says_what_is_wrong():
  teacher, student = _affine_model(), _map(MATRIX)
  make = lambda student=student, **o: distillation.sign(
    teacher, student, optimizer=SGD, **o
  )
  with pytest.raises(TypeError, match="SIGN maps take x only"):
    make(teacher)
  with pytest.raises(TypeError, match="depends on the time"):
    make(
      denoisers.from_function(
        _linear, student.params, EDM, prediction="eps", time="none"
      )
    )
  with pytest.raises(ValueError, match="shrinks the data"):
    make(
      denoisers.from_function(
        _linear, student.params, VP, prediction="x0", time="none"
      )
    )
  with pytest.raises(ValueError, match="the identity is a solution"):
    make(w_dmd=0.0, w_flow=0.0, w_denoise=0.0)
  with pytest.raises(ValueError, match=r"at least 0, got \{'idem': -1.0\}"):
    make(w_idem=-1.0)
  with pytest.raises(ValueError, match="say allow_adversarial=True"):
    make(w_tight=0.1)
  with pytest.raises(TypeError, match="give a Denoiser as fake="):
    distillation.sign(oracles.exact(oracles.g2(), EDM), student, optimizer=SGD)
  wide = _map(np.ones((2, 3)))
  with pytest.raises(ValueError, match=r"returned shape \(6, 3\)"):
    sign.project(wide, _batch()["image"])


# --- score mismatching --------------------------------------------------------

REAL = oracles.mixture([[-0.5], [1.2]], [0.3, 0.1], [0.4, 0.6])
FAKE = oracles.gaussian(np.asarray([0.5]), 0.8)
POINTS = np.asarray([[-1.0], [0.5], [2.0]])


@pytest.mark.parametrize("kappa", [1.0, 0.3, 0.0])
def test_the_best_score_is_a_damped_denoiser(kappa, x64):
  """Weighted least squares at x: both targets by quadrature over the noise."""
  sigma = 0.5
  eps = np.linspace(-9.0, 9.0, 4001)
  normal = np.exp(-0.5 * eps**2)

  def density(law, x):  # of (x, eps), up to one factor for both
    v = law.means.ravel() - (x - sigma * eps[:, None])
    p = np.exp(law.log_weights - 0.5 * v**2 / law.variances.ravel())
    return normal * np.sum(p / np.sqrt(law.variances.ravel()), axis=1)

  own = jax.jit(smm.optimal_score, static_argnums=4)(
    jnp.asarray(POINTS), sigma, REAL, FAKE, kappa
  )
  for x, value in zip(POINTS.ravel(), np.ravel(own)):
    real, fake = density(REAL, x), density(FAKE, x)
    expected = np.sum(real * eps) / (np.sum(real) + kappa * np.sum(fake))
    assert value == pytest.approx(expected, rel=1e-8)


def test_between_equal_laws_the_score_is_half_the_denoiser(x64):
  own, full = jax.jit(
    lambda x: (
      smm.optimal_score(x, 0.5, REAL, REAL),
      REAL.predict(x, 1.0, 0.5).eps,
    )
  )(jnp.asarray(POINTS))
  np.testing.assert_allclose(own, 0.5 * full, rtol=1e-12)


def test_the_generators_gradient_is_that_of_its_loss(x64):
  """G = m + s z against S*: autodiff and differences of the quadrature."""
  z, w = np.polynomial.hermite_e.hermegauss(40)
  z, eps = (v.reshape(-1, 1) for v in np.meshgrid(z, z, indexing="ij"))
  w = np.outer(w, w).ravel() / w.sum() ** 2

  def loss(theta):
    x = theta[0] + theta[1] * z + 0.5 * eps
    answer = smm.optimal_score(jnp.asarray(x), 0.5, REAL, FAKE)
    return jnp.sum(w * jnp.sum((answer - eps) ** 2, axis=1))

  loss, theta = jax.jit(loss), np.asarray([0.5, 0.9])
  own = jax.grad(loss)(theta)
  for i, h in enumerate(1e-4 * np.eye(2)):
    slope = (loss(theta + h) - loss(theta - h)) / 2e-4
    assert float(own[i]) == pytest.approx(float(slope), rel=1e-5)


LEVELS = np.asarray([0.1, 0.5])


def _score(params, x, c):
  return params * x / c[:, None]  # eps itself, if it is 1 and the data are at 0


def _score_model(scale=1.0):
  return denoisers.from_function(
    _score, jnp.asarray(scale), EDM, prediction="eps", time="t"
  )


@pytest.mark.parametrize("mismatch", smm.MISMATCHES)
def test_samples_are_told_another_noise(mismatch):
  """S answers with the noise: it is right for data, wrong for samples."""
  n, d = 4096, 2
  batch = {"image": jnp.zeros((n, d))}
  value, said = smm.score_loss(
    jax.random.key(0), _score_model(), jnp.zeros((n, d)), LEVELS, batch,
    mismatch=mismatch,
  )  # fmt: skip
  expected = {"independent": 2 * d, "none": 0.0, "opposite": 4 * d}[mismatch]
  assert float(said["real"]) < 1e-10
  # the standard error of |eps|^2 is sqrt(2 d / n)
  error = 4 * 4 * np.sqrt(2 * d / n)
  assert float(said["fake"]) == pytest.approx(expected, abs=error)
  assert float(value) == pytest.approx(float(said["real"] + said["fake"]))


def test_without_mismatch_it_is_denoising_score_matching():
  batch, model = _batch(), _score_model(0.7)
  key = jax.random.key(3)
  value, _ = smm.score_loss(
    key, model, batch["image"], LEVELS, batch, kappa=0.0
  )
  level_key, noise_key = jax.random.split(jax.random.split(key, 3)[0])
  t = jnp.asarray(LEVELS, jnp.float32)[
    jax.random.randint(level_key, (6,), 0, 2)
  ]
  x, eps = EDM.perturb(noise_key, batch["image"], t, batch["index"])
  plain = jnp.mean(jnp.sum((model(x, t).eps - eps) ** 2, axis=1))
  assert float(value) == float(plain)


def test_r1_is_the_squared_gradient_and_comes_when_due():
  batch, model, key = _batch(), _score_model(0.7), jax.random.key(3)
  loss = lambda r1: smm.score_loss(
    key, model, batch["image"], LEVELS[:1], batch, r1=r1
  )[0]
  plain, due = float(loss(None)), float(loss(jnp.asarray(0.3)))
  assert float(loss(jnp.asarray(0.0))) == plain
  # S is 7 x, at every value of every sample
  assert due - plain == pytest.approx(0.5 * 0.3 * 2 * 7.0**2, rel=1e-5)
  student = _affine_model()
  method = distillation.score_mismatching(
    student, optimizer=SGD, score=model, sigmas=LEVELS[:1], r1=0.1,
    r1_every=3,
  )  # fmt: skip
  at = lambda step: float(
    method.players["score"].loss(
      key,
      model.params,
      {"student": student.params, "step": jnp.asarray(step)},
      batch,
    )[0]
  )
  assert at(1) == at(2)
  assert at(3) - at(2) == pytest.approx(0.5 * 0.1 * 3 * 2 * 49.0, rel=1e-4)


def test_the_score_network_does_not_move_the_generator():
  batch, model, student = _batch(), _score_model(0.7), _affine_model()
  method = distillation.score_mismatching(student, optimizer=SGD, score=model)

  def loss(name, student_params, score_params):
    nets = {"student": student_params, "score": score_params}
    own = student_params if name == "student" else score_params
    nets["step"] = jnp.asarray(0)
    player = method.players[name]
    return player.loss(jax.random.key(0), own, nets, batch)[0]

  slope = jax.grad(lambda p: loss("score", p, model.params))(student.params)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(slope))
  slope = jax.grad(lambda p: loss("student", p, model.params))(student.params)
  assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(slope))


def test_noise_levels_are_those_of_ten_small_betas():
  levels = smm.noise_levels()
  betas = np.linspace(1e-4, 0.02, 10)
  np.testing.assert_allclose(
    levels, np.sqrt(1 - np.cumprod(1 - betas)), rtol=1e-9
  )
  assert levels[0] == pytest.approx(0.01, abs=1e-3)
  assert levels[-1] == pytest.approx(0.310, abs=1e-3)


def test_score_mismatching_says_what_is_wrong():
  model = _affine_model()
  make = lambda **o: distillation.score_mismatching(model, optimizer=SGD, **o)
  with pytest.raises(ValueError, match="at least one noise level, got 0"):
    smm.noise_levels(0)
  with pytest.raises(ValueError, match=r"inside of \(0, 1\), got beta_min=0"):
    smm.noise_levels(10, 0.0)
  with pytest.raises(ValueError, match="r1 must be at least 0, got -1"):
    make(r1=-1)
  with pytest.raises(ValueError, match="mismatch must be one of"):
    make(mismatch="all")
  with pytest.raises(ValueError, match="positive noise levels"):
    make(sigmas=[0.1, 0.0])
  with pytest.raises(TypeError, match='but this one has time="none"'):
    make(score=_map(MATRIX))
  method = make(generator=lambda key, model, batch: jnp.zeros((6, 3)))
  nets = {"score": model.params, "step": jnp.asarray(0)}
  with pytest.raises(ValueError, match=r"shape \(6, 3\), but the data have"):
    method.players["student"].loss(
      jax.random.key(0), model.params, nets, _batch()
    )


# --- all of them --------------------------------------------------------------


def _network(seed, process, num_classes=0, **options):
  module = networks.MLP(features=(8,), embedding=8, num_classes=num_classes)
  params = module.init(jax.random.key(seed), jnp.zeros((1, 2)), jnp.zeros(1))[
    "params"
  ]
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), params
  )
  return denoisers.from_linen(module, params, process, **options)


METHODS = {
  "sim": distillation.sim,
  "sid": distillation.sid,
  "sign": distillation.sign,
  "score_mismatching": distillation.score_mismatching,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_an_update_moves_everyone(name):
  """On another process than EDM's, with labels."""
  teacher = _network(0, VP, num_classes=3)
  student = _network(1, VP, num_classes=3)
  if name == "sign":
    student = _network(1, EDM, 3, prediction="x0", time="none")
  method = METHODS[name](teacher, student, optimizer=optax.adam(1e-2))
  batch = _batch() | {"label": jnp.asarray([0, 1, 2, 0, 1, 2])}
  state = distillation.init_state(jax.random.key(0), method)
  before = jax.tree.map(np.asarray, (state.params, state.loss_params))
  state, metrics = distillation.make_update(method)(state, batch)
  assert float(metrics["skipped"]) == 0.0
  for old, new in zip(before, (state.params, state.loss_params)):
    moved = jax.tree.map(lambda a, b: np.any(a != b), old, new)
    assert all(
      jax.tree.leaves({k: v for k, v in moved.items() if k != "memory"})
    )
  grid = grids.karras(student.process, 2)
  model, table = distillation.sampler(method.finished(state), grid)
  x = sampling.sample(
    jax.random.key(1), denoisers.with_label(model, 1), table, batch["image"]
  )
  assert np.isfinite(x).all()

"""Distribution matching: DMD, DMD2, Presto, dropped layers, Phased DMD."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import losses
from jaxdiff import models
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.distillation.dmd import pairs
from jaxdiff.distillation.layer_dropping import at_budget
from jaxdiff.distillation.parts.experts import one_by_one
from jaxdiff.distillation.phased_dmd import bridge
from jaxdiff.distillation.phased_dmd import further
from jaxdiff.distillation.phased_dmd import unbiased

EDM = processes.edm(0.02, 20.0)
PROCESSES = {
  "edm": EDM,
  "vp": processes.vp_cosine(),
  "flow": processes.rectified_flow(),
}
SGD = optax.sgd(1e-2)
KEY = jax.random.key(0)
BATCH = {
  "image": jax.random.normal(jax.random.key(9), (6, 2)),
  "index": jnp.arange(6),
}
LOG_SNR = losses.times.uniform_log_snr


def _model(process=EDM, module=None, prediction="edm", dtype=jnp.float32):
  """Returns a small network whose every parameter is random."""
  module = module or networks.MLP(features=(8,), embedding=8)
  x, c = jnp.zeros((1, 2)), jnp.zeros(1)
  shapes = jax.eval_shape(module.init, KEY, x, c)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), dtype), shapes
  )
  return denoisers.from_linen(module, params, process, prediction=prediction)


def _nets(method, **more):
  """Returns what the losses of an untrained method find beside them."""
  return {
    **method.frozen,
    **method.params,
    "student": method.student.params,
    "ema": method.student.params,
    "step": jnp.asarray(0),
    "memory": {},
    **more,
  }


def _gradients(method, player):
  """Returns (nets, batch) -> gradient, one program."""

  def loss(params, nets, batch):
    return method.players[player].loss(KEY, params, nets, batch)[0]

  return jax.jit(lambda n, b: jax.grad(loss)(n[player], n, b))


def _gradient(method, player, nets=None):
  return _gradients(method, player)(nets or _nets(method), BATCH)


def _is_zero(tree):
  return all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(tree))


# --- DMD and DMD2 -------------------------------------------------------------


@pytest.mark.slow
def test_dmds_regression_is_the_error_on_the_stored_pairs():
  teacher, student = oracles.exact(oracles.g2(), EDM), _model()
  noise = 20.0 * BATCH["image"]
  batch = BATCH | {"noise": noise, "end": BATCH["image"]}
  plain, with_pairs = (
    distillation.dmd(teacher, student, optimizer=SGD, regression=w)
    for w in (0.0, 0.25)
  )
  error = jnp.mean((student(noise, 20.0).x0 - batch["end"]) ** 2)
  value = [
    m.players["student"].loss(KEY, student.params, _nets(m), batch)[0]
    for m in (plain, with_pairs)
  ]
  assert float(value[1] - value[0]) == pytest.approx(0.25 * float(error), 1e-5)
  exact = pairs(student, batch | {"end": student(noise, 20.0).x0})
  assert float(exact) == 0.0
  with pytest.raises(ValueError, match="the batch lacks noise, end"):
    pairs(student, BATCH)


@pytest.mark.slow
def test_the_adversary_adds_its_weighted_terms_and_nothing_else():
  """A head of 0 costs 1 on data and 0, the generator 1, by least squares."""
  teacher, student = oracles.exact(oracles.g2(), EDM), _model()
  plain = distillation.dmd(teacher, student, optimizer=SGD)
  method = distillation.dmd2(
    teacher, student, optimizer=SGD, shape=(2,), layer="Dense_0",
    kind="least_squares", weight=0.3, critic_weight=0.7,
  )  # fmt: skip
  for player, more in (("student", 0.3), ("fake", 0.7)):
    one, two = (
      m.players[player].loss(KEY, _nets(m)[player], _nets(m), BATCH)[0]
      for m in (plain, method)
    )
    assert float(two - one) == pytest.approx(more, rel=1e-4)
  nets = _nets(method)
  fake = _gradient(method, "fake")
  assert not _is_zero(fake["head"])
  # once the head reads them, the features are trained by it and by denoising
  head = jax.tree.map(lambda p: p + 0.1, nets["fake"]["head"])
  nets = nets | {"fake": nets["fake"] | {"head": head}}
  both = _gradient(method, "fake", nets)["score"]
  plain_nets = _nets(plain)
  alone = _gradient(plain, "fake", plain_nets)["score"]
  np.testing.assert_allclose(
    both["Dense_0"]["kernel"] - alone["Dense_0"]["kernel"] != 0, True
  )
  # the output layer comes after the features
  np.testing.assert_allclose(
    both["out"]["kernel"], alone["out"]["kernel"], rtol=1e-4, atol=1e-6
  )


def test_no_player_moves_another():
  """Losses reach the fake score through x_t or nets with no gradient."""
  teacher, student = oracles.exact(oracles.g2(), EDM), _model()
  method = distillation.presto(
    teacher, student, optimizer=SGD, shape=(2,), layer="Dense_0"
  )
  nets = _nets(method)
  head = jax.tree.map(lambda p: p + 0.1, nets["fake"]["head"])
  nets = nets | {"fake": nets["fake"] | {"head": head}}
  generator, critic = (method.players[n].loss for n in ("student", "fake"))
  to_fake = lambda fake: generator(
    KEY, nets["student"], nets | {"fake": fake}, BATCH
  )[0]
  assert _is_zero(jax.jit(jax.grad(to_fake))(nets["fake"]))
  to_student = lambda student: critic(
    KEY, nets["fake"], nets | {"student": student}, BATCH
  )[0]
  assert _is_zero(jax.jit(jax.grad(to_student))(nets["student"]))


# --- Presto -------------------------------------------------------------------


def test_a_fake_score_like_the_teacher_gives_no_gradient():
  student = _model()
  options = dict(optimizer=SGD, shape=(2,), layer="Dense_0", weight=0.0)
  method = distillation.presto(student, student, **options)
  assert _is_zero(_gradient(method, "student"))


def test_guidance_of_one_is_the_teacher_and_two_that_of_cfg():
  teacher = oracles.exact(oracles.g2(), EDM)
  assert distillation.guided(teacher, 1.0) is teacher
  label = jnp.asarray([0, 1, 2, 0, 1, 2])
  given = distillation.guided(teacher, 2.0, null=3)(BATCH["image"], 1.0, label)
  expected = guidance.cfg(teacher, label=label, null=3, scale=2.0)
  np.testing.assert_array_equal(given.x0, expected(BATCH["image"], 1.0).x0)
  module = networks.MLP(features=(8,), embedding=8, num_classes=3)
  assert distillation.guided(_model(module=module), 2.0).null == 3
  vectors = networks.DiT(label_dim=5)  # whose null is zeros
  told = denoisers.from_linen(vectors, {}, EDM)
  assert distillation.guided(told, 2.0).null == 0.0
  with pytest.raises(ValueError, match="guidance=2.0 needs a teacher"):
    distillation.guided(teacher, 2.0)


@pytest.mark.slow
def test_a_guided_teacher_and_labels_reach_every_loss():
  module = networks.MLP(features=(8,), embedding=8, num_classes=3)
  student = _model(module=module)
  method = distillation.presto(
    oracles.exact(oracles.g2(), EDM), student, optimizer=SGD, shape=(2,),
    layer="Dense_0", guidance=1.5, null=3,
  )  # fmt: skip
  batch = BATCH | {"label": jnp.asarray([0, 1, 2, 0, 1, 2])}
  other = batch | {"label": jnp.asarray([1, 1, 2, 0, 1, 2])}
  for player in ("student", "fake"):
    values = [
      method.players[player].loss(KEY, _nets(method)[player], _nets(method), b)
      for b in (batch, other)
    ]
    assert float(values[0][0]) != float(values[1][0])


def test_the_laws_of_the_noise_are_checked():
  def beyond(key, n):
    return jnp.linspace(0.02, 80.0, n)

  with pytest.raises(ValueError, match="input_times draws times from .* to 80"):
    distillation.presto(
      _model(), _model(), optimizer=SGD, shape=(2,), layer="Dense_0",
      input_times=beyond,
    )  # fmt: skip
  with pytest.raises(ValueError, match="fake_steps of dmd.* at least 1"):
    distillation.dmd(_model(), _model(), optimizer=SGD, fake_steps=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_karras_times_are_the_grid_without_end(name, x64):
  process = PROCESSES[name]
  t = losses.times.karras(process, stratified=False)(KEY, 4096)
  level = np.clip(process.noise_level(np.asarray(t)), 0, np.exp(10.0))
  ends = (np.exp(-max(min(float(process.log_snr(e)), 10.0), -10.0)) ** (1 / 7)
          for e in (process.t_min, process.t_max))  # fmt: skip
  low, high = ends
  place = np.sort((level ** (1 / 7) - low) / (high - low))
  uniform = (np.arange(4096) + 0.5) / 4096
  assert abs(place - uniform).max() < 1.63 / np.sqrt(4096)  # 1 % of Kolmogorov


# --- dropped layers -----------------------------------------------------------

RESIDUAL = networks.ResidualMLP(width=8, blocks=4, hidden=1, embedding=8)
TRUNK = ("block0_out", "block1_out", "block2_out", "block3_out")


def _dropped(budgets, **options):
  teacher = _model(module=RESIDUAL)
  student = distillation.drop_layers(teacher, (2,), budgets=budgets, **options)
  return teacher, student


def test_no_budget_is_the_whole_network_bit_for_bit():
  teacher, student = _dropped((0, 0))
  x, t = BATCH["image"], jnp.asarray([0.02, 0.1, 0.3, 1.0, 5.0, 20.0])
  np.testing.assert_array_equal(student(x, t).x0, teacher(x, t).x0)
  assert set(student.params) == set(teacher.params)


@pytest.mark.slow
@pytest.mark.parametrize("keep_last", [True, False])
def test_a_budget_drops_the_blocks_before_the_last(keep_last):
  """As if their last layers were zero; masked, left out, and compiled alike."""
  teacher, student = _dropped((0, 1, 2), keep_last=keep_last)
  t = jnp.asarray([0.02, 0.3, 20.0, 0.3, 0.02, 20.0])
  masked = student(BATCH["image"], t).x0
  for i, time in enumerate((0.02, 0.3, 20.0)):
    params = dict(teacher.params)
    for block in [2, 1][:i] if keep_last else [3, 2][:i]:
      name = TRUNK[block]
      params[name] = jax.tree.map(jnp.zeros_like, params[name])
    whole = distillation.with_params(teacher, params)
    expected = whole(BATCH["image"], time).x0
    of_use = distillation.compiled(student)(BATCH["image"], time).x0
    np.testing.assert_allclose(of_use, expected, rtol=2e-5, atol=1e-6)
    here = np.flatnonzero(np.isclose(t, time))
    np.testing.assert_allclose(
      masked[here], expected[here], rtol=2e-5, atol=1e-6
    )


@pytest.mark.slow
def test_what_a_program_leaves_out_costs_nothing():
  _, student = _dropped((0, 2))
  x = jnp.zeros((64, 2))

  def flops(m):
    model = at_budget(student, m)
    call = jax.jit(lambda model: model(x, 1.0).x0)
    return call.lower(model).compile().cost_analysis()["flops"]

  saved = np.diff([flops(m) for m in (0, 1, 2)])
  assert (saved < -2 * 2 * 8 * 8 * 64).all()


def test_the_edges_are_quantiles_of_the_training_law():
  wide = _model(processes.edm(1e-5, 1e5), RESIDUAL)  # cuts nothing off
  student = distillation.drop_layers(wide, (2,), budgets=(0, 1, 1, 2))
  edges = np.asarray(student.apply.module.edges)
  law = [-1.2 + 1.2 * z for z in (-0.67449, 0.0, 0.67449)]
  np.testing.assert_allclose(4 * edges, law, atol=1e-3)


def test_the_student_is_told_its_budget():
  _, student = _dropped((0, 2))
  kernel = student.params["condition"]["until_in"]["kernel"]
  assert _is_zero(kernel)
  params = dict(student.params)
  params["condition"] = params["condition"] | {
    "until_in": {"kernel": kernel + 1.0}
  }
  told = distillation.with_params(student, params)
  assert np.any(
    told(BATCH["image"], 20.0).x0 != student(BATCH["image"], 20.0).x0
  )


@pytest.mark.slow
def test_a_transformer_drops_whole_blocks():
  module = networks.DiT(width=8, depth=3, heads=1)
  x, c = jax.random.normal(KEY, (2, 4, 4, 1)), jnp.zeros(2)
  shapes = jax.eval_shape(module.init, KEY, x, c)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
  )
  teacher = denoisers.from_linen(module, params, EDM)
  student = distillation.drop_layers(
    teacher, (4, 4, 1), budgets=(0, 1), told=False
  )
  small = {k: v for k, v in params.items() if k != "block1"}
  small["block1"] = small.pop("block2")
  shallow = dataclasses.replace(
    teacher, params=small, apply=denoisers.LinenApply(module.clone(depth=2))
  )
  np.testing.assert_allclose(
    student(x, 20.0).x0, shallow(x, 20.0).x0, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    student(x, 0.02).x0, teacher(x, 0.02).x0, rtol=1e-5, atol=1e-6
  )


@pytest.mark.slow
def test_the_self_teacher_is_the_full_depth_without_gradient():
  teacher, student = _dropped((0, 0))
  method = distillation.layer_dropping(teacher, student, optimizer=SGD)
  value, said = method.players["student"].loss(
    KEY, student.params, _nets(method), BATCH
  )
  assert float(value) == float(said["self_teacher"]) == 0.0
  _, shallow = _dropped((1, 2))
  method = distillation.layer_dropping(None, shallow, optimizer=SGD)
  value, said = method.players["student"].loss(
    KEY, shallow.params, _nets(method), BATCH
  )
  assert float(said["self_teacher"]) > 0
  assert float(value) == pytest.approx(
    float(said["teacher"] + 0.1 * said["self_teacher"])
  )


@pytest.mark.slow
def test_presto_ls_keeps_the_fake_score_at_full_depth():
  """Where nothing is dropped it is Presto-S: the self-teacher costs nothing."""
  teacher, student = _dropped((0, 0))
  options = dict(optimizer=SGD, shape=(2,), layer="block3_out")
  s = distillation.presto(teacher, student, **options)
  ls = distillation.presto_ls(teacher, student, **options)
  values = [
    m.players["student"].loss(KEY, student.params, _nets(m), BATCH)[0]
    for m in (s, ls)
  ]
  assert float(values[0]) == float(values[1])
  teacher, student = _dropped((2, 2))
  ls = distillation.presto_ls(teacher, student, **options, weight=0.0)
  loss = ls.players["student"].loss
  _, said = loss(KEY, student.params, _nets(ls), BATCH)
  # the fake score is the teacher itself, although the student is not
  assert float(said["matching"]) == 0.0
  assert float(said["self_teacher"]) > 0


def test_budgets_are_checked():
  with pytest.raises(ValueError, match="need 0 <= m <= L - 2 = 2"):
    _dropped((0, 3))
  with pytest.raises(ValueError, match="budget of -1"):
    _dropped((0, -1))
  with pytest.raises(ValueError, match="2 budgets .* need 1 edges"):
    networks.LayerDropped(budgets=(0, 1)).init(KEY, jnp.zeros((1, 2)), KEY)
  with pytest.raises(TypeError, match="ResidualMLP or a DiT, got one of MLP"):
    distillation.drop_layers(_model(), (2,), budgets=(0, 1))
  _, student = _dropped((0, 1))
  with pytest.raises(ValueError, match="t must be a scalar"):
    distillation.compiled(student)(BATCH["image"], jnp.ones(6))


def test_a_dropped_student_is_stored_as_data(tmp_path):
  teacher, student = _dropped((0, 2))
  module = student.apply.module
  config = models.ModelConfig(
    shape=(2,),
    network="layer_dropped",
    network_options=dict(
      network="residual_mlp",
      options=dict(width=8, blocks=4, hidden=1, embedding=8),
      edges=module.edges,
      budgets=module.budgets,
    ),
    process_options=dict(sigma_min=0.02, sigma_max=20.0),
  )
  models.save_config(tmp_path, config)
  again = models.make_denoiser(models.load_config(tmp_path))
  again = distillation.with_params(again, student.params)
  np.testing.assert_array_equal(
    again(BATCH["image"], 1.0).x0, student(BATCH["image"], 1.0).x0
  )


# --- Phased DMD ---------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_target_of_a_phase_is_unbiased(name, x64):
  """E[v* | x_t] over a mixture of points is the velocity of the marginal."""
  process = PROCESSES[name]
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


@pytest.mark.parametrize("name", PROCESSES)
def test_without_noise_at_its_end_a_phase_is_denoising(name, x64):
  process = PROCESSES[name]
  t = np.asarray([process.t_min, 0.5 * process.t_max, process.t_max])
  zero = process.t_zero
  a, b = bridge(process, zero, t)
  np.testing.assert_allclose(a, process.alpha(t), rtol=1e-12)
  np.testing.assert_allclose(b, process.sigma(t), rtol=1e-12)
  x, e = np.asarray([[0.3], [1.0], [2.0]]), np.asarray([[1.0], [-2.0], [0.5]])
  aim = unbiased(process, x, e, zero, t)
  np.testing.assert_allclose(aim.x0, x, rtol=1e-12)
  np.testing.assert_allclose(aim.eps, e, rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_two_bridges_are_one(name, x64):
  process = PROCESSES[name]
  s, m, t = (float(process.time_at(v)) for v in (0.3, 1.0, 4.0))
  (a1, b1), (a2, b2), (a, b) = (
    bridge(process, *ends) for ends in ((s, m), (m, t), (s, t))
  )
  assert a == pytest.approx(a1 * a2, rel=1e-12)
  assert b**2 == pytest.approx(b2**2 + (a2 * b1) ** 2, rel=1e-12)
  x = further(process, jnp.ones((1, 1)), jnp.full((1, 1), 2.0), s, t)
  assert float(x[0, 0]) == pytest.approx(a + 2.0 * b, rel=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_velocity_form_of_the_gradient_is_the_score_form(name, x64):
  """w (v_T - v_F) = -a (score_T - score_F), and DMD's x0 form is along it."""
  process = PROCESSES[name]
  s, t = (float(process.time_at(v)) for v in (1.0, 4.0))
  teacher = oracles.exact(oracles.g2(), process)
  fake = oracles.exact(oracles.gaussian(np.zeros(2), 1.0), process)
  x = 3.0 * jnp.asarray(BATCH["image"], jnp.float64)
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
  process = PROCESSES[name]
  teacher, student = oracles.exact(oracles.g2(), process), _model(process)
  grid = [process.t_max, process.t_zero]
  one = distillation.phased_dmd(
    teacher, student, optimizer=SGD, grid=grid, phases=1
  )
  dmd = distillation.dmd(teacher, student, optimizer=SGD)
  fake = jax.tree.map(lambda p: p + 0.01, student.params)
  stacked = jax.tree.map(lambda p: p[None], fake)
  pairs = [
    (
      _gradient(one, player, _nets(one) | {"fake": stacked}),
      _gradient(dmd, player, _nets(dmd) | {"fake": {"score": fake}}),
    )
    for player in ("student", "fake")
  ]
  pairs[1] = pairs[1][0], pairs[1][1]["score"]
  for given, expected in pairs:
    assert not _is_zero(expected)
    for g, e in zip(*map(jax.tree.leaves, (given, expected)), strict=True):
      np.testing.assert_allclose(g[0], e, rtol=1e-4, atol=1e-6)


def _phases(**options):
  student = _model(PROCESSES["flow"], prediction="flow")
  defaults = dict(optimizer=SGD, grid=[1.0, 0.8, 0.6, 0.3, 0.0], updates=5)
  method = distillation.phased_dmd(student, student, **defaults | options)
  fake = jax.tree.map(lambda p: p + 0.01, method.params["fake"])
  return method, {"fake": fake}


@pytest.mark.parametrize("phases", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_phase_trains_its_expert_alone(phases):
  method, other = _phases(phases=phases)
  assert _is_zero(_gradient(method, "student"))  # fake score = teacher
  for player in ("student", "fake"):
    gradients = _gradients(method, player)
    for step, k in ((0, 0), (7, 1), (5 * phases, phases - 1), (99, phases - 1)):
      nets = _nets(method, step=jnp.asarray(step), **other)
      gradient = gradients(nets, BATCH)
      moved = [
        not _is_zero(jax.tree.map(lambda g, i=i: g[i], gradient))
        for i in range(phases)
      ]
      assert moved == [i == k for i in range(phases)]


def test_an_expert_that_rests_keeps_its_moments_and_its_schedule():
  optimizer = one_by_one(optax.adam(optax.cosine_decay_schedule(0.1, 10)))
  params = {"w": jnp.ones((2, 3))}
  state = optimizer.init(params)
  for i, gradient in enumerate(([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])):
    grads = {"w": jnp.ones((2, 3)) * jnp.asarray(gradient)[:, None]}
    changes, state = optimizer.update(grads, state, params)
    np.testing.assert_array_equal(changes["w"][int(i < 2)], np.zeros(3))
  alone = optax.adam(optax.cosine_decay_schedule(0.1, 10))
  own = alone.init(jnp.ones(3))
  expected, _ = alone.update(jnp.ones(3), own, jnp.ones(3))
  np.testing.assert_allclose(changes["w"][1], expected, rtol=1e-6)


@pytest.mark.parametrize("scalar", [True, False])
def test_experts_answer_in_their_own_phases(scalar):
  model = _model(PROCESSES["flow"], prediction="flow")
  both = [model.params, jax.tree.map(lambda p: 2.0 * p, model.params)]
  experts = distillation.Experts(
    jax.tree.map(lambda *p: jnp.stack(p), *both),
    distillation.with_params(model, None),
    (1.0, 0.6, 0.0),
  )
  times = np.asarray([1.0, 0.61, 0.6, 0.3, 0.6, 0.01], np.float32)
  x = BATCH["image"]
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
  process = PROCESSES["flow"]
  x = process.prior(KEY, (6, 2))
  for model, table in (
    distillation.sampler(method.student, grid, gamma=0.0),
    (method.student, solvers.ddim(process, grid)),
  ):
    given = sampling.sample(KEY, model, table, x)
    y = x
    for i, (t, s) in enumerate(zip(grid, grid[1:])):
      predicted = method.student.expert(i // 2)(y, t)
      y = distillation.jump(process, predicted, y, t, s)
    np.testing.assert_allclose(given, y, rtol=1e-4, atol=1e-5)


def test_phases_are_checked():
  flow = PROCESSES["flow"]
  with pytest.raises(ValueError, match="strictly decreasing"):
    _phases(grid=[1.0, 0.3, 0.6, 0.0])
  with pytest.raises(ValueError, match="4 steps is not parted by phases=3"):
    _phases(phases=3)
  with pytest.raises(ValueError, match=r"need s < t, got s = 0.5 and t = 0.5"):
    unbiased(flow, np.ones((1, 1)), np.ones((1, 1)), 0.5, 0.5)
  with pytest.raises(ValueError, match="cannot end at pure noise"):
    bridge(flow, 1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("builder", ["dmd2", "presto", "phased_dmd"])
def test_updates_are_finite_and_move_the_student(name, builder):
  process = PROCESSES[name]
  teacher, student = oracles.exact(oracles.g2(), process), _model(process)
  options = dict(shape=(2,), layer="Dense_0")
  grid = grids.karras(process, 2, to_zero=True)
  if builder == "phased_dmd":
    options = dict(grid=grid, updates=2)
  elif builder == "dmd2":
    options["grid"] = grid
  method = getattr(distillation, builder)(
    teacher, student, optimizer=optax.adam(1e-3, b1=0.0), **options
  )
  state = distillation.init_state(KEY, method)
  update = distillation.make_update(method)
  for _ in range(4):
    state, metrics = update(state, dict(BATCH))
    assert float(metrics["skipped"]) == 0
  moved = jax.tree.map(lambda a, b: a - b, state.params, method.student.params)
  assert not _is_zero(moved)

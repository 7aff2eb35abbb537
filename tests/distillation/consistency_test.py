"""Consistency models, trajectories, progressive distillation: theorems."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import tableau as tables
from jaxdiff import tree
from jaxdiff.distillation.ict import intervals
from jaxdiff.distillation.parts import consistency
from jaxdiff.distillation.parts import critic as critics
from jaxdiff.distillation.parts import jumps
from jaxdiff.distillation.parts import teacher_steps
from jaxdiff.distillation.parts.balance import balance
from jaxdiff.distillation.parts.jumps import flow_map
from jaxdiff.distillation.progressive import annealed
from jaxdiff.distillation.progressive import solved
from jaxdiff.distillation.progressive import student_grid
from tests.solvers.cases import CASES

EDM = processes.edm(0.02, 20.0)
PROCESSES = {
  "edm": EDM,
  "vp": processes.vp_cosine(),
  "flow": processes.rectified_flow(),
}
V = 0.6  # variance of Gaussian data
SGD = optax.sgd(0.1)


def _mlp(process, jumps=False, seed=0, **options):
  """Returns a small network whose last layer is not zero."""
  module = networks.MLP(features=(8,), embedding=8)
  c = jnp.zeros((1, 2) if jumps else 1)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2)), c)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape)), shapes["params"]
  )
  return denoisers.from_linen(module, params, process, jumps=jumps, **options)


def _teacher(process):
  """Returns a model that is no line in x or t, and cheap to compile."""

  def model(x, t, *label):
    alpha = tree.expand(process.alpha(t), x)
    sigma = tree.expand(process.sigma(t), x)
    x0 = jnp.sin(x) + alpha
    return predictions.Prediction(x0, (x - alpha * x0) / sigma)

  return model


def _exact_g(params, x, c):
  """Returns x0 of the jump of EDM's ODE for data N(0, V), told (t, s)."""
  t, s = c[:, :1], c[:, 1:]
  there = jnp.sqrt((s**2 + V) / (t**2 + V))
  # (there - s / t) / (1 - s / t), without the difference of near numbers
  return x * params * V * (t + s) / (t**2 + V) / (there * t + s)


def _exact_student(scale=1.0):
  return denoisers.from_function(
    _exact_g,
    jnp.asarray(scale),
    EDM,
    prediction="x0",
    time="t",
    jumps=True,
  )


def _exact_solver(process, grid):
  """A table whose one call follows the ODE of N(0, V) exactly."""
  ratio = np.sqrt((grid[1:] ** 2 + V) / (grid[:-1] ** 2 + V))
  return tables.multistep(grid[:-1], "x0", ratio, np.zeros((len(grid) - 1, 1)))


def _loss(method, **nets):
  """Returns loss(params, key, batch, step) of the student, as one program."""
  loss = method.players["student"].loss
  nets = {**method.frozen, "memory": method.memory, **nets}
  nets = {"ema": method.student.params, **nets}
  return jax.jit(
    lambda params, key, batch, step=0: loss(
      key, params, nets | {"step": step}, batch
    )[0]
  )


# --- the consistency function -------------------------------------------------


@pytest.mark.parametrize(
  ("name", "jumping"),
  [("edm", False), ("edm", True), ("vp", False), ("flow", True)],
)
def test_the_consistency_function_is_x_at_its_end(name, jumping, x64):
  process = PROCESSES[name]
  model = _mlp(process, jumping)
  x = jax.random.normal(jax.random.key(0), (3, 2))
  t = jnp.full(3, process.t_min)
  np.testing.assert_array_equal(consistency.function(model, x, t), x)
  moved = consistency.function(model, x, jnp.full(3, process.t_max))
  assert np.all(np.isfinite(moved))
  assert np.all(moved != x)


def test_the_jump_is_the_parametrization_of_consistency_models(x64):
  """c_out is theirs, c_skip differs by t_min t (t^2 - d^2) / (t^2 + d^2)^2."""
  t = jnp.asarray([0.02, 0.1, 1.0, 7.0, 20.0])
  d, e = 0.7, EDM.t_min
  network = lambda params, x, c: jnp.full_like(x, params)

  @jax.jit
  def f(x, out):
    model = denoisers.from_function(network, out, EDM, sigma_data=d)
    return consistency.function(model, jnp.full((5, 1), x), t)[:, 0]

  skip, out = f(1.0, 0.0), f(0.0, 1.0)
  np.testing.assert_allclose(
    out, d * (t - e) / np.sqrt(d**2 + t**2), rtol=1e-12, atol=1e-15
  )
  np.testing.assert_allclose(skip, (d**2 + e * t) / (d**2 + t**2), rtol=1e-12)
  theirs = d**2 / (d**2 + (t - e) ** 2)
  assert float(skip[0]) == float(theirs[0]) == 1.0
  np.testing.assert_allclose(
    skip - theirs, e * t * (t**2 - d**2) / (t**2 + d**2) ** 2, atol=2e-3
  )


def test_distances(x64):
  x, y = jnp.asarray([[3.0, 4.0], [0.0, 0.0]]), jnp.zeros((2, 2))

  @jax.jit
  def measured(x, y):
    total = lambda x, y, h: consistency.distance(x, y, h).sum()
    return [
      (consistency.distance(x, y, h), *jax.grad(total, (0, 1))(x, y, h))
      for h in (None, 0.0, 0.3)
    ]

  c = np.sqrt(2 * 0.3**2)
  expected = (12.5, 5.0, np.sqrt(25 + c**2) - c)
  for far, (value, slope, of_aim) in zip(expected, measured(x, y), strict=True):
    np.testing.assert_allclose(value, [far, 0.0], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(slope[1], [0.0, 0.0])
    assert np.all(slope[0] > 0)
    np.testing.assert_array_equal(of_aim, np.zeros((2, 2)))


# --- the teacher's steps ------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "solver"),
  [
    ("edm", "heun"),
    ("flow", "heun"),
    pytest.param("vp", "ddim", marks=pytest.mark.slow),
  ],
)
def test_a_walk_is_the_table_on_its_part_of_the_grid(name, solver, x64):
  process = PROCESSES[name]
  grid = grids.karras(process, 4)
  teacher = _teacher(process)
  steps = teacher_steps.of(solver, process, grid)
  x = jax.random.normal(jax.random.key(0), (3, 2))
  walk = jax.jit(
    lambda x, count: teacher_steps.walk(
      teacher, steps, x, jnp.asarray([2, 0, 1]), count
    )
  )
  there = walk(x, 2)
  for b, i in enumerate([2, 0, 1]):
    table = CASES[solver].build(process, grid[i : i + 3])
    alone = sampling.sample(jax.random.key(0), teacher, table, x)[b]
    np.testing.assert_allclose(there[b], alone, rtol=1e-9, atol=1e-12)
  np.testing.assert_array_equal(walk(x, 0), x)


def test_grids_end_where_the_function_is_x():
  with pytest.raises(ValueError, match="ends at 0, but trajectories end"):
    teacher_steps.falling(EDM, grids.karras(EDM, 4, to_zero=True))
  with pytest.raises(ValueError, match="strictly decreasing"):
    teacher_steps.falling(EDM, np.asarray([20.0, 1.0, 1.0, 0.02]))
  with pytest.raises(ValueError, match="draws noise"):
    teacher_steps.of("ddpm", EDM, grids.karras(EDM, 2))
  with pytest.raises(ValueError, match="no solver .*did you mean heun"):
    teacher_steps.of("huen", EDM, grids.karras(EDM, 2))


# --- distillation and training ------------------------------------------------


@pytest.mark.parametrize(
  "target", ["student", pytest.param("ema", marks=pytest.mark.slow)]
)
def test_one_step_to_the_end_is_consistency_distillation(target, x64):
  """Loss and gradient of CD, of CTM, and of both written out for EDM."""
  student, n, d, e = _mlp(EDM, jumps=True), 5, 0.5, 0.02
  ema = _mlp(EDM, jumps=True, seed=1).params
  teacher = _teacher(EDM)
  options = dict(optimizer=SGD, grid=n, target=target)
  cd = distillation.consistency_distillation(teacher, student, **options)
  ctm = distillation.ctm(
    teacher, student, until="end", max_steps=1, dsm=0.0, **options
  )
  x0 = jax.random.normal(jax.random.key(1), (6, 2))
  key = jax.random.key(2)
  keys = jax.random.split(key, 3)
  i = jax.random.randint(keys[0], (6,), 0, n)
  eps = EDM.perturb(keys[1], x0, 1.0)[1]
  ramp = np.linspace(20.0 ** (1 / 7), e ** (1 / 7), n + 1) ** 7
  t, s = (ramp[np.asarray(i) + k][:, None] for k in (0, 1))

  def f(params, x, t):
    c = np.log(np.append(t, np.full_like(t, e), axis=1)) / 4
    out = student.apply(params, x / np.sqrt(t**2 + d**2), c)
    skip = (d**2 + e * t) / (d**2 + t**2)
    return skip * x + d * (t - e) / np.sqrt(d**2 + t**2) * out

  def own(params):
    velocity = lambda x, t: (x - teacher(x, t[:, 0]).x0) / t
    x = x0 + t * eps
    here = velocity(x, t)
    y = x + (s - t) * (here + velocity(x + (s - t) * here, s)) / 2
    aim = f(ema if target == "ema" else jax.lax.stop_gradient(params), y, s)
    return jnp.mean((f(params, x, t) - aim) ** 2)

  expected, expected_slope = jax.jit(jax.value_and_grad(own))(student.params)
  assert float(expected) > 1e-3
  for method in (cd, ctm):
    value, slope = jax.jit(jax.value_and_grad(_loss(method, ema=ema)))(
      student.params, key, {"image": x0}
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-9)
    chex.assert_trees_all_close(slope, expected_slope, rtol=1e-6, atol=1e-10)


def _point(process):
  """A student that knows the only point of the data."""
  point = lambda params, x, c: jnp.broadcast_to(params, x.shape)
  return denoisers.from_function(
    point, jnp.asarray([0.3, -0.7]), process, prediction="x0"
  )


_METHODS = ("consistency_training", "ict", "ect")
_PAIRED = dict(zip(_METHODS, PROCESSES, strict=True))


@pytest.mark.parametrize(
  ("method", "name"),
  [
    pytest.param(m, n, marks=() if _PAIRED[m] == n else pytest.mark.slow)
    for m in _METHODS
    for n in PROCESSES
  ],
)
def test_training_is_done_where_data_are_one_point(name, method, x64):
  """Both ends of every pair lie on one path: no loss if, and only if, known."""
  process = PROCESSES[name]
  student = _point(process)
  build = getattr(distillation, method)
  option = {"every": 2} if method == "ect" else {"updates": 9}
  made = build(student, optimizer=SGD, **option)
  batch = {"image": jnp.broadcast_to(student.params, (8, 2))}
  loss = _loss(made)
  for step in (0, 8):
    value = loss(student.params, jax.random.key(0), batch, step)
    assert abs(float(value)) < 1e-6
    value = loss(student.params + 0.1, jax.random.key(0), batch, step)
    assert 1e-5 < float(value) < np.inf


@pytest.mark.parametrize("name", PROCESSES)
def test_the_clock_makes_karras_grids(name, x64):
  process = PROCESSES[name]
  place, time = consistency.karras_clock(process)
  n, i = 10, jnp.arange(11.0)
  grid = grids.karras(process, n)[::-1]
  np.testing.assert_allclose(time(i / n), grid, rtol=1e-9)
  np.testing.assert_allclose(place(jnp.asarray(grid)), i / n, atol=1e-9)
  t, s = consistency.neighbours((i + 0.3) / n, n, time)
  np.testing.assert_allclose(t, np.append(grid[1:], grid[-1]), rtol=1e-9)
  np.testing.assert_allclose(s, np.append(grid[:-1], grid[-2]), rtol=1e-9)


def test_the_schedule_of_ict():
  steps = np.arange(0, 801, 100)
  found = [float(intervals(800)(k)) for k in steps]
  assert found == [10, 20, 40, 80, 160, 320, 640, 1280, 1280]
  with pytest.raises(ValueError, match="first=20, last=10"):
    intervals(800, 20, 10)


def test_intervals_of_ict_have_the_probabilities_of_the_paper(x64):
  n, size = 10, 40000
  place, _ = consistency.karras_clock(EDM)
  times = losses.times.log_normal(EDM, -1.1, 2.0)
  i = np.floor(n * place(times(jax.random.key(0), size))).clip(0, n - 1)
  share = np.bincount(i.astype(int), minlength=n) / size
  edges = np.log(grids.karras(EDM, n)[::-1])
  odds = np.diff(special.erf((edges + 1.1) / (np.sqrt(2) * 2.0)))
  # the draws are stratified: a count is off by one or two
  np.testing.assert_allclose(share, odds / odds.sum(), atol=2 / size)


def test_the_discretization_and_the_decay_of_consistency_training():
  method = distillation.consistency_training(
    _point(EDM), optimizer=SGD, updates=100
  )
  k = np.arange(101)
  paper = np.ceil(np.sqrt(k / 100 * (151**2 - 4) + 4) - 1) + 1  # times
  assert paper[0] == 2
  assert paper[-1] == 151
  np.testing.assert_allclose(
    method.ema(jnp.asarray(k + 1.0)),
    np.exp(2 * np.log(0.9) / paper),
    rtol=1e-6,
  )


def test_pairs_of_ect_begin_at_the_end_and_close(monkeypatch):
  """r / t = 1 - (1 + k sigmoid(-b t)) / q^a, and not below t_min."""
  kept = lambda student, pairs, **options: pairs
  monkeypatch.setattr(consistency, "training_loss", kept)
  method = distillation.ect(_point(EDM), optimizer=SGD, every=10)
  pairs = jax.jit(
    lambda step: method.players["student"].loss(jax.random.key(0), 64, step)
  )
  for step, a in ((0, 1), (9, 1), (10, 2), (75, 8)):
    t, r = map(np.asarray, pairs(step))
    ratio = 1 - (1 + 8 / (1 + np.exp(t))) / 2.0**a
    np.testing.assert_allclose(r, np.maximum(ratio * t, 0.02), rtol=1e-4)
    assert np.any(r > 0.021)
    assert np.all(r <= t)


def test_methods_without_a_teacher_refuse_one():
  student = _point(EDM)
  for build, option in (
    (distillation.consistency_training, {"updates": 9}),
    (distillation.ict, {"updates": 9}),
    (distillation.ect, {"every": 9}),
  ):
    with pytest.raises(TypeError, match="takes at most 1 arguments"):
      build(student, student, optimizer=SGD, **option)
  with pytest.raises(ValueError, match="q=1.0"):
    distillation.ect(student, optimizer=SGD, every=9, q=1.0)
  with pytest.raises(ValueError, match="updates=0"):
    distillation.consistency_training(student, optimizer=SGD, updates=0)


# --- trajectories -------------------------------------------------------------


def test_exact_jumps_compose_and_tend_to_the_denoiser(x64):
  model = _exact_student()
  x = jax.random.normal(jax.random.key(0), (4, 2)) * 5.0
  t, u, s = 9.0, 1.7, 0.1
  ends = [(1.0, v) for v in (t, s)]
  law = oracles.gaussian(np.zeros(2), V)

  @jax.jit
  def moved(x):
    middle = flow_map(model, x, t, u)
    return (
      flow_map(model, x, t, s),
      flow_map(model, middle, u, s),
      flow_map(model, x, t, t),
      model(x, t).x0,
      model(x, t, until=t - 1e-6).x0,
    )

  there, twice, nowhere, mean, near = moved(x)
  np.testing.assert_allclose(there, oracles.flow_map(law, x, *ends), rtol=1e-12)
  np.testing.assert_allclose(twice, there, rtol=1e-12)
  np.testing.assert_array_equal(nowhere, x)
  np.testing.assert_allclose(mean, V * x / (V + t**2), rtol=1e-12)
  np.testing.assert_allclose(near, mean, rtol=1e-7)


def test_exact_jumps_have_no_loss_and_no_gradient(x64):
  """Along the exact ODE both ways to s end at one place, for every t, u, s."""
  model = _exact_student()
  method = distillation.ctm(
    _teacher(EDM),  # whose answers the exact solver does not look at
    model,
    optimizer=SGD,
    grid=6,
    solver=_exact_solver,
    dsm=0.0,
  )
  batch = {"image": jax.random.normal(jax.random.key(1), (32, 2))}
  loss = jax.jit(jax.value_and_grad(_loss(method)))
  value, slope = loss(jnp.asarray(1.0), jax.random.key(2), batch)
  assert float(value) < 1e-24
  assert abs(float(slope)) < 1e-12
  value, slope = loss(jnp.asarray(1.1), jax.random.key(2), batch)
  assert float(value) > 1e-6
  assert float(slope) > 1e-6


def test_the_sampler_with_gamma_one_is_that_of_consistency_models(x64):
  """x <- f(x, t), then noise of variance t'^2 - t_min^2, by the same keys."""
  student = _mlp(EDM, jumps=True)
  grid = np.asarray([20.0, 3.0, 0.5, 0.02])
  x = EDM.prior(jax.random.key(0), (3, 2), dtype=jnp.float64)
  model, table = distillation.sampler(student, grid, gamma=1.0)
  found = sampling.sample(jax.random.key(1), model, table, x)
  for i, (t, after) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
    key = jax.random.fold_in(sampling.stream(jax.random.key(1)), i)
    z = tree.normal(jax.random.fold_in(key, 1), x)
    x = consistency.function(student, x, jnp.full(3, t))
    x = x + np.sqrt(after**2 - 0.02**2) * z
  np.testing.assert_allclose(found, x, rtol=1e-10)


def test_adaptive_weights_make_terms_pull_alike(x64):
  params = {"out": jnp.asarray([1.0, 2.0]), "in": jnp.asarray(3.0)}

  def terms(params, scale=1.0):
    out = params["out"] * params["in"]
    return {
      "ctm": jnp.sum(out**2),
      "dsm": scale * jnp.sum(jnp.sin(out)),
      "gan": 1e-9 * jnp.sum(out),
    }

  bounds = {"dsm": (0.0, 1e4), "gan": (0.01, 10.0)}

  @jax.jit
  def pulls(scale):
    """Returns the weights, and the gradients in the last layer."""
    own = lambda p: terms(p, scale)
    slopes = jax.jacrev(own)(params)
    return balance(own, params, "out", "ctm", bounds), slopes

  found = []
  for scale in (1.0, 10.0):
    a, slopes = pulls(scale)
    assert float(a["gan"]) == 10.0
    found.append(a["dsm"] * slopes["dsm"]["out"])
    assert float(jnp.linalg.norm(found[-1])) == pytest.approx(
      float(jnp.linalg.norm(slopes["ctm"]["out"])), rel=1e-12
    )
  np.testing.assert_allclose(*found, rtol=1e-12)


def test_terms_are_added_with_weights_that_make_them_pull_alike(x64):
  student = _mlp(EDM, jumps=True)
  method = distillation.ctm(
    _teacher(EDM), student, optimizer=SGD, grid=4, solver="euler"
  )
  nets = {**method.frozen, "ema": student.params, "step": 0}
  batch = {"image": jax.random.normal(jax.random.key(1), (6, 2))}
  loss = method.players["student"].loss

  def parts(params):
    value, said = loss(jax.random.key(2), params, nets, batch)
    return jnp.stack([value, said["ctm"], said["dsm"]]), said

  slope, said = jax.jit(jax.jacrev(parts, has_aux=True))(student.params)
  a = float(said["dsm_weight"])
  whole, ctm, dsm = slope["out"]["kernel"]
  np.testing.assert_allclose(whole, ctm + a * dsm, rtol=1e-9, atol=1e-12)
  _, ctm, dsm = (
    jnp.sqrt(sum(jnp.sum(g[k] ** 2) for g in slope["out"].values()))
    for k in range(3)
  )
  assert a * float(dsm) == pytest.approx(float(ctm), rel=1e-9)


@pytest.mark.slow
def test_an_update_with_a_critic(x64):
  student = _mlp(EDM, jumps=True)
  network = _mlp(EDM)
  for trained in (False, True):
    critic = critics.make(
      jax.random.key(0), network, "Dense_0", (2,), width=8, trained=trained
    )
    method = distillation.ctm(
      None,
      student,
      optimizer=optax.adam(1e-2),
      grid=4,
      gan="adaptive",
      critic=critic,
      gan_start=1,
    )
    state = distillation.init_state(jax.random.key(1), method)
    update = distillation.make_update(method)
    batch = {"image": jax.random.normal(jax.random.key(2), (8, 2))}
    moved, before = [], critic.params
    for _ in range(3):
      state, metrics = update(state, batch)
      after = jax.tree.map(np.asarray, state.loss_params["critic"])
      moved.append(
        any(
          np.any(a != b)
          for a, b in zip(
            jax.tree.leaves(after), jax.tree.leaves(before), strict=True
          )
        )
      )
      before = after
      assert float(metrics["skipped"]) == 0.0
    assert moved == [False, True, True]
    assert set(metrics) >= {"ctm", "dsm", "gan", "critic/real", "gan_weight"}
    assert ("network" in before) == trained


def test_a_critic_knows_nothing_yet_and_is_asked_at_noised_samples():
  network = _mlp(EDM)
  make = lambda **options: critics.make(
    jax.random.key(0), network, "Dense_0", (2,), width=8, **options
  )
  critic = make()
  x = jax.random.normal(jax.random.key(1), (5, 2))
  player = critics.player(critic, lambda key, nets, batch: batch["image"], SGD)
  nets = {"critic_network": network}
  value, said = jax.jit(
    lambda p: player.loss(jax.random.key(3), p, nets, {"image": x})
  )(critic.params)
  assert float(value) == 2.0  # of the hinge, where nothing is told apart
  assert float(said["real"]) == float(said["fake"]) == 0.0
  with pytest.raises(ValueError, match="kind of adversarial loss"):
    make(kind="wgan")


def test_trajectories_check_what_they_are_given():
  student, teacher = _mlp(EDM, jumps=True), oracles.exact(oracles.g2(), EDM)
  make = lambda student=student, **options: distillation.ctm(
    teacher, student, optimizer=SGD, grid=4, **options
  )
  with pytest.raises(ValueError, match="told one time alone; make it with"):
    make(_mlp(EDM))
  with pytest.raises(ValueError, match="needs a critic"):
    make(gan=0.1)
  with pytest.raises(ValueError, match="takes 1..4 steps .* max_steps=5"):
    make(max_steps=5)
  with pytest.raises(ValueError, match="no layer 'last' .* it has Dense_0"):
    make(last="last")
  with pytest.raises(ValueError, match="dsm is the weight .* got 'large'"):
    make(dsm="large")
  with pytest.raises(ValueError, match="until must be one of"):
    make(until="middle")
  with pytest.raises(ValueError, match="target must be one of"):
    make(target="teacher")
  with pytest.raises(ValueError, match="t=1 and s=2"):
    flow_map(student, jnp.ones((2, 2)), 1.0, np.asarray([0.5, 2.0]))


# --- progressive distillation -------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_target_makes_one_step_of_two(name, x64):
  """Also out of alpha = 0 and into sigma = 0."""
  process = PROCESSES[name]
  teacher = _teacher(process)
  grid = grids.cosine(process, 4, to_zero=True)
  x = jax.random.normal(jax.random.key(0), (2, 2))
  t, m, s = (jnp.asarray(grid[k::2][:2]) for k in range(3))
  x_m = jumps.jump(process, teacher(x, t), x, t, m)
  x_s = jumps.jump(process, teacher(x_m, m), x_m, m, s)
  assert np.all(np.isfinite(x_s))
  x0 = solved(process, x, x_s, t, s)
  one = jumps.jump(process, teacher(x, t)._replace(x0=x0), x, t, s)
  np.testing.assert_allclose(one, x_s, rtol=1e-10)


def test_a_student_that_steps_as_its_teacher_twice_has_no_loss(x64):
  """Where data are one point DDIM is exact, in one step or two."""
  process = PROCESSES["flow"]
  student = _point(process)
  method = distillation.progressive(
    student, student, optimizer=SGD, updates=1, grid=4
  )
  batch = {"image": jnp.broadcast_to(student.params, (16, 2))}
  loss = _loss(method)
  for step in (0, 1, 5):
    value = loss(student.params, jax.random.key(0), batch, step)
    assert float(value) < 1e-20
  value = loss(student.params + 0.1, jax.random.key(0), batch, step)
  assert float(value) > 1e-3


def test_rounds_make_the_student_the_next_teacher():
  student = _mlp(EDM)
  method = distillation.progressive(
    student, student, optimizer=optax.sgd(annealed(0.1, 2)), updates=2, grid=8
  )
  state = distillation.init_state(jax.random.key(0), method)
  update = distillation.make_update(method)
  batch = {"image": jax.random.normal(jax.random.key(1), (8, 2))}
  steps, first = [], jax.tree.map(np.asarray, student.params)
  for k in range(7):
    state, metrics = update(state, batch)
    steps.append(int(metrics["steps"]))
    taught = state.loss_params["memory"]["teacher"]
    if k % 2 == 1:
      chex.assert_trees_all_close(taught, state.params, rtol=1e-6)
      first = jax.tree.map(np.asarray, taught)
    else:
      chex.assert_trees_all_close(taught, first, rtol=0)
  assert steps == [4, 4, 2, 2, 1, 1, 1]
  np.testing.assert_array_equal(
    student_grid(grids.cosine(EDM, 8), 3), [20.0, 0.02]
  )
  assert annealed(0.1, 4)(5) == pytest.approx(0.075)


def test_grids_that_cannot_be_halved_are_refused():
  make = lambda **options: distillation.progressive(
    _point(EDM), _point(EDM), optimizer=SGD, updates=1, **options
  )
  with pytest.raises(ValueError, match="12 steps can be halved 2 times"):
    make(grid=12, rounds=3)
  with pytest.raises(ValueError, match="7 steps can be halved 0 times"):
    make(grid=7)
  with pytest.raises(ValueError, match="weighting must be one of"):
    make(weighting="snr")


# --- students are models ------------------------------------------------------


def test_labels_reach_teacher_and_student():
  """Every call is given the batch's; for samples of three axes."""
  seen = []

  def network(params, x, c, label):
    seen.append(label)
    return params * x

  process = PROCESSES["vp"]
  student = denoisers.from_function(
    network, jnp.asarray(0.5), process, prediction="v", jumps=True
  )
  batch = {
    "image": jnp.ones((3, 2, 2, 1)),
    "label": jnp.asarray([4, 0, 7]),
    "index": jnp.arange(3),
  }
  exact = _teacher(process)
  teacher = lambda x, t, label: (seen.append(label), exact(x, t))[1]
  one_time = dataclasses.replace(student, jumps=False)
  options = dict(optimizer=SGD)
  for method in (
    distillation.consistency_distillation(teacher, student, grid=3, **options),
    distillation.ctm(teacher, student, grid=3, dsm=0.0, **options),
    distillation.ict(student, updates=9, **options),
    distillation.progressive(teacher, one_time, updates=9, grid=2, **options),
  ):
    seen.clear()
    value = jax.eval_shape(
      _loss(method), student.params, jax.random.key(0), batch
    )
    assert value.shape == ()
    assert len(seen) >= 2
    kind = batch["label"].dtype
    assert all(v.shape == (3,) and v.dtype == kind for v in seen)

"""What all methods of distillation stand on: the update, jumps, matching."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import training
from jaxdiff.distillation.dmd import direction
from jaxdiff.distillation.parts import critic
from jaxdiff.training import alternating

EDM = processes.edm(0.02, 20.0)
PROCESSES = {
  "edm": EDM,
  "vp": processes.vp_cosine(),
  "flow": processes.rectified_flow(),
}
PLAYER = lambda loss, **options: training.Player(
  loss, optax.sgd(0.1), **options
)


def _square(aim):
  return lambda key, params, nets, batch: (
    jnp.sum((params - aim(nets)) ** 2),
    {},
  )


# --- the update ---------------------------------------------------------------


def test_players_move_in_turn_and_see_each_other():
  fixed = 3.0
  players = {
    "fake": PLAYER(_square(lambda n: n["student"]), steps=4, clip_norm=None),
    "student": PLAYER(_square(lambda n: n["fake"] + n["fixed"])),
  }
  players["student"] = dataclasses.replace(players["student"], clip_norm=None)
  params = {"fake": jnp.asarray(0.0), "student": jnp.asarray(1.0)}
  state = alternating.init_state(jax.random.key(0), players, params)
  update = alternating.make_update(
    players, frozen={"fixed": jnp.asarray(fixed)}, ema=0.5, ema_warmup=False
  )
  fake, student, mean = 0.0, 1.0, 1.0
  for _ in range(3):
    state, metrics = update(state, {"image": jnp.zeros((2, 1))})
    for _ in range(4):
      fake -= 0.2 * (fake - student)
    student -= 0.2 * (student - fake - fixed)
    mean = 0.5 * mean + 0.5 * student
  assert float(state.loss_params["fake"]) == pytest.approx(fake, rel=1e-6)
  assert float(state.params) == pytest.approx(student, rel=1e-6)
  assert float(state.ema_params) == pytest.approx(mean, rel=1e-6)
  assert set(metrics) >= {"loss", "fake/loss", "grad_norm", "fake/grad_norm"}


@pytest.mark.parametrize("convolution", [False, True])
def test_inner_steps_are_a_loop_but_for_convolutions_on_a_cpu(convolution):
  """Their gradients in a loop's body are ten times slower there."""

  def loss(key, params, nets, batch):
    x = batch["image"]
    if convolution:
      x = jax.lax.conv(x, params, (1, 1), "SAME")
    return jnp.mean((x - params.sum()) ** 2), {}

  players = {"student": PLAYER(loss, steps=3)}
  params = {"student": jnp.ones((1, 1, 3, 3))}
  state = alternating.init_state(jax.random.key(0), players, params)
  update = alternating.make_update(players)
  batch = {"image": jnp.ones((2, 1, 4, 4))}
  text = update.program.lower({}, state, batch).as_text()
  assert ("stablehlo.convolution" in text) == convolution
  assert ("stablehlo.while" in text) != convolution


def test_steps_written_out_are_those_of_the_loop():
  """Each with its own key, and metrics over all of them."""

  def loss(key, params, nets, batch):
    aim = jax.random.normal(key, params.shape)
    return jnp.sum((params - aim) ** 2), dict(aim=aim.sum())

  ends = []
  for unroll in (False, True):
    players = {"student": PLAYER(loss, steps=3, unroll=unroll)}
    params = {"student": jnp.ones(4)}
    state = alternating.init_state(jax.random.key(0), players, params)
    update = alternating.make_update(players)
    state, said = update(state, {"image": jnp.zeros((2, 1))})
    ends.append((state.params, said))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends)


def test_a_step_that_the_optimizer_spoils_moves_nothing():
  """Loss and gradient are finite; the optimizer's own number is not."""
  broken = optax.sgd(lambda count: jnp.where(count == 1, jnp.nan, 0.1))
  loss = lambda key, params, nets, batch: (jnp.sum(params**2), {})
  players = {"student": training.Player(loss, broken)}
  params = {"student": jnp.ones(4)}
  state = alternating.init_state(jax.random.key(0), players, params)
  update = alternating.make_update(players)
  batch = {"image": jnp.zeros((2, 1))}
  state, said = update(state, batch)
  before = np.asarray(state.params)
  assert said["skipped"] == 0 and (before < 1).all()
  state, said = update(state, batch)
  assert said["skipped"] == 1
  np.testing.assert_array_equal(state.params, before)


def test_a_player_that_rests_keeps_its_parameters_and_its_momentum():
  players = {
    "fake": training.Player(
      _square(lambda n: n["student"]),
      optax.adam(0.1),
      when=lambda step: step >= 2,
    ),
    "student": PLAYER(_square(lambda n: 5.0)),
  }
  params = {"fake": jnp.asarray(0.0), "student": jnp.asarray(1.0)}
  state = alternating.init_state(jax.random.key(0), players, params)
  update = alternating.make_update(players)
  moved = []
  for _ in range(3):
    state, _ = update(state, {"image": jnp.zeros((2, 1))})
    moved.append(float(state.loss_params["fake"]))
  assert moved[:2] == [0.0, 0.0]
  assert moved[2] == pytest.approx(0.1, rel=1e-3)


def test_one_player_is_training_as_usual():
  def plain(key, params, batch):
    noise = jax.random.normal(key, batch["image"].shape)
    return jnp.mean((params * batch["image"] - noise) ** 2), {}

  optimizer = optax.adam(0.1)
  # one key in every update of both, so that they see the same noise
  fixed = jax.random.key(1)
  players = {
    "student": training.Player(
      lambda key, params, nets, batch: plain(fixed, params, batch), optimizer
    )
  }
  start, batch = jnp.asarray(1.0), {"image": jnp.arange(6.0).reshape(3, 2)}
  one = alternating.init_state(fixed, players, {"student": start})
  other = training.init_state(fixed, start, optimizer)
  update = alternating.make_update(players)
  usual = training.make_update(lambda k, p, b: plain(fixed, p, b), optimizer)
  for _ in range(3):
    one, said = update(one, batch)
    other, expected = usual(other, batch)
    assert float(one.params) == pytest.approx(float(other.params), rel=1e-6)
    for name in ("loss", "grad_norm", "param_norm", "skipped"):
      assert float(said[name]) == pytest.approx(float(expected[name]), rel=1e-5)
    np.testing.assert_array_equal(said["fault"], expected["fault"])
  assert float(one.ema_params) == pytest.approx(float(other.ema_params))


def test_memory_goes_from_update_to_update(compiled):
  players = {"student": PLAYER(_square(lambda n: n["memory"]["seen"]))}
  state = alternating.init_state(
    jax.random.key(0),
    players,
    {"student": jnp.full((), 2.0, jnp.float32)},
    memory={"seen": 0.0},
  )
  update = alternating.make_update(
    players,
    remember=lambda memory, metrics, nets: {"seen": memory["seen"] + 1.0},
  )
  for _ in range(3):
    state, _ = update(state, {"image": jnp.zeros((2, 1))})
  assert float(state.loss_params["memory"]["seen"]) == 3.0
  assert compiled.count("jit(update)") == 1


def test_an_update_that_is_not_finite_changes_nothing_and_names_the_loss():
  def fails(key, params, nets, batch):
    return jnp.where(nets["step"] >= 1, jnp.nan, 1.0) * params**2, {}

  players = {"fake": PLAYER(fails), "student": PLAYER(_square(lambda n: 1.0))}
  params = {"fake": jnp.asarray(1.0), "student": jnp.asarray(0.0)}
  batches = data.batches({"image": np.zeros((4, 1), np.float32)}, 2, seed=0)
  with pytest.raises(FloatingPointError, match="update 2, where fake/loss"):
    training.train(
      alternating.init_state(jax.random.key(0), players, params),
      alternating.make_update(players),
      batches,
      steps=4,
      log_every=1,
      progress=False,
    )


def test_a_diverging_loss_is_named_and_not_saved(tmp_path):
  from jaxdiff import checkpoints

  grows = lambda key, p, nets, batch: (-jnp.sum(p**2), {})
  players = {
    "fake": training.Player(grows, optax.sgd(1.0), clip_norm=None),
    "student": PLAYER(_square(lambda n: 1.0)),
  }
  params = {"fake": jnp.asarray(0.1), "student": jnp.asarray(0.0)}
  batches = data.batches({"image": np.zeros((4, 1), np.float32)}, 2, seed=0)
  opened = checkpoints.open(tmp_path)
  try:
    with pytest.raises(FloatingPointError, match="fake/loss diverged") as e:
      training.train(
        alternating.init_state(jax.random.key(0), players, params),
        alternating.make_update(players),
        batches,
        steps=40,
        checkpoints=opened,
        every=2,
        log_every=1,
        guard=training.Guard(reports=1),
        progress=False,
      )
    last = opened.latest()
    assert f"holds step {last}" in str(e.value)
    held, _ = opened.restore({"loss_params": {"fake": jnp.zeros(())}})
    assert abs(float(held["loss_params"]["fake"])) ** 2 < 100
  finally:
    opened.close()


def test_players_and_parameters_have_the_same_names():
  players = {"student": PLAYER(_square(lambda n: 1.0))}
  with pytest.raises(ValueError, match="'student' is to be the main one"):
    alternating.init_state(jax.random.key(0), players, {"policy": 0.0})
  with pytest.raises(ValueError, match="'ema' cannot name"):
    alternating.make_update(players, frozen={"ema": 1.0})
  with pytest.raises(ValueError, match="at least one step"):
    PLAYER(_square(lambda n: 1.0), steps=0)


# --- jumps --------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_a_jump_is_a_step_of_ddim_and_nothing_where_it_begins(name, x64):
  process = PROCESSES[name]
  model = oracles.exact(oracles.g2(), process)
  t, s = (float(process.time_at(v)) for v in (2.0, 0.3))
  x = jax.random.normal(jax.random.key(0), (5, 2), jnp.float64)
  predicted = model(x, t)
  there = distillation.jump(process, predicted, x, t, s)
  table = solvers.ddim(process, np.asarray([t, s]))
  expected = sampling.sample(jax.random.key(0), model, table, x)
  np.testing.assert_allclose(there, expected, rtol=1e-12)
  np.testing.assert_array_equal(
    distillation.jump(process, predicted, x, t, t), x
  )


@pytest.mark.parametrize("name", PROCESSES)
def test_gamma_zero_is_ddim(name, x64):
  process = PROCESSES[name]
  grid = grids.karras(process, 4)
  model = oracles.exact(oracles.g2(), process)
  x = process.prior(jax.random.key(0), (3, 2), dtype=jnp.float64)
  draw = lambda table: sampling.sample(jax.random.key(1), model, table, x)
  table = solvers.gamma_sampling(process, grid, gamma=0.0)
  assert not table.stochastic
  np.testing.assert_allclose(
    draw(table), draw(solvers.ddim(process, grid)), rtol=1e-10
  )


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("to_zero", [False, True])
def test_gamma_sampling_keeps_the_marginals_of_a_point(name, gamma, to_zero):
  """With data at a point every gamma has the variance sigma'^2 at each time."""
  process = PROCESSES[name]
  grid = grids.karras(process, 4, to_zero=to_zero)
  table = solvers.gamma_sampling(process, grid, gamma=gamma)
  mean, variance = process.alpha(grid[0]), process.sigma(grid[0]) ** 2
  for i, t in enumerate(grid[1:]):
    carry, gain = table.state[i, 1, 0], table.history[i, 1, 0]
    mean = carry * mean + gain
    variance = carry**2 * variance + table.noise[i, 2] ** 2
    assert mean == pytest.approx(process.alpha(t), rel=1e-9)
    assert variance == pytest.approx(process.sigma(t) ** 2, rel=1e-9, abs=1e-18)


def test_gamma_one_renoises_by_what_the_end_lacks():
  grid = np.asarray([20.0, 1.0, 0.02])
  table = solvers.gamma_sampling(EDM, grid)
  assert table.noise[0, 2] == pytest.approx(np.sqrt(1.0 - 0.02**2))
  assert table.noise[1, 2] == 0.0
  np.testing.assert_allclose(solvers.jump_times(EDM, grid), [0.02, 0.02])
  np.testing.assert_allclose(
    solvers.jump_times(EDM, grid, 0.6), [0.8, 0.02], rtol=1e-12
  )


def test_gamma_is_checked():
  with pytest.raises(ValueError, match="got gamma=1.5"):
    solvers.gamma_sampling(EDM, grids.karras(EDM, 2), gamma=1.5)


@pytest.mark.parametrize("name", PROCESSES)
def test_few_steps_spend_no_call_without_noise(name):
  process = PROCESSES[name]
  whole = distillation.few_step_grid(process, 4)
  assert whole.shape == (5,)
  assert whole[0] == process.t_max
  assert whole[-1] == process.t_zero
  np.testing.assert_allclose(whole[:-1], grids.karras(process, 4)[:-1])
  ends = distillation.few_step_grid(process, 1, start=4.0, to_zero=False)
  np.testing.assert_allclose(ends, [process.time_at(4.0), process.t_min])
  high = distillation.few_step_grid(process, 3, start=4.0, lowest=0.8)
  levels = process.noise_level(high[:-1])
  np.testing.assert_allclose(levels[[0, -1]], [4.0, 0.8], rtol=1e-6)
  assert 0.8 < levels[1] < 4.0
  assert high[-1] == process.t_zero


class _Echo(nn.Module):
  """Returns what it was told: the two times in the two values of a sample."""

  @nn.compact
  def __call__(self, x, c, label=None):
    self.param("unused", nn.initializers.zeros, ())
    return jnp.broadcast_to(c, x.shape)


def test_along_tells_the_jumps_of_the_table():
  model = denoisers.from_linen(
    _Echo(), {"unused": jnp.zeros(())}, EDM, prediction="x0", jumps=True,
    time="t",
  )  # fmt: skip
  grid = np.asarray([20.0, 3.0, 0.5, 0.02])
  bound = distillation.along(model, EDM, grid, gamma=0.0)
  for t, s in zip(grid, grid[1:]):
    told = bound(jnp.zeros((1, 2)), jnp.asarray(t, jnp.float32)).x0
    np.testing.assert_allclose(told[0], [t, s], rtol=1e-6)
  own = model(jnp.zeros((1, 2)), 3.0).x0  # an ordinary denoiser: told t twice
  np.testing.assert_allclose(own[0], [3.0, 3.0])
  with pytest.raises(ValueError, match="told one time alone"):
    distillation.along(dataclasses.replace(model, jumps=False), EDM, grid)
  with pytest.raises(ValueError, match="until=0.5 says where to jump"):
    dataclasses.replace(model, jumps=False)(jnp.zeros((1, 2)), 1.0, until=0.5)


@pytest.mark.parametrize(
  "network",
  [
    networks.MLP(features=(8,), embedding=8),
    networks.ResidualMLP(width=8, blocks=1, hidden=1, embedding=8),
    networks.UNet(channels=4, multipliers=(1,), blocks=1, attention=()),
  ],
  ids=lambda n: type(n).__name__,
)
def test_a_student_that_jumps_begins_as_its_teacher(network):
  shape = (4, 4, 1)
  x = jax.random.normal(jax.random.key(0), (2, *shape))
  shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(2))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.1 * rng.standard_normal(s.shape), s.dtype),
    shapes["params"],
  )
  teacher = denoisers.from_linen(network, params, EDM)
  student = distillation.student_of(
    jax.random.key(1), teacher, shape, jumps=True
  )
  t, s = jnp.asarray([2.0, 5.0]), jnp.asarray([0.1, 0.3])
  same, told = teacher(x, t), student(x, t, until=s)
  np.testing.assert_allclose(told.x0, same.x0, rtol=1e-6, atol=1e-6)


def test_students_are_made_of_denoisers():
  with pytest.raises(TypeError, match="must be a Denoiser, got"):
    distillation.student_of(
      jax.random.key(0), oracles.exact(oracles.g2(), EDM), (2,)
    )
  dit = networks.DiT(width=16, depth=1)
  teacher = denoisers.from_linen(dit, {}, EDM)
  with pytest.raises(ValueError, match="cannot be told two times"):
    distillation.student_of(jax.random.key(0), teacher, (8, 8, 3), jumps=True)


# --- distribution matching ----------------------------------------------------


def test_the_gradient_of_matching_is_that_of_the_kl_of_gaussians(x64):
  """Fake N(m, v), teacher N(0, 1): E c g = sigma^2 dKL / dm."""
  m, v, sigma = 0.7, 0.49, 1.3
  z, w = np.polynomial.hermite_e.hermegauss(60)
  w = w / w.sum()
  x = m + np.sqrt(v) * z[:, None] + sigma * z[None, :]
  fake = (v * x + sigma**2 * m) / (v + sigma**2)
  real = x / (1.0 + sigma**2)
  mean = np.einsum("i,j,ij->", w, w, fake - real)
  kl = lambda m: 0.5 * m**2 / (1.0 + sigma**2)  # the part that depends on m
  slope = (kl(m + 1e-5) - kl(m - 1e-5)) / 2e-5
  assert mean == pytest.approx(sigma**2 * slope, rel=1e-8)
  x0 = jnp.asarray(m + np.sqrt(v) * z)[:, None, None]
  g = direction(x0, jnp.asarray(real)[..., None], jnp.asarray(fake)[..., None])
  scale = np.maximum(abs(x0[..., 0] - real).mean(1), 1e-3)
  np.testing.assert_allclose(
    np.asarray(g)[..., 0] * scale[:, None], fake - real, rtol=1e-9, atol=1e-12
  )


def test_matching_has_no_gradient_at_its_optimum():
  model = oracles.exact(oracles.g2(), EDM)
  times = losses.times.uniform_log_snr(EDM)
  x = jax.random.normal(jax.random.key(0), (6, 2))
  loss = lambda x: distillation.dmd_loss(
    jax.random.key(1), x, model, model, times, {"image": x}
  )
  value, gradient = jax.value_and_grad(loss)(x)
  assert float(value) == 0.0
  np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_a_sample_without_a_finite_direction_is_left_out():
  x = jnp.ones((2, 3))
  bad = jnp.asarray([[1.0, 2.0, 3.0], [jnp.nan, 0.0, 0.0]])
  g = direction(x, jnp.zeros((2, 3)), bad)
  np.testing.assert_array_equal(g[1], np.zeros(3))
  assert np.all(np.asarray(g[0]) != 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_backward_simulation_asks_at_every_call_of_the_sampler(name):
  """With a teacher of one point the samples are that point at every call."""
  process = PROCESSES[name]
  point = oracles.exact(oracles.gaussian(np.ones(2), 0.0), process)
  grid = grids.karras(process, 3, to_zero=True)
  seen = []

  def model(x, t, *label):
    seen.append(t)
    return point(x, t)

  generate = distillation.generators.backward_simulation(process, grid)
  batch = {"image": jnp.zeros((64, 2))}
  x = generate(jax.random.key(0), model, batch)
  np.testing.assert_allclose(x, np.ones((64, 2)), rtol=1e-4)
  assert len(seen) == 3
  assert set(np.asarray(seen[-1]).tolist()) == set(
    grid[:-1].astype(seen[-1].dtype).tolist()
  )
  generate = distillation.generators.backward_simulation(
    process, grid, last=True
  )
  generate(jax.random.key(0), model, batch)
  np.testing.assert_allclose(seen[-1], np.full(64, grid[-2]), rtol=1e-6)


# --- adversarial terms --------------------------------------------------------


@pytest.mark.parametrize("kind", critic.KINDS)
def test_adversarial_losses_push_logits_apart_and_back(kind):
  logits = jnp.asarray([0.1, -0.2])
  real, fake = jax.grad(
    lambda r, f: critic.discriminator_loss(kind, r, f), argnums=(0, 1)
  )(logits, logits - 0.3 if kind != "least_squares" else logits + 0.5)
  assert np.all(real < 0)
  assert np.all(fake > 0)
  pull = jax.grad(lambda f: critic.generator_loss(kind, f))(logits)
  assert np.all(pull < 0)


def test_features_are_those_of_the_named_layer():
  module = networks.MLP(features=(8, 6), embedding=8)
  x = jax.random.normal(jax.random.key(0), (3, 2))
  params = module.init(jax.random.key(1), x, jnp.zeros(3))["params"]
  model = denoisers.from_linen(module, params, EDM)
  found = critic.features(model, "Dense_1", x, 1.0)
  assert found.shape == (3, 6)
  # the network's answer is a linear map of its last hidden layer
  h = nn.silu(found)
  output = h @ params["out"]["kernel"] + params["out"]["bias"]
  expected = module.apply({"params": params}, *model.inputs(x, 1.0))
  np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match="no layer 'middle'; it has Dense_0"):
    critic.features(model, "middle", x, 1.0)

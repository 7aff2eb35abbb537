"""Restoration in one step: ResShift, SinSR, HF-Diff, InstaRevive."""

import dataclasses

import chex
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
from jaxdiff import models
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tree
from jaxdiff.distillation.instarevive import CLOCKS
from jaxdiff.distillation.instarevive import restored_at

PROCESS = processes.resshift()
EDM = processes.edm(0.02, 20.0)
SHAPE = (4, 4, 1)


class _Affine(nn.Module):
  """F = a x + b c + d y + e, of four numbers: the smallest network."""

  label_dim: int = 0

  @nn.compact
  def __call__(self, x, c, label=None):
    a = self.param("a", nn.initializers.normal(0.3), (4,)).astype(x.dtype)
    c = c.reshape(c.shape[:1] + (1,) * (x.ndim - 1))
    y = 0.0 if label is None else label
    return a[0] * x + a[1] * c + a[2] * y + a[3]


def _model(process, seed=0, scale=0.3, **options):
  rng = np.random.default_rng(seed)
  params = {"a": jnp.asarray(scale * rng.standard_normal(4), jnp.float32)}
  module = _Affine(label_dim=int(process == PROCESS))
  return denoisers.from_linen(module, params, process, **options)


def _images(seed, n=6, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return jnp.asarray(0.5 * rng.standard_normal((n, *SHAPE)), dtype)


def _pairs(seed=0):
  """Returns a batch of residuals of known images, with its index."""
  batch = {"image": _images(seed), "degraded": _images(seed + 1)}
  return distillation.residuals(batch) | {"index": jnp.arange(6)}


def _gradient(
  method, batch, key=None, memory=None, player="student", jit=jax.jit
):
  """Returns (loss, gradient, metrics) of a method's player at its start."""
  nets = {"student": method.student.params, **method.params, **method.frozen}
  memory = memory or dict(method.memory)
  arrays, static = tree.partition(nets | {"memory": memory})
  loss = method.players[player].loss
  key = jax.random.key(3) if key is None else key

  @jit
  def gradient(params, arrays):
    nets = tree.combine(arrays, static) | {"step": jnp.asarray(0)}
    given = jax.value_and_grad(loss, argnums=1, has_aux=True)
    return given(key, params, nets, batch)

  (value, said), grads = gradient(nets[player], arrays)
  return value, grads, said


# --- ResShift -----------------------------------------------------------------


def _eta(steps, kappa=2.0, p=0.3, last=0.999):
  """Returns eta_1..eta_T as the paper writes it: b0^beta_t sqrt(eta_1)."""
  first = (0.04 / kappa) ** 2
  t = np.arange(1, steps + 1)
  b0 = np.exp(np.log(last / first) / (2 * (steps - 1)))
  beta = ((t - 1) / (steps - 1)) ** p * (steps - 1)
  return (np.sqrt(first) * b0**beta) ** 2


def test_resshift_is_gaussian_in_the_residual_and_its_steps_are_a_grid():
  steps = 15
  grid = grids.power_log(PROCESS, steps, to_zero=True)
  eta = _eta(steps)[::-1]
  np.testing.assert_allclose(grid[:-1] ** 2, eta, rtol=1e-12)
  assert grid[-1] == 0.0
  np.testing.assert_allclose(PROCESS.alpha(grid[:-1]), 1 - eta, rtol=1e-9)
  np.testing.assert_allclose(PROCESS.sigma(grid[:-1]), 2 * np.sqrt(eta))
  t = np.linspace(PROCESS.t_min, PROCESS.t_max, 9)
  np.testing.assert_allclose(
    PROCESS.log_snr_inverse(PROCESS.log_snr(t)), t, rtol=1e-12
  )
  h = 1e-6
  rates = np.asarray(PROCESS.rates(t[1:-1]))
  for rate, f in zip(rates, (PROCESS.alpha, PROCESS.sigma)):
    slope = (f(t[1:-1] + h) - f(t[1:-1] - h)) / (2 * h)
    np.testing.assert_allclose(rate, slope, rtol=1e-8)


def test_the_step_of_sinsr_is_ddim():
  """x' = k f + m x + j y for every step of the grid, written in r = x - y."""
  grid = grids.power_log(PROCESS, 8, to_zero=True)
  table = solvers.ddim(PROCESS, grid)
  eta, after = grid[:-1] ** 2, grid[1:] ** 2
  m = np.sqrt(after / eta)
  j = after - np.sqrt(after * eta)
  k = 1 - after + np.sqrt(after * eta) - np.sqrt(after / eta)
  np.testing.assert_allclose(k + m * (1 - eta), 1 - after, atol=1e-12)
  np.testing.assert_allclose(m * eta + j, after, atol=1e-12)
  np.testing.assert_allclose(table.state[:, 0, 0] + table.state[:, 0, 1], m)
  np.testing.assert_allclose(table.history[:, 0, 0], k, atol=1e-12)
  np.testing.assert_allclose(1 - k - m, j, atol=1e-12)


def test_a_teacher_that_knows_the_image_walks_along_its_forward_samples():
  """So does one jump: steps compose for a constant answer."""
  rng = np.random.default_rng(0)
  x0, y, eps = rng.standard_normal((3, 5))
  grid = grids.power_log(PROCESS, 5, to_zero=True)
  at = lambda t: PROCESS.alpha(t) * (x0 - y) + PROCESS.sigma(t) * eps
  for stop in (3, 5):
    for times in (grid[: stop + 1], grid[[0, stop]]):
      table, x = solvers.ddim(PROCESS, times), at(grid[0])
      for state, history in zip(table.state, table.history):
        x = state[1].sum() * x + history[1, 0] * (x0 - y)
      np.testing.assert_allclose(x, at(grid[stop]), atol=1e-12)


def test_resshift_is_checked():
  with pytest.raises(ValueError, match="eta_max = 1.2"):
    processes.resshift(eta_max=1.2)
  with pytest.raises(ValueError, match="eta rises from eta_min"):
    processes.resshift(eta_min=0.5, eta_max=0.1)
  with pytest.raises(ValueError, match="kappa"):
    processes.resshift(kappa=0.0)
  with pytest.raises(ValueError, match="cannot end at t_min = 0"):
    grids.power_log(processes.ve(), 4)


def test_a_restorer_is_an_ordinary_model_that_is_stored_and_read(tmp_path):
  options = dict(network={"name": "mlp", "features": [4], "embedding": 4})
  config = models.ModelConfig(
    SHAPE, network="beside", network_options=options, process="resshift"
  )
  models.save_config(tmp_path, config)
  model = models.make_denoiser(models.load_config(tmp_path))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype),
    model.params,
  )
  model = dataclasses.replace(model, params=params)
  y = _images(0, 2)
  found = distillation.restore(jax.random.key(1), model, y)
  z = PROCESS.sigma(PROCESS.t_max) * sampling.initial_noise(
    jax.random.key(1), PROCESS.noise, y, jnp.arange(2)
  )
  call = jax.jit(lambda z, y: model(z, PROCESS.t_max, y).x0)
  expected = y + call(z, y)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  other = y + call(z, jnp.zeros_like(y))
  assert float(jnp.abs(other - expected).max()) > 1e-3
  with pytest.raises(ValueError, match="the image beside an input"):
    model(z, 1.0, y[:, :2])
  with pytest.raises(ValueError, match="so it has no classes"):
    networks.make("beside", num_classes=3)


# --- data ---------------------------------------------------------------------


def test_degradations_keep_what_they_should():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 12, 3)))
  flat = jnp.ones((1, 12, 12, 1))
  np.testing.assert_allclose(data.blur(flat, 1.3), flat, rtol=1e-6)
  np.testing.assert_array_equal(data.blur(x, 0.0), x)
  small = data.downsample(x, 3)
  np.testing.assert_allclose(small.mean((1, 2)), x.mean((1, 2)), rtol=1e-4)
  np.testing.assert_allclose(small[0, 0, 0], x[0, :3, :3].mean((0, 1)), 1e-5)
  large = data.upsample(flat[:, ::3, ::3], (12, 12))
  np.testing.assert_allclose(large, flat, rtol=1e-5)
  key = jax.random.key(0)
  noisy = data.degrade(key, x, factor=3, noise=0.1)
  again = data.degrade(key, x[1:], factor=3, noise=0.1, index=jnp.asarray([1]))
  np.testing.assert_allclose(noisy[1], again[0], rtol=1e-6)
  with pytest.raises(ValueError, match="12x12 cannot be made 5 times smaller"):
    data.downsample(x, 5)
  with pytest.raises(ValueError, match="5x5 become ones of 12x12 by no whole"):
    data.upsample(x[:, :5, :5], (12, 12))
  with pytest.raises(ValueError, match="more than images of 12x12"):
    data.blur(x, 9.0)


# --- the invertible network ---------------------------------------------------


def _details(dtype, scale=0.3):
  """Returns a network of one level with random parameters."""
  network = networks.Invertible(levels=1, couplings=2, width=4)
  x = jnp.zeros((1, *SHAPE), dtype)
  shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
  rng = np.random.default_rng(1)
  draw = lambda s: scale * rng.standard_normal(s.shape)
  params = {
    name: jnp.asarray(draw(leaf) + np.eye(4), dtype)
    if "mix" in name
    else jax.tree.map(lambda s: jnp.asarray(draw(s), dtype), leaf)
    for name, leaf in shapes.items()
  }
  return distillation.Details(params, network=network)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_network_is_inverted_and_its_log_det_is_that_of_its_jacobian(
  dtype, x64
):
  details = _details(dtype)
  x = _images(0, 2, dtype)

  def flat(x):
    low, rest = details.bands(x[None])[0]
    return jnp.concatenate([v.ravel() for v in (low, *rest)])

  @jax.jit
  def all_of(x):
    bands, log_det = details.bands(x)
    image, back = details.network.apply(
      {"params": details.params}, bands, inverse=True
    )
    density = networks.invertible.normal_log_prob(bands, log_det)
    return log_det, image, back, density, flat(x[0]), jax.jacfwd(flat)(x[0])

  log_det, image, back, density, z, jacobian = map(np.asarray, all_of(x))
  exact = dtype == np.float64
  np.testing.assert_allclose(image, x, atol=1e-12 if exact else 1e-5)
  np.testing.assert_allclose(back, -log_det, rtol=1e-9 if exact else 1e-4)
  _, expected = np.linalg.slogdet(jacobian.reshape(16, 16))
  assert log_det[0] == pytest.approx(expected, abs=1e-6 if exact else 1e-4)
  gauss = -0.5 * np.sum(z**2) - 8 * np.log(2 * np.pi)
  assert density[0] == pytest.approx(gauss + expected, rel=1e-6)


def test_untrained_features_with_the_low_band_are_the_squared_distance():
  x, g = (_images(i, 2) for i in (0, 1))
  start = distillation.fit_details(
    jax.random.key(0), x, couplings=1, width=4, steps=0
  )

  @jax.jit
  def terms(x, g):
    ours, theirs = start.bands(x)[0], start.bands(g)[0]
    low = jnp.sum((ours.low - theirs.low) ** 2)
    sizes = [d[0].size for d in ours.details]
    return low, distillation.feature_loss(start, x, g, sizes)

  low, high = map(float, terms(x, g))  # the second is a mean over two images
  expected = float(np.sum((np.asarray(x) - np.asarray(g)) ** 2))
  assert low + 2 * high == pytest.approx(expected, rel=1e-6)
  with pytest.raises(ValueError, match="2 feature maps, but 3 weights"):
    jax.eval_shape(
      lambda x: distillation.feature_loss(start, x, x, (1.0, 1.0, 1.0)), x
    )
  with pytest.raises(ValueError, match="multiples of 4, got shape"):
    start(x[:, :2])
  with pytest.raises(ValueError, match="even sides"):
    networks.haar(x[:, :3])


@pytest.mark.slow
def test_likelihood_whitens_the_details():
  """Fitted to smooth images, whose details are small and alike."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((256, 1, 1, 1)) + 0.1 * rng.standard_normal(
    (256, 4, 4, 1)
  )
  details = distillation.fit_details(
    jax.random.key(0),
    jnp.asarray(x, jnp.float32),
    levels=1,
    couplings=2,
    width=4,
    steps=300,
    learning_rate=1e-2,
  )
  (fine,) = details(jnp.asarray(x, jnp.float32))
  assert 0.8 < float(jnp.std(fine)) < 1.25


# --- SinSR and HF-Diff --------------------------------------------------------


def test_jensen_shannon_is_a_divergence(x64):
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(3 * rng.standard_normal((5, 7))) for _ in range(2))
  js = distillation.jensen_shannon
  np.testing.assert_allclose(js(a, b), js(b, a), rtol=1e-12)
  np.testing.assert_allclose(js(a, a + 2.0), np.zeros(5), atol=1e-15)
  assert np.all(np.asarray(js(a, b)) > 0)
  far = jnp.asarray([[40.0, -40.0]])
  assert float(js(far, -far)[0]) == pytest.approx(np.log(2), abs=1e-10)
  p, q = 0.3, 0.8
  h = lambda v: -v * np.log(v) - (1 - v) * np.log(1 - v)
  expected = h((p + q) / 2) - (h(p) + h(q)) / 2
  logits = lambda v: jnp.log(jnp.asarray([[v, 1 - v]]))
  assert float(js(logits(p), logits(q))[0]) == pytest.approx(
    expected, abs=1e-10
  )


def test_without_weights_hf_diff_is_sinsr_bitwise():
  teacher, student = _model(PROCESS, 1), _model(PROCESS, 2)
  options = dict(optimizer=optax.sgd(0.1), steps=3)
  features = lambda x: (x,)
  embed = lambda x: x.reshape(len(x), -1)
  batch = _pairs()
  plain = _gradient(distillation.sinsr(teacher, student, **options), batch)
  method = lambda **w: distillation.hf_diff(
    teacher, student, features=features, embed=embed, **w, **options
  )
  same = _gradient(method(hf=0.0, js=0.0), batch)
  chex.assert_trees_all_equal(plain[:2], same[:2])
  # the pixels of the true images' own noise: the third term once more
  more = _gradient(method(hf=2.0, js=0.5, compare="truth"), batch)
  assert float(more[2]["hf"]) == pytest.approx(
    float(more[2]["truth"]), rel=1e-5
  )
  assert float(more[0]) == pytest.approx(
    float(plain[0] + 2.0 * more[2]["hf"] + 0.5 * more[2]["js"]), rel=1e-6
  )
  assert float(more[1]["a"][0]) != float(plain[1]["a"][0])


def test_the_three_terms_of_sinsr_are_what_they_say():
  teacher, student = _model(PROCESS, 1), _model(PROCESS, 2)
  batch, key = _pairs(), jax.random.key(3)
  method = distillation.sinsr(
    teacher, student, optimizer=optax.sgd(0.1), steps=3
  )
  value, _, said = _gradient(method, batch, key)
  assert float(value) == pytest.approx(
    float(said["distill"] + said["inverse"] + said["truth"]), rel=1e-6
  )
  z = distillation.generators.noise(key, batch, PROCESS)
  sigma, y = PROCESS.sigma(PROCESS.t_max), batch["label"]
  grid = grids.power_log(PROCESS, 3, to_zero=True)
  bound = denoisers.with_label(teacher, y)
  table = solvers.ddim(PROCESS, grid)
  aim = sampling.sample(key, bound, table, sigma * z)
  mean = lambda v: float(jnp.mean(v**2))
  distill = mean(student(sigma * z, PROCESS.t_max, y).x0 - aim)
  assert float(said["distill"]) == pytest.approx(distill, rel=1e-5)
  # the inverse: at t = 0 the network alone is the noise
  noise = -student.apply(student.params, *student.inputs(aim, 0.0, y))
  assert float(said["inverse"]) == pytest.approx(
    mean(sigma * (noise - z)), rel=1e-5
  )
  own = sigma * student(batch["image"], 0.0, y).eps
  back = student(own, PROCESS.t_max, y).x0 - batch["image"]
  assert float(said["truth"]) == pytest.approx(mean(back), rel=1e-5)


def test_a_linear_student_learns_the_posterior_mean_of_a_gaussian(x64):
  """x0 ~ N(0, 1), y = x0 + N(0, 1/4): least squares on (r_t, y) is E[r0 | .].

  Given y, r0 = x0 - y is N(-y / 5, 1 / 5), whose denoiser is known.
  """
  t = 0.6
  alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
  of_r0 = np.asarray([alpha * 0.25, -0.25])  # covariances of r0 with (r_t, y)
  joint = np.asarray(
    [[alpha**2 * 0.25 + sigma**2, -alpha * 0.25], [-alpha * 0.25, 1.25]]
  )
  weights = np.linalg.solve(joint, of_r0)
  for r, y in ((0.3, -1.2), (2.0, 0.7)):
    law = oracles.gaussian([-y / 5], 0.2)
    found = oracles.exact(law, PROCESS)(jnp.asarray([[r]]), t).x0
    assert float(found[0, 0]) == pytest.approx(weights @ [r, y], abs=1e-10)


def test_restoration_is_checked():
  teacher = _model(PROCESS)
  make = lambda **o: distillation.hf_diff(
    teacher, teacher, optimizer=optax.sgd(0.1), steps=2, hf=0.0, **o
  )
  with pytest.raises(ValueError, match="prediction='x0' does not tell there"):
    distillation.sinsr(
      teacher, _model(PROCESS, prediction="x0"), optimizer=optax.sgd(0.1)
    )
  with pytest.raises(ValueError, match="compare must be one of"):
    make(features=None, compare="both")
  method = make(features=None, embed=lambda x: x)
  with pytest.raises(ValueError, match=r"shape \(6, d\), got \(6, 4, 4, 1\)"):
    _gradient(method, _pairs())
  with pytest.raises(ValueError, match="the batch has no 'degraded'"):
    distillation.residuals({"image": _images(0)})
  with pytest.raises(ValueError, match="bring the small ones to size"):
    distillation.residuals({"image": _images(0), "degraded": _images(0)[:, :2]})


@pytest.mark.slow
def test_the_update_of_hf_diff_lowers_its_loss():
  teacher, student = _model(PROCESS, 1), _model(PROCESS, 2, scale=2.0)
  method = distillation.hf_diff(
    teacher,
    student,
    optimizer=optax.adam(0.1),
    features=_details(np.float32),
    embed=lambda x: x.reshape(len(x), -1),
    steps=2,
  )
  state = distillation.init_state(jax.random.key(0), method)
  update = distillation.make_update(method)
  seen = []
  for _ in range(60):
    state, said = update(state, _pairs())
    seen.append(float(said["loss"]))
  assert np.mean(seen[-20:]) < 0.5 * np.mean(seen[:3])


# --- InstaRevive --------------------------------------------------------------


def _noisy(seed=0):
  x = _images(seed)
  return {
    "image": x,
    "degraded": x + 0.3 * _images(seed + 1),
    "index": jnp.arange(6),
  }


def test_the_range_of_noise_follows_the_discrepancy():
  control = distillation.Control(power=0.7)
  at = lambda d: float(control.end(EDM, dict(d_bar=jnp.asarray(d), d_0=2.0)))
  assert at(2.0) == pytest.approx(control.far, rel=1e-6)
  assert at(0.0) == pytest.approx(control.near, rel=1e-6)
  assert at(5.0) == at(2.0)
  ends = [at(d) for d in np.linspace(0, 2, 9)]
  assert np.all(np.diff(ends) > 0)
  level = dataclasses.replace(control, rule="level", near=0.1, far=1.0)
  memory = dict(d_bar=jnp.asarray(0.04), d_0=2.0)
  for clock in ("log_snr", "t"):
    rule = dataclasses.replace(level, clock=clock)
    t = CLOCKS[clock](EDM, part=(rule.end(EDM, memory),) * 2)
    if clock == "log_snr":
      found = float(t(jax.random.key(0), 1)[0])
      assert found == pytest.approx(4.0 * 0.2, rel=1e-4)
  gradient = jax.grad(
    lambda d: (
      control.end(EDM, dict(d_bar=d, d_0=2.0))
      + level.end(EDM, dict(d_bar=d, d_0=2.0))
      + sum(control.weights(dict(d_bar=d, d_0=2.0)))
    )
  )
  assert float(gradient(1.0)) == 0.0


@pytest.mark.parametrize("clock", CLOCKS)
def test_times_stay_inside_their_part(clock):
  control = distillation.Control(clock=clock, everywhere=0.0)
  memory = dict(d_bar=jnp.asarray(0.5), d_0=1.0)
  process = EDM if clock == "log_snr" else processes.vp_linear()
  ends = [
    CLOCKS[clock](process, part=(v, v))(jax.random.key(0), 1)[0]
    for v in (control.low, control.near + 0.5 * (control.far - control.near))
  ]
  t = control.times(process, memory)(jax.random.key(1), 500)
  assert float(t.min()) >= float(ends[0]) * (1 - 1e-4)
  assert float(t.max()) <= float(ends[1]) * (1 + 1e-4)
  assert float(t.max()) > 0.95 * float(ends[1])
  same = control.fake_times(process, memory)(jax.random.key(1), 500)
  np.testing.assert_array_equal(same, t)
  forgets = dataclasses.replace(control, everywhere=0.1)
  wide = forgets.fake_times(process, memory)(jax.random.key(1), 4000)
  beyond = float(jnp.mean(wide > ends[1]))
  assert 0.0 < beyond < 0.1


def test_constant_control_is_dmd_with_regression_bitwise():
  teacher, student, fake = (_model(EDM, i) for i in (1, 2, 4))
  shared = dict(optimizer=optax.adam(0.01), fake=fake, fake_steps=2)
  control = distillation.Control(
    power=0.0, everywhere=0.0, regression=(0.25, 0.25), matching=(1.0, 1.0)
  )
  method = distillation.instarevive(
    teacher, student, t=1.0, control=control, **shared
  )
  generate = restored_at(1.0)
  part = (control.low, jnp.result_type(float).type(control.far))
  times = losses.times.uniform_log_snr(EDM, part=part)
  plain = distillation.dmd(
    teacher, student, generator=generate, times=times, **shared
  )

  def regressed(key, params, nets, batch):
    """DMD's loss of the samples, and the regression of the same samples."""
    draw_key, match_key = jax.random.split(key)
    model = distillation.with_params(student, params)
    x = generate(draw_key, model, batch)
    other = distillation.with_params(fake, nets["fake"]["score"])
    d = jnp.mean(jnp.square(x - batch["image"]))
    matching = distillation.dmd_loss(
      match_key, x, nets["teacher"], other, times, batch
    )
    return 0.25 * d + matching, {}

  players = plain.players | {
    "student": dataclasses.replace(method.players["student"], loss=regressed)
  }
  plain = dataclasses.replace(plain, players=players)
  assert method.players["fake"].steps == plain.players["fake"].steps == 2
  batch, memory = _noisy(), dict(d_bar=jnp.asarray(0.3), d_0=jnp.asarray(0.9))
  for name in ("student", "fake"):
    (one, mine, _), (other, theirs, _) = (
      # eager: fused programs differ where one has a constant
      _gradient(m, batch, memory=memory, player=name, jit=lambda f: f)
      for m in (method, plain)
    )
    assert float(one) == float(other)
    theirs = theirs["score"] if name == "fake" else theirs
    chex.assert_trees_all_equal(mine, theirs)


def test_equal_denoisers_leave_the_regression_alone():
  teacher = _model(EDM, 1)
  make = lambda control, fake: distillation.instarevive(
    teacher, _model(EDM, 2), t=1.0, optimizer=optax.sgd(0.1), fake=fake,
    control=control,
  )  # fmt: skip
  memory = dict(d_bar=jnp.asarray(0.5), d_0=jnp.asarray(1.0))
  control = distillation.Control()
  batch = _noisy()
  equal = _gradient(make(control, teacher), batch, memory=memory)
  assert float(equal[2]["matching"]) == 0.0
  none = dataclasses.replace(control, matching=(0.0, 0.0))
  other = _gradient(make(none, _model(EDM, 4)), batch, memory=memory)
  assert float(other[2]["matching"]) > 0.0
  model = _model(EDM, 2)
  generate = restored_at(1.0)

  def regression(params):
    x = generate(None, distillation.with_params(model, params), batch)
    return control.weights(memory)[0] * jnp.mean((x - batch["image"]) ** 2)

  expected = jax.grad(regression)(model.params)
  for found in (equal[1], other[1]):
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_the_discrepancy_is_remembered_and_nothing_is_compiled_again():
  control = distillation.Control(decay=0.5)
  method = distillation.instarevive(
    _model(EDM, 1), _model(EDM, 2), t=1.0, optimizer=optax.sgd(0.01),
    control=control, fake_steps=2,
  )  # fmt: skip
  state = distillation.init_state(jax.random.key(0), method)
  update = distillation.make_update(method)
  begun = jax.tree.map(jax.typeof, state)
  seen = []
  for i in range(3):
    state, said = update(state, _noisy(i))
    seen.append(float(said["discrepancy"]))
  memory = state.loss_params["memory"]
  assert float(memory["d_0"]) == pytest.approx(seen[0])
  smoothed = 0.5 * (0.5 * seen[0] + 0.5 * seen[1]) + 0.5 * seen[2]
  assert float(memory["d_bar"]) == pytest.approx(smoothed, rel=1e-6)
  # the state comes back as it went in, weak types and all: one program
  assert jax.tree.map(jax.typeof, state) == begun
  _, table = distillation.sampler(method.finished(state), [1.0, 0.0])
  assert table.nfe == 1  # x0 of the one call, and nothing else
  np.testing.assert_array_equal(table.output, [[1.0, 0.0]])
  np.testing.assert_array_equal(table.state, np.zeros((1, 2, 2)))
  np.testing.assert_array_equal(table.history, np.ones((1, 2, 1)))


def test_the_direction_of_two_gaussians_has_the_sign_of_the_error(x64):
  """x0 ~ N(0, 1), x ~ N(m, v): E(D_teacher - D_fake) = -s^2 m / (1 + s^2)."""
  z, w = np.polynomial.hermite_e.hermegauss(40)
  w = w / w.sum()
  for m, v, sigma in ((0.7, 0.5, 0.1), (-1.3, 2.0, 3.0)):
    process = processes.edm(0.01, 20.0)
    twins = [
      oracles.exact(oracles.gaussian([mean], variance), process)
      for mean, variance in ((0.0, 1.0), (m, v))
    ]
    x = jnp.asarray(m + np.sqrt(v + sigma**2) * z)[:, None]
    real, fake = (model(x, sigma).x0[:, 0] for model in twins)
    mean = float(w @ np.asarray(real - fake))
    assert mean == pytest.approx(-(sigma**2) * m / (1 + sigma**2), abs=1e-10)


@pytest.mark.slow
def test_the_direction_is_right_at_small_noise_and_lost_at_large():
  rng = np.random.default_rng(0)
  law = oracles.mixture(3 * rng.standard_normal((4, 6)), [0.01] * 4)
  cosine = distillation.direction_cosine(
    jax.random.key(0), law, 0.09, [0.3, 30.0], samples=64, draws=32
  )
  assert float(cosine[0]) > 0.8
  assert float(cosine[1]) < 0.5 * float(cosine[0])


def test_instarevive_is_checked():
  with pytest.raises(ValueError, match="low < near <= far"):
    distillation.Control(near=0.99)
  with pytest.raises(ValueError, match="power must be at least 0"):
    distillation.Control(power=-1.0)
  with pytest.raises(ValueError, match="the rule"):
    distillation.Control(rule="snr")
  method = distillation.instarevive(
    _model(EDM), _model(EDM), t=1.0, optimizer=optax.sgd(0.1)
  )
  unpaired = {"degraded": _images(0), "index": jnp.arange(6)}
  with pytest.raises(ValueError, match="needs pairs.*has no 'image'"):
    _gradient(method, unpaired)
  network = networks.MLP(features=(4,), embedding=4)
  told = _noisy() | {"label": jnp.zeros(6, jnp.int32)}
  with pytest.raises(ValueError, match="a network without classes"):
    jax.eval_shape(
      network.init,
      jax.random.key(0),
      *_model(EDM).inputs(told["image"], 1.0, told["label"]),
    )

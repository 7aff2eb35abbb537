"""Losses: what their minimiser is, exact equalities, ends, times, metrics."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import predictions
from jaxdiff import processes

PROCESSES = {
  "edm": processes.edm(),
  "vp_linear": processes.vp_linear(),
  "vp_cosine": processes.vp_cosine(),
  "rectified_flow": processes.rectified_flow(),
}


def linear(params, x, c, label=None):
  """A network with parameters enough to have a gradient."""
  out = params["w"] * x + params["b"] * jnp.cos(c)[:, None]
  return out if label is None else out + params["label"][label][:, None]


def make_model(kind, process, dtype=jnp.float32):
  params = dict(
    w=jnp.linspace(-0.5, 0.7, 3, dtype=dtype),
    b=jnp.asarray(0.3, dtype),
    label=jnp.linspace(0.0, 1.0, 5, dtype=dtype),
  )
  return denoisers.from_function(
    linear, params, process, prediction=kind, sigma_data=0.6
  )


def fixed(*t):
  """Returns a sampler of these times."""
  return lambda key, n: jnp.asarray(t)[jnp.arange(n) % len(t)]


def mse_on_target(kind, model, key, params, x0, t):
  """The textbook loss, written out: plain mse on the target of `kind`."""
  process = model.process
  x, eps = process.perturb(jax.random.split(key, 3)[1], x0, t)
  alpha, sigma = (f(t)[:, None] for f in (process.alpha, process.sigma))
  pair = dataclasses.replace(model, params=params)(x, t)
  rates = tuple(r[:, None] for r in process.rates(t))
  args = (alpha, sigma, model.sigma_data, rates)
  out = predictions.target(kind, *pair, *args)
  goal = predictions.target(kind, x0, eps, *args)
  return jnp.mean((out - goal) ** 2)


@pytest.mark.parametrize("process", ["edm", "vp_cosine"])
@pytest.mark.parametrize("kind", predictions.KINDS)
@pytest.mark.parametrize("weighting", ["edm", "eps", "x0", "output"])
def test_weightings_are_plain_errors_of_their_targets(
  x64, kind, process, weighting
):
  process = PROCESSES[process]
  model = make_model(kind, process, jnp.float64)
  middle = [process.t_min * 20, 0.3 * process.t_max, 0.9 * process.t_max]
  x0 = jax.random.normal(jax.random.key(1), (6, 3), jnp.float64)
  t = fixed(*middle)(None, 6)
  key = jax.random.key(2)
  loss = losses.denoising(model, times=fixed(*middle), weighting=weighting)
  (value, _), grads = jax.value_and_grad(loss, argnums=1, has_aux=True)(
    key, model.params, dict(image=x0)
  )
  target = dict(output=kind).get(weighting, weighting)
  expected, expected_grads = jax.value_and_grad(mse_on_target, argnums=3)(
    target, model, key, model.params, x0, t
  )
  np.testing.assert_allclose(value, expected, rtol=1e-9)
  chex.assert_trees_all_close(grads, expected_grads, rtol=1e-7, atol=1e-12)


def test_edm_weighting_is_the_formula_of_the_paper(x64):
  process = processes.edm()
  sigma = np.geomspace(0.002, 80.0, 9)
  model = make_model("x0", process, jnp.float64)
  x0 = eps = jnp.zeros((9, 3))
  off_by_one = predictions.Prediction(x0 + 1.0, eps)
  error = losses.error(model, off_by_one, x0, eps, jnp.asarray(sigma), "edm")
  np.testing.assert_allclose(
    error, (sigma**2 + 0.6**2) / (sigma * 0.6) ** 2, rtol=1e-12
  )


@pytest.mark.parametrize("weighting", ["edm", "eps", "x0", jnp.cosh])
def test_the_loss_does_not_depend_on_the_parameterisation(x64, weighting):
  process = processes.vp_linear()
  x0 = jax.random.normal(jax.random.key(0), (8, 3), jnp.float64)
  t = jnp.linspace(0.01, 1.0, 8)
  x, eps = process.perturb(jax.random.key(1), x0, t)
  a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
  x0_hat = 0.5 * x
  pair = predictions.Prediction(x0_hat, (x - a * x0_hat) / s)
  values = [
    losses.error(make_model(kind, process), pair, x0, eps, t, weighting)
    for kind in predictions.KINDS
  ]
  for value in values[1:]:
    np.testing.assert_allclose(value, values[0], rtol=1e-6)


def test_a_weighting_of_your_own_is_given_the_log_snr(x64):
  process = processes.vp_linear()
  model = make_model("v", process, jnp.float64)
  batch = dict(image=jax.random.normal(jax.random.key(0), (8, 3), jnp.float64))
  times = fixed(0.1, 0.4, 0.9)
  value = lambda weighting: losses.denoising(
    model, times=times, weighting=weighting
  )(jax.random.key(1), model.params, batch)[0]
  np.testing.assert_allclose(
    value(lambda lam: jnp.exp(2.0 * lam)), value("eps"), rtol=1e-9
  )


def test_the_minimiser_is_the_posterior_mean(x64):
  # Data N(0, 1): E[x0 | x] = alpha x / (alpha^2 + sigma^2), for any weighting.
  process = processes.rectified_flow()
  params = dict(w=jnp.zeros(1), b=jnp.zeros(()), label=jnp.zeros(5))
  model = denoisers.from_function(
    linear, params, process, prediction="flow", sigma_data=1.0
  )
  t = 0.3
  loss = losses.denoising(model, times=fixed(t), weighting="edm")
  x0 = jax.random.normal(jax.random.key(3), (40_000, 1), jnp.float64)
  value = lambda p: loss(jax.random.key(0), p, dict(image=x0))[0]
  # quadratic in w: one Newton step is exact
  slope = jax.grad(lambda w: value(params | dict(w=w)).sum())
  zero, one = slope(jnp.zeros(1)), slope(jnp.ones(1))
  w = -zero / (one - zero)
  best = dataclasses.replace(model, params=params | dict(w=w))
  x = jnp.ones((1, 1))
  expected = 0.7 / (0.7**2 + 0.3**2)
  np.testing.assert_allclose(best(x, t).x0[0, 0], expected, atol=0.01)


@pytest.mark.parametrize("process", PROCESSES)
def test_gradients_are_finite_at_both_ends(process):
  process = PROCESSES[process]
  x0 = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)

  def of_kind(kind):
    model = make_model(kind, process)
    loss = losses.denoising(
      model, times=fixed(process.t_min, process.t_max), weighting="edm"
    )
    value = lambda p: loss(jax.random.key(0), p, {"image": x0})[0]
    return jax.value_and_grad(value)(model.params)

  every = jax.jit(lambda: {kind: of_kind(kind) for kind in predictions.KINDS})()
  assert len(every) == len(predictions.KINDS)
  chex.assert_tree_all_finite(every)


def test_float32_is_accurate_at_tiny_noise():
  # The error of x0 alone would be all rounding here: |d_x0| ~ 1e-6.
  process = processes.edm(sigma_min=1e-6)
  model = make_model("edm", process)
  x0 = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
  key = jax.random.key(0)

  def value(dtype):
    loss = losses.denoising(model, times=fixed(1e-6))
    x = x0.astype(dtype)
    params = jax.tree.map(lambda p: p.astype(dtype), model.params)
    return jax.value_and_grad(lambda p: loss(key, p, {"image": x})[0])(params)

  half, half_grads = value(jnp.float32)
  # here F = -eps and the input is x0 / sigma_data, so the loss is known
  _, eps = process.perturb(jax.random.split(key, 3)[1], x0, jnp.full(4, 1e-6))
  lam = -0.25 * process.log_snr(jnp.float32(1e-6))
  out = linear(model.params, x0 / 0.6, jnp.full(4, lam))
  np.testing.assert_allclose(half, jnp.mean((out + eps) ** 2), rtol=1e-5)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(half_grads))


def test_eps_weighting_holds_where_alpha_is_zero():
  process = processes.vp_cosine()
  model = make_model("eps", process)
  loss = losses.denoising(model, times=fixed(1.0), weighting="eps")
  x0 = jnp.ones((4, 3))
  value, _ = loss(jax.random.key(0), model.params, dict(image=x0))
  expected = mse_on_target(
    "eps", model, jax.random.key(0), model.params, x0, jnp.ones(4)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-4)


SAMPLERS = {
  "uniform": losses.times.uniform,
  "log_normal": losses.times.log_normal,
  "logit_normal": losses.times.logit_normal,
  "uniform_log_snr": losses.times.uniform_log_snr,
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("stratified", [True, False])
def test_times_lie_inside_the_process(name, process, stratified):
  process = PROCESSES[process]
  times = SAMPLERS[name](process, stratified=stratified)
  t = jax.vmap(lambda k: times(k, 64))(jax.random.split(jax.random.key(0), 64))
  assert t.dtype == jnp.float32
  assert np.isfinite(t).all()
  assert (t >= np.float32(process.t_min)).all()
  assert (t <= np.float32(process.t_max)).all()
  assert np.unique(t).size > 0.9 * t.size  # no mass at one place


@pytest.mark.parametrize("n", [1, 7, 256])
def test_stratified_times_fill_every_stratum_once(n):
  times = losses.times.uniform(processes.edm(1e-3, 1.0))
  for seed in range(3):
    t = (np.asarray(times(jax.random.key(seed), n)) - 1e-3) / (1 - 1e-3)
    counts, _ = np.histogram(np.mod(t - t.min() * 0.999, 1.0), n, (0, 1))
    np.testing.assert_array_equal(counts, 1)


def test_every_stratified_time_is_uniform_by_itself():
  times = losses.times.uniform(processes.edm(1e-3, 1.0))
  keys = jax.random.split(jax.random.key(0), 4000)
  t = jax.vmap(lambda k: times(k, 4))(keys)
  for i in range(4):
    counts, _ = np.histogram(t[:, i], 8, (0, 1))
    assert np.abs(counts - 500).max() < 5 * math.sqrt(500)


@pytest.mark.parametrize("stratified", [True, False])
def test_log_normal_has_its_moments(stratified):
  process = processes.rectified_flow(1e-6, 1 - 1e-6)
  times = losses.times.log_normal(process, -0.7, 0.9, stratified)
  log_noise = -process.log_snr(times(jax.random.key(0), 20_000))
  assert abs(np.mean(log_noise) + 0.7) < 0.03
  assert abs(np.std(log_noise) - 0.9) < 0.03


def test_logit_normal_is_log_normal_noise_on_a_flow():
  process = processes.rectified_flow(1e-6, 1 - 1e-6)
  t = losses.times.logit_normal(process, 0.2, 0.5)(jax.random.key(0), 20_000)
  logit = np.log(t / (1 - t))
  assert abs(np.mean(logit) - 0.2) < 0.02
  assert abs(np.std(logit) - 0.5) < 0.02


@pytest.mark.parametrize("stratified", [True, False])
def test_uniform_log_snr_fills_the_range_evenly(stratified):
  process = processes.edm()
  times = losses.times.uniform_log_snr(process, stratified)
  lam = process.log_snr(times(jax.random.key(0), 20_000))
  ends = -np.log([80.0, 0.002])
  counts, _ = np.histogram(lam, np.linspace(*ends, 9))
  assert np.abs(counts - 2500).max() < 5 * math.sqrt(2500)


@pytest.mark.parametrize("stratified", [True, False])
def test_log_normal_is_cut_to_the_range_and_not_clipped(stratified):
  process = processes.edm(0.1, 1.0)  # the upper half is out of its range
  times = losses.times.log_normal(process, 0.0, 1.0, stratified)
  t = np.asarray(times(jax.random.key(0), 20_000))
  below = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))
  low, high = below(math.log(0.1)), below(0.0)
  for place in (0.2, 0.5, 0.9):
    expected = (below(math.log(place)) - low) / (high - low)
    assert abs(np.mean(t <= place) - expected) < 0.02
  assert np.mean(t == t.max()) < 0.001


def test_defaults_of_the_times_are_those_of_their_papers():
  flow = processes.rectified_flow(1e-6, 1 - 1e-6)
  t = losses.times.logit_normal(flow)(jax.random.key(0), 20_000)
  logit = np.log(t / (1 - t))
  assert abs(np.mean(logit)) < 0.03 and abs(np.std(logit) - 1.0) < 0.03
  edm = processes.edm()
  log_noise = np.log(losses.times.log_normal(edm)(jax.random.key(0), 20_000))
  assert abs(np.mean(log_noise) + 1.2) < 0.03
  assert abs(np.std(log_noise) - 1.2) < 0.03
  model = make_model("edm", edm)
  arguments = jax.random.key(1), model.params, dict(image=jnp.ones((8, 3)))
  times = losses.times.log_normal(edm)
  default, _ = losses.denoising(model)(*arguments)
  chosen, _ = losses.denoising(model, times=times)(*arguments)
  assert default == chosen


def test_stratified_times_lower_the_variance_of_the_loss():
  params = dict(w=jnp.zeros(3), b=jnp.zeros(()), label=None)
  model = denoisers.from_function(
    linear, params, processes.edm(0.1, 1.0), prediction="eps"
  )

  def spread(stratified):
    # a network that returns eps = 0 errs by sigma eps in x0
    times = losses.times.uniform(model.process, stratified)
    loss = losses.denoising(model, times=times, weighting="x0")
    batch = dict(image=jnp.ones((64, 3)))
    run = jax.jit(lambda k: loss(k, params, batch)[0])
    keys = jax.random.split(jax.random.key(1), 300)
    return np.std([run(k) for k in keys])

  assert spread(True) < 0.9 * spread(False)


def test_buckets_average_to_the_loss_and_empty_ones_are_zero():
  model = make_model("edm", processes.edm())
  loss = losses.denoising(model, times=fixed(0.002, 0.1, 80.0), buckets=5)
  x0 = jnp.ones((9, 3))
  value, metrics = loss(jax.random.key(0), model.params, dict(image=x0))
  count, by_bucket = metrics["bucket_count"], metrics["bucket_loss"]
  np.testing.assert_array_equal(count, [3, 0, 0, 3, 3])
  np.testing.assert_array_equal(by_bucket[1:3], 0.0)
  np.testing.assert_allclose((count * by_bucket).sum() / 9, value, rtol=1e-6)


def test_labels_are_dropped_at_the_given_rate():
  seen = []

  def network(params, x, c, label):
    seen.append(label)
    return params * x

  model = denoisers.from_function(
    network, jnp.ones(()), processes.edm(), sigma_data=0.5
  )
  batch = dict(image=jnp.ones((4000, 1)), label=jnp.tile(jnp.arange(4), 1000))
  for rate in (0.0, 0.25, 1.0):
    loss = losses.denoising(model, num_classes=4, label_dropout=rate)
    loss(jax.random.key(0), model.params, batch)
    dropped = np.mean(np.asarray(seen[-1]) == 4)
    assert abs(dropped - rate) < 0.03
  kept = np.asarray(seen[-2]) != 4
  np.testing.assert_array_equal(seen[-2][kept], batch["label"][kept])


def test_a_label_is_dropped_whatever_its_time():
  """Seen from outside: a dropped label has a huge loss, a bucket is a time."""

  def network(params, x, c, label):
    return jnp.where(label == 1, 1e3, 0.0)[:, None] + 0.0 * params * x

  process = processes.edm()
  params = jnp.ones(())
  model = denoisers.from_function(network, params, process, prediction="x0")
  loss = losses.denoising(
    model,
    times=losses.times.uniform_log_snr(process),
    weighting="x0",
    num_classes=1,
    label_dropout=0.5,
  )
  batch = dict(image=jnp.zeros((1, 1)), label=jnp.zeros(1, jnp.int32))
  keys = jax.random.split(jax.random.key(0), 2000)
  value, metrics = jax.jit(jax.vmap(lambda k: loss(k, params, batch)))(keys)
  dropped = np.asarray(value) > 1.0
  time = np.asarray(metrics["bucket_count"]).argmax(axis=1)
  assert abs(dropped.mean() - 0.5) < 0.06 and len(set(time)) == 8
  assert abs(np.corrcoef(dropped, time)[0, 1]) < 5 / np.sqrt(2000)


def test_labels_are_ignored_without_classes():
  model = make_model("edm", processes.edm())
  loss = losses.denoising(model)
  batch = dict(image=jnp.ones((4, 3)), label=jnp.arange(4))
  with_label, _ = loss(jax.random.key(0), model.params, batch)
  without, _ = loss(jax.random.key(0), model.params, {"image": batch["image"]})
  assert with_label == without


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda m: losses.denoising(m, weighting="p2"), "must be one of"),
    (lambda m: losses.denoising(m, label_dropout=2), "is a probability"),
    (
      lambda m: losses.denoising(m)(None, m.params, {"x": 1}),
      'a dict with "image"',
    ),
    (
      lambda m: losses.denoising(m)(
        None, m.params, dict(image=np.ones((2, 3), np.uint8))
      ),
      "scale integer pixels",
    ),
    (
      lambda m: losses.denoising(m, num_classes=3)(
        jax.random.key(0), m.params, dict(image=jnp.ones((2, 3)))
      ),
      "without labels",
    ),
    (
      lambda m: losses.times.log_normal(m.process, std=0.0),
      "must be positive",
    ),
    (
      lambda m: losses.times.log_normal(m.process, mean=50.0),
      "outside of the process's range",
    ),
  ],
)
def test_refusals_say_how_to_mend(call, message):
  with pytest.raises(ValueError, match=message):
    call(make_model("edm", processes.edm()))


def test_the_loss_has_as_many_classes_as_the_network():
  module = networks.ResidualMLP(num_classes=3)
  model = denoisers.from_linen(module, {}, processes.edm(), sigma_data=0.5)
  losses.denoising(model, num_classes=3)
  losses.denoising(model)  # ignores labels
  with pytest.raises(ValueError, match=r"num_classes=4, but .*num_classes=3"):
    losses.denoising(model, num_classes=4)


def test_weights_of_samples_multiply_their_losses():
  model = make_model("eps", PROCESSES["vp_cosine"])
  loss = losses.denoising(model)
  key, x0 = jax.random.key(0), jax.random.normal(jax.random.key(1), (4, 3))
  each = [
    float(loss(key, model.params, dict(image=x0, weight=w))[0])
    for w in jnp.eye(4)
  ]
  weights = jnp.asarray([0.0, 2.0, 1.0, 0.5])
  value, _ = loss(key, model.params, dict(image=x0, weight=weights))
  np.testing.assert_allclose(value, np.dot(weights, each), rtol=1e-5)


def test_learned_weighting_is_least_at_the_logarithm_of_the_loss():
  """d/du (e^-u l + u) = 0 at u = log l, where its value is 1 + log l."""
  model = make_model("eps", PROCESSES["vp_cosine"])
  plain = losses.denoising(model, times=fixed(0.4))
  learned = losses.denoising(model, times=fixed(0.4), learned_weighting=True)
  key, batch = jax.random.key(0), dict(image=jnp.ones((64, 3)))
  value, _ = plain(key, model.params, batch)
  u = losses.uncertainty.init(8)
  start, metrics = learned(key, (model.params, u), batch)
  np.testing.assert_allclose([start, metrics["plain_loss"]], value, rtol=1e-6)
  best = u | dict(bias=jnp.log(value))
  least, slope = jax.value_and_grad(
    lambda u: learned(key, (model.params, u), batch)[0]
  )(best)
  np.testing.assert_allclose(least, 1.0 + np.log(value), rtol=1e-5)
  np.testing.assert_allclose(slope["bias"], 0.0, atol=1e-6)


def test_vector_labels_are_dropped_to_zeros():
  seen = []

  def spy(params, x, c, label):
    seen.append(label)
    return params["w"] * x

  class Module:
    label_dim = 2

    def __call__(self, *args):
      return spy(*args)

  apply = Module()
  apply.module = apply
  model = denoisers.from_function(apply, dict(w=1.0), PROCESSES["edm"])
  loss = losses.denoising(model, label_dropout=0.5)
  label = jnp.arange(1.0, 129.0).reshape(64, 2)
  loss(
    jax.random.key(0), model.params, dict(image=jnp.ones((64, 3)), label=label)
  )
  kept = (seen[0] == label).all(1)
  dropped = (seen[0] == 0).all(1)
  assert (kept ^ dropped).all()
  assert 16 < dropped.sum() < 48

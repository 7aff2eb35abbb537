"""Transition matching and direct discriminative optimisation."""

import dataclasses

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
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.distillation.ddo import diffusion_ratio
from jaxdiff.distillation.ddo import discriminator_loss
from jaxdiff.distillation.ddo import optimum
from jaxdiff.distillation.ddo import stable
from jaxdiff.distillation.ddo import token_ratio
from jaxdiff.distillation.transition_matching import artm
from jaxdiff.distillation.transition_matching import dtm
from jaxdiff.distillation.transition_matching import fhtm
from jaxdiff.distillation.transition_matching import kernels

TILTED = oracles.mixture(
  [[1.0, -0.5], [-0.8, 0.6]],
  [[[0.3, 0.2], [0.2, 0.4]], [[0.2, -0.1], [-0.1, 0.1]]],
  [0.6, 0.4],
)
SMALL = dict(width=8, depth=2, heads=2, head_width=8, head_blocks=1)


def _chain(variant, shape=(4, 4, 1), token=(2, 2, 1), **options):
  """Returns a chain with random parameters, none of them zero."""
  model = distillation.transitions(
    jax.random.key(0), shape, variant, token=token, **(SMALL | options)
  )
  rng = np.random.default_rng(0)
  fill = lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape))
  return dataclasses.replace(model, params=jax.tree.map(fill, model.params))


# --- exact kernels ------------------------------------------------------------


@pytest.mark.parametrize("factorised", [False, True])
def test_draws_of_the_posterior_have_its_mean_and_covariance(factorised, x64):
  """Tweedie: mean of x0, and Cov = (sigma / alpha)^2 (I + sigma^2 Hessian)."""
  alpha, sigma, n = 0.6, 0.4, 40_000
  x = jnp.asarray([0.3, 0.1])
  draws = TILTED.posterior_sample(
    jax.random.key(0), jnp.tile(x, (n, 1)), alpha, sigma, factorised=factorised
  )
  mean = TILTED.predict(x[None], alpha, sigma).x0[0]
  hessian = jax.jacobian(lambda v: TILTED.score(v[None], alpha, sigma)[0])(x)
  exact = (sigma / alpha) ** 2 * (jnp.eye(2) + sigma**2 * hessian)
  if factorised:
    exact = jnp.diag(jnp.diag(exact))
  error = 4 * np.sqrt(np.diag(exact) / n)
  assert np.all(abs(draws.mean(0) - mean) < error)
  centred = np.asarray(draws - mean)
  products = centred[:, :, None] * centred[:, None, :]
  spread = products.std(0) / np.sqrt(n)
  assert np.all(abs(products.mean(0) - exact) < 4 * spread)


def test_the_mean_kernel_is_euler_on_the_flow(x64):
  flow = processes.rectified_flow(0.0, 1.0)
  x = jax.random.normal(jax.random.key(0), (5, 2), jnp.float64)
  table = solvers.euler(flow, grids.uniform(flow, 6))
  model = oracles.exact(TILTED, flow)
  expected = sampling.sample(jax.random.key(1), model, table, x)
  walked = dtm.walk(jax.random.key(1), dtm.mean_kernel(TILTED), x, 6)
  np.testing.assert_allclose(walked, expected, rtol=1e-10)
  # E[Y | X_t] = (E[X_T | X_t] - X_t) / (1 - tau)
  own = dtm.mean_kernel(TILTED)(None, x, 0.3)
  x0 = TILTED.predict(x, 0.3, 0.7).x0
  np.testing.assert_allclose(own, (x0 - x) / 0.7, rtol=1e-10)


def test_the_exact_kernel_keeps_the_law_of_every_state(x64):
  """Also in one transition; the factorised one loses the correlation."""
  law = oracles.gaussian(np.zeros(2), [[1.5, 0.9], [0.9, 0.8]])
  cov, n, steps = law.moments()[1], 20_000, 3
  x = jax.random.normal(jax.random.key(0), (n, 2), jnp.float64)
  _, path = dtm.walk(
    jax.random.key(1),
    dtm.exact_kernel(law),
    x,
    steps,
    collect=sampling.every(1),
  )
  for t, states in enumerate(np.asarray(path), start=1):
    tau = t / steps
    exact = (1 - tau) ** 2 * np.eye(2) + tau**2 * cov
    products = states[:, :, None] * states[:, None, :]
    spread = products.std(0) / np.sqrt(n)
    assert np.all(abs(products.mean(0) - exact) < 4.5 * spread), t
  apart = dtm.walk(jax.random.key(1), dtm.exact_kernel(law, True), x, 1)
  assert abs(np.corrcoef(apart, rowvar=False)[0, 1]) < 4 / np.sqrt(n)


def test_many_transitions_tend_to_the_path_of_the_flow():
  """The mean squared distance to Euler's path falls like 1 / T."""
  law = oracles.gaussian([0.5], 0.6)
  x = jax.random.normal(jax.random.key(0), (4000, 1))
  steps, distance = np.asarray([32, 128, 512]), []
  for n in steps:
    key = jax.random.key(1)
    drawn = dtm.walk(key, dtm.exact_kernel(law), x, int(n))
    mean = dtm.walk(key, dtm.mean_kernel(law), x, int(n))
    distance.append(float(jnp.mean((drawn - mean) ** 2)))
  slope = np.polyfit(np.log(steps), np.log(distance), 1)[0]
  assert slope == pytest.approx(-1.0, abs=0.2)


def test_processes_have_the_same_marginals_and_other_correlations():
  """Cov(X_s, X_t) is s t c + (1 - s)(1 - t) if they share their noise."""
  n, c, tau = 20_000, 0.49, np.asarray([0.25, 0.5])
  x = 0.7 * jax.random.normal(jax.random.key(0), (n, 1))
  for process, shared in (("linear", 1.0), ("independent", 0.0)):
    path = kernels.states(jax.random.key(1), process, x, jnp.asarray(tau))
    found = np.cov(np.asarray(path)[..., 0])
    exact = np.outer(tau, tau) * c
    noise = np.outer(1 - tau, 1 - tau)
    exact += np.where(np.eye(2), noise, shared * noise)
    np.testing.assert_allclose(found, exact, atol=4.5 / np.sqrt(n))


# --- the network and its kernels ----------------------------------------------


def test_tokens_are_patches_in_raster_order():
  model = _chain("dtm")
  x = jnp.arange(32.0).reshape(2, 4, 4, 1)
  tokens = model.split(x)
  np.testing.assert_array_equal(tokens[0, 1], [2.0, 3.0, 6.0, 7.0])
  np.testing.assert_array_equal(model.join(tokens), x)


@pytest.mark.parametrize("variant", ["artm", "fhtm"])
def test_no_token_sees_itself_or_a_later_one(variant):
  model = _chain(variant, steps=2)
  first = model.tokens if variant == "artm" else 0
  length = model.network.length
  base = np.random.default_rng(1).standard_normal((1, length, 4))
  moved, j = base.copy(), first + 2
  moved[:, j] += 1.0  # token j is seen by the features of places >= j
  both = jnp.asarray(np.concatenate([base, moved]), jnp.float32)
  h = model.apply("features", both, jnp.zeros(2))
  np.testing.assert_array_equal(h[0, :j], h[1, :j])
  assert np.all(abs(h[0, j:] - h[1, j:]).max(-1) > 1e-5)
  tokens = both[:, : length - first]
  np.testing.assert_array_equal(kernels.shifted(tokens)[:, 1:], tokens[:, :-1])
  assert not kernels.shifted(tokens)[:, 0].any()


def test_the_read_state_is_seen_by_all_tokens():
  model = _chain("artm", steps=2)
  base = np.random.default_rng(1).standard_normal((1, 8, 4))
  moved = base.copy()
  moved[:, 3] += 1.0  # the last token of X_t
  both = jnp.asarray(np.concatenate([base, moved]), jnp.float32)
  h = model.apply("features", both, jnp.zeros(2))
  assert np.all(abs(h[0] - h[1]).max(-1) > 1e-5)


def test_the_head_keeps_tokens_apart():
  model = _chain("dtm", shape=(4, 2), token=(1, 2))
  keys = jax.random.split(jax.random.key(1))
  h = jax.random.normal(keys[0], (1, 4, 8))
  y = jax.random.normal(keys[1], (1, 4, 2))
  velocity = kernels.velocity(model, h)
  moved = velocity(0.3, y) - velocity(0.3, y.at[:, 1].add(1.0))
  np.testing.assert_array_equal(moved[0, [0, 2, 3]], np.zeros((3, 2)))
  assert np.all(moved[0, 1] != 0)


@pytest.mark.parametrize("variant", ["artm", "fhtm"])
def test_sampling_with_a_cache_is_sampling_without(variant, x64):
  """Every token anew from the whole sequence so far, with the same noise."""
  model = _chain(variant, shape=(3, 2), token=(1, 2), steps=2, num_classes=2)
  label, like = jnp.asarray([1, 0]), jax.ShapeDtypeStruct((2, 3, 2), float)
  draw = {"artm": artm, "fhtm": fhtm}[variant].draw
  key = jax.random.key(5)
  found = draw(key, model, like, label, steps=2, head_steps=2)

  features = jax.jit(lambda s, c: model.apply("features", s, c, label))

  def written(key, read, count, tau):
    tokens = jnp.zeros((2, count, 2))
    for i in range(count):
      sequence = jnp.concatenate([read, kernels.shifted(tokens)], axis=1)
      h = features(sequence, jnp.full(2, tau))[:, read.shape[1] + i]
      one = kernels.flow_sample(
        jax.random.fold_in(key, i),
        kernels.velocity(model, h[:, None]),
        jax.ShapeDtypeStruct((2, 1, 2), float),
        2,
      )
      tokens = tokens.at[:, i].set(one[:, 0])
    return tokens

  if variant == "fhtm":
    expected = written(key, jnp.zeros((2, 0, 2)), 6, 0.0)[:, 3:]
  else:
    start, walk = jax.random.split(key)
    expected = jax.vmap(
      lambda i: jax.random.normal(
        jax.random.fold_in(jax.random.fold_in(start, i), 0), (3, 2)
      )
    )(jnp.arange(2))
    for t in range(2):
      read = expected / model.std(t / 2)
      expected = written(jax.random.fold_in(walk, t), read, 3, t / 2)
      expected = expected * model.std((t + 1) / 2)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("variant", ["dtm", "artm", "fhtm"])
def test_what_the_head_learns_has_unit_variance(variant):
  model = _chain(variant, shape=(2,), token=(1,), steps=3, data_std=0.5)
  x = 0.5 * jax.random.normal(jax.random.key(0), (4000, 2))
  learn = {"dtm": dtm, "artm": artm, "fhtm": fhtm}[variant].learn
  h, target = jax.jit(lambda k: learn(k, model, x, None, None))(
    jax.random.key(1)
  )
  assert h.shape == (4000, 6 if variant == "fhtm" else 2, 8)
  assert h.shape[:2] == target.shape[:2]
  np.testing.assert_allclose(target.std((0, 2)), 1.0, atol=0.05)


def test_guidance_one_is_none_and_zero_is_without_label():
  model = _chain("dtm", shape=(2,), token=None, num_classes=3)
  keys = jax.random.split(jax.random.key(0), 4)
  x, y = (jax.random.normal(k, (4, 1, 2)) for k in keys[:2])
  tau, label = jnp.full(4, 0.3), jnp.asarray([0, 1, 2, 0])
  h = lambda label: model.apply("features", x, tau, label)
  pair = jnp.concatenate([h(label), h(None)])
  guided = lambda w: kernels.velocity(model, pair, w)(0.4, y)
  plain = lambda label: kernels.velocity(model, h(label))(0.4, y)
  np.testing.assert_allclose(guided(1.0), plain(label), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(guided(0.0), plain(None), rtol=1e-4, atol=1e-6)
  twice = 2.0 * plain(label) - plain(None)
  np.testing.assert_allclose(guided(2.0), twice, rtol=1e-4, atol=1e-5)


def test_the_flow_of_a_point_is_drawn_exactly():
  """u = (b - y) / (1 - s) leads to b from everywhere, in any steps."""
  b = jnp.asarray([[[1.0, -2.0]], [[0.5, 3.0]]])
  for steps in (1, 3):
    drawn = kernels.flow_sample(
      jax.random.key(0), lambda s, y: (b - y) / (1.0 - s), b, steps
    )
    np.testing.assert_allclose(drawn, b, rtol=1e-5)


@pytest.mark.parametrize("variant", ["dtm", "artm", "fhtm"])
@pytest.mark.slow
def test_labels_training_and_guided_sampling(variant):
  model = _chain(variant, steps=2, num_classes=3)
  method = distillation.transition_matching(model, optimizer=optax.adam(1e-2))
  state = distillation.init_state(jax.random.key(1), method)
  update = distillation.make_update(method)
  x = jax.random.normal(jax.random.key(2), (8, 4, 4, 1))
  batch, seen = {"image": x, "label": jnp.arange(8) % 3}, []
  for _ in range(60):
    state, metrics = update(state, batch)
    seen.append(float(metrics["loss"]))
  assert np.mean(seen[-10:]) < 0.7 * np.mean(seen[:5])
  draw = lambda n: distillation.sample_transitions(
    jax.random.key(3),
    method.finished(state),
    n,
    head_steps=3,
    label=1,
    guidance=2.0,
  )
  assert draw(5).shape == (5, 4, 4, 1)
  np.testing.assert_allclose(draw(5)[:2], draw(2), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_transition_draws_two_points():
  """At t = 0 the kernel is the data's law itself: the head is multimodal."""
  model = distillation.transitions(
    jax.random.key(0), (1,), steps=1, continuous=False, width=32, heads=0
  )
  method = distillation.transition_matching(
    model, optimizer=optax.adam(3e-3), ema=0.99
  )
  state = distillation.init_state(jax.random.key(1), method)
  update = distillation.make_update(method)
  x = jnp.where(jnp.arange(256) % 2, 1.0, -1.0)[:, None]
  for _ in range(800):
    state, _ = update(state, {"image": x})
  drawn = distillation.sample_transitions(
    jax.random.key(2), method.finished(state), 1000, head_steps=32
  )
  assert np.mean(abs(abs(drawn) - 1.0) < 0.3) > 0.85
  assert abs(np.mean(drawn > 0) - 0.5) < 0.1


def test_chains_that_cannot_be_are_refused():
  make = lambda *args, **options: distillation.transitions(
    jax.random.key(0), *args, **options
  )
  with pytest.raises(ValueError, match='no X_0; choose process="linear"'):
    make((2,), "dtm", process="independent")
  with pytest.raises(ValueError, match="are enough to know X_T"):
    make((2,), "fhtm", process="linear")
  with pytest.raises(ValueError, match="got steps=0"):
    make((2,), "dtm", steps=0)
  with pytest.raises(ValueError, match=r"tokens of shape \(3, 2, 1\) do not"):
    make((8, 8, 1), "dtm", token=(3, 2, 1))
  with pytest.raises(ValueError, match="cannot; give the transformer heads"):
    make((2,), "artm", heads=0)
  with pytest.raises(ValueError, match="variant must be one of"):
    make((2,), "flow")
  model = make((2,), "dtm", steps=4, continuous=False, heads=0, width=8)
  draw = lambda **options: distillation.sample_transitions(
    jax.random.key(0), model, 2, **options
  )
  with pytest.raises(ValueError, match=r"T=4 .*steps=8; .*continuous=True"):
    draw(steps=8)
  with pytest.raises(ValueError, match="got steps=4 and head_steps=0"):
    draw(head_steps=0)
  with pytest.raises(ValueError, match="towards a label, but there is none"):
    draw(guidance=2.0)
  with pytest.raises(ValueError, match="got head_repeat=0"):
    distillation.transition_matching(
      model, optimizer=optax.sgd(0.1), head_repeat=0
    )


# --- DDO ----------------------------------------------------------------------

RNG = np.random.default_rng(0)
P_DATA, P_REF = (RNG.dirichlet(np.full(6, 2.0)) for _ in range(2))


def _tabular(p_data, p_ref, alpha, beta):
  """Returns L as a function of logits, its means exact sums."""

  def loss(logits):
    r = jax.nn.log_softmax(logits) - jnp.log(p_ref)
    # the loss of one value of data and one fake, of all pairs of them
    pair = jax.vmap(
      jax.vmap(lambda a, b: discriminator_loss(a, b, alpha, beta), (None, 0)),
      (0, None),
    )
    return p_data @ pair(r, r) @ p_ref

  return loss


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_first_gradient_is_half_beta_of_maximum_likelihood(
  alpha, beta, x64
):
  start = jnp.log(P_REF)
  found = jax.grad(_tabular(P_DATA, P_REF, alpha, beta))(start)
  plain = jax.grad(lambda l: -jnp.sum(P_DATA * jax.nn.log_softmax(l)))(start)
  np.testing.assert_allclose(found, 0.5 * beta * plain, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_optimum_of_a_categorical_law(beta, x64):
  best, alpha = optimum(P_DATA, P_REF, beta)
  slope = jax.jit(jax.grad(_tabular(P_DATA, P_REF, alpha, beta)))
  np.testing.assert_allclose(slope(jnp.log(best)), np.zeros(6), atol=1e-12)
  logits = jnp.log(P_REF)
  for _ in range(1000):
    logits = logits - 4.0 / beta * slope(logits)
  np.testing.assert_allclose(jax.nn.softmax(logits), best, atol=1e-8)
  if beta == 1.0:
    assert alpha == pytest.approx(1.0)
    np.testing.assert_allclose(best, P_DATA, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.5, 4.0])
def test_stability_is_the_sign_of_the_curvature(alpha, x64):
  """N(m, 1) with data and reference N(0, 1), by quadrature."""
  z, w = np.polynomial.hermite_e.hermegauss(40)
  w = jnp.asarray(w / w.sum())

  def loss(m, beta):
    r = m * z - 0.5 * m**2
    soft = jax.nn.softplus
    own = jnp.sum(w * (soft(-beta * r) + alpha * soft(beta * r)))
    return own

  curve = lambda beta: float(jax.hessian(loss)(0.0, beta))
  for beta in (0.3, 1.0):
    exact = beta**2 * (1 + alpha) / 4 - beta * (alpha - 1) / 2
    assert curve(beta) == pytest.approx(exact, abs=1e-9)
    assert stable(alpha, beta) == (exact > 0)
  if alpha > 1:
    edge = 2 * (alpha - 1) / (alpha + 1)
    assert curve(edge - 1e-6) < 0 < curve(edge + 1e-6)
    assert stable(alpha, edge + 1e-6) and not stable(alpha, edge - 1e-6)


def test_rounds_contract_the_error_by_one_minus_one_over_beta(x64):
  """To first order; with beta = 1 / 2 the error turns over and stays."""
  tilt = RNG.standard_normal(6)
  tilt -= P_DATA @ tilt
  error = lambda p: np.log(p / P_DATA)
  for beta in (0.5, 0.8, 2.0):
    near = P_DATA * (1.0 + 1e-5 * tilt)
    slope = jax.grad(_tabular(P_DATA, near, 1.0, beta))
    after = P_DATA * (1.0 + 1e-5 * (1.0 - 1.0 / beta) * tilt)
    at = abs(slope(jnp.log(after))).max()
    assert at < 1e-4 * abs(slope(jnp.log(near))).max() + 1e-12
    found = error(optimum(P_DATA, near, beta)[0])
    np.testing.assert_allclose(
      found, (1.0 - 1.0 / beta) * error(near), atol=1e-8
    )


def _denoiser(seed, prediction, process=None):
  process = process or processes.edm(0.02, 20.0)
  module = networks.MLP(features=(8,), embedding=8)
  params = module.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))
  rng = np.random.default_rng(seed)
  fill = lambda p: jnp.asarray(rng.standard_normal(p.shape))
  return denoisers.from_linen(
    module,
    jax.tree.map(fill, params["params"]),
    process,
    prediction=prediction,
    sigma_data=0.7,
  )


def test_the_ratio_is_the_change_of_edms_error_in_any_prediction(x64):
  model, reference = _denoiser(1, "eps"), _denoiser(2, "edm")
  times = losses.times.log_normal(model.process)
  x0 = jax.random.normal(jax.random.key(1), (5, 2), jnp.float64)
  key = jax.random.key(2)
  found = diffusion_ratio(times)(key, model, reference, {"image": x0})
  time_key, noise_key = jax.random.split(key)
  t = times(time_key, 5)
  x, eps = model.process.perturb(noise_key, x0, t, None)
  sigma = t[:, None]
  total = jnp.hypot(sigma, 0.7)
  square = lambda e: jnp.sum(e**2, axis=-1)
  # F's error of the reference; the model's eps error times EDM's weight
  output = lambda p: predictions.target("edm", p.x0, p.eps, 1.0, sigma, 0.7)
  noise = model(x, t).eps - eps
  expected = square(
    output(reference(x, t)) - output(predictions.Prediction(x0, eps))
  )
  expected -= (total**2 / 0.7**2)[:, 0] * square(noise)
  np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_the_first_loss_is_known_and_fakes_are_looked_at():
  model = _denoiser(1, "edm")
  method = distillation.ddo(
    model, model, optimizer=optax.sgd(0.1), alpha=2.0, beta=0.5
  )
  loss = method.players["student"].loss
  x = jax.random.normal(jax.random.key(0), (4, 2))
  ask = lambda batch: loss(
    jax.random.key(1), model.params, {"reference": model}, batch
  )
  value, said = ask({"image": x, "fake": x[:3]})
  assert float(said["ratio_real"]) == float(said["ratio_fake"]) == 0.0
  assert float(value) == pytest.approx(3.0 * np.log(2.0), rel=1e-6)
  assert said["unstable"] == 1.0  # 0.5 < 2 / 3
  for fake, given in ((None, "none"), (x[:0], "shape"), (x[:, :1], "shape")):
    with pytest.raises(ValueError, match=f"as the data, got {given}"):
      ask({"image": x} if fake is None else {"image": x, "fake": fake})


def test_large_ratios_have_no_gradient_and_a_finite_loss():
  slope = jax.grad(lambda r: discriminator_loss(r, -r, 4.0, 2.0))
  r = jnp.asarray([1e4, -1e4, 0.3])
  assert np.isfinite(discriminator_loss(r, r, 4.0, 2.0))
  np.testing.assert_array_equal(slope(r)[:2], np.zeros(2))
  assert slope(r)[2] < 0


def test_the_ratio_of_tokens_is_that_of_their_probabilities():
  keys = jax.random.split(jax.random.key(0), 3)
  a, b = (jax.random.normal(k, (2, 3, 4)) for k in keys[:2])
  tokens = jax.random.randint(keys[2], (2, 3), 0, 4)
  p, q = jax.nn.softmax(a), jax.nn.softmax(b)
  own = [
    sum(np.log(p[i, j, k] / q[i, j, k]) for j, k in enumerate(row))
    for i, row in enumerate(np.asarray(tokens))
  ]
  np.testing.assert_allclose(token_ratio(a, b, tokens), own, rtol=1e-4)
  assert not token_ratio(a, a, tokens).any()


def test_ddo_is_asked_for_what_it_can_do():
  model = _denoiser(1, "edm")
  make = lambda student=model, **options: distillation.ddo(
    model, student, optimizer=optax.sgd(0.1), **options
  )
  with pytest.raises(ValueError, match="alpha must be positive, got 0"):
    make(alpha=0.0)
  with pytest.raises(ValueError, match="beta must be positive, got -1"):
    make(beta=-1.0)
  other = {k: v for k, v in model.params.items() if k != "out"}
  with pytest.raises(ValueError, match=r"the student lacks the leaf \['out'\]"):
    make(dataclasses.replace(model, params=other))


def test_rounds_end_with_the_best_model_and_draw_from_it():
  """The reference's law is p = sigmoid(params); data are all ones."""

  @jax.tree_util.register_dataclass
  @dataclasses.dataclass(frozen=True)
  class Coin:
    params: jax.Array

  def ratio(key, model, reference, batch):
    log_p = lambda m: jax.nn.log_sigmoid((2 * batch["image"] - 1) * m.params)
    return (log_p(model) - log_p(reference))[:, 0]

  seen = []

  def draw(key, model):
    seen.append(float(model.params))
    heads = jax.random.bernoulli(key, jax.nn.sigmoid(model.params), (64, 1))
    return {"fake": heads.astype(jnp.float32)}

  def batches():
    while True:
      yield {"image": np.ones((16, 1), np.float32)}

  best, history = distillation.ddo_rounds(
    jax.random.key(0),
    Coin(jnp.zeros(())),
    batches(),
    draw=draw,
    judge=lambda model: abs(float(model.params) - 1.0),
    optimizer=optax.sgd(0.5),
    rounds=2,
    steps=12,
    judgements=3,
    ratio=ratio,
    alpha=1.0,
    beta=1.0,
    ema=0.0,
  )
  found = min(min(r.scores) for r in history)
  assert abs(float(best.params) - 1.0) == min(found, history[0].start)
  assert seen[0] == 0.0
  assert history[1].start == abs(seen[1] - 1.0) <= min(history[0].scores)

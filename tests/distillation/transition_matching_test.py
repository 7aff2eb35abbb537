"""Transition matching and direct discriminative optimisation."""

import dataclasses

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
from jaxdiff import tree
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
SMALL = dict(width=8, depth=1, heads=2, head_width=8, head_blocks=1)


def _chain(variant, shape=(4, 4, 1), token=(2, 2, 1), **options):
  """Returns a chain with random parameters, none of them zero."""
  options = SMALL | options
  model = jax.eval_shape(  # its own parameters are not needed
    lambda: distillation.transitions(
      jax.random.key(0), shape, variant, token=token, **options
    )
  )
  rng = np.random.default_rng(0)
  fill = lambda p: (0.3 * rng.standard_normal(p.shape)).astype(p.dtype)
  return dataclasses.replace(model, params=jax.tree.map(fill, model.params))


def _features(model, *args):
  """Returns the features of the network, as an array of numpy."""
  apply = jax.jit(lambda *args: model.apply("features", *args))
  return np.asarray(apply(*args))


# --- exact kernels ------------------------------------------------------------


@pytest.mark.parametrize("factorised", [False, True])
def test_draws_of_the_posterior_have_its_mean_and_covariance(factorised, x64):
  """Tweedie: mean of x0, and Cov = (sigma / alpha)^2 (I + sigma^2 Hessian)."""
  alpha, sigma, n = 0.6, 0.4, 20_000
  x = np.asarray([0.3, 0.1])

  @jax.jit
  def both():
    score = lambda v: TILTED.score(v[None], alpha, sigma)[0]
    return TILTED.posterior_sample(
      jax.random.key(0),
      jnp.tile(x, (n, 1)),
      alpha,
      sigma,
      factorised=factorised,
    ), jax.jacobian(score)(x)

  draws, hessian = map(np.asarray, both())
  mean = (
    x + sigma**2 * np.asarray(TILTED.score(x[None], alpha, sigma))
  ) / alpha
  exact = (sigma / alpha) ** 2 * (np.eye(2) + sigma**2 * hessian)
  if factorised:
    exact = np.diag(np.diag(exact))
  error = 4 * np.sqrt(np.diag(exact) / n)
  assert np.all(abs(draws.mean(0) - mean) < error)
  centred = draws - mean
  products = centred[:, :, None] * centred[:, None, :]
  spread = products.std(0) / np.sqrt(n)
  assert np.all(abs(products.mean(0) - exact) < 4 * spread)


def test_the_mean_kernel_is_euler_on_the_flow(x64):
  flow = processes.rectified_flow(1e-3)
  x = jax.random.normal(jax.random.key(0), (5, 2), jnp.float64)
  table = solvers.euler(flow, np.linspace(1.0, 0.0, 7))
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
  steps, distance = np.asarray([32, 512]), []
  for n in map(int, steps):

    @jax.jit
    def apart(key, n=n):
      drawn = dtm.walk(key, dtm.exact_kernel(law), x, n)
      mean = dtm.walk(key, dtm.mean_kernel(law), x, n)
      return jnp.mean((drawn - mean) ** 2)

    distance.append(float(apart(jax.random.key(1))))
  slope = np.polyfit(np.log(steps), np.log(distance), 1)[0]
  assert slope == pytest.approx(-1.0, abs=0.2)


def test_processes_have_the_same_marginals_and_other_correlations():
  """Cov(X_s, X_t) is s t c + (1 - s)(1 - t) if they share their noise."""
  n, c, tau = 20_000, 0.49, np.asarray([0.25, 0.5])
  x = 0.7 * jax.random.normal(jax.random.key(0), (n, 1))
  for process, shared in (("linear", 1.0), ("independent", 0.0)):
    path = jax.jit(kernels.states, static_argnums=1)(
      jax.random.key(1), process, x, tau
    )
    found = np.cov(np.asarray(path)[..., 0])
    exact = np.outer(tau, tau) * c
    noise = np.outer(1 - tau, 1 - tau)
    exact += np.where(np.eye(2), noise, shared * noise)
    np.testing.assert_allclose(found, exact, atol=4.5 / np.sqrt(n))


# --- the network and its kernels ----------------------------------------------


def test_tokens_are_patches_in_raster_order():
  model = _chain("dtm")
  x = np.arange(32.0).reshape(2, 4, 4, 1)
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
  both = np.concatenate([base, moved]).astype(np.float32)
  h = _features(model, both, np.zeros(2, np.float32))
  np.testing.assert_array_equal(h[0, :j], h[1, :j])
  assert np.all(abs(h[0, j:] - h[1, j:]).max(-1) > 1e-5)
  later = kernels.shifted(both)
  np.testing.assert_array_equal(later[:, 1:], both[:, :-1])
  assert not later[:, 0].any()


def test_the_read_state_is_seen_by_all_tokens():
  model = _chain("artm", steps=2)
  base = np.random.default_rng(1).standard_normal((1, 8, 4))
  moved = base.copy()
  moved[:, 3] += 1.0  # the last token of X_t
  both = np.concatenate([base, moved]).astype(np.float32)
  h = _features(model, both, np.zeros(2, np.float32))
  assert np.all(abs(h[0] - h[1]).max(-1) > 1e-5)


def test_the_head_keeps_tokens_apart():
  model = _chain("dtm", shape=(4, 2), token=(1, 2))
  rng = np.random.default_rng(0)
  h, y = rng.standard_normal((1, 4, 8)), rng.standard_normal((1, 4, 2))
  velocity = jax.jit(lambda y: kernels.velocity(model, h)(0.3, y))
  other = y.copy()
  other[:, 1] += 1.0
  moved = np.asarray(velocity(y) - velocity(other))
  np.testing.assert_array_equal(moved[0, [0, 2, 3]], np.zeros((3, 2)))
  assert np.all(moved[0, 1] != 0)


@pytest.mark.parametrize("variant", ["artm", "fhtm"])
def test_sampling_with_a_cache_is_sampling_without(variant, x64):
  """Every token anew from the whole sequence so far, with the same noise."""
  model = _chain(variant, shape=(3, 2), token=(1, 2), steps=2, num_classes=2)
  label, like = np.asarray([1, 0]), jax.ShapeDtypeStruct((2, 3, 2), float)
  draw = {"artm": artm, "fhtm": fhtm}[variant].draw
  key = jax.random.key(5)
  found = jax.jit(
    lambda key: draw(key, model, like, label, steps=2, head_steps=2)
  )(key)

  features = jax.jit(lambda s, c: model.apply("features", s, c, label))
  normal = jax.jit(lambda key: tree.normal(key, like))
  one = jax.ShapeDtypeStruct((2, 1, 2), float)
  token = jax.jit(
    lambda key, i, h: kernels.flow_sample(
      jax.random.fold_in(key, i), kernels.velocity(model, h), one, 2
    )
  )

  def written(key, read, count, tau):
    tokens = np.zeros((2, count, 2))
    for i in range(count):
      shifted = np.pad(tokens, ((0, 0), (1, 0), (0, 0)))[:, :-1]
      sequence = np.concatenate([read, shifted], axis=1)
      h = features(sequence, np.full(2, tau))[:, read.shape[1] + i]
      tokens[:, i] = token(key, i, h[:, None])[:, 0]
    return tokens

  if variant == "fhtm":
    expected = written(key, np.zeros((2, 0, 2)), 6, 0.0)[:, 3:]
  else:
    start, walk = jax.random.split(key)
    expected = np.asarray(normal(start))
    for t in range(2):
      read = expected / np.hypot(1 - t / 2, t / 2)
      expected = written(jax.random.fold_in(walk, t), read, 3, t / 2)
      expected = expected * np.hypot((1 - t) / 2, (t + 1) / 2)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("variant", ["dtm", "artm", "fhtm"])
def test_what_the_head_learns_has_unit_variance(variant):
  model = _chain(variant, shape=(2,), token=(1,), steps=3, data_std=0.5)
  x = 0.5 * np.random.default_rng(0).standard_normal((4000, 2))
  learn = {"dtm": dtm, "artm": artm, "fhtm": fhtm}[variant].learn
  both = lambda key: learn(key, model, jnp.asarray(x), None, None)
  target = jax.jit(lambda key: both(key)[1])(jax.random.key(1))
  h, _ = jax.eval_shape(both, jax.random.key(1))
  assert h.shape == (4000, 6 if variant == "fhtm" else 2, 8)
  assert h.shape[:2] == target.shape[:2]
  np.testing.assert_allclose(np.std(target, (0, 2)), 1.0, atol=0.05)


def test_guidance_one_is_none_and_zero_is_without_label():
  model = _chain("dtm", shape=(2,), token=None, num_classes=3)
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 4, 1, 2)).astype(np.float32)
  tau, label = np.full(4, 0.3, np.float32), np.asarray([0, 1, 2, 0])

  @jax.jit
  def velocities():
    h = [model.apply("features", x, tau, v) for v in (label, None)]
    pair = jnp.concatenate(h)
    guided = [kernels.velocity(model, pair, w)(0.4, y) for w in (0.0, 1.0, 2.0)]
    return guided, [kernels.velocity(model, own)(0.4, y) for own in h]

  guided, (with_label, null) = velocities()
  assert np.all(abs(with_label - null)[:3].max((1, 2)) > 1e-3)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  close(guided[0], null)
  close(guided[1], with_label)
  close(guided[2], 2.0 * with_label - null)


def test_the_flow_of_a_point_is_drawn_exactly():
  """u = (b - y) / (1 - s) leads to b from everywhere, in any steps."""
  b = np.asarray([[[1.0, -2.0]], [[0.5, 3.0]]], np.float32)
  drawn = jax.jit(
    lambda key: kernels.flow_sample(key, lambda s, y: (b - y) / (1.0 - s), b, 3)
  )
  np.testing.assert_allclose(drawn(jax.random.key(0)), b, rtol=1e-5)


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


@jax.jit
@jax.grad
def _slope(logits, p_data, p_ref, alpha, beta):
  """The gradient of L in the logits, its means exact sums."""
  r = jax.nn.log_softmax(logits) - jnp.log(p_ref)
  # the loss of one value of data and one fake, of all pairs of them
  loss = lambda a, b: discriminator_loss(a, b, alpha, beta)
  pairs = jax.vmap(jax.vmap(loss, (None, 0)), (0, None))
  return p_data @ pairs(r, r) @ p_ref


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_first_gradient_is_half_beta_of_maximum_likelihood(
  alpha, beta, x64
):
  found = _slope(np.log(P_REF), P_DATA, P_REF, alpha, beta)
  plain = P_REF - P_DATA  # of -E_data log softmax
  np.testing.assert_allclose(found, 0.5 * beta * plain, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_optimum_of_a_categorical_law(beta, x64):
  best, alpha = optimum(P_DATA, P_REF, beta)
  slope = lambda logits: _slope(logits, P_DATA, P_REF, alpha, beta)
  np.testing.assert_allclose(slope(np.log(best)), np.zeros(6), atol=1e-12)
  logits = np.log(P_REF)
  for _ in range(1000):
    logits = logits - 4.0 / beta * np.asarray(slope(logits))
  found = np.exp(logits - np.logaddexp.reduce(logits))
  np.testing.assert_allclose(found, best, atol=1e-8)
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

  curve = jax.jit(jax.hessian(loss))
  for beta in (0.3, 1.0):
    exact = beta**2 * (1 + alpha) / 4 - beta * (alpha - 1) / 2
    assert float(curve(0.0, beta)) == pytest.approx(exact, abs=1e-9)
    assert stable(alpha, beta) == (exact > 0)
  if alpha > 1:
    edge = 2 * (alpha - 1) / (alpha + 1)
    assert curve(0.0, edge - 1e-6) < 0 < curve(0.0, edge + 1e-6)
    assert stable(alpha, edge + 1e-6) and not stable(alpha, edge - 1e-6)


def test_rounds_contract_the_error_by_one_minus_one_over_beta(x64):
  """To first order; with beta = 1 / 2 the error turns over and stays."""
  tilt = np.random.default_rng(1).standard_normal(6)
  tilt -= P_DATA @ tilt
  error = lambda p: np.log(p / P_DATA)
  for beta in (0.5, 0.8, 2.0):
    near = P_DATA * (1.0 + 1e-5 * tilt)
    after = P_DATA * (1.0 + 1e-5 * (1.0 - 1.0 / beta) * tilt)
    slopes = [
      np.asarray(_slope(np.log(p), P_DATA, near, 1.0, beta))
      for p in (near, after)
    ]
    assert abs(slopes[1]).max() < 1e-4 * abs(slopes[0]).max()
    found = error(optimum(P_DATA, near, beta)[0])
    np.testing.assert_allclose(
      found, (1.0 - 1.0 / beta) * error(near), atol=1e-8
    )


def _denoiser(seed, prediction):
  module = networks.MLP(features=(8,), embedding=8)
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1)
  )
  rng = np.random.default_rng(seed)
  fill = lambda p: rng.standard_normal(p.shape).astype(p.dtype)
  return denoisers.from_linen(
    module,
    jax.tree.map(fill, shapes["params"]),
    processes.edm(0.02, 20.0),
    prediction=prediction,
    sigma_data=0.7,
  )


def test_the_ratio_is_the_change_of_edms_error_in_any_prediction(x64):
  model, reference = _denoiser(1, "eps"), _denoiser(2, "edm")
  times = losses.times.log_normal(model.process)
  x0 = np.random.default_rng(0).standard_normal((5, 2))
  pair = predictions.Prediction
  square = lambda e: jnp.sum(e**2, axis=-1)

  @jax.jit
  def both(key):
    found = diffusion_ratio(times)(key, model, reference, {"image": x0})
    time_key, noise_key = jax.random.split(key)
    t = times(time_key, 5)
    x, eps = model.process.perturb(noise_key, x0, t, None)
    # F's error of the reference; the model's eps error times EDM's weight
    output = lambda p: predictions.target("edm", *p, 1.0, t[:, None], 0.7)
    expected = square(output(reference(x, t)) - output(pair(x0, eps)))
    weight = (t**2 + 0.7**2) / 0.7**2
    return found, expected - weight * square(model(x, t).eps - eps)

  found, expected = both(jax.random.key(2))
  np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_the_first_loss_is_known_and_fakes_are_looked_at():
  model = _denoiser(1, "edm")
  method = distillation.ddo(
    model, model, optimizer=optax.sgd(0.1), alpha=2.0, beta=0.5
  )
  loss = method.players["student"].loss
  x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
  ask = jax.jit(
    lambda batch: loss(
      jax.random.key(1), model.params, {"reference": model}, batch
    )
  )
  value, said = ask({"image": x, "fake": x[:3]})
  assert float(said["ratio_real"]) == float(said["ratio_fake"]) == 0.0
  assert float(value) == pytest.approx(3.0 * np.log(2.0), rel=1e-6)
  assert said["unstable"] == 1.0  # 0.5 < 2 / 3
  for fake, given in ((None, "none"), (x[:0], "shape"), (x[:, :1], "shape")):
    with pytest.raises(ValueError, match=f"as the data, got {given}"):
      ask({"image": x} if fake is None else {"image": x, "fake": fake})


def test_large_ratios_have_no_gradient_and_a_finite_loss():
  loss = lambda r: discriminator_loss(r, -r, 4.0, 2.0)
  r = np.asarray([1e4, -1e4, 0.3], np.float32)
  value, slope = jax.jit(jax.value_and_grad(loss))(r)
  assert np.isfinite(value)
  np.testing.assert_array_equal(slope[:2], np.zeros(2))
  assert slope[2] < 0


def test_the_ratio_of_tokens_is_that_of_their_probabilities():
  rng = np.random.default_rng(0)
  p, q = (rng.dirichlet(np.ones(4), (2, 3)) for _ in range(2))
  tokens = rng.integers(0, 4, (2, 3))
  own = [
    sum(np.log(p[i, j, k] / q[i, j, k]) for j, k in enumerate(row))
    for i, row in enumerate(tokens)
  ]
  ratio = jax.jit(token_ratio)
  # logits are known up to a number for every place
  found = ratio(np.log(p) + 3.0, np.log(q), tokens)
  np.testing.assert_allclose(found, own, rtol=1e-4)
  assert not np.any(ratio(p, p, tokens))


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

"""Direct discriminative optimisation: optima, stability, ratios."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import predictions
from jaxdiff.distillation.ddo import diffusion_ratio
from jaxdiff.distillation.ddo import discriminator_loss
from jaxdiff.distillation.ddo import optimum
from jaxdiff.distillation.ddo import stable
from jaxdiff.distillation.ddo import token_ratio
from tests.distillation import cases

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
  return cases.network(
    seed=seed,
    scale=1.0,
    dtype=jnp.float32,
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

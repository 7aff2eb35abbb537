"""Guidance: limits, affinity, cost and compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers

PROCESS = processes.vp_linear()
MODEL = oracles.exact(oracles.g2(), PROCESS)  # 3 components: 3 is "no label"
X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
LABEL = np.array([0, 1, 2, 2, 1, 0])
T = 0.4


def close(one, other, atol=2e-6):
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(a, b, atol=atol)


def test_scale_one_is_conditional_and_zero_unconditional():
  conditional = MODEL(X, T, LABEL)
  unconditional = MODEL(X, T)
  assert abs(conditional.x0 - unconditional.x0).max() > 0.1
  guided = lambda s: guidance.cfg(MODEL, label=LABEL, null=3, scale=s)(X, T)
  close(guided(1.0), conditional)
  close(guided(0.0), unconditional)


def test_guidance_extrapolates_from_the_null_to_the_label():
  with_label, without = MODEL(X, T, LABEL), MODEL(X, T)
  guided = guidance.cfg(MODEL, label=LABEL, null=3, scale=2.5)(X, T)
  for half in ("x0", "eps"):
    one, zero = getattr(with_label, half), getattr(without, half)
    exact = zero + 2.5 * (one - zero)
    np.testing.assert_allclose(getattr(guided, half), exact, atol=1e-5)


def test_guidance_is_the_same_map_in_x0_eps_and_v():
  alpha, sigma = np.float32(PROCESS.alpha(T)), np.float32(PROCESS.sigma(T))
  guided = guidance.cfg(MODEL, label=LABEL, null=3, scale=3.0)(X, T)
  np.testing.assert_allclose(
    alpha * guided.x0 + sigma * guided.eps, X, atol=1e-5
  )
  with_label, without = MODEL(X, T, LABEL), MODEL(X, T)
  for kind in ("x0", "eps", "v", "flow", "score", "edm"):
    one, zero = (
      predictions.target(kind, *pair, alpha, sigma)
      for pair in (with_label, without)
    )
    mixed = zero + 3.0 * (one - zero)
    close(predictions.decode(kind, mixed, X, alpha, sigma), guided, atol=5e-5)


def test_one_call_of_twice_the_batch():
  calls = []

  def counting(x, t, label):
    calls.append((x.shape, jnp.shape(t), label.tolist()))
    return MODEL(x, t, label)

  guidance.cfg(counting, label=LABEL, null=3, scale=2.0)(X, T)
  assert calls == [((12, 2), (), [*LABEL.tolist(), *[3] * 6])]


def test_scales_and_labels_may_be_scalars_or_one_for_each_sample():
  scale = np.linspace(0, 3, 6).astype(np.float32)
  many = guidance.cfg(MODEL, label=LABEL, null=3, scale=scale)(X, T)
  for i in (0, 3, 5):
    one = guidance.cfg(MODEL, label=int(LABEL[i]), null=3, scale=scale[i])
    close(one(X, T)[0][i], many[0][i])


def test_every_sample_may_have_a_time_of_its_own():
  t = np.linspace(0.2, 0.9, 6).astype(np.float32)
  many = guidance.cfg(MODEL, label=LABEL, null=3, scale=2.0)(X, t)
  for i in (0, 3, 5):
    one = guidance.cfg(MODEL, label=LABEL, null=3, scale=2.0)(X, t[i])
    close([v[i] for v in one], [v[i] for v in many], atol=1e-5)


def test_another_scale_or_label_compiles_nothing():
  grid = grids.log_snr(PROCESS, 3)
  table = solvers.ddim(PROCESS, grid)
  key = jax.random.key(0)
  counts = []
  for scale, label in [(1.0, LABEL), (4.0, LABEL), (7.5, LABEL[::-1])]:
    model = guidance.cfg(MODEL, label=label, null=3, scale=scale)
    sampling.sample(key, model, table, X)
    counts.append(sampling.compilations())
  assert counts[0] == counts[1] == counts[2]


def test_halves_of_a_bfloat16_model_are_combined_in_float32():
  # scale 20 amplifies the rounding of bfloat16 if the sum is made there
  rounded = lambda v: v.astype(jnp.bfloat16)

  def model(x, t, label):
    pair = MODEL(x.astype(jnp.float32), t, label)
    return predictions.Prediction(rounded(pair.x0), rounded(pair.eps))

  x = rounded(jnp.asarray(X))
  guided = guidance.cfg(model, label=LABEL, null=3, scale=20.0)(x, T)
  assert guided.x0.dtype == jnp.float32
  wide = x.astype(jnp.float32)
  one = rounded(MODEL(wide, T, LABEL).x0).astype(jnp.float32)
  zero = rounded(MODEL(wide, T).x0).astype(jnp.float32)
  np.testing.assert_allclose(guided.x0, zero + 20 * (one - zero), rtol=1e-4)


def test_a_guided_model_has_finite_gradients_in_its_scale():
  f = lambda s: guidance.cfg(MODEL, label=LABEL, null=3, scale=s)(X, T).x0.sum()
  exact = (MODEL(X, T, LABEL).x0 - MODEL(X, T).x0).sum()
  assert float(jax.grad(f)(2.0)) == pytest.approx(float(exact), rel=1e-4)

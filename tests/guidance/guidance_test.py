"""Guidance: limits, affinity, cost and compilations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tree

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


def test_a_list_of_labels_is_the_array_that_with_label_takes():
  labels = [int(i) for i in LABEL]
  of = lambda label, null: guidance.cfg(
    MODEL, label=label, null=null, scale=2.0
  )(X, jnp.float32(1.0))
  chex.assert_trees_all_equal(of(labels, 3), of(LABEL, 3))
  chex.assert_trees_all_equal(of(labels, [3] * len(labels)), of(LABEL, 3))
  toward = guidance.guided(MODEL, null=3, scale=2.0)
  chex.assert_trees_all_equal(toward(X, jnp.float32(1.0), labels), of(LABEL, 3))
  with pytest.raises(ValueError, match=r"shape \(2,\), but there are"):
    of(labels[:2], 3)


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


def told(x, t, label):
  """A model that answers with a number for each condition, as a plain pair."""
  score = lambda leaf: jnp.sum(
    jnp.asarray(leaf, jnp.float32).reshape(leaf.shape[0], -1), axis=1
  )
  tone = sum(score(leaf) for leaf in jax.tree.leaves(label))
  x0 = jax.tree.map(lambda v: tree.expand(tone, v) + 0.0 * v, x)
  return x0, jax.tree.map(lambda v, c: (v - c) / tree.expand(t, v), x, x0)


VECTORS = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
IMAGES = np.random.default_rng(2).normal(size=(6, 2, 2, 1)).astype(np.float32)
TREE = dict(pooled=VECTORS, tokens=np.arange(18).reshape(6, 3))


@pytest.mark.parametrize(
  ("label", "null", "on", "off"),
  [
    (2, 3, np.full(6, 2.0), 3.0),
    (LABEL, 3, LABEL, 3.0),
    (LABEL, np.full(6, 3), LABEL, 3.0),
    (VECTORS[0], 0.0, np.full(6, VECTORS[0].sum()), 0.0),
    (VECTORS, 0.0, VECTORS.sum(1), 0.0),
    (VECTORS, np.ones(5), VECTORS.sum(1), 5.0),
    (VECTORS, 0 * VECTORS, VECTORS.sum(1), 0.0),
    (IMAGES, 1.0, IMAGES.sum((1, 2, 3)), 4.0),
    (IMAGES, np.ones((2, 2, 1)), IMAGES.sum((1, 2, 3)), 4.0),
    (
      TREE,
      dict(pooled=np.zeros(5), tokens=9),
      VECTORS.sum(1) + TREE["tokens"].sum(1),
      27.0,
    ),
    (TREE, 0, VECTORS.sum(1) + TREE["tokens"].sum(1), 0.0),
  ],
)
def test_conditions_of_every_shape_guide_samples_of_every_tree(
  label, null, on, off
):
  x = {"a": jnp.asarray(X), "b": jnp.ones((6, 2, 1))}
  scale = np.asarray([0.0, 1.0, 2.0, 3.0, -1.0, 0.5], np.float32)
  t = np.linspace(0.5, 2.0, 6).astype(np.float32)
  found = guidance.cfg(told, label=label, null=null, scale=scale)(x, t)
  again = guidance.guided(told, null=null, scale=scale)(x, t, label)
  chex.assert_trees_all_equal(found, again)
  exact = off + scale * (on - off)
  for name, leaf in x.items():
    x0 = jnp.broadcast_to(tree.expand(exact, leaf), leaf.shape)
    close([found.x0[name]], [x0], atol=2e-5)
    eps = (leaf - x0) / tree.expand(t, leaf)
    close([found.eps[name]], [eps], atol=5e-5)


def test_a_vector_condition_reaches_a_denoiser():
  net = lambda params, x, c, label: x + label @ params
  model = denoisers.from_function(
    net, jnp.ones((5, 2)), PROCESS, prediction="x0", scale_input=False
  )
  on = model(X, T, VECTORS).x0
  off = model(X, T, np.zeros((6, 5), np.float32)).x0
  for null in (0.0, np.zeros(5)):
    found = guidance.cfg(model, label=VECTORS, null=null, scale=3.0)(X, T)
    close([found.x0], [off + 3.0 * (on - off)], atol=1e-5)
  one = guidance.cfg(model, label=VECTORS[2], null=0.0, scale=3.0)(X, T)
  close([one.x0[2]], [found.x0[2]])


@pytest.mark.parametrize(
  ("label", "null", "scale", "error", "match"),
  [
    (LABEL[:4], 3, 2.0, ValueError, r"label has shape \(4,\), .* 6 samples"),
    (VECTORS[:4], 0.0, 2.0, ValueError, r"shape \(4, 5\), but there are 6"),
    (VECTORS, np.ones(4), 2.0, ValueError, r"null has shape \(4,\) beside"),
    (LABEL, 0.5, 2.0, TypeError, "classes of dtype int.*null has dtype float"),
    (LABEL, 3, np.ones(4), ValueError, r"each of the 6 samples; .* \(4,\)"),
    (0.5, 0.0, 2.0, ValueError, r"vector of length 1, shape \(1,\)"),
    (None, 3, 2.0, ValueError, "leads toward a label, but it is None"),
    (TREE, dict(pooled=0.0), 2.0, ValueError, "null is a tree .*pooled"),
  ],
)
def test_a_condition_of_another_batch_or_kind_is_refused(
  label, null, scale, error, match
):
  with pytest.raises(error, match=match):
    guidance.cfg(told, label=label, null=null, scale=scale)(X, jnp.float32(1.0))


def test_a_classifier_guides_trees_sample_by_sample():
  edm = processes.edm()
  x = {"a": jnp.asarray(X), "b": jnp.ones((6, 2, 1))}
  zero = lambda x, t: (jax.tree.map(jnp.zeros_like, x), x)
  slope = {"a": 2.0, "b": -1.0}
  log_prob = lambda x, t: sum(
    slope[k] * v.reshape(6, -1).sum(1) for k, v in x.items()
  )
  scale = np.linspace(0.0, 2.0, 6).astype(np.float32)
  t = np.linspace(0.5, 2.0, 6).astype(np.float32)
  model = guidance.classifier_guided(zero, log_prob, edm, scale=scale)
  found = model(x, t)
  for name, leaf in x.items():
    push = tree.expand(scale * t**2, leaf) * slope[name]
    close([found.x0[name]], [push + 0.0 * leaf])
    close([found.eps[name]], [leaf - push / tree.expand(t, leaf)], atol=1e-5)

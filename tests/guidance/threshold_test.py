"""Thresholding: what is out of range comes back, what is not stays as it is."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers

VP = processes.vp_cosine()  # alpha = 0 at t = 1
RNG = np.random.default_rng(0)
X0 = RNG.normal(scale=1.5, size=(6, 4, 4, 3)).astype(np.float32)
X0[0] *= 0.1  # nothing of it is out of range
EPS = RNG.normal(size=X0.shape).astype(np.float32)


def known(x, t):
  """A model that answers with a pair of its own, whatever x is."""
  del x, t
  return jnp.asarray(X0), jnp.asarray(EPS)


def at(t):
  ends = [
    np.asarray(f(np.asarray(t)), np.float64) for f in (VP.alpha, VP.sigma)
  ]
  alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in ends)
  return alpha, sigma, (alpha * X0 + sigma * EPS).astype(np.float32)


def threshold(x0, quantile, limit):
  """Imagen's rule, one sample at a time."""
  done = []
  for one in x0.astype(np.float64):
    s = max(np.quantile(abs(one), quantile), limit)
    done.append(np.clip(one, -s, s) * (limit / s))
  return np.stack(done)


CASES = {
  "clip": (
    lambda m: guidance.clip_x0(m, VP, low=-1.0, high=0.5),
    lambda x0: np.clip(x0, -1.0, 0.5),
  ),
  "channels": (
    lambda m: guidance.clip_x0(m, VP, high=np.asarray([0.5, 1.0, 2.0])),
    lambda x0: np.clip(x0, -1.0, [0.5, 1.0, 2.0]),
  ),
  "dynamic": (
    lambda m: guidance.dynamic_threshold(m, VP, quantile=0.9),
    lambda x0: threshold(x0, 0.9, 1.0),
  ),
  "wide": (
    lambda m: guidance.dynamic_threshold(m, VP, quantile=1.0, limit=2.0),
    lambda x0: threshold(x0, 1.0, 2.0),
  ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("t", [0.05, 0.6, np.linspace(0.02, 0.98, 6)])
def test_x0_and_the_eps_that_belongs_to_it(name, t):
  build, rule = CASES[name]
  alpha, sigma, x = at(t)
  pair = build(known)(jnp.asarray(x), jnp.asarray(t, jnp.float32))
  np.testing.assert_allclose(pair.x0, rule(X0), atol=1e-6)
  assert abs(pair.x0).max() < abs(X0).max()
  exact = (alpha * X0 + sigma * EPS - alpha * rule(X0)) / sigma
  np.testing.assert_allclose(pair.eps, exact, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_what_is_in_range_keeps_its_bits(name):
  pair = CASES[name][0](known)(jnp.asarray(X0), jnp.float32(1e-3))
  np.testing.assert_array_equal(pair.x0[0], X0[0])
  np.testing.assert_array_equal(pair.eps[0], EPS[0])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_both_ends_are_finite_with_finite_gradients(name, t):
  build, rule = CASES[name]
  x0 = jnp.asarray(X0)

  def loss(x0, t):
    model = build(lambda x, t: (x0, jnp.asarray(EPS)))
    pair = model(x0, t)
    return jnp.sum(pair.x0**2 + pair.eps**2), pair

  slope, pair = jax.grad(loss, has_aux=True)(x0, jnp.float32(t))
  np.testing.assert_allclose(pair.x0, rule(X0), atol=1e-6)
  np.testing.assert_array_equal(pair.eps, EPS)
  assert np.isfinite(slope).all()


def test_the_quantile_is_over_all_leaves_of_one_sample():
  model = lambda x, t: (x, jax.tree.map(jnp.zeros_like, x))
  whole = jnp.asarray(X0).reshape(6, -1)
  parts = {"a": whole[:, :10], "b": whole[:, 10:].reshape(6, 2, -1)}
  rule = lambda x: guidance.dynamic_threshold(model, VP, quantile=0.8)(x, 0.3)
  found, exact = rule(parts), rule(whole)
  for half, one in zip(found, exact):
    joined = jnp.concatenate([v.reshape(6, -1) for v in half.values()], 1)
    np.testing.assert_array_equal(joined, one)


def test_most_equal_to_the_limit_is_static_clipping():
  one = guidance.dynamic_threshold(known, VP, quantile=0.7, most=1.0)
  two = guidance.clip_x0(known, VP)
  chex.assert_trees_all_close(one(X0, 0.4), two(X0, 0.4), atol=1e-6)


def test_samples_of_a_guided_model_stay_in_range_and_a_limit_compiles_nothing():
  edm = processes.edm()
  centres = jnp.asarray([0.9, -0.9, 0.0])

  def model(x, t, label):
    x0 = jnp.broadcast_to(centres[label][:, None], x.shape)
    return x0, (x - x0) / t

  guided = guidance.cfg(model, label=np.arange(2), null=2, scale=3.0)
  table = solvers.dpmpp_2m(edm, grids.karras(edm, 4, to_zero=True))
  x = edm.prior(jax.random.key(0), (2, 3))
  draw = lambda m: sampling.sample(jax.random.key(1), m, table, x)
  assert abs(draw(guided)).max() > 2.6
  for limit in (1.0, 0.5):
    clipped = draw(guidance.clip_x0(guided, edm, low=-limit, high=limit))
    np.testing.assert_allclose(abs(clipped), limit, rtol=1e-5)
    counts = sampling.compilations()
  draw(guidance.clip_x0(guided, edm, low=-0.3, high=0.3))
  assert sampling.compilations() == counts
  # one guides each half that was clipped: the labels pass through
  halves = guidance.clip_x0(model, edm, low=-0.5, high=0.5)
  inner = guidance.cfg(halves, label=np.arange(2), null=2, scale=3.0)
  np.testing.assert_allclose(abs(draw(inner)), 1.5, rtol=1e-5)


@pytest.mark.parametrize(
  ("call", "error", "match"),
  [
    (lambda: guidance.clip_x0(known, VP, low=1.0, high=1.0), ValueError, "<"),
    (lambda: guidance.clip_x0(known, "vp"), TypeError, "takes a process"),
    (lambda: guidance.clip_x0(3, VP), TypeError, "takes a model first"),
    (
      lambda: guidance.dynamic_threshold(known, VP, quantile=99.5),
      ValueError,
      r"in \(0, 1\]; got 99.5",
    ),
    (
      lambda: guidance.dynamic_threshold(known, VP, limit=0.0),
      ValueError,
      "positive; got 0.0",
    ),
    (
      lambda: guidance.dynamic_threshold(known, VP, most=0.5),
      ValueError,
      "at least limit=1.0; got 0.5",
    ),
  ],
)
def test_thresholds_that_are_none_are_refused(call, error, match):
  with pytest.raises(error, match=match):
    call()

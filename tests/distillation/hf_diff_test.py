"""HF-Diff: invertible features, divergences, SinSR as a limit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import distillation
from jaxdiff import networks
from tests.distillation import cases


def _details(dtype, scale=0.3):
  """Returns a network of one level with random parameters."""
  network = networks.Invertible(levels=1, couplings=2, width=4)
  x = jnp.zeros((1, *cases.SHAPE), dtype)
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
  x = cases.images(0, 2, dtype)

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
  x, g = (cases.images(i, 2) for i in (0, 1))
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
  teacher, student = (
    cases.restorer(cases.RESSHIFT, 1),
    cases.restorer(cases.RESSHIFT, 2),
  )
  options = dict(optimizer=optax.sgd(0.1), steps=3)
  features = lambda x: (x,)
  embed = lambda x: x.reshape(len(x), -1)
  batch = cases.pairs()
  plain = cases.restored_gradient(
    distillation.sinsr(teacher, student, **options), batch
  )
  method = lambda **w: distillation.hf_diff(
    teacher, student, features=features, embed=embed, **w, **options
  )
  same = cases.restored_gradient(method(hf=0.0, js=0.0), batch)
  chex.assert_trees_all_equal(plain[:2], same[:2])
  # the pixels of the true images' own noise: the third term once more
  more = cases.restored_gradient(method(hf=2.0, js=0.5, compare="truth"), batch)
  assert float(more[2]["hf"]) == pytest.approx(
    float(more[2]["truth"]), rel=1e-5
  )
  assert float(more[0]) == pytest.approx(
    float(plain[0] + 2.0 * more[2]["hf"] + 0.5 * more[2]["js"]), rel=1e-6
  )
  assert float(more[1]["a"][0]) != float(plain[1]["a"][0])


def test_restoration_is_checked():
  teacher = cases.restorer(cases.RESSHIFT)
  make = lambda **o: distillation.hf_diff(
    teacher, teacher, optimizer=optax.sgd(0.1), steps=2, hf=0.0, **o
  )
  with pytest.raises(ValueError, match="prediction='x0' does not tell there"):
    distillation.sinsr(
      teacher,
      cases.restorer(cases.RESSHIFT, prediction="x0"),
      optimizer=optax.sgd(0.1),
    )
  with pytest.raises(ValueError, match="compare must be one of"):
    make(features=None, compare="both")
  method = make(features=None, embed=lambda x: x)
  with pytest.raises(ValueError, match=r"shape \(6, d\), got \(6, 4, 4, 1\)"):
    cases.restored_gradient(method, cases.pairs())
  with pytest.raises(ValueError, match="the batch has no 'degraded'"):
    distillation.residuals({"image": cases.images(0)})
  with pytest.raises(ValueError, match="bring the small ones to size"):
    distillation.residuals(
      {"image": cases.images(0), "degraded": cases.images(0)[:, :2]}
    )


@pytest.mark.slow
def test_the_update_of_hf_diff_lowers_its_loss():
  teacher, student = (
    cases.restorer(cases.RESSHIFT, 1),
    cases.restorer(cases.RESSHIFT, 2, scale=2.0),
  )
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
    state, said = update(state, cases.pairs())
    seen.append(float(said["loss"]))
  assert np.mean(seen[-20:]) < 0.5 * np.mean(seen[:3])

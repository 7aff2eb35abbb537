"""DDPM++, NCSN++, ADM and EDM2: sizes, their laws, and what they are told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import training
from jaxdiff.networks import conditioning
from jaxdiff.networks import edm2
from jaxdiff.networks import resampling
from jaxdiff.networks import residual

SMALL = {
  "ddpm": dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,)),
  "ddpmpp": dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,)),
  "ncsnpp": dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,)),
  "adm": dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), head=8),
  "edm2": dict(
    channels=8, multipliers=(1, 2), blocks=1, attention=(4,), head=8
  ),
}


def shaped(name, shape=(3, 8, 8, 3), **options):
  """Returns (module, shapes of its parameters)."""
  module = networks.make(name, **(SMALL[name] | options))
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  c = jax.ShapeDtypeStruct(shape[:1], jnp.float32)
  return module, jax.eval_shape(module.init, jax.random.key(0), x, c)["params"]


def filled(shapes, seed=0):
  """Returns parameters none of which is zero."""
  draw = np.random.default_rng(seed)
  off_zero = lambda v: 0.3 * draw.normal(size=v.shape).astype(np.float32)
  return jax.tree.map(off_zero, shapes)


@pytest.fixture(params=SMALL, scope="module")
def case(request):
  """Returns (name, apply, params) of a network with three classes."""
  module, shapes = shaped(request.param, num_classes=3, dropout=0.3)
  apply = jax.jit(lambda params, *args: module.apply({"params": params}, *args))
  return request.param, apply, filled(shapes)


X = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
C = np.array([-1.0, 0.0, 0.5], np.float32)


# -- sizes and shapes --------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "classes", "size", "count"),
  [
    ("ddpmpp", 0, 32, 55_733_891),
    ("ncsnpp", 0, 32, 56_397_827 + 128),  # and its random frequencies
    ("adm", 1000, 64, 295_899_267),
    ("edm2", 1000, 64, 280_209_637),
  ],
)
def test_networks_have_as_many_parameters_as_published(
  name, classes, size, count
):
  # of the authors' networks; of EDM2 our own count, 280M in the paper
  net = networks.make(name, num_classes=classes)
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  c = jax.ShapeDtypeStruct((1,), jnp.float32)
  params = jax.eval_shape(net.init, jax.random.key(0), x, c)["params"]
  assert sum(v.size for v in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
  ("embedding", "encoder", "decoder", "joint"),
  [
    ("positional", "skip", "standard", "block"),
    ("fourier", "standard", "skip", "block"),
    ("fourier", "skip", "skip", "conv"),
    ("positional", "residual", "skip", "conv"),
  ],
)
def test_song_unets_of_every_kind_give_an_image(
  embedding, encoder, decoder, joint
):
  options = dict(embedding=embedding, encoder=encoder, decoder=decoder)
  module, shapes = shaped("ddpmpp", (2, 8, 16, 5), joint=joint, **options)
  x, c = jnp.zeros((2, 8, 16, 5)), jnp.zeros(2)
  out = jax.eval_shape(module.apply, {"params": shapes}, x, c)
  assert out.shape == x.shape


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_and_remat_leave_the_parameters_as_they_are(name):
  _, shapes = shaped(name, num_classes=3)
  module, same = shaped(name, num_classes=3, remat=True, dtype="bfloat16")
  assert shapes == same
  assert {v.dtype for v in jax.tree.leaves(same)} == {jnp.dtype("float32")}
  run = functools.partial(
    module.apply, deterministic=False, rngs=dict(dropout=jax.random.key(0))
  )
  out = jax.eval_shape(run, {"params": same}, X, C)
  assert out.dtype == jnp.bfloat16


# -- what every denoising network must do ------------------------------------


@pytest.mark.slow
def test_samples_do_not_see_each_other(case):
  _, apply, params = case
  label = np.array([0, 1, 2])
  whole = apply(params, X, C, label)
  x, label = X.copy(), label.copy()
  x[2], label[2] = 9.0, 0
  other = apply(params, x, C, label)
  scale = np.abs(whole).max()
  np.testing.assert_allclose(whole[:2], other[:2], atol=1e-5 * scale)
  assert np.abs(whole[2] - other[2]).max() > 1e-3 * scale


@pytest.mark.slow
def test_time_and_label_are_heard(case):
  _, apply, params = case
  null = apply(params, X, C, np.full(3, 3))
  scale = np.abs(null).max()
  np.testing.assert_array_equal(apply(params, X, C), null)
  for other in (apply(params, X, C, np.zeros(3, int)), apply(params, X, C + 1)):
    assert np.abs(other - null).max() > 1e-3 * scale
  hot = np.eye(3, dtype=np.float32)
  classes = apply(params, X, C, np.arange(3))
  np.testing.assert_allclose(
    apply(params, X, C, hot), classes, atol=1e-6 * scale
  )


@pytest.mark.slow
def test_remat_and_half_precision_change_no_output(case):
  name, apply, params = case
  full = apply(params, X, C)

  def loss(params, module):
    return jnp.sum(module.apply({"params": params}, X, C) ** 2)

  plain, _ = shaped(name, num_classes=3)
  again, _ = shaped(name, num_classes=3, remat=True)
  grads = [
    jax.jit(jax.grad(loss), static_argnums=1)(params, m) for m in (plain, again)
  ]
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads[0]))
  for a, b in zip(*map(jax.tree.leaves, grads)):
    np.testing.assert_allclose(a, b, atol=1e-4 * largest)
  half, _ = shaped(name, num_classes=3, dtype="bfloat16")
  out = jax.jit(half.apply)({"params": params}, X, C).astype(np.float32)
  assert 0 < np.abs(out - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.slow
def test_dropout_needs_a_key_and_is_off_without(case):
  name, apply, params = case
  module, _ = shaped(name, num_classes=3, dropout=0.3)
  model = denoisers.from_linen(module, params, processes.edm())
  run = jax.jit(lambda model, key: model(X, 1.0, key=key).x0)
  first, second = (run(model, jax.random.key(i)) for i in (0, 1))
  assert np.abs(first - second).max() > 1e-4
  np.testing.assert_array_equal(first, run(model, jax.random.key(0)))
  np.testing.assert_array_equal(run(model, None), run(model, None))


@pytest.mark.slow
def test_every_parameter_has_a_finite_gradient(case):
  name, _, params = case
  module, _ = shaped(name, num_classes=3)
  label = np.array([0, 1, 3])

  def loss(params):
    return jnp.sum(module.apply({"params": params}, X, C, label) ** 2)

  grads = jax.jit(jax.grad(loss))(params)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path)
    assert np.isfinite(g).all(), name
    fixed = "freqs" in name or "phases" in name or "augment" in name
    assert (np.abs(g).max() > 0) != fixed, name


def test_augmentation_labels_of_zero_are_none():
  block = conditioning.augment_vector(None, 3, 9)
  np.testing.assert_array_equal(block, np.zeros((3, 9)))
  assert conditioning.augment_vector(None, 3, 0) is None


# -- labels ------------------------------------------------------------------


def test_a_class_is_a_unit_vector_and_the_null_label_is_none():
  vector = functools.partial(conditioning.label_vector, batch=4, num_classes=3)
  found = vector(jnp.array([0, 2, 3, 4]))
  np.testing.assert_array_equal(found[:3], [[1, 0, 0], [0, 0, 1], [0, 0, 0]])
  assert np.isnan(found[3]).all()
  assert np.isnan(vector(jnp.int32(-1))).all()
  np.testing.assert_array_equal(vector(None), np.zeros((4, 3)))
  np.testing.assert_array_equal(vector(1), np.eye(3)[[1] * 4])
  assert conditioning.label_vector(None, 4) is None


@pytest.mark.parametrize(
  ("name", "options", "given", "message"),
  [
    ("ddpmpp", dict(encoder="none"), {}, "encoder = 'none' must be one of"),
    ("ddpmpp", {}, dict(label=jnp.zeros(3, int)), "without classes"),
    ("adm", dict(num_classes=3), dict(label=jnp.zeros((3, 2))), r"f\[3, 3\]"),
    ("adm", dict(label_dim=3), dict(label=jnp.zeros(3, int)), r"f\[3, 3\]"),
    ("adm", dict(label_dim=3, num_classes=3), {}, "set one to 0"),
    ("adm", {}, dict(augment=jnp.zeros((3, 9))), "build it with augment_dim"),
    ("ncsnpp", {}, dict(augment=jnp.zeros((3, 8))), r"must be \[3, 9\]"),
    ("edm2", {}, dict(augment=jnp.zeros((3, 9))), "drop them"),
    ("edm2", dict(multipliers=(1,) * 5), {}, "multiples of 16, got 8x8"),
    ("edm2", {}, dict(c=jnp.float32(1.0)), "broadcast a scalar"),
    ("ncsnpp", dict(taps=(1, 2, 1)), {}, "an even number of taps"),
    ("ddpmpp", dict(channels=2), {}, "at least 4, got 2"),
    ("ddpmpp", {}, dict(x=X[..., 0]), "add a channel dimension"),
  ],
)
def test_refusals_say_how_to_mend(name, options, given, message):
  module = networks.make(name, **(SMALL[name] | options))
  call = lambda key, x=X, c=C, label=None, **rest: module.init(
    key, x, c, label, **rest
  )
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(functools.partial(call, **given), jax.random.key(0))


# -- resampling --------------------------------------------------------------


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 0, 4, 1, 5)])
def test_doubling_is_four_times_the_transpose_of_halving(taps):
  draw = np.random.default_rng(0)
  fine = jnp.asarray(draw.normal(size=(1, 8, 6, 1)), jnp.float32)
  coarse = jnp.asarray(draw.normal(size=(1, 4, 3, 1)), jnp.float32)
  down = jnp.vdot(resampling.halve(fine, taps), coarse)
  up = jnp.vdot(fine, resampling.double(coarse, taps))
  assert float(up) == pytest.approx(4 * float(down), rel=1e-5)


def test_filters_do_what_their_names_say():
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  means = np.arange(16.0).reshape(2, 2, 2, 2).mean((1, 3))
  np.testing.assert_allclose(resampling.halve(x)[0, ..., 0], means)
  twice = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
  np.testing.assert_array_equal(resampling.double(x), twice)
  # what is linear stays so, away from the border
  ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None], (1, 8, 8))[..., None]
  smooth = resampling.double(ramp, (1, 3, 3, 1))[0, 2:-2, 8, 0]
  np.testing.assert_allclose(np.diff(smooth), 0.5, rtol=1e-5)
  with pytest.raises(ValueError, match="cannot be halved"):
    resampling.halve(x[:, :3])


def test_halving_is_the_strided_convolution_with_the_filter():
  x = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
  f = np.array([1, 3, 5, 2]) / 11
  kernel = np.outer(f, f)[..., None, None].astype(np.float32)
  expected = jax.lax.conv_general_dilated(
    x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(
    resampling.halve(x, (1, 3, 5, 2)), expected, atol=1e-6
  )


def test_attention_averages_values_when_queries_are_zero():
  draw = np.random.default_rng(0)
  qkv = draw.normal(size=(2, 2, 4, 3, 2, 5)).astype(np.float32)
  qkv[:, :, :, 0] = 0.0
  out = residual.attend(jnp.asarray(qkv).reshape(2, 2, 4, 30), heads=2)
  mean = qkv[:, :, :, 2].mean(axis=(1, 2)).reshape(2, 1, 1, 10)
  np.testing.assert_allclose(out, np.broadcast_to(mean, out.shape), atol=1e-6)


# -- magnitudes --------------------------------------------------------------


def rms(x):
  return float(np.sqrt(np.mean(np.square(x))))


def test_sums_concatenations_and_layers_keep_the_magnitude():
  draw = np.random.default_rng(0)
  a, b = draw.normal(size=(2, 4096, 64)).astype(np.float32)
  for t in (0.1, 0.3, 0.5):
    assert rms(edm2.mp_sum(a, b, t)) == pytest.approx(1.0, abs=0.01)
    both = edm2.mp_cat(a, b[:, :16], t)
    assert rms(both) == pytest.approx(1.0, abs=0.01)
    share = np.sum(both[:, :64] ** 2) / np.sum(both[:, 64:] ** 2)
    assert share == pytest.approx(((1 - t) / t) ** 2, rel=0.03)
  # 0.596 is the root mean square of silu(z), to three digits
  assert rms(edm2.mp_silu(a)) == pytest.approx(1.0, abs=0.01)
  layer = edm2.MPDense(32)
  weight = 7.0 * draw.normal(size=(64, 32)).astype(np.float32)
  out = layer.apply({"params": dict(weight=weight)}, a)
  assert rms(out) == pytest.approx(1.0, abs=0.01)


def test_normalizing_weights_changes_no_output():
  draw = np.random.default_rng(0)
  layer = edm2.MPDense(4, size=3)
  weight = 5.0 * draw.normal(size=(3, 3, 6, 4)).astype(np.float32)
  params = dict(weight=weight, gain=np.float32(2.0))
  new = edm2.normalize(dict(layer=params, out_gain=np.float32(3.0)))
  assert new["out_gain"] == 3.0 and new["layer"]["gain"] == 2.0
  each = np.sqrt(np.mean(new["layer"]["weight"] ** 2, axis=(0, 1, 2)))
  np.testing.assert_allclose(each, 1.0, atol=2e-4)
  x = draw.normal(size=(2, 4, 4, 6)).astype(np.float32)
  before, after = (
    layer.apply({"params": dict(weight=w)}, x)
    for w in (weight, new["layer"]["weight"])
  )
  np.testing.assert_allclose(before, after, atol=2e-4 * np.abs(before).max())


def test_the_gradient_of_a_normalized_weight_is_orthogonal_and_finite():
  x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
  layer = edm2.MPDense(2)

  def loss(weight):
    return jnp.sum(layer.apply({"params": dict(weight=weight)}, x) ** 3)

  weight = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
  weight[:, 1] = 0.0
  grad = jax.grad(loss)(weight)
  assert np.isfinite(grad).all()
  size = np.linalg.norm(grad[:, 0]) * np.linalg.norm(weight[:, 0])
  assert abs(np.vdot(grad[:, 0], weight[:, 0])) < 1e-3 * size


def test_training_normalizes_the_weights_of_edm2():
  params = dict(enc0_conv=dict(weight=filled(jnp.zeros((3, 3, 4, 8)))))
  model = denoisers.from_linen(networks.EDM2(), params, processes.edm())
  weight = training.projection(model)(params)["enc0_conv"]["weight"]
  np.testing.assert_allclose(
    np.mean(np.square(weight), axis=(0, 1, 2)), 1.0, atol=1e-3
  )

"""Networks: output like x, labels, dtypes, refusals, and what they start as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import networks
from jaxdiff import processes

SMALL = {
  "mlp": (networks.MLP((16,), 8, num_classes=3), (5, 2)),
  "residual_mlp": (
    networks.ResidualMLP(16, 2, 2, 8, num_classes=3),
    (5, 4, 4, 1),
  ),
  "unet": (
    networks.UNet(4, (1,), 1, (4,), 4, 2, 2, num_classes=3),
    (5, 8, 8, 1),
  ),
}


def started(module, shape, seed=0, scale=0.3):
  """Returns (x, c, params), params moved off their zero initial values."""
  x = jax.random.normal(jax.random.key(seed), shape)
  c = jnp.linspace(-1.0, 1.0, shape[0])
  params = jax.eval_shape(module.init, jax.random.key(1), x, c)["params"]
  draw = np.random.default_rng(seed)
  off_zero = lambda v: scale * draw.normal(size=v.shape).astype(np.float32)
  return x, c, jax.tree.map(off_zero, params)


@pytest.fixture(params=SMALL, scope="module")
def case(request):
  """Returns (apply, module, x, c, params); apply(params, x, c, label)."""
  module, shape = SMALL[request.param]
  apply = jax.jit(lambda params, *args: module.apply({"params": params}, *args))
  return apply, module, *started(module, shape)


def test_output_is_like_x_and_starts_at_zero(case):
  apply, module, x, c, _ = case
  params = jax.jit(module.init)(jax.random.key(1), x, c)["params"]
  out = apply(params, x, c, jnp.zeros(5, jnp.int32))
  assert out.shape == x.shape
  assert out.dtype == x.dtype
  np.testing.assert_array_equal(out, 0.0)


def test_no_label_is_the_null_label(case):
  apply, _, x, c, params = case
  null = apply(params, x, c, jnp.full(5, 3))
  np.testing.assert_array_equal(apply(params, x, c), null)
  some = apply(params, x, c, jnp.zeros(5, jnp.int32))
  assert np.abs(some - null).max() > 1e-3


def test_samples_do_not_see_each_other(case):
  apply, _, x, c, params = case
  label = jnp.array([0, 1, 2, 3, 0])
  whole = apply(params, x, c, label)
  other = apply(params, x.at[3:].set(9.0), c, label.at[3:].set(2))
  np.testing.assert_allclose(whole[:3], other[:3], atol=1e-5)
  assert np.abs(whole[3:] - other[3:]).max() > 1e-3


def test_output_depends_on_the_time(case):
  apply, _, x, c, params = case
  change = apply(params, x, c) - apply(params, x, c + 0.5)
  assert np.abs(change).max() > 1e-3


def test_bfloat16_compute_keeps_float32_parameters(case):
  apply, module, x, c, params = case
  half = module.clone(dtype=jnp.bfloat16)
  fresh = jax.eval_shape(half.init, jax.random.key(1), x, c)["params"]
  assert {v.dtype for v in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
  run = jax.jit(lambda params, x, c: half.apply({"params": params}, x, c))
  out = run(params, x, c)
  assert out.dtype == jnp.bfloat16
  full = apply(params, x, c)
  error = np.abs(np.asarray(out, np.float32) - full).max()
  assert 0 < error < 0.1 * np.abs(full).max()
  model = denoisers.from_linen(half, params, processes.edm(), sigma_data=0.5)
  assert jax.eval_shape(model, x, jnp.ones(5)).x0.dtype == jnp.float32


@pytest.mark.parametrize(
  ("shape", "options"),
  [
    ((2, 8, 8, 1), dict(multipliers=(1, 2))),
    ((2, 8, 8, 1), dict(multipliers=(1,), patch=2)),
    ((2, 32, 32, 3), dict(multipliers=(1, 2, 2), attention=(8, 16))),
    ((2, 8, 16, 2), dict(multipliers=(1, 2), blocks=2)),
  ],
)
def test_unet_takes_many_shapes(shape, options):
  x, c = jax.ShapeDtypeStruct(shape, jnp.float32), jnp.zeros(2)
  run = networks.UNet(channels=8, **options).init_with_output
  out, _ = jax.eval_shape(run, jax.random.key(0), x, c)
  assert (out.shape, out.dtype) == (x.shape, x.dtype)


def test_every_parameter_of_the_unet_has_a_finite_gradient():
  module = networks.UNet(4, (1, 2), 1, (4,), num_classes=2)
  x, c, params = started(module, (2, 8, 8, 3))
  label = jnp.array([0, 2])

  def loss(p):
    return jnp.sum(module.apply({"params": p}, x, c, label) ** 2)

  grads = jax.jit(jax.grad(loss))(params)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(g).all()
    assert np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_patches_are_put_back_where_they_were():
  from jaxdiff.networks import patches

  x = jnp.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
  cut = patches.split(x, 4)
  assert cut.shape == (2, 2, 3, 48)
  np.testing.assert_array_equal(cut[1, 1, 2], x[1, 4:8, 8:12].reshape(-1))
  np.testing.assert_array_equal(patches.join(cut, 4), x)


def test_equal_networks_share_one_program():
  calls = []

  @jax.jit
  def run(model, x):
    calls.append(1)
    return model(x, 1.0).x0

  for _ in range(2):
    module = networks.digits_mlp(width=8, blocks=1, embedding=8)
    x, _, params = started(module, (2, 8, 8, 1))
    run(denoisers.from_linen(module, params, processes.edm()), x)
  assert len(calls) == 1


def test_fourier_features_are_as_wide_as_the_time(x64):
  """Derivatives in the time are part of some losses, also in float64."""
  c = jnp.asarray([0.3], jnp.float64)
  features = networks.fourier(c, 8)
  assert features.dtype == jnp.float64
  angle = np.geomspace(0.5, 16.0, 4) * 0.3
  expected = np.concatenate([np.cos(angle), np.sin(angle)])
  np.testing.assert_allclose(features[0], expected, rtol=1e-14)
  assert networks.fourier(c.astype(jnp.bfloat16), 8).dtype == jnp.float32


def test_fourier_features_have_unit_scale_and_tell_times_apart():
  c = jnp.linspace(-2.0, 2.0, 401)
  f = networks.fourier(c, 32)
  np.testing.assert_allclose((f**2).sum(-1), 16.0, rtol=1e-5)
  distance = np.linalg.norm(f[:, None] - f[None], axis=-1)
  assert (distance[~np.eye(401, dtype=bool)] > 0.05).all()


def test_names_make_networks():
  made = networks.make("unet", channels=8, multipliers=[1, 2], dtype="bfloat16")
  assert made == networks.UNet(8, (1, 2), dtype=jnp.dtype("bfloat16"))
  with pytest.raises(ValueError, match="no network 'unett'"):
    networks.make("unett")


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda net, x, c: net(x[..., 0], c), "add a channel dimension"),
    (lambda net, x, c: net(x[:, :6, :6], c), "multiples of 4"),
    (lambda net, x, c: net(x, jnp.float32(1)), "broadcast a scalar"),
    (lambda net, x, c: net(x, c, c), "labels must be integers"),
  ],
)
def test_refusals_say_how_to_mend(call, message):
  module = networks.UNet(8, (1, 2, 2), 1, num_classes=3)
  x, c = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      lambda k: module.init_with_output(k, method=lambda n: call(n, x, c)),
      jax.random.key(0),
    )


def test_a_label_without_classes_is_refused():
  x, c = jnp.zeros((2, 3)), jnp.zeros(2)
  with pytest.raises(ValueError, match="without classes"):
    networks.MLP((4,)).init(jax.random.key(0), x, c, jnp.zeros(2, jnp.int32))

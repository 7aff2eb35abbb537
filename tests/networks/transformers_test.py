"""DiT, U-ViT, UNet2D and the token networks, as modules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import positions
from jaxdiff.networks import time_and_label

IMAGE = jax.ShapeDtypeStruct((4, 8, 4, 2), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((4, 6), jnp.int32)
SMALL = {
  "dit": dict(width=8, depth=2, heads=2, patch=2),
  "uvit": dict(width=8, depth=4, heads=2, patch=2),
  "unet2d": dict(channels=(8, 8), attention=(False, True), blocks=1, groups=2),
  "token_mlp": dict(vocabulary=5, features=(8, 8), embedding=4),
  "token_transformer": dict(vocabulary=5, width=8, depth=2, heads=2),
}
TRANSFORMERS = ("dit", "uvit", "token_transformer")
SCAN = {name: dict(scan=True) for name in TRANSFORMERS}


def names(*fast, among=tuple(SMALL)):
  """Returns parameters for a test: those not named are slow."""
  slow = [name for name in among if name not in fast]
  return [*fast, *(pytest.param(n, marks=pytest.mark.slow) for n in slow)]


def make(name, **options):
  return networks.make(name, num_classes=3, **(SMALL[name] | options))


def like(name):
  return TOKENS if name.startswith("token") else IMAGE


def inputs(name, seed=0):
  draw = np.random.default_rng(seed)
  x = like(name)
  if x.dtype == jnp.int32:
    value = draw.integers(0, 5, x.shape).astype(np.int32)
  else:
    value = draw.standard_normal(x.shape).astype(np.float32)
  return value, np.linspace(-1.0, 1.0, len(value)).astype(np.float32)


def shapes(network, x):
  c = jax.ShapeDtypeStruct((len(x),), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), x, c)["params"]


def drawn(network, x, seed=0, scale=0.3):
  draw = np.random.default_rng(seed)
  off_zero = lambda v: scale * draw.normal(size=v.shape).astype(np.float32)
  return jax.tree.map(off_zero, shapes(network, x))


@pytest.fixture(
  params=names("dit", "uvit", "token_mlp", "token_transformer"), scope="module"
)
def case(request):
  """Returns (name, apply, params, x, c); the program is compiled once."""
  network = make(request.param)
  x, c = inputs(request.param)
  run = jax.jit(lambda params, *args: network.apply({"params": params}, *args))
  return request.param, run, drawn(network, x), x, c


def test_every_input_is_heard_by_its_own_sample_alone(case):
  name, run, params, x, c = case
  label = np.array([0, 1, 2, 3])
  whole = run(params, x, c, label)
  vocabulary = (5,) * name.startswith("token")
  assert whole.shape == x.shape + vocabulary
  assert whole.dtype == jnp.float32
  for change in (
    (np.concatenate([x[:2], x[:2]]), c, label),
    (x, c + np.array([0, 0, 0.5, 0.5], np.float32), label),
    (x, c, np.array([0, 1, 3, 2])),
  ):
    other = run(params, *change)
    np.testing.assert_allclose(other[:2], whole[:2], atol=1e-5)
    assert (np.abs(other[2:] - whole[2:]).reshape(2, -1).max(1) > 1e-3).all()


@pytest.mark.parametrize("name", names("token_mlp"))
def test_no_label_is_the_null_label(name):
  network = make(name)
  x, c = inputs(name)
  run = jax.jit(network.apply)
  params = {"params": drawn(network, x)}
  null = run(params, x, c, np.full(4, 3))
  np.testing.assert_allclose(run(params, x, c), null, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SMALL if n != "uvit"])
def test_a_fresh_network_returns_zero(name):
  x, c = inputs(name)
  out, _ = jax.jit(make(name).init_with_output)(jax.random.key(0), x, c)
  np.testing.assert_array_equal(out, 0.0)


@pytest.mark.parametrize("name", SMALL)
def test_dtypes_of_bfloat16(name):
  network = make(name, dtype="bfloat16", **SCAN.get(name, {}))
  x, c = like(name), jax.ShapeDtypeStruct((4,), jnp.float32)
  out, held = jax.eval_shape(network.init_with_output, jax.random.key(0), x, c)
  assert out.dtype == jnp.bfloat16
  assert {v.dtype for v in jax.tree.leaves(held)} == {np.dtype("float32")}


@pytest.mark.parametrize("name", names("dit"))
def test_bfloat16_computes_on_float32_parameters(name):
  network = make(name, dtype="bfloat16")
  x, c = inputs(name)
  params = drawn(network, x)
  run = lambda net: jax.jit(net.apply)({"params": params}, x, c)
  half, full = run(network), run(make(name))
  error = np.abs(np.asarray(half, np.float32) - full).max()
  assert 0 < error < 0.05 * np.abs(full).max()


def stacked(name, params):
  if name != "uvit":
    return networks.stack_blocks(params)
  params = networks.stack_blocks(params, "in_block", "in_blocks")
  return networks.stack_blocks(params, "out_block", "out_blocks")


@pytest.mark.parametrize("name", names("dit", among=TRANSFORMERS))
def test_scanned_blocks_are_the_unrolled_ones(name):
  plain, scanned = make(name), make(name, scan=True, remat=True)
  x, c = inputs(name)
  params = drawn(plain, x)
  restacked = stacked(name, params)
  assert jax.tree.map(np.shape, restacked) == jax.tree.map(
    np.shape, shapes(scanned, x)
  )
  run = lambda net, params: jax.jit(net.apply)({"params": params}, x, c)
  one, other = run(plain, params), run(scanned, restacked)
  np.testing.assert_allclose(one, other, atol=1e-5)
  if name == "dit":
    back = networks.unstack_blocks(restacked)
    chex.assert_trees_all_equal(back, params)


@pytest.mark.parametrize("name", names("dit", among=TRANSFORMERS))
def test_a_scanned_program_does_not_grow_with_depth(name):
  def lines(**options):
    network = make(name, **options)
    x, c = like(name), jax.ShapeDtypeStruct((4,), jnp.float32)
    lowered = jax.jit(network.apply).lower({"params": shapes(network, x)}, x, c)
    return len(lowered.as_text().splitlines())

  assert lines(depth=4, scan=True) == lines(depth=8, scan=True)
  assert lines(depth=8) > 1.5 * lines(depth=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_nor_does_what_is_compiled(name):
  def lines(depth):
    network = make(name, depth=depth, scan=True)
    x, c = like(name), jax.ShapeDtypeStruct((4,), jnp.float32)
    program = jax.jit(network.apply).lower({"params": shapes(network, x)}, x, c)
    return len(program.compile().as_text().splitlines())

  assert lines(8) <= 1.02 * lines(4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRANSFORMERS, "unet2d"])
def test_recomputing_leaves_the_gradient(name):
  x, c = inputs(name)

  def gradient(**options):
    network = make(name, **options)
    params = drawn(network, x)
    loss = lambda params: jnp.sum(network.apply({"params": params}, x, c) ** 2)
    return jax.jit(jax.grad(loss)).lower(params).compile()(params)

  plain, again = gradient(), gradient(remat=True)
  for path, g in jax.tree_util.tree_leaves_with_path(plain):
    assert np.abs(g).max() > 0 or "label" in str(path), path
  scale = max(np.abs(v).max() for v in jax.tree.leaves(plain))
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale)
  jax.tree.map(close, plain, again)


@pytest.mark.parametrize("name", names("dit", "token_mlp"))
def test_dropout_acts_with_a_key_alone(name):
  network = make(name, dropout=0.5, **SCAN.get(name, {}))
  x, c = inputs(name)
  params = {"params": drawn(network, x)}

  @jax.jit
  def run(key):
    rngs = {"dropout": key}
    return network.apply(params, x, c, rngs=rngs, deterministic=False)

  one, again, other = (run(jax.random.key(i)) for i in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 1e-3


def test_vectors_take_the_place_of_classes():
  network = networks.DiT(
    **SMALL["dit"], label_dim=3, augment_dim=2, frequencies=(1.0, 8.0)
  )
  x, c = inputs("dit")
  params = {"params": drawn(network, x)}
  assert params["params"]["condition"]["label"]["kernel"].shape == (3, 8)
  run = jax.jit(lambda *args, **more: network.apply(params, *args, **more))
  none = run(x, c)
  zero = run(x, c, np.zeros((4, 3)), augment=np.zeros((4, 2)))
  np.testing.assert_allclose(none, zero, atol=1e-6)
  some = run(x, c, np.ones((4, 3)), augment=np.zeros((4, 2)))
  told = run(x, c, np.ones((4, 3)), augment=np.ones((4, 2)))
  assert np.abs(some - zero).max() > 1e-3
  assert np.abs(told - some).max() > 1e-3


def test_rotated_scores_know_the_distance_alone():
  q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8))
  q, k = (np.broadcast_to(v, (1, 9, 1, 8)) for v in (q, k))
  q, k = positions.rotate(jnp.asarray(q)), positions.rotate(jnp.asarray(k))
  scores = np.einsum("bqhd,bkhd->qk", q, k)
  for distance in range(-4, 5):
    line = np.diagonal(scores, distance)
    np.testing.assert_allclose(line, line[0], atol=1e-5)
  np.testing.assert_allclose(np.ptp((q**2).sum(-1)), 0.0, atol=1e-5)
  assert np.ptp(scores[0]) > 0.1


def test_waves_tell_places_of_a_grid_apart():
  waves = positions.waves(3, 5, 8)
  assert waves.shape == (3, 5, 8)
  np.testing.assert_array_equal(waves[0, :, :4], waves[2, :, :4])  # column
  np.testing.assert_array_equal(waves[:, 0, 4:], waves[:, 4, 4:])  # row
  flat = waves.reshape(15, 8)
  distance = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
  assert (distance[~np.eye(15, dtype=bool)] > 0.1).all()


@pytest.mark.parametrize(
  ("name", "options", "shape", "millions"),
  [
    ("dit", networks.DIT_SIZES["XL/2"], (32, 32, 4), 675),
    ("dit", networks.DIT_SIZES["S/8"], (32, 32, 4), 33),
    ("uvit", dict(width=512, depth=12, heads=8), (32, 32, 3), 44),
    ("uvit", dict(width=1024, depth=20, heads=16), (32, 32, 4), 287),
    ("unet2d", {}, (32, 32, 3), 35.7),
  ],
)
def test_published_sizes_have_their_published_parameters(
  name, options, shape, millions
):
  scan = {} if name == "unet2d" else dict(scan=True)
  classes = 1000 if shape[-1] == 4 else 0
  network = networks.make(name, num_classes=classes, **options, **scan)
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  count = sum(v.size for v in jax.tree.leaves(shapes(network, x)))
  assert count / 1e6 == pytest.approx(millions, abs=0.5)


X, C = inputs("dit")
T, _ = inputs("token_mlp")


@pytest.mark.parametrize(
  ("name", "options", "args", "message"),
  [
    ("dit", {}, (X[..., 0], C), "add a channel dimension"),
    ("dit", {}, (X[:, :7], C), "multiples of 2, got 7x4"),
    ("unet2d", {}, (X[:, :7], C), "change `channels`"),
    ("dit", {}, (X, C[0]), "broadcast a scalar"),
    ("uvit", {}, (X, C[0]), "broadcast a scalar"),
    ("dit", {}, (X, C, C), "labels must be integers"),
    ("dit", dict(num_classes=0), (X, C, [1] * 4), "without classes"),
    ("uvit", dict(num_classes=0), (X, C, [1] * 4), "without classes"),
    ("dit", dict(label_dim=2), (X, C), "set one to 0"),
    ("dit", dict(heads=3), (X, C), "width=8, heads=3"),
    ("uvit", dict(depth=3), (X, C), "depth must be even"),
    ("unet2d", dict(groups=3), (X, C), "multiple of groups=3"),
    ("unet2d", dict(attention=(True,)), (X, C), "one entry for every level"),
    ("unet2d", dict(resample="fir"), (X, C), "resample must be one of"),
    ("token_mlp", {}, (X, C), "flatten pixels"),
    ("token_transformer", {}, (T[0], C), "flatten pixels"),
    ("token_transformer", dict(positions="no"), (T, C), "got 'no'"),
    ("token_transformer", dict(heads=8), (T, C), "multiple of heads"),
  ],
)
def test_refusals_say_how_to_mend(name, options, args, message):
  options = dict(num_classes=3) | SMALL[name] | options
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      lambda key: networks.make(name, **options).init(key, *args),
      jax.random.key(0),
    )


def test_vectors_of_another_width_are_refused():
  network = networks.DiT(**SMALL["dit"], label_dim=3)
  run = lambda *args, **more: jax.eval_shape(
    lambda key: network.init(key, *args, **more), jax.random.key(0)
  )
  with pytest.raises(ValueError, match=r"f\[batch, 3\] \(label_dim"):
    run(X, C, np.zeros((4, 2)))
  with pytest.raises(ValueError, match="build it with augment_dim"):
    run(X, C, augment=np.zeros((4, 2)))
  assert time_and_label.STEPS[0] == 1.0

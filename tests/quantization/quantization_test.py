"""Quantizers, calibration on the sampler's own path, quantized models."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import quantization
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.quantization import calibration as calibrations
from jaxdiff.quantization import quantizer
from jaxdiff.quantization import wrapper

EDM = processes.edm(0.02, 20.0)


def values(n=4000, seed=0):
  return jax.random.normal(jax.random.key(seed), (n,))


# --- quantizers --------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_quantizer_is_a_projection_onto_its_grid(bits, symmetric):
  x = values() + 0.7
  q = quantization.search_range(x, bits, symmetric)
  y = quantization.fake_quant(x, q)
  np.testing.assert_array_equal(quantization.fake_quant(y, q), y)
  low, high = ((v - q.zero) * q.scale for v in (q.low, q.high))
  inside = (x >= low) & (x <= high)
  assert jnp.max(jnp.abs(x - y)[inside]) <= 0.5001 * q.scale
  assert len(np.unique(y)) <= 2**bits
  grid = (jnp.arange(q.low, q.high + 1) - q.zero) * q.scale
  np.testing.assert_array_equal(quantization.fake_quant(grid, q), grid)
  assert quantization.fake_quant(jnp.zeros(1), q) == 0.0  # padding stays 0


def test_the_gradient_passes_straight_through_inside_the_range():
  q = quantizer.for_range(-1.0, 1.0, -7, 7)
  grad = jax.grad(lambda x: jnp.sum(quantization.fake_quant(x, q)))
  np.testing.assert_array_equal(
    grad(jnp.asarray([-3.0, -0.4, 0.3, 2.0])), [0.0, 1.0, 1.0, 0.0]
  )


def test_sixteen_levels_of_a_gaussian_want_the_known_threshold():
  x = values(50_000)
  q = quantization.search_range(x, 4, True, 2.0)
  assert 2.4 < float(q.scale * q.high) < 2.8


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("p", [2.0, 2.4])
def test_the_search_comes_within_a_percent_of_brute_force(symmetric, p):
  x = jnp.where(values(600) < 0, 0.2, 1.0) * values(600)

  def error(ends):
    q = quantizer.for_range(*ends, *quantizer.limits(5, symmetric))
    return jnp.mean(jnp.abs(x - quantization.fake_quant(x, q)) ** p)

  if symmetric:
    top = jnp.abs(x).max() * jnp.arange(1, 1001) / 1000
    pairs = (-top, top)
  else:
    at = jnp.arange(1, 151) / 150
    low, high = jnp.meshgrid(x.min() * at, x.max() * at)
    pairs = (low.reshape(-1), high.reshape(-1))
  best = jnp.min(jax.lax.map(error, pairs, batch_size=100))
  q = quantization.search_range(x, 5, symmetric, p)
  found = jnp.mean(jnp.abs(x - quantization.fake_quant(x, q)) ** p)
  assert found <= 1.01 * best


def test_scales_of_channels_are_permuted_with_them():
  w = values(24 * 6).reshape(24, 6) * jnp.arange(1, 7)
  order = np.asarray([3, 1, 5, 0, 2, 4])
  whole = quantizer.search_channels(w, 8)
  np.testing.assert_array_equal(
    quantizer.search_channels(w[:, order], 8).scale, whole.scale[order]
  )


# --- calibration -------------------------------------------------------------


@pytest.fixture(scope="module")
def walked():
  model = oracles.exact(oracles.g2(), EDM)
  table = solvers.ddim(EDM, grids.karras(EDM, 12))
  key = jax.random.key(3)
  config = calibrations.Calibration(n=64)
  drawn = calibrations.calibration_set(key, model, table, EDM, (2,), config)
  return model, table, key, config, drawn


def test_every_state_is_paired_with_its_own_time(walked):
  """Against the whole trajectory of a sampler that is run separately."""
  model, table, key, config, (x, t) = walked
  place_key, run_key, noise_key = jax.random.split(key, 3)
  start = EDM.prior(noise_key, (64, 2), EDM.t_max)
  _, path = sampling.sample(
    run_key, model, table, start, collect=sampling.every(1, lambda i: i.y)
  )
  rows = np.asarray([np.flatnonzero(np.isclose(table.t, s))[0] for s in t])
  np.testing.assert_allclose(x, path[rows, np.arange(64)], rtol=1e-6)
  assert len(set(rows)) > 6  # and many times are among them


def test_sets_of_other_keys_share_the_program_of_the_first(walked):
  """The rows that are kept are an argument, not a constant of the program."""
  model, table, *_ = walked
  before = sampling.compilations()
  config = calibrations.Calibration(n=64)
  drawn = [
    calibrations.calibration_set(
      jax.random.key(i), model, table, EDM, (2,), config
    )
    for i in range(2)
  ]
  assert sampling.compilations() == before
  assert not np.array_equal(drawn[0].t, drawn[1].t)


def test_places_follow_the_clipped_normal_law():
  config = calibrations.Calibration(n=4096, mean=0.4, std=0.4)
  rows = calibrations.place_rows(jax.random.key(0), 1000, config)
  place = 1.0 - rows / 999
  draws = np.clip(
    0.4 + 0.4 * np.random.default_rng(0).standard_normal(10**6), 0, 1
  )
  assert abs(place.mean() - draws.mean()) < 3 * draws.std() / 64
  assert np.mean(place < 0.5) > 0.55  # skewed to the data end


@pytest.mark.parametrize("mode", ["uniform", "single", "forward", "raw"])
def test_the_other_calibration_sets(walked, mode):
  model, table, key, *_ = walked
  data = jnp.ones((5, 2))
  config = calibrations.Calibration(n=32, mode=mode, mean=0.0, std=0.2)
  x, t = calibrations.calibration_set(
    key, model, table, EDM, (2,), config, data
  )
  assert x.shape == (32, 2) and t.shape == (32,)
  if mode == "single":
    np.testing.assert_allclose(t, table.t[-1])
  if mode == "raw":
    assert (x == 1).all()
  if mode == "forward":
    assert 0 < np.abs(x - 1).max() < 6 * t.max()


# --- models ------------------------------------------------------------------


class Convolutions(nn.Module):
  """Every kind of padding that a Conv knows, and a Dense over images."""

  @nn.compact
  def __call__(self, x, c):
    h = nn.Conv(6, (3, 3), name="same")(x)
    h = nn.silu(h + nn.Dense(6, name="time")(c[:, None])[:, None, None])
    h = nn.Conv(6, (3, 3), padding="CIRCULAR", name="circular")(h)
    h = nn.Conv(6, (3, 3), padding=1, feature_group_count=2, name="grouped")(
      nn.silu(h)
    )
    h = nn.Conv(6, (2, 2), kernel_dilation=2, use_bias=False, name="wide")(h)
    return nn.Dense(1, name="out")(nn.silu(h))


def network(name):
  if name == "mlp":
    return networks.ResidualMLP(width=24, blocks=1, embedding=16), (5,)
  if name == "unet":
    return networks.UNet(channels=8, multipliers=(1, 2), blocks=1), (4, 4, 1)
  return Convolutions(), (6, 6, 1)


@pytest.fixture(
  scope="module",
  params=["mlp", "convolutions", pytest.param("unet", marks=pytest.mark.slow)],
)
def case(request):
  module, shape = network(request.param)
  x = jax.random.normal(jax.random.key(0), (48, *shape))
  t = jnp.geomspace(0.05, 10.0, 48)
  params = jax.jit(module.init)(jax.random.key(1), x, t)["params"]
  leaves, structure = jax.tree.flatten(params)
  # kernels that begin at zero would hide what is behind them
  leaves = [
    v + 0.2 * jax.random.normal(jax.random.key(i), v.shape)
    for i, v in enumerate(leaves)
  ]
  params = jax.tree.unflatten(structure, leaves)
  model = denoisers.from_linen(module, params, EDM)
  return model, calibrations.CalibrationSet(x, t)


def quantized(case, **options):
  options = dict(candidates=10) | options
  return quantization.quantize(*case, quantization.Config(**options))


@pytest.fixture(scope="module")
def small(case):
  return quantized(case)


apply = jax.jit(lambda model, x, t: model(x, t).x0)


def relative(a, b):
  return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.slow
def test_more_bits_are_closer_and_sixteen_are_the_float_network(case):
  model, inputs = case
  exact = apply(model, *inputs)
  errors = [
    relative(
      apply(quantized(case, w_bits=b, a_bits=b, edge_bits=None), *inputs),
      exact,
    )
    for b in (4, 8, 16)
  ]
  assert errors[0] > errors[1] > errors[2]
  assert errors[2] < 1e-3
  assert errors[1] < 0.05


def test_integers_and_floats_agree(case, small):
  model, inputs = case
  integer = dataclasses.replace(small.apply, arithmetic="integer")
  a = apply(small, *inputs)
  b = apply(dataclasses.replace(small, apply=integer), *inputs)
  assert relative(a, apply(model, *inputs)) > 1e-4
  # a value on the edge between two integers may fall to either side
  assert relative(a, b) < 2e-3
  assert np.median(np.abs(a - b)) < 1e-5 * np.abs(a).max()


def test_kernels_are_held_in_int8(case, small):
  model, _ = case
  kinds = [leaf.dtype for leaf in jax.tree.leaves(small.params["params"])]
  assert kinds.count(jnp.int8) == len(small.params["layers"])
  kernels = sum(
    leaf.size
    for leaf in jax.tree.leaves(small.params["params"])
    if leaf.dtype == jnp.int8
  )
  whole = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  (word,) = {leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params)}
  size = quantization.size_in_bytes
  assert size(small.params["params"]) == word * (whole - kernels) + kernels


def test_one_dense_layer_in_integers_equals_the_float_path_to_rounding():
  x = values(64 * 32).reshape(64, 32) + 0.3
  w = values(32 * 16, 1).reshape(32, 16)
  layer = wrapper.Layer(
    quantizer.search_channels(w, 8), quantization.search_range(x, 8, False)
  )
  n = wrapper._stored(w, layer.weight, 8)
  module = nn.Dense(16)

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return module.clone(name="inner", parent=self)(x)

  params = {"inner": {"kernel": n, "bias": jnp.ones(16)}}

  def run(kind):
    with wrapper._intercepting(params, lambda m, _, x: kind(m, layer, x)):
      return Outer().apply({"params": params}, x)

  a, b = run(wrapper._float_layer), run(wrapper._integer_layer)
  np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(a).max())
  expected = quantization.fake_quant(x, layer.input) @ (n * layer.weight.scale)
  np.testing.assert_allclose(a, expected + 1.0, rtol=1e-5, atol=1e-4)


def test_a_quantized_model_samples_under_guidance_with_one_compilation():
  module = networks.ResidualMLP(width=16, blocks=1, embedding=16, num_classes=3)
  x = jax.random.normal(jax.random.key(0), (8, 4))
  params = module.init(jax.random.key(1), x, x[:, 0], jnp.zeros(8, int))
  model = denoisers.from_linen(module, params["params"], EDM)
  inputs = calibrations.CalibrationSet(x, jnp.geomspace(0.1, 5.0, 8))
  small = quantized((denoisers.with_label(model, 1), inputs))
  labels = jnp.arange(8) % 3
  guided = guidance.cfg(small, label=labels, null=3, scale=2.0)
  before = sampling.compilations()
  for table in (
    solvers.dpmpp_2m(EDM, grids.karras(EDM, 5)),
    solvers.deis(EDM, grids.karras(EDM, 5), order=2),
  ):
    out = sampling.sample(jax.random.key(2), guided, table, 20.0 * x)
    assert np.isfinite(out).all()
  assert sampling.compilations() == before + 1


def test_a_function_that_calls_layers_is_quantized_too():
  dense = nn.Dense(3)

  def net(params, x, c):
    h = jnp.tanh(dense.apply({"params": params["a"]}, x))
    return dense.apply({"params": params["b"]}, h) + c[:, None]

  x = jax.random.normal(jax.random.key(0), (32, 3))
  params = {
    name: dense.init(jax.random.key(i), x)["params"]
    for i, name in enumerate("ab")
  }
  model = denoisers.from_function(net, params, EDM)
  t = jnp.ones(32)
  small = quantized((model, calibrations.CalibrationSet(x, t)))
  assert set(small.params["layers"]) == {"a", "b"}
  assert relative(apply(small, x, t), apply(model, x, t)) < 0.02


def test_learned_rounding_lowers_the_error_of_a_layer():
  key = jax.random.key(0)
  mix = jax.random.normal(key, (24, 24)) / 5
  x = jax.random.normal(jax.random.key(1), (2000, 24)) @ mix + 0.5
  w = jax.random.normal(jax.random.key(2), (24, 16))
  grid = quantizer.search_channels(w, 3)
  learned = quantization.learn_rounding(key, x[:1000], w, grid, steps=1000)
  nearest = quantizer.to_integers(w, grid)
  error = lambda n: float(jnp.mean((x[1000:] @ (n * grid.scale - w)) ** 2))
  assert error(learned) < 0.7 * error(nearest)
  # up or down, nothing else
  assert jnp.max(jnp.abs(learned - w / grid.scale)[jnp.abs(nearest) < 3]) < 1


def test_refusals_of_calibration(walked):
  model, table, key, *_ = walked
  with pytest.raises(ValueError, match="2 to 16 bits"):
    quantization.Config(w_bits=1)
  with pytest.raises(ValueError, match="at most 8"):
    quantization.Config(w_bits=12, arithmetic="integer")
  with pytest.raises(ValueError, match="empty calibration"):
    calibrations.Calibration(n=0)
  with pytest.raises(ValueError, match="mode"):
    calibrations.Calibration(mode="images")
  with pytest.raises(ValueError, match="shows the network data"):
    calibrations.calibration_set(
      key, model, table, EDM, (2,), calibrations.Calibration(mode="raw")
    )


def test_refusals_of_quantize(case, small):
  network_, (x, t) = case
  with pytest.raises(ValueError, match="key="):
    quantized(case, rounding="learned")
  with pytest.raises(ValueError, match=r"shapes .* and"):
    quantization.quantize(
      network_, calibrations.CalibrationSet(x, t[:3]), quantization.Config()
    )
  with pytest.raises(ValueError, match="no flax.linen Dense"):
    bare = denoisers.from_function(lambda p, x, c: p * x, 1.0, EDM)
    quantization.quantize(bare, case[1])
  wrong = dataclasses.replace(
    small, params=small.params | {"params": {"other": 1.0}}
  )
  with pytest.raises(ValueError, match="not of the network"):
    wrong(x, t)
  with pytest.raises(ValueError, match="kernel"):
    quantization.learn_rounding(
      jax.random.key(0), x, jnp.ones((3, 3, 1, 2)), None
    )


def test_a_layer_that_sees_only_zeros_is_named():
  class Dead(nn.Module):
    @nn.compact
    def __call__(self, x, c):
      return nn.Dense(2, name="live")(x) + nn.Dense(2, name="dead")(0.0 * x)

  x = jax.random.normal(jax.random.key(0), (4, 2))
  params = Dead().init(jax.random.key(1), x, x[:, 0])["params"]
  model = denoisers.from_linen(Dead(), params, EDM)
  inputs = calibrations.CalibrationSet(x, jnp.ones(4))
  with pytest.raises(ValueError, match="'dead'"):
    quantized((model, inputs))
  small = quantized((model, inputs), skip=("dead",))
  assert set(small.params["layers"]) == {"live"}

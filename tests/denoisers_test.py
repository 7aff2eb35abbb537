"""Denoisers: one meaning for every kind of network, finite at both ends."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxdiff import denoisers
from jaxdiff import predictions
from jaxdiff import processes
from tests.processes.cases import PROCESSES

RNG = np.random.default_rng(0)
DIM = 3
X = RNG.normal(size=(5, DIM)).astype(np.float32)
W, V = RNG.normal(size=(2, DIM, DIM)).astype(np.float32)
PROCESS = processes.vp_linear()


def plain(params, x, c, label=None):
  """A small network: tanh(x w + c + label) v."""
  shift = c[:, None] if label is None else (c + label)[:, None]
  return jnp.tanh(x @ params["w"] + shift) @ params["v"]


class Linen(nn.Module):
  dim: int

  @nn.compact
  def __call__(self, x, c, label=None):
    shift = c[:, None] if label is None else (c + label)[:, None]
    x = jnp.tanh(nn.Dense(self.dim, use_bias=False, name="w")(x) + shift)
    return nn.Dense(self.dim, use_bias=False, name="v")(x)


class Nnx(nnx.Module):
  def __init__(self, seed):
    rngs = nnx.Rngs(seed)
    self.w = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)
    self.v = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)

  def __call__(self, x, c, label=None):
    shift = c[:, None] if label is None else (c + label)[:, None]
    return self.v(jnp.tanh(self.w(x) + shift))


PARAMS = {"w": W, "v": V}


def from_plain(process=PROCESS, **options):
  return denoisers.from_function(plain, PARAMS, process, **options)


def from_linen(**options):
  params = {"w": {"kernel": W}, "v": {"kernel": V}}
  return denoisers.from_linen(Linen(DIM), params, PROCESS, **options)


def from_nnx(seed=0, **options):
  module = Nnx(seed)
  if not seed:
    module.w.kernel.value, module.v.kernel.value = (
      jnp.asarray(W),
      jnp.asarray(V),
    )
  return denoisers.from_nnx(module, PROCESS, **options)


call = jax.jit(lambda model, x, t: model(x, t))


@pytest.mark.parametrize("build", [from_linen, from_nnx])
@pytest.mark.parametrize("label", [None, np.arange(5)])
def test_every_kind_of_network_gives_the_same_prediction(build, label):
  options = dict(prediction="v", label=label)
  expected = call(from_plain(**options), X, 0.4)
  prediction = call(build(**options), X, 0.4)
  assert isinstance(prediction, predictions.Prediction)
  np.testing.assert_allclose(prediction.x0, expected.x0, atol=1e-6)
  np.testing.assert_allclose(prediction.eps, expected.eps, atol=1e-6)


@pytest.mark.parametrize("kind", predictions.KINDS)
def test_the_network_is_scaled_told_the_time_and_decoded(kind):
  model = from_plain(prediction=kind, sigma_data=0.7, scale_input=True)
  t = 0.4
  alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
  scaled = X / np.hypot(0.7 * alpha, sigma)
  condition = np.full(5, 0.25 * np.log(sigma / alpha))
  output = plain(PARAMS, scaled, condition)
  args = (alpha, sigma, 0.7, PROCESS.rates(t))
  expected = predictions.decode(kind, np.asarray(output), X, *args)
  prediction = model(X, t)
  np.testing.assert_allclose(prediction.x0, expected.x0, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(prediction.eps, expected.eps, rtol=1e-4, atol=1e-5)


def test_time_t_tells_the_network_t_itself():
  seen = lambda params, x, c: x * 0 + c[:, None]
  tell = functools.partial(denoisers.from_function, seen, (), PROCESS)
  prediction = tell(prediction="x0", time="t")(X, 0.4)
  np.testing.assert_allclose(prediction.x0, 0.4)
  prediction = tell(prediction="x0")(X, 0.4)
  np.testing.assert_allclose(
    prediction.x0, -0.25 * PROCESS.log_snr(0.4), rtol=1e-6
  )


def test_a_batch_of_times_is_each_sample_at_its_own():
  model = from_plain()
  t = np.linspace(0.1, 0.9, 5).astype(np.float32)
  batch = call(model, X, t)
  for i in range(5):
    one = call(model, X, t[i])
    np.testing.assert_allclose(batch.x0[i], one.x0[i], rtol=1e-5, atol=1e-6)
  images = denoisers.from_function(
    lambda p, x, c: x * c[:, None, None], (), PROCESS
  )
  x = np.ones((5, 2, 3), np.float32)
  many, one = images(x, t), images(x, float(t[3]))
  np.testing.assert_allclose(many.eps[3], one.eps[3], rtol=1e-5)


ENDS = [("vp_cosine", kind, "log_snr") for kind in predictions.KINDS]
ENDS += [(name, "edm", "log_snr") for name in ("flow", "edm", "pair")]
ENDS += [("flow", "flow", "t"), ("edm", "x0", "log_snr")]


@pytest.mark.parametrize(("name", "kind", "time"), ENDS)
def test_ends_are_finite_with_finite_gradients_in_everything(name, kind, time):
  process = PROCESSES[name]
  model = from_plain(process, prediction=kind, time=time)

  @jax.jit
  def slopes(model, x, t):
    def loss(model, x, t):
      prediction = model(x, t)
      return jnp.sum(prediction.x0**2 + prediction.eps**2)

    return jax.value_and_grad(loss, (0, 1, 2), allow_int=True)(model, x, t)

  for t in (process.t_max, process.t_min, process.t_zero):
    for leaf in jax.tree.leaves(slopes(model, X, np.float32(t))):
      assert np.isfinite(leaf).all(), (t, leaf)


def test_the_gradient_in_t_is_that_of_the_unclipped_time_inside():
  model = from_plain()
  f = lambda t: model(X, t).x0.sum()
  slope = jax.grad(f)(0.5)
  with jax.enable_x64(True):
    wide = lambda t: model(X.astype(np.float64), t).x0.sum()
    difference = (wide(0.5 + 1e-5) - wide(0.5 - 1e-5)) / 2e-5
  assert float(slope) == pytest.approx(float(difference), rel=1e-3)


def test_labels_condition_every_sample_and_can_be_given_at_the_call():
  model = from_plain()
  label = np.arange(5)
  with_label = denoisers.with_label(model, label)
  np.testing.assert_array_equal(with_label(X, 0.5).x0, model(X, 0.5, label).x0)
  other = with_label(X, 0.5, label[::-1])
  np.testing.assert_array_equal(
    other.x0, denoisers.with_label(model, label[::-1])(X, 0.5).x0
  )
  assert model.label is None
  assert abs(with_label(X, 0.5).x0 - model(X, 0.5).x0).max() > 1e-2


def test_the_network_computes_in_the_dtype_asked_and_the_pair_is_float32():
  seen = []

  def network(params, x, c):
    seen.append((x.dtype, c.dtype))
    return x

  for dtype, x, expected in [
    (None, X, jnp.float32),
    (jnp.bfloat16, X, jnp.bfloat16),
    (np.dtype("float16"), X, jnp.float16),
    (None, jnp.asarray(X, jnp.bfloat16), jnp.bfloat16),
  ]:
    model = denoisers.from_function(
      network, (), PROCESS, prediction="x0", dtype=dtype
    )
    prediction = model(x, 0.5)
    assert seen[-1] == (expected, jnp.float32)
    assert prediction.x0.dtype == prediction.eps.dtype == jnp.float32


def test_float64_samples_are_predicted_in_float64(x64):
  model = denoisers.from_function(lambda p, x, c: x, (), PROCESS)
  assert model(jnp.asarray(X, jnp.float64), 0.5).x0.dtype == jnp.float64
  assert model(jnp.asarray(X), np.float64(0.5)).x0.dtype == jnp.float32


def test_equal_modules_share_a_compilation():
  traced = []

  @jax.jit
  def program(model, x, t):
    traced.append(None)
    return model(x, t)

  for model in (from_linen(), from_linen()):
    program(model, X, 0.3)
  assert len(traced) == 1
  for model in (from_nnx(), from_nnx(seed=5), from_nnx(seed=6)):
    program(model, X, 0.3)
  assert len(traced) == 2
  halved = jax.tree.map(lambda v: v / 2, from_plain())
  for model in (from_plain(), halved):
    program(model, X, 0.3)
  assert len(traced) == 3
  program(from_plain(prediction="v"), X, 0.3)
  assert len(traced) == 4


def test_a_denoiser_is_a_tree_of_its_parameters():
  model = from_plain()
  assert [leaf.shape for leaf in jax.tree.leaves(model)] == [(DIM, DIM)] * 2
  slope = jax.grad(lambda m: m(X, 0.5).x0.sum())(model)
  assert isinstance(slope, denoisers.Denoiser)
  assert abs(slope.params["w"]).max() > 0
  assert dataclasses.replace(model, sigma_data=1.0) != model


def test_refusals_name_what_arrived():
  halves = lambda params, x, c: x[..., :2]
  model = denoisers.from_function(halves, (), PROCESS)
  with pytest.raises(
    ValueError, match=r"returned shape \(5, 2\) .* shape \(5, 3\)"
  ):
    jax.eval_shape(model, X, 0.5)
  with pytest.raises(ValueError, match="prediction must be one of 'x0'"):
    from_plain(prediction="noise")
  with pytest.raises(ValueError, match="time must be one of 'log_snr', .*'t'"):
    from_plain(time="sigma")


def test_a_network_trained_elsewhere_sees_its_own_input_and_time():
  """DDPM's convention: x as it is, t * 999; EDM's: x scaled, log(sigma) / 4."""
  seen = {}

  def net(params, x, c):
    seen["x"], seen["c"] = x, c
    return jnp.zeros_like(x)

  x = jnp.full((2, 3), 1.7)
  t = jnp.float32(0.5)
  vp = processes.vp_linear()
  ddpm = denoisers.from_function(
    net, {}, vp, prediction="eps", time=lambda t: 999.0 * t
  )
  ddpm(x, t)
  np.testing.assert_allclose(seen["x"], x)
  np.testing.assert_allclose(seen["c"], 499.5)
  flow = denoisers.from_function(
    net, {}, processes.rectified_flow(), prediction="flow", time="t"
  )
  flow(x, t)
  np.testing.assert_allclose(seen["x"], x)
  np.testing.assert_allclose(seen["c"], 0.5)
  edm = denoisers.from_function(net, {}, processes.edm(), sigma_data=0.5)
  edm(x, jnp.float32(2.0))
  np.testing.assert_allclose(seen["x"], x / np.sqrt(4.25), rtol=1e-6)
  np.testing.assert_allclose(seen["c"], np.log(2.0) / 4, rtol=1e-6)
  scaled = denoisers.from_function(
    net, {}, vp, prediction="eps", sigma_data=0.5, scale_input=True
  )
  scaled(x, t)
  assert np.abs(seen["x"] - x).min() > 0.05


def test_an_uncalled_process_is_named():
  with pytest.raises(TypeError, match=r"call it: edm\(\)"):
    denoisers.from_function(lambda p, x, c: x, {}, processes.edm)


@pytest.mark.parametrize(
  ("time", "told"),
  [
    ("log_snr", lambda t: np.log(t) / 4),
    ("log_half_sigma", lambda t: np.log(t / 2)),
    ("t", lambda t: t),
  ],
)
def test_a_network_is_told_the_time_it_was_trained_with(time, told):
  tell = lambda params, x, c: jnp.broadcast_to(c[:, None], x.shape)
  model = denoisers.from_function(
    tell, (), processes.edm(), prediction="x0", time=time
  )
  t = jnp.asarray([0.002, 1.0, 80.0])
  x0 = model(jnp.zeros((3, 2)), t).x0
  np.testing.assert_allclose(x0[:, 0], told(np.asarray(t)), rtol=1e-5)


def test_steps_are_the_indices_of_a_discrete_process():
  process = processes.vp_discrete(np.linspace(1e-4, 0.02, 1000))
  tell = lambda params, x, c: jnp.broadcast_to(c[:, None], x.shape)
  model = denoisers.from_function(
    tell, (), process, prediction="x0", time="steps"
  )
  t = jnp.asarray([0.001, 0.5, 1.0])
  x0 = model(jnp.zeros((3, 2)), t).x0
  np.testing.assert_allclose(x0[:, 0], [0, 499, 999], atol=1e-3)
  with pytest.raises(ValueError, match="vp_discrete"):
    denoisers.from_function(tell, (), processes.edm(), time="steps")


def test_labels_may_be_vectors_and_hold_for_all():
  add = lambda params, x, c, label: x + label.sum(-1, keepdims=True)
  model = denoisers.from_function(
    add, (), processes.edm(), prediction="x0", scale_input=False
  )
  x = jnp.zeros((3, 2))
  one = denoisers.with_label(model, jnp.asarray([1.0, 2.0, 3.0]))
  each = denoisers.with_label(model, jnp.ones((3, 3)) * 2.0)
  np.testing.assert_allclose(one(x, 1.0).x0, 6.0)
  np.testing.assert_allclose(each(x, 1.0).x0, 6.0)


def test_a_key_turns_dropout_on_and_augmentations_are_handed_on():
  class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, c, label=None, *, augment=None, deterministic=True):
      x = x + (0.0 if augment is None else augment.sum(-1, keepdims=True))
      return nn.Dropout(0.5)(x, deterministic=deterministic)

  model = denoisers.from_linen(
    Dropped(), {}, processes.edm(), prediction="x0", scale_input=False
  )
  x = jnp.ones((4, 64))
  draw = lambda seed: model(x, 1.0, key=jax.random.key(seed)).x0
  np.testing.assert_array_equal(model(x, 1.0).x0, 1.0)
  assert set(np.unique(draw(0))) == {0.0, 2.0}
  np.testing.assert_array_equal(draw(0), draw(0))
  assert (draw(0) != draw(1)).any()
  told = model(x, 1.0, augment=jnp.ones((4, 3))).x0
  np.testing.assert_array_equal(told, 4.0)


@pytest.mark.parametrize(
  ("answer", "output"),
  [
    (lambda v: (v, None), 0),
    (lambda v: [7.0 * v, v], -1),
    (lambda v: dict(sample=v, logvar=7.0 * v), "sample"),
    (lambda v: jnp.concatenate([v, 7.0 * v], -1), denoisers.without_variance),
    (lambda v: (dict(mean=v),), lambda answer: answer[0]["mean"]),
  ],
)
def test_the_prediction_is_picked_from_a_network_s_answer(answer, output):
  net = lambda params, *args: answer(plain(params, *args))
  model = denoisers.from_function(net, PARAMS, PROCESS, output=output)
  chex.assert_trees_all_equal(model(X, 0.4), from_plain()(X, 0.4))


@pytest.mark.parametrize(
  ("answer", "output", "error", "match"),
  [
    (lambda x: (x, x[:, :1]), None, TypeError, r"tuple of \(5, 3\), \(5, 1\)"),
    (lambda x: (x, x), None, TypeError, "say which part it is, as in output=0"),
    (lambda x: dict(a=x), None, TypeError, r"a dict of 'a': \(5, 3\), but"),
    (lambda x: dict(a=x), "b", TypeError, "which has no part 'b'"),
    (lambda x: (x, x), 2, TypeError, "which has no part 2"),
    (lambda x: ((x,), x), 0, TypeError, "of which output=0 was taken"),
    (lambda x: None, None, TypeError, "returned a NoneType, but"),
    (
      lambda x: jnp.concatenate([x, x], -1),
      None,
      ValueError,
      r"shape \(5, 6\).*output=denoisers.without_variance",
    ),
    (lambda x: x[:, :2], None, ValueError, r"number of output channels\)"),
  ],
)
def test_an_answer_without_a_prediction_is_refused(
  answer, output, error, match
):
  model = denoisers.from_function(
    lambda params, x, c: answer(x), (), PROCESS, output=output
  )
  with pytest.raises(error, match=match):
    jax.eval_shape(model, X, 0.5)


def test_a_clock_that_runs_to_the_data_is_told_backwards():
  flow = processes.rectified_flow()
  x0, eps = jnp.asarray(X), jnp.ones_like(X)
  # trained as x_s = (1 - s) eps + s x0, v = x0 - eps, s from noise to data
  net = lambda params, x, s: (x0 - x) / (1.0 - s)[:, None]
  model = denoisers.from_function(
    net, (), flow, prediction="-flow", time="1 - t"
  )
  pair = model((1 - 0.3) * x0 + 0.3 * eps, 0.3)
  np.testing.assert_allclose(pair.x0, x0, atol=1e-5)
  np.testing.assert_allclose(pair.eps, eps, atol=1e-5)
  with pytest.raises(ValueError, match=r"from 0 to 1, .* \[0.002, 80\]"):
    denoisers.from_function(net, (), processes.edm(), time="1 - t")

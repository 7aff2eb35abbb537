"""Flax modules with state: NNX as a user writes it, and its Linen twin."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxdiff as jd
from jaxdiff import checkpoints
from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import modules
from jaxdiff import quantization
from jaxdiff import training
from jaxdiff.search import skipping
from tests import virtual_devices

KEY = jax.random.key(0)
PROCESS = jd.edm()
MOMENTUM = 0.9
X = jax.random.normal(jax.random.key(1), (8, 2))
BATCH = {"image": 0.5 * X + 1.0}
SGD, ADAM = optax.sgd(0.1), optax.adam(1e-2)
ENDS = ((0.0, "mean"), (1.0, "var"))  # what running statistics begin at


class Net(nnx.Module):
  """A network of a user's: batch statistics, dropout, a buffer, a counter."""

  def __init__(self, rngs, rate=0.5, batch_norm=True):
    self.a = nnx.Linear(3, 8, rngs=rngs)
    self.norm = (
      nnx.BatchNorm(8, momentum=MOMENTUM, rngs=rngs) if batch_norm else None
    )
    self.drop = nnx.Dropout(rate, rngs=rngs)
    self.b = nnx.Linear(8, 2, rngs=rngs)
    if batch_norm:
      self.scale = nnx.Variable(jnp.full(2, 0.5))
      self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

  def __call__(self, x, c):
    h = self.a(jnp.concatenate([x, c[:, None]], -1))
    if self.norm is not None:
      self.calls[...] += 1
      h = self.norm(h)
    h = self.b(self.drop(nnx.silu(h)))
    return h if self.norm is None else h * self.scale[...]


class Twin(nn.Module):
  """The same in Linen."""

  @nn.compact
  def __call__(self, x, c, train):
    h = nn.Dense(8, name="a")(jnp.concatenate([x, c[:, None]], -1))
    h = nn.BatchNorm(
      use_running_average=not train, momentum=MOMENTUM, name="norm"
    )(h)
    h = nn.Dropout(0.0, deterministic=not train)(nn.silu(h))
    scale = self.variable("buffers", "scale", lambda: jnp.full(2, 0.5))
    return nn.Dense(2, name="b")(h) * scale.value


def by_hand(params, x, c):
  """The network in training, without dropout: normalized by the batch."""
  h = hidden(params, x, c)
  normal = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
  h = jax.nn.silu(normal * params["norm"]["scale"] + params["norm"]["bias"])
  return 0.5 * (h @ params["b"]["kernel"] + params["b"]["bias"])


def hidden(params, x, c):
  """What enters the batch normalization."""
  x = jnp.concatenate([x, c[:, None]], -1)
  return x @ params["a"]["kernel"] + params["a"]["bias"]


def made(rate=0.5, seed=0, batch_norm=True):
  module = Net(nnx.Rngs(seed), rate, batch_norm)
  return jd.from_nnx(module, PROCESS)


def plain(state):
  """A state of NNX as nested dictionaries of arrays."""
  return nnx.to_pure_dict(state)


def twin_of(model):
  """The Linen twin with the same numbers."""
  state = plain(model.state)
  variables = {
    "params": plain(model.params),
    "batch_stats": {"norm": state["norm"]},
    "buffers": {"scale": state["scale"]},
  }
  return jd.from_linen(Twin(), variables, PROCESS)


def begun(model, optimizer=SGD, **options):
  return training.init_state(
    KEY, model.params, optimizer, model_state=model.state, **options
  )


def trained(model, updates, state=None, **options):
  """The state after some updates, and the metrics of the last."""
  update = training.make_update(losses.denoising(model), SGD, **options)
  state = begun(model) if state is None else state
  for _ in range(updates):
    state, metrics = update(state, BATCH)
  return state, metrics


@pytest.fixture(scope="module")
def run():
  """A model, its update, and the state before the first, made anew."""
  model = made()
  update = training.make_update(
    losses.denoising(model), ADAM, ema=0.25, ema_warmup=False
  )
  return model, update, lambda: begun(model, ADAM)


def test_parameters_are_split_from_the_rest_and_the_module_stays():
  module = Net(nnx.Rngs(0))
  model = jd.from_nnx(module, PROCESS)
  assert set(plain(model.params)) == {"a", "b", "norm"}
  assert set(plain(model.state)) == {"norm", "scale", "calls"}
  before = jax.tree.map(jnp.copy, (model.params, model.state))
  _, after = model.stateful(X, 1.0, key=KEY)  # not under jit
  chex.assert_trees_all_equal((model.params, model.state), before)
  assert after["calls"][...] == 1
  module.a.kernel[...] *= 2.0
  chex.assert_trees_all_equal(model.params, before[0])
  jax.tree.map(np.asarray, model)  # arrays alone: nothing random is kept
  chex.assert_trees_all_equal(
    jax.tree.unflatten(jax.tree.structure(model), jax.tree.leaves(model)), model
  )
  nnx.update(module, model.params, after)
  assert module.calls[...] == 1
  chex.assert_trees_all_equal(nnx.state(module, nnx.Param), model.params)


@pytest.mark.parametrize("build", [made, lambda: twin_of(made())])
def test_sampling_is_in_evaluation_mode(build):
  model = build()
  statistics = jax.tree.map(lambda v: v + 0.25, model.state)
  model = dataclasses.replace(model, state=statistics)
  module = Net(nnx.Rngs(0))
  module.norm.mean[...] += 0.25
  module.norm.var[...] += 0.25
  module.scale[...] += 0.25
  module.eval()
  c = jnp.full(8, 0.25 * np.log(2.0))
  scale = 1.0 / np.hypot(0.5, 2.0)
  output = module(scale * X, c)
  expected = jd.predictions.decode("edm", output, X, 1.0, 2.0, 0.5)
  chex.assert_trees_all_close(model(X, 2.0), expected, rtol=1e-5, atol=1e-6)
  table = jd.dpmpp_2m(PROCESS, jd.grids.karras(PROCESS, 3))
  one, two = (jd.sample(KEY, model, table, 80.0 * X) for _ in range(2))
  chex.assert_trees_all_equal(one, two)
  assert jnp.isfinite(one).all()


def test_a_module_left_in_evaluation_mode_trains():
  module = Net(nnx.Rngs(0))
  module.eval()
  model = jd.from_nnx(module, PROCESS)
  assert abs(model(X, 1.0, key=KEY).x0 - model(X, 1.0).x0).max() > 0.01
  assert model.stateful(X, 1.0, key=KEY)[1]["calls"][...] == 1


class Dropped(nnx.Module):
  """Two masks on one value."""

  def __init__(self, rngs):
    self.w = nnx.Param(jnp.ones((), jnp.float32))
    self.one = nnx.Dropout(0.5, rngs=rngs)
    self.two = nnx.Dropout(0.25, rngs=rngs)

  def __call__(self, x, c):
    half = jnp.ones_like(x[..., : x.shape[-1] // 2]) * self.w[...]
    return jnp.concatenate([self.one(half), self.two(half)], -1)


def test_dropout_comes_from_the_key_alone():
  module = Dropped(nnx.Rngs(0))
  model = jd.from_nnx(module, PROCESS, prediction="x0")
  assert model.state is None
  x = jnp.zeros((64, 64), jnp.float32)
  draw = jax.jit(lambda model, key: model(x, 1.0, key=key).x0)
  first = draw(model, KEY)
  chex.assert_trees_all_equal(first, draw(model, KEY))
  module.one(x, deterministic=False)  # the module's own counter goes on
  again = jd.from_nnx(module, PROCESS, prediction="x0")
  chex.assert_trees_all_equal(first, draw(again, KEY))
  other = draw(model, jax.random.key(1))
  raw = draw(model, jax.random.PRNGKey(0))  # a key of the old kind
  chex.assert_trees_all_equal(first, raw)
  one, two = jnp.split(first, 2, -1)
  assert set(np.unique(one)) == {0.0, 2.0}
  assert set(np.unique(two)) == {0.0, np.float32(4 / 3)}
  # 2048 draws each: five standard deviations
  near = lambda mask, rate, sd: abs(mask.mean() - rate) < 5 * sd / 2048**0.5
  assert near(one == 0, 0.5, 0.5)
  assert near(two == 0, 0.25, 0.44)
  assert near((one == 0) & (two == 0), 0.125, 0.33)  # masks are independent
  assert near((one == 0) & (other[:, :32] == 0), 0.25, 0.44)
  chex.assert_trees_all_equal(model(x, 1.0).x0, jnp.ones_like(x))


def test_models_of_other_seeds_share_a_program():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def program(model, key):
    return model(X, 1.0, key=key)

  for seed in range(3):
    program(made(seed=seed), KEY)


def test_the_gradient_is_that_of_the_network_written_by_hand():
  model = made(rate=0.0)
  hand = jd.from_function(by_hand, plain(model.params), PROCESS)
  gradient = lambda model, params: jax.jit(
    jax.grad(lambda p: losses.denoising(model)(KEY, p, BATCH)[0])
  )(params)
  ours = gradient(model, model.params)
  theirs = gradient(hand, hand.params)
  chex.assert_trees_all_close(plain(ours), theirs, rtol=1e-4, atol=1e-6)
  assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(theirs["b"]))


def test_batch_statistics_follow_their_momentum():
  model = made()
  state = jax.tree.map(lambda v: v + jnp.asarray(0.5, v.dtype), model.state)
  model = dataclasses.replace(model, state=state)
  after = plain(model.stateful(X, 2.0, key=KEY)[1])
  h = hidden(plain(model.params), *model.inputs(X, 2.0))
  mix = lambda old, new: MOMENTUM * old + (1.0 - MOMENTUM) * new
  chex.assert_trees_all_close(
    after["norm"],
    dict(mean=mix(0.5, h.mean(0)), var=mix(1.5, h.var(0))),
    rtol=1e-5,
  )
  chex.assert_trees_all_equal(after["scale"], state["scale"][...])


def test_an_update_carries_statistics_and_averages_them(run):
  model, update, begin = run
  loss = jax.jit(losses.denoising(model))
  bundle = modules.Variables(model.params, model.state)
  expected = loss(jax.random.fold_in(KEY, 0), bundle, BATCH)[1][modules.STATE]
  state, metrics = update(begin(), BATCH)
  chex.assert_trees_all_close(state.model_state, expected, rtol=1e-6)
  assert modules.STATE not in metrics
  mean, var = (0.25 * v + 0.75 * expected["norm"][n][...] for v, n in ENDS)
  chex.assert_trees_all_close(
    plain(state.ema_model_state)["norm"], dict(mean=mean, var=var), rtol=1e-6
  )
  # counters are no numbers to average
  assert state.model_state["calls"][...] == 1
  assert state.ema_model_state["calls"][...] == 1
  last = training.finished(model, state, ema=False)
  chex.assert_trees_all_equal(last.state, state.model_state)
  chex.assert_trees_all_equal(last.params, state.params)
  averaged = training.finished(model, state)
  chex.assert_trees_all_equal(averaged.state, state.ema_model_state)
  chex.assert_trees_all_equal(averaged.params, state.ema_params)


def test_statistics_go_from_part_to_part_of_a_batch():
  model = made(rate=0.0)
  state, _ = trained(model, 1, accumulate=2)
  loss, key = jax.jit(losses.denoising(model)), jax.random.fold_in(KEY, 0)
  held = model.state
  for i in range(2):
    part = {"image": BATCH["image"][i::2]}
    bundle = modules.Variables(model.params, held)
    held = loss(jax.random.fold_in(key, i), bundle, part)[1][modules.STATE]
  chex.assert_trees_all_close(state.model_state, held, rtol=1e-5)
  assert state.model_state["calls"][...] == 2


def test_an_update_that_is_not_finite_leaves_the_statistics(run):
  model, update, begin = run
  state, metrics = update(begin(), {"image": X.at[0, 0].set(jnp.nan)})
  assert metrics["skipped"] == 1.0
  chex.assert_trees_all_equal(state.model_state, model.state)
  chex.assert_trees_all_equal(state.ema_model_state, model.state)


def test_a_resumed_run_is_the_undisturbed_one(run, tmp_path):
  _, update, begin = run
  state = begin()
  for step in range(4):
    state, _ = update(state, BATCH)
    if step == 1:
      folder = checkpoints.open(tmp_path)
      folder.save(2, state, wait=True)
      folder.close()
  folder = checkpoints.open(tmp_path, create=False)
  resumed, _ = folder.restore(begin())
  folder.close()
  for _ in range(2):
    resumed, _ = update(resumed, BATCH)
  chex.assert_trees_all_equal(resumed._replace(key=0), state._replace(key=0))
  other, _ = update(begin()._replace(key=jax.random.key(5)), BATCH)
  same = lambda a, b: bool((a["b"]["bias"][...] == b["b"]["bias"][...]).all())
  assert not same(other.params, update(begin(), BATCH)[0].params)


def test_the_linen_twin_has_the_same_numbers():
  nnx_model = made(rate=0.0)
  linen_model = twin_of(nnx_model)
  assert set(linen_model.state) == {"batch_stats", "buffers"}
  (ours, said), (theirs, told) = (
    trained(model, 2) for model in (nnx_model, linen_model)
  )
  chex.assert_trees_all_close(said, told, rtol=1e-4, atol=1e-6)
  chex.assert_trees_all_close(plain(ours.params), theirs.params, rtol=1e-5)
  statistics = lambda state: plain(state)["norm"]
  chex.assert_trees_all_close(
    statistics(ours.model_state),
    theirs.model_state["batch_stats"]["norm"],
    rtol=1e-5,
  )
  chex.assert_trees_all_close(
    training.finished(nnx_model, ours)(X, 2.0),
    training.finished(linen_model, theirs)(X, 2.0),
    rtol=1e-5,
  )


def test_statistics_may_stay_as_they_are():
  model = made()
  loss = losses.denoising(model, update_state=False)
  state = training.init_state(KEY, model.params, SGD)
  state, metrics = training.make_update(loss, SGD)(state, BATCH)
  assert state.model_state == ()
  assert "model_state" not in metrics
  fixed = jd.from_function(
    lambda params, x, c: model.apply(params, x, c, state=model.state)[0],
    model.params,
    PROCESS,
  )
  expected, _ = trained(fixed, 1)
  chex.assert_trees_all_close(state.params, expected.params, rtol=1e-6)


class Told(nnx.Module):
  """A network that is told its mode by arguments, and has constants alone."""

  def __init__(self, rngs):
    self.w = nnx.Param(jnp.ones(2))
    self.table = jnp.arange(2.0)
    self.steps = nnx.Param(jnp.arange(2))  # cannot be differentiated
    self.tied = self.w
    self.drop = nnx.Dropout(0.5)

  def __call__(self, x, t, y=None, *, train, rngs=None):
    x = self.w[...] * x + self.tied[...] * self.table + self.steps[...]
    return self.drop(x, deterministic=not train, rngs=rngs)


def test_arguments_for_the_mode_and_constants():
  model = jd.from_nnx(Told(nnx.Rngs(0)), PROCESS, prediction="x0")
  assert set(plain(model.params)) == {"w"} or set(plain(model.params)) == {
    "tied"
  }
  np.testing.assert_allclose(model(X, 1.0).x0, X + 2.0 * np.arange(2.0))
  dropped = model(X, 1.0, key=KEY).x0
  chex.assert_trees_all_equal(dropped, model(X, 1.0, key=KEY).x0)
  assert (dropped == 0).any() and (dropped != 0).any()
  # what never changes needs no place in the state
  state = training.init_state(KEY, model.params, SGD)
  update = training.make_update(losses.denoising(model), SGD)
  state, metrics = update(state, BATCH)
  assert metrics["grad_norm"] > 0
  assert training.finished(model, state).state is model.state


def test_a_learned_weighting_is_trained_beside_the_state():
  model = made()
  weight = losses.uncertainty.init()
  state = begun(model, loss_params=weight)
  loss = losses.denoising(model, learned_weighting=True)
  after, _ = jax.eval_shape(training.make_update(loss, SGD), state, BATCH)
  chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_statistics_on_a_mesh_are_those_of_the_whole_batch():
  alone, together = virtual_devices.answer("tests.guests.nnx_run", devices=2)
  np.testing.assert_allclose(alone, together, rtol=1e-5)
  assert abs(np.array(alone) - np.repeat([0.0, 1.0], 8)).min() > 1e-4


def test_state_without_a_place_is_refused_and_the_other_way_round():
  model = made()
  update = training.make_update(losses.denoising(model), SGD)
  with pytest.raises(ValueError, match=r"model_state=model\.state"):
    update(training.init_state(KEY, model.params, SGD), BATCH)
  update = training.make_update(
    losses.denoising(model, update_state=False), SGD
  )
  with pytest.raises(ValueError, match="the loss returned none"):
    update(begun(model), BATCH)
  other = lambda key, params, batch: (
    0.0 * params.params["b"]["bias"][...].sum(),
    {modules.STATE: {"calls": 1}},
  )
  with pytest.raises(ValueError, match="lacks the leaf"):
    training.make_update(other, SGD)(begun(model), BATCH)


class Keyword(nnx.Module):
  def __call__(self, x, *, timesteps):
    return x


class Careless(nn.Module):
  """Draws, whatever it is asked for."""

  @nn.compact
  def __call__(self, x, c):
    return nn.Dropout(0.5, deterministic=False)(nn.Dense(2)(x))


def test_modules_that_cannot_be_called_are_refused():
  refuse = lambda match: pytest.raises(TypeError, match=match)
  with refuse("nnx.Module that was made, got the class Net"):
    jd.from_nnx(Net, PROCESS)
  with refuse("Linen module that was made, got the class Twin"):
    jd.from_linen(Twin, {}, PROCESS)
  with refuse("NNX modules go to from_nnx"):
    jd.from_linen(Net(nnx.Rngs(0)), {}, PROCESS)
  with refuse("Linen modules go to from_linen"):
    jd.from_nnx(Twin(), PROCESS)
  with refuse(r"Keyword.__call__\(self, x, \*, timesteps\) cannot be called"):
    jd.from_nnx(Keyword(), PROCESS)
  twin = twin_of(made())
  model = jd.from_linen(Twin(), twin.params, PROCESS)
  with pytest.raises(
    ValueError, match=r'\{"params": ..., "batch_stats": ...\}'
  ):
    jax.eval_shape(model, X, 1.0)
  dense = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  model = jd.from_linen(Careless(), dense, PROCESS)
  with pytest.raises(ValueError, match="have an argument `train`"):
    jax.eval_shape(model, X, 1.0)


def test_what_takes_parameters_alone_refuses_a_state():
  model = made()
  match = r"state beside them \(calls.*, norm.*4 leaves\)"
  with pytest.raises(ValueError, match=match):
    quantization.quantize(model, (X, jnp.ones(8)))
  with pytest.raises(ValueError, match="state beside them"):
    skipping.gated(twin_of(model), ["a"])


def test_distillation_says_what_an_nnx_network_cannot():
  model = made(batch_norm=False)
  with pytest.raises(TypeError, match=r"c is f\[batch, 2\]"):
    distillation.student_of(KEY, model, (2,), jumps=True)
  with pytest.raises(TypeError, match="no names of layers"):
    distillation.critic.make(KEY, model, "b", (2,))

  def loss(key, params, nets, batch):
    return losses.denoising(made())(key, params, batch)

  players = {"student": training.Player(loss, SGD)}
  params = {"student": made().params}
  state = training.alternating.init_state(KEY, players, params)
  with pytest.raises(ValueError, match="keep the running ones"):
    training.alternating.make_update(players)(state, BATCH)


class Block(nnx.Module):
  """A block of a DiT: adaptive layer norm, attention, MLP, dropout."""

  def __init__(self, width, rngs):
    norm = lambda: nnx.LayerNorm(
      width, use_bias=False, use_scale=False, rngs=rngs
    )
    self.norm1, self.norm2 = norm(), norm()
    self.attention = nnx.MultiHeadAttention(
      2, width, dropout_rate=0.1, decode=False, rngs=rngs
    )
    self.mlp = nnx.Sequential(
      nnx.Linear(width, 2 * width, rngs=rngs),
      nnx.gelu,
      nnx.Dropout(0.1, rngs=rngs),
      nnx.Linear(2 * width, width, rngs=rngs),
    )
    self.modulation = nnx.Linear(width, 6 * width, rngs=rngs)

  def __call__(self, x, c):
    told = self.modulation(nnx.silu(c))[:, None]
    s1, b1, g1, s2, b2, g2 = jnp.split(told, 6, -1)
    x = x + g1 * self.attention(self.norm1(x) * (1 + s1) + b1)
    return x + g2 * self.mlp(self.norm2(x) * (1 + s2) + b2)


class DiT(nnx.Module):
  """A DiT as its users write it, with labels."""

  def __init__(self, width=8, classes=3, *, rngs):
    self.patches = nnx.Conv(1, width, (2, 2), strides=2, rngs=rngs)
    self.position = nnx.Param(
      0.02 * jax.random.normal(rngs.params(), (1, 4, width))
    )
    self.frequencies = nnx.Variable(jnp.exp(-jnp.arange(width / 2)))
    self.time = nnx.Linear(width, width, rngs=rngs)
    self.classes = nnx.Embed(classes + 1, width, rngs=rngs)
    self.blocks = nnx.List([Block(width, rngs) for _ in range(1)])
    self.out = nnx.Linear(width, 4, rngs=rngs)

  def __call__(self, x, t, y=None):
    waves = t[:, None] * self.frequencies[...]
    c = self.time(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1))
    if y is not None:
      c = c + self.classes(y)
    h = self.patches(x)
    n, rows, columns, width = h.shape
    h = h.reshape(n, rows * columns, width) + self.position[...]
    for block in self.blocks:
      h = block(h, c)
    h = self.out(h).reshape(n, rows, columns, 2, 2, 1)
    return h.swapaxes(2, 3).reshape(x.shape)


class UNet(nnx.Module):
  """A U-Net as its users write it: batch normalization, one skip."""

  def __init__(self, width=8, *, rngs):
    conv = lambda i, o, **kw: nnx.Conv(i, o, (3, 3), rngs=rngs, **kw)
    self.first, self.down = conv(1, width), conv(width, width, strides=2)
    self.time = nnx.Linear(1, width, rngs=rngs)
    self.norm1 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
    self.norm2 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
    self.drop = nnx.Dropout(0.1, rngs=rngs)
    self.up = nnx.ConvTranspose(width, width, (2, 2), strides=2, rngs=rngs)
    self.last = conv(2 * width, 1)

  def __call__(self, x, t):
    skip = nnx.silu(self.norm1(self.first(x)))
    h = self.down(skip) + self.time(t[:, None])[:, None, None]
    h = self.up(self.drop(nnx.silu(self.norm2(h))))
    return self.last(jnp.concatenate([skip, h], -1))


PICTURES = jnp.stack([jnp.full((4, 4, 1), v) for v in (-0.5, 0.5)] * 4)


@pytest.mark.parametrize(
  "kind", [pytest.param("dit", marks=pytest.mark.slow), "unet"]
)
def test_a_network_of_another_library_trains_samples_and_is_distilled(kind):
  conditional = kind == "dit"
  module = DiT(rngs=nnx.Rngs(0)) if conditional else UNet(rngs=nnx.Rngs(0))
  model = jd.from_nnx(module, PROCESS)
  batch = {"image": PICTURES}
  if conditional:
    batch["label"] = jnp.arange(8) % 2
  loss = losses.denoising(model, num_classes=3 * conditional)
  adam = optax.adam(1e-2)
  update = training.make_update(loss, adam, ema=0.9)
  carried = {} if conditional else dict(model_state=model.state)
  state = training.init_state(KEY, model.params, adam, **carried)
  for _ in range(20):
    state, _ = update(state, batch)
  teacher = training.finished(model, state, ema=False)
  # one draw of times and noise for both, asked as in sampling
  loss = losses.denoising(
    model, num_classes=3 * conditional, label_dropout=0.0, update_state=False
  )
  score = jax.jit(lambda v: loss(KEY, v, batch)[0])
  before, after = (
    score(m.params if conditional else modules.Variables(m.params, m.state))
    for m in (model, teacher)
  )
  assert after < 0.7 * before
  if conditional:
    teacher = jd.with_label(teacher, 1)
  table = jd.dpmpp_2m(PROCESS, jd.grids.karras(PROCESS, 4))
  noise = 80.0 * jax.random.normal(KEY, PICTURES.shape)
  samples = jd.sample(KEY, teacher, table, noise)
  chex.assert_shape(samples, PICTURES.shape)
  assert jnp.isfinite(samples).all()

  teacher = dataclasses.replace(teacher, label=None)
  student = distillation.student_of(KEY, teacher, PICTURES.shape[1:])
  slow = optax.adam(1e-3)
  if conditional:
    method = distillation.ect(student, optimizer=slow, every=10)
  else:
    method = distillation.dmd(teacher, student, optimizer=slow, fake_steps=1)
  update = distillation.make_update(method)
  state = distillation.init_state(KEY, method)
  state, metrics = update(state, batch)
  assert metrics["skipped"] == 0.0
  assert metrics["grad_norm"] > 0.0
  finished = method.finished(state, ema=False)
  moved = jax.tree.map(
    lambda a, b: abs(a - b).max(), finished.params, student.params
  )
  assert max(jax.tree.leaves(moved)) > 1e-4
  chex.assert_trees_all_equal(finished.state, student.state)
  if conditional:
    finished = jd.with_label(finished, 1)
  own = distillation.sampler(
    finished, distillation.few_step_grid(PROCESS, 2, to_zero=False)
  )
  assert jnp.isfinite(jd.sample(KEY, *own, noise)).all()

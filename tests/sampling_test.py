"""The loop: one program for all tables, randomness, collecting, mistakes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import control
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import tree
from tests.solvers.cases import CASES

EDM = processes.edm()
KEY = jax.random.key(0)
CALLS = (3, 4, 5, 6, 8, 10, 15, 20, 30)


def elementwise(x, t):
  """A model of one operation for each number: the exact answer for N(0, 1)."""
  variance = 1.0 + t * t
  return predictions.Prediction(x / variance, x * (t / variance))


def table(steps=6, build=solvers.dpmpp_2m, **options):
  return build(EDM, grids.karras(EDM, steps), **options)


@functools.cache
def sweep():
  """12 and more solvers x 9 budgets, padded to one shape."""
  every = [
    solvers.for_budget(
      functools.partial(case.build, EDM),
      functools.partial(grids.karras, EDM),
      calls,
    )
    for case in CASES.values()
    for calls in CALLS
  ]
  return [t for t in every if t is not None]


# --- one program -------------------------------------------------------------


def test_the_whole_sweep_compiles_twice():
  """Solvers x NFE, then another grid, eta and guidance scale: two entries.

  One for the tables that draw noise, one for those that draw none.
  """
  all_tables = sweep()
  assert len(CASES) >= 12 and len(all_tables) >= 12 * 9
  traces = []
  mixture = oracles.exact(oracles.g2(), EDM)

  def model(x, t, label):
    traces.append(None)
    return mixture(x, t, label)

  def guided(scale):
    return guidance.cfg(model, label=jnp.arange(4) % 3, null=3, scale=scale)

  x = EDM.prior(KEY, (4, 2))
  before = sampling.compilations()
  memory = max(t.memory for t in all_tables)
  run = lambda t, scale: sampling.sample(
    KEY, guided(scale), tables.pad(t, 32, memory), x, length=t.nfe
  )
  by_kind = {one.stochastic: one for one in all_tables}
  assert set(by_kind) == {True, False}
  for one in by_kind.values():
    run(one, 1.0)
  first = len(traces)
  for one in all_tables:
    run(one, 1.0)
  run(solvers.dpmpp_2m(EDM, grids.quadratic(EDM, 7)), 1.0)
  run(solvers.ddim(EDM, grids.karras(EDM, 7), eta=0.3), 1.0)
  run(solvers.heun_churn(EDM, grids.karras(EDM, 7), churn=5.0), 1.0)
  for scale in (0.0, 3.5, np.float32(2.0), jnp.asarray(1.5)):
    run(all_tables[0], scale)
  assert sampling.compilations() - before == 2
  assert len(traces) == first


@pytest.mark.parametrize("length", [None, 6])
def test_a_table_without_noise_has_a_program_without_noise(length):
  x = jnp.ones((3, 2))
  calls = lambda t: control.called(
    lambda x: sampling.sample(KEY, elementwise, t, x, length=length), x
  )
  quiet, loud = calls(table()), calls(table(build=solvers.ddpm))
  assert "cond" in loud and "random_bits" in loud
  assert not {"cond", "random_bits"} & quiet
  # where the scales are traced nobody knows: the program decides at each row
  traced = lambda t: sampling.sample(KEY, elementwise, t, x, length=length)
  assert "random_bits" in control.called(traced, table())


def test_tables_of_one_shape_are_three_programs_and_agree():
  """All rows end a step; some do not; some draw: by what is known of each."""
  x = EDM.prior(KEY, (7, 2))
  padded = lambda t: tables.pad(t, memory=4)
  kinds = [
    [padded(table(6, b)) for b in (solvers.ipndm, solvers.unipc)],
    [padded(table(3, b)) for b in (solvers.heun, solvers.midpoint)],
    [padded(table(6, b)) for b in (solvers.ddpm, solvers.dpmpp_2m_sde)],
  ]
  run = lambda t: sampling.sample(KEY, elementwise, t, x)
  outs = []
  for of_kind in kinds:
    before = sampling.compilations()
    outs += [(one, run(one)) for one in of_kind]
    assert sampling.compilations() - before == 1
  general = jax.jit(run)  # nothing is known of a traced table
  for one, out in outs:
    np.testing.assert_allclose(out, general(one), rtol=1e-5, atol=1e-6)


def test_other_parameters_of_the_same_shape_do_not_recompile():
  x = EDM.prior(KEY, (3, 2))
  before = sampling.compilations()
  outs = [
    sampling.sample(KEY, oracles.exact(distribution, EDM), table(), x)
    for distribution in (
      oracles.g2(),
      oracles.mixture(np.ones((3, 2)), np.ones(3)),
    )
  ]
  assert sampling.compilations() - before == 1
  assert np.abs(outs[0] - outs[1]).max() > 0.1


def test_padded_run_of_a_length_equals_the_scan():
  x = EDM.prior(KEY, (5, 2))
  model = oracles.exact(oracles.g2(), EDM)
  for build in (solvers.unipc, solvers.heun, solvers.ddpm, solvers.ipndm):
    one = table(5, build)
    scan = sampling.sample(KEY, model, one, x)
    padded = tables.pad(one, 32, 4)
    loop = sampling.sample(KEY, model, padded, x, length=one.nfe)
    # two programs, the scan's without an anchor: equal up to rounding
    np.testing.assert_allclose(scan, loop, rtol=1e-5, atol=1e-5)


def test_a_stack_under_vmap_equals_the_tables_one_by_one():
  x = EDM.prior(KEY, (5, 2))
  model = oracles.exact(oracles.g2(), EDM)
  three = [table(4), table(6, solvers.heun), table(5, solvers.ddpm)]
  stacked, lengths = tables.stack(three)
  together = jax.vmap(lambda t, n: sampling.sample(KEY, model, t, x, length=n))(
    jax.tree.map(jnp.asarray, stacked), jnp.asarray(lengths)
  )
  for i, one in enumerate(three):
    alone = sampling.sample(KEY, model, one, x)
    np.testing.assert_allclose(together[i], alone, rtol=1e-5, atol=1e-5)


def test_jit_equals_eager():
  x = EDM.prior(KEY, (3, 2))
  model = oracles.exact(oracles.g2(), EDM)
  one = table(4, solvers.ddim, eta=0.7)
  compiled = sampling.sample(KEY, model, one, x)
  with jax.disable_jit():
    eager = sampling.sample(KEY, model, one, x)
  np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


def test_the_network_is_called_as_often_as_the_table_has_rows():
  calls = []

  def counting(x, t):
    jax.debug.callback(lambda t: calls.append(float(t)), t)
    return elementwise(x, t)

  for build in (solvers.heun, solvers.rk4, solvers.unipc):
    calls.clear()
    one = build(EDM, grids.karras(EDM, 4, to_zero=True))
    sampling.sample(KEY, counting, one, jnp.ones((1, 1)))
    jax.effects_barrier()
    assert len(calls) == one.nfe
    np.testing.assert_allclose(sorted(calls), sorted(one.t), rtol=1e-6)
    calls.clear()
    sampling.sample(
      KEY, counting, tables.pad(one, 40), jnp.ones((1, 1)), length=one.nfe
    )
    jax.effects_barrier()
    assert len(calls) == one.nfe  # padding is not run


def test_step_holds_no_matrix_product_and_writes_the_history_in_place():
  """The compiled loop of an elementwise model has no dot, and K buffers."""
  one = table(8, solvers.ipndm)
  text = (
    jax.jit(lambda t, x: sampling.sample(KEY, elementwise, t, x))
    .lower(jax.tree.map(jnp.float32, one), jnp.ones((64, 512)))
    .compile()
    .as_text()
  )
  assert " dot(" not in text
  assert "dynamic-update-slice" in text
  assert f"f32[{one.memory},64,512]" in text
  assert not re.search(rf"f32\[{one.memory},64,512\]\S* copy\(", text)


# --- randomness --------------------------------------------------------------


@pytest.mark.parametrize("build", [solvers.ddpm, solvers.heun_churn])
def test_sample_seven_is_bit_identical_alone_and_in_a_batch(build):
  options = {"churn": 9.0} if build is solvers.heun_churn else {}
  one = table(9, build, **options)
  shape = (4, 4, 3)
  draw = functools.partial(sampling.sample, KEY, elementwise, one, process=EDM)
  batch = draw((64, *shape))
  alone = draw((1, *shape), index=[7])
  few = draw((3, *shape), index=[20, 7, 1])
  assert np.array_equal(batch[7], alone[0])
  assert np.array_equal(batch[7], few[1])
  assert np.array_equal(batch[20], few[0])


@pytest.mark.slow
def test_with_a_unet_sample_seven_agrees_to_rounding():
  """Convolutions round by the batch; the largest difference stays tiny."""
  network = networks.digits_unet()
  label = jnp.arange(64) % 10
  like = jnp.zeros((1, 8, 8, 1))
  params = network.init(KEY, like, jnp.zeros(1), label[:1])["params"]
  leaves, treedef = jax.tree.flatten(params)  # its last layer starts at zero
  params = jax.tree.unflatten(
    treedef,
    [
      v + 0.05 * jax.random.normal(jax.random.key(i), v.shape)
      for i, v in enumerate(leaves)
    ],
  )
  model = denoisers.from_linen(network, params, EDM, sigma_data=0.75)

  def draw(index):
    index = np.asarray(index)
    return sampling.sample(
      KEY,
      denoisers.with_label(model, index % 10),
      table(4, solvers.ddpm),
      (len(index), 8, 8, 1),
      process=EDM,
      index=index,
    )

  batch, alone = draw(np.arange(64)), draw([7])
  assert np.abs(batch).max() > 0.1
  np.testing.assert_allclose(batch[7], alone[0], atol=2e-5)


def test_the_noises_of_a_step_are_independent_of_one_another():
  """Before the call and after it, and from step to step and to the prior."""
  draws = []
  for tag in (0, 1):
    rows = tables.row(1.0, "x0", (1.0, 0.0, 0.0), noise=(tag == 0, tag == 1, 0))
    both = tables.concat(rows._replace(), rows)
    out, kept = sampling.sample(
      KEY,
      elementwise,
      both,
      jnp.zeros((2000, 1)),
      collect=sampling.every(1, lambda info: info.y),
    )
    first, second = np.asarray(kept[0])[:, 0], np.asarray(kept[1])[:, 0]
    draws += [first, second - first]
  draws.append(
    np.asarray(
      sampling.sample(
        KEY,
        elementwise,
        tables.row(1.0, "x0", (1.0, 0.0, 0.0)),
        (2000, 1),
        process=EDM,
      )
    )[:, 0]
  )
  used = [d for d in draws if d.std() > 0]
  assert len(used) >= 4
  correlation = np.corrcoef(used) - np.eye(len(used))
  assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_a_callers_draws_from_split_keys_are_not_met_again_as_noise():
  """split(key)[i] is fold_in(key, i), which must not be the key of step i."""
  rows = tables.row(1.0, "x0", (0.0, 0.0, 0.0), noise=(0.0, 1.0, 1.0))
  x = jnp.zeros((3, 4))
  noise = sampling.sample(KEY, elementwise, rows, x)
  assert np.abs(noise).min() > 0
  for step in jax.random.split(KEY, 3):
    for own in jax.random.split(step, 3):
      assert np.abs(noise - tree.normal(own, x)).max() > 0.1


def test_a_stochastic_sampler_has_the_law_that_propagation_predicts():
  process = processes.edm(0.1, 10.0)
  single = oracles.gaussian([1.0, -0.5], [0.25, 1.5])
  n = 20000
  one = solvers.ddim(process, grids.karras(process, 6), eta=1.0)
  model = oracles.exact(single, process)
  x = sampling.sample(
    KEY,
    model,
    one,
    process.prior(jax.random.key(5), (n, 2), data_std=0.0) + single.means[0],
  )
  mean, variance = oracles.propagate(
    one, process, single, mean=single.means[0], variance=100.0
  )
  error = np.abs(np.mean(x, 0) - mean) / np.sqrt(variance / n)
  assert error.max() < 4.5
  error = np.abs(np.var(x, 0) / variance - 1) / np.sqrt(2 / n)
  assert error.max() < 4.5


# --- dtypes, trees, gradients ------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtype_of_x_is_kept_and_arithmetic_is_wide(dtype):
  seen = []

  def model(x, t):
    seen.append((x.dtype, t.dtype))
    return elementwise(x, t)

  with jax.enable_x64(dtype == "float64"):
    x = jnp.ones((2, 3), dtype)
    out = sampling.sample(KEY, model, table(5, solvers.ddpm), x)
    assert out.dtype == dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    assert set(seen) == {(wide, wide)}


def test_a_float32_state_stays_float32_under_x64():
  with jax.enable_x64(True):
    out = sampling.sample(
      KEY, elementwise, table(), jnp.ones((2, 3), jnp.float32)
    )
    assert out.dtype == jnp.float32


def test_x_may_be_a_tree_and_each_leaf_is_sampled_as_alone():
  def model(x, t):
    pairs = jax.tree.map(lambda v: elementwise(v, t), x)
    pick = lambda i: jax.tree.map(
      lambda p: p[i],
      pairs,
      is_leaf=lambda p: isinstance(p, predictions.Prediction),
    )
    return predictions.Prediction(pick(0), pick(1))

  x = {"a": jnp.ones((2, 3)), "b": 2.0 * jnp.ones((2, 4, 1))}
  one = table(5, solvers.unipc)
  out = sampling.sample(KEY, model, one, x)
  for name in x:
    alone = sampling.sample(KEY, elementwise, one, x[name])
    np.testing.assert_allclose(out[name], alone, rtol=1e-6)


def test_leaves_of_a_tree_keep_their_own_dtypes(x64):
  def model(x, t):
    pairs = {k: elementwise(v, t) for k, v in x.items()}
    return predictions.Prediction(
      {k: p.x0 for k, p in pairs.items()}, {k: p.eps for k, p in pairs.items()}
    )

  x = {"a": jnp.ones((2, 3), jnp.float32), "b": jnp.ones((2, 3), jnp.float64)}
  for build in (solvers.dpmpp_2m, solvers.ddpm):
    out = sampling.sample(KEY, model, table(4, build), x)
    assert {k: v.dtype for k, v in out.items()} == {
      "a": jnp.float32,
      "b": jnp.float64,
    }


def test_coefficients_may_carry_data_dimensions():
  """Two tables at once, one for each half of a sample."""
  fast, slow = table(5), table(5, solvers.ddim)
  slow = tables.pad(slow, memory=2)
  both = jax.tree.map(lambda a, b: np.stack([a, b], -1), fast, slow)
  both = both._replace(t=fast.t)
  x = EDM.prior(KEY, (4, 2))
  out = sampling.sample(KEY, elementwise, both, x)
  for i, one in enumerate((fast, slow)):
    alone = sampling.sample(KEY, elementwise, one, x)
    np.testing.assert_allclose(out[:, i], alone[:, i], rtol=1e-6)


def test_gradients_reach_tables_and_start_and_are_finite(x64):
  model = oracles.exact(oracles.g2(), EDM)
  x = EDM.prior(KEY, (3, 2), dtype=jnp.float64)
  one = jax.tree.map(
    jnp.asarray, solvers.unipc(EDM, grids.karras(EDM, 5, to_zero=True))
  )

  def loss(one, x):
    return jnp.sum(sampling.sample(KEY, model, one, x) ** 2)

  by_table, by_x = jax.jit(jax.grad(loss, (0, 1)))(one, x)
  for leaf in (*by_table, by_x):
    assert np.isfinite(leaf).all()
  step = 1e-5
  bump = one._replace(state=one.state.at[2, 0, 1].add(step))
  dip = one._replace(state=one.state.at[2, 0, 1].add(-step))
  slope = (loss(bump, x) - loss(dip, x)) / (2 * step)
  np.testing.assert_allclose(by_table.state[2, 0, 1], slope, rtol=1e-5)


def test_remat_gives_the_same_gradient_in_less_memory():
  """Of a model that keeps 16 hidden layers for its gradient, 12 calls."""
  w = 0.1 * jax.random.normal(KEY, (16, 8, 8))
  x = EDM.prior(KEY, (64, 8))
  one = table(12)

  def loss(w, remat):
    def model(x, t):
      x0 = x
      for layer in w:
        x0 = jnp.tanh(x0 @ layer + t)
      return predictions.Prediction(x0, (x - x0) / t)

    return jnp.sum(sampling.sample(KEY, model, one, x, remat=remat) ** 2)

  gradients, bytes_of = [], []
  for remat in (False, True):
    slope = jax.jit(jax.grad(lambda w, r=remat: loss(w, r)))
    gradients.append(slope(w))
    memory = slope.lower(w).compile().memory_analysis()
    bytes_of.append(memory.temp_size_in_bytes)
  np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)
  assert np.abs(gradients[0]).max() > 1e-3
  assert bytes_of[1] < 0.5 * bytes_of[0], bytes_of


def test_donated_start_is_consumed_and_gives_the_same():
  x = jnp.ones((4, 3))
  expected = sampling.sample(KEY, elementwise, table(), x)
  out = sampling.sample(KEY, elementwise, table(), x, donate=True)
  assert np.array_equal(out, expected)
  assert x.is_deleted()


# --- starts and ends ---------------------------------------------------------


def test_image_to_image_spends_all_calls_below_its_start():
  grid = grids.karras(EDM, 7, start=1.5)
  one = solvers.dpmpp_2m(EDM, grid)
  assert one.nfe == 7 and one.t[0] == 1.5 and one.t.max() == 1.5
  single = oracles.gaussian([3.0], [1e-4])
  image = jnp.full((64, 1), 3.0)
  noisy, eps = EDM.perturb(KEY, image, 1.5)
  np.testing.assert_allclose(noisy, image + 1.5 * eps, rtol=1e-6)
  back = sampling.sample(KEY, oracles.exact(single, EDM), one, noisy)
  assert np.abs(back - image).max() < 0.1


def test_prior_of_a_shape_is_scaled_to_the_start_of_the_table():
  idle = tables.row(2.5, "x0", (1.0, 0.0, 0.0))
  x = sampling.sample(KEY, elementwise, idle, (4000, 1), process=EDM)
  assert abs(float(x.std()) - 2.5) < 4 * 2.5 / np.sqrt(2 * 4000)


# --- collecting --------------------------------------------------------------


def test_nothing_of_the_trajectory_is_kept_unless_asked():
  jaxpr = jax.make_jaxpr(
    lambda x: sampling.sample(KEY, elementwise, table(50), x)
  )(jnp.ones((2, 3)))
  shapes = {v.aval.shape for e in jaxpr.eqns for v in e.outvars}
  assert shapes <= {(2,), (2, 3)}  # the indices, the samples


def test_collectors_keep_states_previews_and_reductions():
  x = EDM.prior(KEY, (3, 2))
  one = table(7)
  out, states = sampling.sample(
    KEY, elementwise, one, x, collect=sampling.every()
  )
  assert states.shape == (7, 3, 2)
  assert np.array_equal(states[-1], out)
  _, third = sampling.sample(
    KEY, elementwise, one, x, collect=sampling.every(3)
  )
  np.testing.assert_allclose(third, states[np.asarray([2, 5, 6])], rtol=1e-6)
  for many in (7, 10**12, 10**400):  # more than there are keep the last
    _, last = sampling.sample(
      KEY, elementwise, one, x, collect=sampling.every(many)
    )
    np.testing.assert_allclose(last, out[None], rtol=1e-6)
  _, previews = sampling.sample(
    KEY, elementwise, one, x, collect=sampling.every(1, sampling.denoised)
  )
  np.testing.assert_allclose(
    previews[0], elementwise(x, jnp.float32(80.0)).x0, rtol=1e-6
  )
  longest = sampling.Collector(
    lambda n, info: jnp.zeros(()),
    lambda kept, info: jnp.maximum(kept, jnp.abs(info.a).max()),
  )
  _, reduced = sampling.sample(KEY, elementwise, one, x, collect=longest)
  np.testing.assert_allclose(reduced, np.abs(states).max(), rtol=1e-6)


def test_between_its_stages_a_method_keeps_the_sample_accepted_last():
  x = EDM.prior(KEY, (3, 2))
  one = table(3, solvers.heun)
  out, states = sampling.sample(
    KEY, elementwise, one, x, collect=sampling.every()
  )
  for stage, before in zip(states[::2], [x, *states[1:-1:2]], strict=True):
    np.testing.assert_array_equal(stage, before)
  assert np.array_equal(states[-1], out)
  assert np.abs(states[1] - x).min() > 0


def test_collecting_goes_together_with_the_check():
  x, one = jnp.ones((2, 3)), table(5)
  draw = functools.partial(
    sampling.sample, KEY, elementwise, one, x, collect=sampling.every(2)
  )
  for plain, checked in zip(draw(), draw(check_finite=True), strict=True):
    np.testing.assert_allclose(checked, plain, rtol=1e-6)


def test_collecting_a_padded_run_leaves_the_rest_zero():
  x = EDM.prior(KEY, (3, 2))
  one = table(5)
  _, states = sampling.sample(
    KEY,
    elementwise,
    tables.pad(one, 9),
    x,
    length=5,
    collect=sampling.every(),
  )
  assert states.shape == (9, 3, 2)
  assert np.abs(states[4]).min() > 0 and np.all(states[5:] == 0)


def test_progress_bar_ticks_once_a_call_and_compiles_once(capsys):
  before = sampling.compilations()
  for build in (solvers.dpmpp_2m, solvers.dpmpp_2m):
    sampling.sample(
      KEY, elementwise, table(5, build), jnp.ones((2, 3)), progress=True
    )
  assert sampling.compilations() - before == 1
  assert "5/5" in capsys.readouterr().err


def test_progress_of_a_padded_run_is_that_of_its_length(capsys):
  sampling.sample(
    KEY,
    elementwise,
    tables.pad(table(5), 9),
    jnp.ones((2, 3)),
    length=5,
    progress=True,
  )
  assert "5/5" in capsys.readouterr().err


# --- mistakes ----------------------------------------------------------------


def test_nan_is_reported_with_the_step_where_it_began():
  def breaks(x, t):
    x0 = jnp.where(t < 1.0, jnp.nan, 0.0) * x
    return predictions.Prediction(x0, x / t)

  one = table(8)
  began = int(np.flatnonzero(one.t < 1.0)[0])
  with pytest.raises(FloatingPointError, match=f"since step {began} of 8"):
    sampling.sample(KEY, breaks, one, jnp.ones((2, 2)), check_finite=True)
  fine = sampling.sample(
    KEY, elementwise, one, jnp.ones((2, 2)), check_finite=True
  )
  assert np.isfinite(fine).all()


def test_nan_is_reported_with_the_sample_where_it_began():
  """Samples do not see one another: each has a first step of its own."""
  one = table(8)
  began = [int(np.flatnonzero(one.t < limit)[0]) for limit in (1.0, 0.1)]
  start = jnp.ones((4, 2)) * jnp.array([[1.0], [2.0], [1.0], [3.0]])

  def breaks(x, t):
    limit = jnp.array([[0.0], [1.0], [0.0], [0.1]])
    x0 = jnp.where(t < limit, jnp.nan, 0.0) * x
    return predictions.Prediction(x0, x / t)

  draw = functools.partial(
    sampling.sample, KEY, breaks, one, start, index=[5, 9, 6, 7]
  )
  _, since = draw(collect=sampling.nonfinite_since)
  assert list(since) == [8, began[0], 8, began[1]]
  said = rf"sample 9 \(and 1 more of 4\) holds NaN.* step {began[0]} of 8"
  with pytest.raises(FloatingPointError, match=said):
    draw(check_finite=True)


def test_nan_is_found_in_any_leaf_and_counted_over_the_length_alone():
  def breaks(x, t):
    late = jnp.where(t < 1.0, jnp.nan, 0.0)
    x0 = {"a": 0.0 * x["a"], "b": late * x["b"]}
    return predictions.Prediction(x0, jax.tree.map(lambda v: v / t, x))

  one = table(8)
  began = int(np.flatnonzero(one.t < 1.0)[0])
  x = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 1))}
  with pytest.raises(FloatingPointError, match=f"since step {began} of 8"):
    sampling.sample(
      KEY, breaks, tables.pad(one, 12), x, length=8, check_finite=True
    )


def test_integer_kinds_of_length_share_a_program_and_are_checked():
  padded = tables.pad(table(5), 8)
  x = jnp.ones((2, 3))
  run = functools.partial(sampling.sample, KEY, elementwise, padded, x)
  first = run(length=5)
  before = sampling.compilations()
  for length in (np.int32(5), jnp.int32(5), np.int64(5)):
    assert np.array_equal(run(length=length), first)
  assert sampling.compilations() == before
  with pytest.raises(ValueError, match=r"within 1\.\.8, the rows.*99"):
    run(length=jnp.int32(99))
  with pytest.raises(TypeError, match="an integer; got 5.0"):
    run(length=5.0)
  traced = jax.jit(lambda n: run(length=n))
  np.testing.assert_allclose(traced(5), first, rtol=1e-6)
  np.testing.assert_allclose(traced(99), run(length=8), rtol=1e-6)


def test_both_of_two_collectors_is_one_program():
  x = jnp.ones((2, 3))
  run = lambda: sampling.sample(
    KEY,
    elementwise,
    table(5),
    x,
    collect=sampling.both(sampling.every(1), sampling.first_nonfinite),
  )
  _, (states, bad) = run()
  before = sampling.compilations()
  run()
  assert sampling.compilations() == before
  assert states.shape == (5, 2, 3) and bad == 5


def test_equal_collectors_share_a_program_and_no_cache_keeps_them():
  x, what = jnp.ones((2, 3)), lambda info: info.y
  run = lambda: sampling.sample(
    KEY, elementwise, table(5), x, collect=sampling.every(2, what)
  )
  run()
  before = sampling.compilations()
  assert sampling.every(2, what) == sampling.every(2, what)
  assert sampling.every(2, what) is not sampling.every(2, what)
  run()
  assert sampling.compilations() == before


def test_arrays_of_a_collector_are_arguments_of_the_program():
  x, before = jnp.ones((2, 3)), None
  pick = lambda row, kept, info: jnp.where(info.step == row, info.y, kept)
  init = lambda n, info: jnp.zeros(info.y.shape)
  _, path = sampling.sample(
    KEY, elementwise, table(5), x, collect=sampling.every(1, lambda i: i.y)
  )
  for row in (1, 3):
    update = jax.tree_util.Partial(pick, jnp.asarray(row))
    collector = sampling.Collector(init, update)
    _, kept = sampling.sample(KEY, elementwise, table(5), x, collect=collector)
    np.testing.assert_array_equal(kept, path[row])
    assert before in (None, sampling.compilations())
    before = sampling.compilations()


def test_a_model_may_answer_with_a_plain_pair():
  plain = lambda x, t: tuple(elementwise(x, t))
  x = jnp.ones((2, 3))
  assert np.array_equal(
    sampling.sample(KEY, plain, table(5), x),
    sampling.sample(KEY, elementwise, table(5), x),
  )


def test_a_failed_run_leaves_no_progress_bar_open():
  with pytest.raises(TypeError):
    sampling.sample(
      KEY, lambda x, t: x, table(5), jnp.ones((2, 3)), progress=True
    )
  assert not sampling._bars


def test_swapped_and_unfinished_arguments_are_told_apart():
  x = jnp.ones((2, 3))
  one = table(5)
  sample = sampling.sample
  with pytest.raises(TypeError, match="a model there, got Tableau.*swapped"):
    sample(KEY, one, elementwise, x)
  with pytest.raises(TypeError, match="takes a model.*got dict"):
    sample(KEY, {"w": x}, one, x)
  with pytest.raises(TypeError, match="Collector or None as collect, got True"):
    sample(KEY, elementwise, one, x, collect=True)
  with pytest.raises(TypeError, match="has dtype int32.*127.5"):
    sample(KEY, elementwise, one, jnp.ones((2, 3), jnp.int32))
  with pytest.raises(TypeError, match="index numbers the samples"):
    sample(KEY, elementwise, one, x, index=jnp.ones(2))
  with pytest.raises(ValueError, match="the signal exceeds the noise"):
    late = solvers.dpmpp_2m(EDM, grids.karras(EDM, 4, start=0.05))
    sample(KEY, elementwise, late, (2, 3), process=EDM)
  with pytest.raises(TypeError, match=r"call it: edm\(\)"):
    sample(KEY, elementwise, one, (2, 3), process=processes.edm)
  for option in ("progress", "check_finite"):
    with pytest.raises(TypeError, match="inside jit, grad or vmap"):
      jax.jit(
        lambda v, o=option: sample(KEY, elementwise, one, v, **{o: True})
      )(x)
  with pytest.raises(ValueError, match="integer k >= 1.*denoised"):
    sampling.every(sampling.denoised)


def test_mistakes_are_named():
  x = jnp.ones((2, 3))
  one = table(5)
  sample = sampling.sample
  with pytest.raises(ValueError, match=r"\(2, 3\) is a shape.*process="):
    sample(KEY, elementwise, one, (2, 3))
  with pytest.raises(ValueError, match="within 1..5, the rows"):
    sample(KEY, elementwise, one, x, length=6)
  with pytest.raises(ValueError, match=r"within 1..5, the rows.*got 0"):
    sample(KEY, elementwise, one, x, length=0)
  with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
    sample(KEY, elementwise, one, x, index=jnp.arange(3))
  with pytest.raises(TypeError, match="returns predictions.Prediction"):
    sample(KEY, lambda x, t: x, one, x)
  with pytest.raises(ValueError, match=r"model's x0 has shape \(2,\)"):
    sample(KEY, lambda x, t: predictions.Prediction(x[:, 0], x), one, x)
  with pytest.raises(ValueError, match=r"lacks the leaf \['b'\]"):
    tree_x = {"a": x, "b": x}
    short = lambda x, t: predictions.Prediction({"a": x["a"]}, x)
    sample(KEY, short, one, tree_x)
  with pytest.raises(ValueError, match=r"leaf \['b'\] has 3 samples"):
    sample(KEY, elementwise, one, {"a": x, "b": jnp.ones((3, 1))})
  with pytest.raises(ValueError, match="leaf x is a scalar"):
    sample(KEY, elementwise, one, jnp.ones(()))
  with pytest.raises(ValueError, match=r"tableau.noise must have shape \(5, 3"):
    sample(KEY, elementwise, one._replace(noise=np.zeros((5, 2))), x)
  with pytest.raises(ValueError, match=r"tableau.state\[0, 0, 0\] is nan"):
    broken = one._replace(state=one.state * np.nan)
    sample(KEY, elementwise, broken, x)
  with pytest.raises(TypeError, match="is traced here"):
    jax.jit(lambda t: sample(KEY, elementwise, t, (2, 3), process=EDM))(one)
  with pytest.raises(ValueError, match="given length does not have; leave"):
    sample(KEY, elementwise, one, x, length=3, remat=True)
  with pytest.raises(ValueError, match="integer k >= 1"):
    sampling.every(0)

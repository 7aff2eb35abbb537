"""Adaptive steps and parallel-in-time sampling: errors, counts, agreement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import numerics
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tree
from jaxdiff.samplers import embedded_pairs

KEY = jax.random.key(0)
EDM = processes.edm(0.05, 20.0)
SINGLE = oracles.gaussian([1.0, -0.5], [0.25, 1.5])
METHODS = tuple(embedded_pairs.PAIRS)


def adaptive(model, process, x, span=None, **options):
  options = dict(max_calls=100_000) | options
  return samplers.adaptive(None, model, span, x, process=process, **options)


def start(process=EDM, n=8, dtype=jnp.float64):
  return process.prior(KEY, (n, 2), dtype=dtype)


def ends(process):
  pair = lambda t: (process.alpha(t), process.sigma(t))
  return pair(process.t_max), pair(process.t_min)


def error(solved, x, process=EDM):
  exact = oracles.flow_map(SINGLE, x, *ends(process))
  return float(jnp.sqrt(jnp.mean((solved - exact) ** 2)))


# --- one step of every pair --------------------------------------------------


def one_step(method, h):
  """One step of length h in lambda from t = 2, and its error estimate."""
  pair = embedded_pairs.PAIRS[method]
  model = oracles.exact(oracles.g2(), EDM)
  x = jnp.asarray([[1.2, -0.4], [0.3, 0.9], [-1.0, 0.1]])
  lam = EDM.log_snr(2.0)
  t = [EDM.log_snr_inverse(lam + r * h) for r in (*pair.places, 1.0)]
  plan = pair.step(EDM, t, h)
  outputs, y = [], x
  for i in range(len(pair.places)):
    answer = model(y, jnp.asarray(t[i]))
    w = pair.output(EDM, "lambda", np.asarray(t[i]))
    outputs.append(w[0] * answer.x0 + w[1] * answer.eps)
    y = plan.carry[i] * x + sum(
      w * f for w, f in zip(plan.weights[i], outputs, strict=True)
    )
  return y, sum(w * f for w, f in zip(plan.error, outputs, strict=True)), x


@pytest.mark.parametrize("method", METHODS)
def test_the_local_errors_of_a_pair_have_its_orders(method, x64):
  """x' errs by h^(order + 1), the estimate by h^(lower order + 1)."""
  pair = embedded_pairs.PAIRS[method]
  model = oracles.exact(oracles.g2(), EDM)

  def errors(h):
    new, estimate, x = one_step(method, h)
    t = EDM.log_snr_inverse(EDM.log_snr(2.0) + np.linspace(0, h, 65))
    exact = sampling.sample(KEY, model, solvers.rk4.build(EDM, t), x)
    rms = lambda v: float(jnp.sqrt(jnp.mean(v**2)))
    return rms(new - exact), rms(estimate)

  h = 0.1 if method == "dormand_prince" else 0.05
  coarse, fine = errors(h), errors(h / 2)
  slopes = np.log2(np.divide(coarse, fine))
  assert abs(slopes[0] - (pair.order + 1)) < 0.3, slopes
  assert abs(slopes[1] - (pair.lower + 1)) < 0.3, slopes


@pytest.mark.parametrize("method", ["bogacki_shampine", "dormand_prince"])
def test_butcher_arrays_satisfy_the_quadrature_conditions(method):
  pair = embedded_pairs.PAIRS[method]
  c = np.asarray(pair.places)
  other = np.subtract(pair.weights, pair.error)
  for weights, order in ((pair.weights, pair.order), (other, pair.lower)):
    for k in range(order):
      np.testing.assert_allclose(np.dot(weights, c**k), 1 / (k + 1), rtol=1e-12)
  assert pair.last_is_first


@pytest.mark.parametrize("output", ["eps", "x0"])
def test_dpm_solver_12_and_23_are_the_papers(output, x64):
  """From the sheet's formulas, in x0 and eps; VP, so that alpha varies."""
  process = processes.vp_linear()
  lam, h = process.log_snr(0.7), 0.9
  at = lambda r: process.log_snr_inverse(lam + r * h)
  a = lambda r: process.alpha(at(r))
  s = lambda r: process.sigma(at(r))
  name = {"eps": "dpm_solver_", "x0": "dpmpp_"}[output]
  x, f0, f1, f2 = np.random.default_rng(0).standard_normal(4)

  def base(r):
    if output == "eps":
      return a(r) / a(0) * x - s(r) * np.expm1(r * h) * f0
    return s(r) / s(0) * x - a(r) * np.expm1(-r * h) * f0

  def second(r1, f):
    gain = (s(1) * np.expm1(h) if output == "eps" else a(1) * np.expm1(-h)) / (
      2 * r1
    )
    return base(1) - gain * (f - f0)

  def bent(r, by, f):
    if output == "eps":
      gain = -s(r) / by * (np.expm1(r * h) / (r * h) - 1)
    else:
      gain = a(r) / by * (np.expm1(-r * h) / (r * h) + 1)
    return base(r) + gain * (f - f0)

  def ours(method, outputs):
    pair = embedded_pairs.PAIRS[name + method]
    plan = pair.step(process, [at(r) for r in (*pair.places, 1.0)], h)
    combined = [
      c * x + np.dot(w, outputs[: len(w)])
      for c, w in zip(plan.carry, plan.weights, strict=True)
    ]
    return combined, np.dot(plan.error, outputs)

  (u, high), gap = ours("12", (f0, f1))
  np.testing.assert_allclose(u, base(0.5), rtol=1e-12)
  np.testing.assert_allclose(high, second(0.5, f1), rtol=1e-12)
  np.testing.assert_allclose(gap, high - base(1), rtol=1e-10)
  (u1, u2, high), gap = ours("23", (f0, f1, f2))
  np.testing.assert_allclose(u1, base(1 / 3), rtol=1e-12)
  np.testing.assert_allclose(u2, bent(2 / 3, 0.5, f1), rtol=1e-10)
  np.testing.assert_allclose(high, bent(1.0, 2 / 3, f2), rtol=1e-10)
  np.testing.assert_allclose(gap, high - second(1 / 3, f1), rtol=1e-9)


# --- tolerance and work ------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_error_follows_the_tolerance_and_the_work_its_root(method, x64):
  """error ~ tol, calls ~ tol^(-1 / (lower order + 1)), by one program."""
  x = start()
  model = oracles.exact(SINGLE, EDM)
  pair = embedded_pairs.PAIRS[method]
  tolerances = (1e-5, 1e-8) if pair.lower > 1 else (1e-4, 1e-6)
  solved = [
    adaptive(model, EDM, x, method=method, rtol=tol, atol=tol)
    for tol in tolerances
  ]
  decades = np.log10(tolerances[0] / tolerances[1])
  errors = [error(y, x) for y, _ in solved]
  proportional = np.log10(errors[0] / errors[1]) / decades
  assert abs(proportional - 1.0) < 0.2, errors
  assert errors[1] < 30 * tolerances[1]
  calls = [float(info.nfe.mean()) for _, info in solved]
  work = np.log10(calls[1] / calls[0]) / decades
  assert abs(work - 1 / (pair.lower + 1)) < 0.04, work


@pytest.mark.parametrize(
  ("name", "clock"),
  [("vp", "lambda"), ("vp", "sigma"), ("flow", "lambda"), ("flow", "t")],
)
def test_every_clock_solves_every_process_both_ways(name, clock, x64):
  """Encoding the samples returns the noise; both ends are in closed form."""
  process = {
    "vp": processes.vp_linear(t_min=0.01),
    "flow": processes.rectified_flow(0.01, 0.99),
  }[name]
  x, model = start(process), oracles.exact(SINGLE, process)
  solve = functools.partial(
    adaptive, model, process, clock=clock, method="dormand_prince"
  )
  down, info = solve(x, rtol=1e-7, atol=1e-7)
  assert error(down, x, process) < 1e-5
  np.testing.assert_array_equal(info.t, process.t_min)
  span = process.t_min, process.t_max
  up, info = solve(down, span, rtol=1e-7, atol=1e-7)
  np.testing.assert_allclose(up, x, atol=1e-5)
  np.testing.assert_array_equal(info.t, process.t_max)


@pytest.mark.slow
def test_encoding_and_decoding_return_the_data_in_single_precision():
  data = oracles.g2()
  x, _ = EDM.perturb(KEY, data.sample(KEY, 16)[0].astype(jnp.float32), 0.05)
  model = oracles.exact(data, EDM)
  solve = functools.partial(
    adaptive, model, EDM, method="dormand_prince", rtol=1e-6, atol=1e-6
  )
  code, _ = solve(x, (EDM.t_min, EDM.t_max))
  back, _ = solve(code)
  assert back.dtype == jnp.float32
  np.testing.assert_allclose(back, x, atol=1e-4)


def test_a_pi_controller_is_steadier_and_dearer(x64):
  """It settles at safety^(k / i), 0.17 of the tolerance, where I takes 0.59."""
  x, model = start(), oracles.exact(SINGLE, EDM)
  kwargs = dict(method="dormand_prince", rtol=1e-6, atol=1e-6)
  plain, usual = adaptive(model, EDM, x, **kwargs)
  steady, pi = adaptive(model, EDM, x, controller=samplers.PI, **kwargs)
  assert error(steady, x) < error(plain, x)
  assert 1.0 < pi.nfe.mean() / usual.nfe.mean() < 1.6
  assert pi.rejected.sum() < usual.rejected.sum()


# --- counts ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bogacki_shampine", "dpmpp_23"])
@pytest.mark.parametrize("per_sample", [True, False])
def test_the_calls_are_counted(method, per_sample):
  seen = []
  model = oracles.exact(oracles.g2(), EDM)

  def counted(x, t):
    jax.debug.callback(lambda s: seen.append(np.shape(s)), t)
    return model(x, t)

  _, info = adaptive(
    counted,
    EDM,
    start(dtype=jnp.float32),
    method=method,
    per_sample=per_sample,
    rtol=1e-3,
    atol=1e-3,
    first_step=4.0,  # so that some attempts are rejected
  )
  jax.effects_barrier()
  assert set(seen) == {(8,) if per_sample else ()}
  assert len(seen) == int(info.calls)
  assert (np.asarray(info.rejected) > 0).all()
  # the count of one sample, from its steps: a first call is asked for again
  # after an accepted step only, and not at all if the last place is it
  pair = embedded_pairs.PAIRS[method]
  attempts = np.asarray(info.accepted + info.rejected)
  firsts = 1 if pair.last_is_first else np.asarray(info.accepted)
  expected = attempts * (len(pair.places) - 1) + firsts
  np.testing.assert_array_equal(info.nfe, expected)
  assert int(info.calls) >= int(info.nfe.max())
  if not per_sample:
    assert int(info.calls) == int(info.nfe[0])


def test_a_sample_is_solved_as_it_would_be_alone():
  model = oracles.exact(oracles.g2(), EDM)
  x = start(dtype=jnp.float32)
  whole, together = adaptive(model, EDM, x, keep=40)
  assert len(set(np.asarray(together.nfe).tolist())) > 1
  for i in (0, 5):
    part, alone = adaptive(model, EDM, x[i : i + 1], keep=40)
    np.testing.assert_allclose(part[0], whole[i], rtol=1e-4, atol=1e-5)
    assert int(alone.nfe[0]) == int(together.nfe[i]) == int(alone.calls)
    assert int(alone.accepted[0]) == int(together.accepted[i])
    np.testing.assert_allclose(
      alone.times[:, 0], together.times[:, i], rtol=1e-3
    )


def test_the_kept_times_are_the_ends_of_the_accepted_steps():
  model = oracles.exact(SINGLE, EDM)
  for per_sample in (True, False):
    _, info = adaptive(
      model,
      EDM,
      start(dtype=jnp.float32),
      keep=60,
      per_sample=per_sample,
      rtol=1e-2,
      atol=1e-2,
    )
    for i, taken in enumerate(np.asarray(info.accepted)):
      times = np.asarray(info.times)[:, i]
      assert np.isnan(times[taken:]).all() and taken < 60
      assert (np.diff(times[:taken]) < 0).all()
      assert times[taken - 1] == np.float32(EDM.t_min)


def test_one_step_size_is_that_of_the_worst_sample(x64):
  model = oracles.exact(oracles.g2(), EDM)
  x = start()
  _, single = adaptive(model, EDM, x)
  _, batch = adaptive(model, EDM, x, per_sample=False)
  assert int(batch.accepted[0]) >= int(single.accepted.max())
  assert len(set(np.asarray(batch.nfe).tolist())) == 1


def test_trees_are_solved_as_their_parts_would_be_joined(x64):
  """The error is the largest over the leaves: here both are alike."""
  x = start()

  def model(v, t):
    answer = oracles.exact(SINGLE, EDM)
    pairs = jax.tree.map(lambda leaf: tuple(answer(leaf, t)), v)
    pick = lambda i: {k: pair[i] for k, pair in pairs.items()}
    return predictions.Prediction(pick(0), pick(1))

  pair, both = adaptive(model, EDM, {"a": x, "b": x})
  single, alone = adaptive(oracles.exact(SINGLE, EDM), EDM, x)
  np.testing.assert_allclose(pair["a"], single, rtol=1e-9)
  np.testing.assert_array_equal(both.nfe, alone.nfe)


def test_tolerances_and_controllers_share_one_program_and_trace():
  model = oracles.exact(SINGLE, EDM)
  x = start(dtype=jnp.float32)
  traces = []

  def counted(v, t):
    traces.append(1)
    return model(v, t)

  adaptive(counted, EDM, x, rtol=1e-2, atol=1e-2)
  once = len(traces)
  adaptive(counted, EDM, x, rtol=1e-4, atol=1e-3, controller=samplers.PI)
  assert len(traces) == once
  solve = lambda v: adaptive(model, EDM, v)[0]
  np.testing.assert_allclose(jax.jit(solve)(x), solve(x), rtol=1e-3, atol=1e-4)


# --- budgets and mistakes ----------------------------------------------------


def test_a_spent_budget_is_reported():
  model = oracles.exact(SINGLE, EDM)
  x = start(dtype=jnp.float32)
  with pytest.raises(RuntimeError, match=r"8 of 8 samples.*max_calls = 20 is"):
    adaptive(model, EDM, x, max_calls=20)
  _, left = adaptive(model, EDM, x, max_calls=20, check=False)
  assert not left.done.any() and int(left.calls) <= 20
  assert (left.t > EDM.t_min).all() and (left.t < EDM.t_max).all()


def test_a_model_that_breaks_down_is_reported():
  def broken(x, t):
    wrong = jnp.where(tree.expand(t, x) < 1.0, jnp.nan, 0.0)
    return predictions.Prediction(wrong + x, wrong + x)

  with pytest.raises(RuntimeError, match="the step size vanished"):
    adaptive(broken, EDM, start(dtype=jnp.float32))


def test_mistakes_are_named():
  model = oracles.exact(SINGLE, EDM)
  x = start(dtype=jnp.float32)
  solve = functools.partial(adaptive, model, EDM, x)
  with pytest.raises(ValueError, match="method must be one of 'bogacki"):
    solve(method="rk45")
  with pytest.raises(ValueError, match="the clock of dpmpp_23 must be one of"):
    solve(method="dpmpp_23", clock="t")
  with pytest.raises(ValueError, match="rtol must be positive, got 0"):
    solve(rtol=0)
  with pytest.raises(
    ValueError, match=r"first time, 90, is outside.*\[0.05, 20.0\]"
  ):
    solve(span=(90, 0.05))
  with pytest.raises(ValueError, match="the same time"):
    solve(span=(1.0, 1.0))
  with pytest.raises(TypeError, match="2 numbers or None as span, got 1.0"):
    solve(span=1.0)
  with pytest.raises(ValueError, match="first_step is a length"):
    solve(first_step=-0.1)
  with pytest.raises(TypeError, match="takes a model"):
    adaptive(x, EDM, model)
  with pytest.raises(TypeError, match="takes x fourth, got GaussianProcess"):
    adaptive(model, x, EDM)
  with pytest.raises(TypeError, match=r"x=\(2, 2\) is a shape.*a PRNG key"):
    adaptive(model, EDM, (2, 2))
  with pytest.raises(TypeError, match="dtype int32"):
    adaptive(model, EDM, jnp.ones((2, 2), jnp.int32))
  flow = processes.rectified_flow()
  with pytest.raises(
    ValueError, match="alpha = 0 at the first time, 1.*clock='t'"
  ):
    adaptive(oracles.exact(SINGLE, flow), flow, x)


# --- Picard iteration --------------------------------------------------------

TABLES = {
  "ddim": solvers.ddim,
  "ddpm": solvers.ddpm,
  "reverse_diffusion": solvers.reverse_diffusion,
  "euler": solvers.euler,
}


@pytest.mark.parametrize("window", [12, 5])
@pytest.mark.parametrize("name", TABLES)
def test_the_fixed_point_is_the_sequential_path(name, window, x64):
  process = processes.vp_linear()
  model = oracles.exact(oracles.g2(), process)
  table = TABLES[name](process, grids.log_snr(process, 12))
  x = start(process, 4)
  sequential = sampling.sample(KEY, model, table, x)
  parallel, info = samplers.picard(
    KEY, model, table, x, process=process, window=window, tolerance=0.0
  )
  np.testing.assert_allclose(parallel, sequential, rtol=1e-9, atol=1e-10)
  assert (info.rounds <= 12).all()


@pytest.mark.slow
def test_a_tolerance_saves_rounds_and_costs_little():
  process = processes.edm()
  model = oracles.exact(oracles.g16(), process)
  table = solvers.ddpm(process, grids.karras(process, 80, to_zero=True))
  shape = (8, 16)
  sequential = sampling.sample(KEY, model, table, shape, process=process)
  run = functools.partial(
    samplers.picard, KEY, model, table, shape, process=process, window=40
  )
  (x, loose), (y, tight) = run(tolerance=0.1), run(tolerance=0.001)
  distance = lambda v: float(jnp.sqrt(jnp.mean((v - sequential) ** 2)))
  assert distance(y) < distance(x) < 5e-3
  assert loose.batch_rounds < tight.batch_rounds < 80
  assert int(loose.batch_rounds) <= 40
  # waiting is bought with calls, and both are told
  assert (loose.nfe > 80).all()
  assert int(loose.batch_calls) == 40 * int(loose.batch_rounds)
  assert (loose.nfe <= 40 * loose.rounds).all()


def test_the_rounds_of_picard_are_counted():
  seen = []
  model = oracles.exact(SINGLE, EDM)

  def counted(x, t):
    jax.debug.callback(lambda s: seen.append(np.shape(s)), t)
    return model(x, t)

  table = solvers.ddim(EDM, grids.karras(EDM, 9))
  _, out = samplers.picard(
    KEY, counted, table, (3, 2), process=EDM, window=4, tolerance=0.05
  )
  jax.effects_barrier()
  assert set(seen) == {(3,)}  # mapped: once for each point of the window
  assert len(seen) == int(out.batch_calls) == 4 * int(out.batch_rounds)
  assert int(out.batch_rounds) == int(out.rounds.max())


def test_a_sample_settles_at_its_own_pace():
  model = oracles.exact(oracles.g2(), EDM)
  table = solvers.ddpm(EDM, grids.karras(EDM, 20, to_zero=True))
  run = functools.partial(
    samplers.picard, KEY, model, table, process=EDM, window=8
  )
  chosen = jnp.asarray([1, 4])
  x, whole = run((6, 2))
  y, part = run((2, 2), index=chosen)
  np.testing.assert_allclose(y, x[chosen], rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(part.rounds, whole.rounds[chosen])
  np.testing.assert_array_equal(part.nfe, whole.nfe[chosen])


def test_mistakes_of_picard_are_named():
  model = oracles.exact(SINGLE, EDM)
  grid = grids.karras(EDM, 4)
  run = functools.partial(samplers.picard, KEY, model, process=EDM)
  for build in (solvers.heun, solvers.dpmpp_2m, solvers.unipc):
    with pytest.raises(ValueError, match="picard runs one-step tables"):
      run(build(EDM, grid), (2, 2))
  table = solvers.ddim(EDM, grid)
  for window in (0, 5):
    with pytest.raises(ValueError, match=r"within 1\.\.4.*got " + str(window)):
      run(table, (2, 2), window=window)
  with pytest.raises(ValueError, match="tolerance must be at least 0"):
    run(table, (2, 2), tolerance=-1.0)
  wide = table._replace(noise=np.zeros((4, 3, 2)))
  with pytest.raises(ValueError, match="without data dimensions"):
    run(wide, (2, 2))
  with pytest.raises(TypeError, match="takes a Tableau there, got an array"):
    run(grid, (2, 2))
  with pytest.raises(TypeError, match="the tableau is traced"):
    jax.jit(lambda t: run(t, (2, 2))[0])(table)


def test_phi_of_the_embedded_pairs_is_stable_for_short_steps():
  """A step of 1e-6 in float32: expm1(h) / h - 1 would hold no digit."""
  h = jnp.float32(1e-6)
  np.testing.assert_allclose(h * numerics.phi(2, h), 5e-7, rtol=1e-6)

"""What a table did is undone exactly, by another table; and the methods that
can be, each against its published loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff.sampling import Pair
from jaxdiff.solvers.runge_kutta import METHODS
from tests.solvers.public_updates_test import answer
from tests.solvers.public_updates_test import play
from tests.solvers.public_updates_test import START
from tests.solvers.public_updates_test import VP

PROCESSES = {
  "vp": processes.vp_linear(),
  "edm": processes.edm(),
  "flow": processes.rectified_flow(),
}
BUILDS = {
  "belm": solvers.belm,
  "bdia": solvers.bdia,
  "bdia_1": functools.partial(solvers.bdia, gamma=1.0),
  "edict": solvers.edict,
  "edict_plain": functools.partial(solvers.edict, alternate=False),
  "rex_euler": functools.partial(solvers.rex, method="euler"),
  "rex_midpoint": solvers.rex,
  "rex_rk4": functools.partial(solvers.rex, method="rk4"),
  "rex_eps": functools.partial(solvers.rex, coupling=0.5, output="eps"),
}
DATA = np.random.default_rng(0).normal(size=(64, 2))
ROWS, MEMORY = 160, 4  # of one compiled program for each process


def grid_of(process, name="log_snr", steps=20):
  start = {} if process.alpha(process.t_max) else {"start": 0.98}
  return getattr(grids, name)(process, steps, **start)


def walk(process, table, pair):
  """Runs a table from a pair to a pair, on the mixture g2."""
  return sampling.sample(
    jax.random.key(0),
    oracles.exact(oracles.g2(), process),
    tables.pad(table, ROWS, MEMORY),
    pair,
    length=table.nfe,
  )


def apart(one, other):
  return float(abs(one - other).max() / abs(other).max())


def round_trip(process, grid, build, dtype):
  encode, decode = solvers.exact_inversion(build, process, grid)
  x = jnp.asarray(DATA, dtype)
  code = walk(process, encode, Pair(x, x))
  assert code.a.dtype == dtype
  return apart(walk(process, decode, code).a, x), code


@pytest.mark.parametrize("grid", ["log_snr", "karras", "uniform"])
@pytest.mark.parametrize("name", PROCESSES)
def test_data_come_back_from_their_code(name, grid, x64):
  """20 steps there and back: 5e-11 at most in float64, of 2e-15 and more.

  In float32 rounding grows by what a method's second solution grows by on the
  way to the noise: 1e-6 to 4e-4 for O-BELM and Rex of x0, up to 2e-2 for BDIA
  with gamma = 1/2 (a factor of two a step), EDICT and Rex of eps.
  """
  process = PROCESSES[name]
  times = grid_of(process, grid)
  for method, build in BUILDS.items():
    error, _ = round_trip(process, times, build, jnp.float64)
    assert error < 1e-9, (method, error)
    single, _ = round_trip(process, times, build, jnp.float32)
    steady = method in ("belm", "rex_euler", "rex_midpoint", "rex_rk4")
    assert single < (4e-4 if steady else 2e-2), (method, single)
    print(name, grid, method, f"{error:.1e} {single:.1e}")


@pytest.mark.parametrize("method", BUILDS)
def test_what_was_sampled_is_walked_back_to_its_noise(method, x64):
  """`inverted` of the sampler itself, from the pair where it ended."""
  process = PROCESSES["vp"]
  grid = grid_of(process, "karras")
  table = BUILDS[method](process, grid, pair=True)
  noise = process.prior(jax.random.key(1), (64, 2), grid[0], dtype=jnp.float64)
  first = Pair(noise, noise)
  if method in ("belm", "bdia", "bdia_1"):  # begin with a step of DDIM
    first = walk(process, tables.take(table, slice(0, 1)), first)
    table = tables.take(table, slice(1, None))
  end = walk(process, table, first)
  assert apart(end.a, walk(process, table, first).a) == 0
  entry, undo = solvers.inverted(table)
  assert undo.nfe == table.nfe and undo.process is table.process
  np.testing.assert_allclose(entry.sum(1), 1.0, rtol=1e-12)
  into = [w[0] * end.y + w[1] * end.a for w in entry]
  back = walk(process, undo, Pair(*into))
  assert apart(back.y, first.y) < 1e-9 and apart(back.a, first.a) < 1e-9
  # undone twice it is the table itself, from the place where it began
  enter, again = solvers.inverted(undo)
  start = [w[0] * first.y + w[1] * first.a for w in enter]
  there = walk(process, again, Pair(*start))
  for w, value in zip(entry, there, strict=True):
    assert apart(value, w[0] * end.y + w[1] * end.a) < 1e-7


def test_a_code_is_noise_where_the_method_is_stable_and_else_it_is_not(x64):
  """The second solution grows on the way to the noise as it fell before.

  What EDICT and BDIA with gamma = 1 make of data is of scale sigma; on a grid
  uniform in lambda O-BELM's is three times that, BDIA's with 1/2 a thousand.
  """
  process = PROCESSES["vp"]
  scale = {}
  for method in ("edict", "bdia_1", "belm", "bdia"):
    _, code = round_trip(process, grid_of(process), BUILDS[method], jnp.float64)
    scale[method] = float(jnp.sqrt(jnp.mean(code.a**2)))
  print(scale)
  assert 0.9 < scale["edict"] < 1.3 and 0.9 < scale["bdia_1"] < 1.3
  assert 2.0 < scale["belm"] < 4.0 and scale["bdia"] > 100.0


def test_rounding_is_all_that_is_lost(x64):
  """The plain encoder is off by its order, DDIM's and Heun's on 20 steps."""
  process = PROCESSES["vp"]
  grid = grid_of(process, "karras")
  for build in (solvers.ddim, solvers.heun):
    x = jnp.asarray(DATA)
    code = walk(process, solvers.encoder(build, process, grid), Pair(x, x)).a
    back = walk(process, build(process, grid), Pair(code, code)).a
    assert apart(back, x) > 1e-2, build.__name__


# --- the published loops -----------------------------------------------------

TIMES = grids.log_snr(VP, 7)
ALPHA, SIGMA = VP.alpha(TIMES), VP.sigma(TIMES)


def eps_at(x, i):
  return answer(x, ALPHA[i], SIGMA[i])[1]


def ddim(x, eps, i, j):
  """From time i to time j, with the answer eps."""
  return ALPHA[j] * (x - SIGMA[i] * eps) / ALPHA[i] + SIGMA[j] * eps


def check(table, expected):
  np.testing.assert_allclose(play(table, VP), expected, rtol=1e-10)


def test_belm_is_the_authors_loop():
  """Their rev_forward, with deltas of sigma / alpha."""
  x, level = [SIGMA[0] * START], SIGMA / ALPHA
  for i in range(7):
    eps = eps_at(x[-1], i)
    if i == 0:
      x.append(ddim(x[0], eps, 0, 1))
      continue
    last, ahead = level[i] - level[i - 1], level[i + 1] - level[i]
    both, to = level[i + 1] - level[i - 1], ALPHA[i + 1]
    x.append(
      ahead * both * to / last * eps
      + (ahead / last) ** 2 * (to / ALPHA[i - 1]) * x[-2]
      + (last - ahead) * both / last**2 * (to / ALPHA[i]) * x[-1]
    )
  check(solvers.belm(VP, TIMES), x[-1])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_bdia_takes_the_step_before_back(gamma):
  x = [SIGMA[0] * START]
  for i in range(7):
    eps = eps_at(x[-1], i)
    new = ddim(x[-1], eps, i, i + 1)
    if i:
      new = new + gamma * (x[-2] - ddim(x[-1], eps, i, i - 1))
    x.append(new)
  table = solvers.bdia(VP, TIMES, gamma=gamma)
  check(table, x[-1])
  if not gamma:
    check(solvers.ddim(VP, TIMES), x[-1])


def test_bdia_of_equal_steps_and_gamma_one_is_belm():
  edm = processes.edm()
  grid = grids.uniform(edm, 6)
  one, other = solvers.bdia(edm, grid, gamma=1.0), solvers.belm(edm, grid)
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("alternate", [False, True])
def test_edict_is_the_authors_loop(alternate):
  """They update latent i by the answer at the other, then mix both in turn."""
  pair, p = [SIGMA[0] * START] * 2, 0.93
  for i in range(7):
    for k in (0, 1):
      k = (k + i) % 2 if alternate else k
      pair[k] = ddim(pair[k], eps_at(pair[1 - k], i), i, i + 1)
    pair[0] = p * pair[0] + (1 - p) * pair[1]
    pair[1] = (1 - p) * pair[0] + p * pair[1]
  check(solvers.edict(VP, TIMES, alternate=alternate), pair[0])


@pytest.mark.parametrize("output", ["x0", "eps"])
@pytest.mark.parametrize("coupling", [0.999, 0.5])
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_rex_is_the_authors_loop(method, coupling, output):
  """x and x_hat by Psi of the unscaled sample, in gamma or in its inverse."""
  butcher = METHODS[method]
  data = output == "x0"
  clock = ALPHA / SIGMA if data else SIGMA / ALPHA
  unit = lambda u: 1.0 / np.sqrt(u**2 + 1.0)  # of VP: the scale of x

  def model(x, u):
    signal = u * unit(u) if data else unit(u)
    return answer(x, signal, np.sqrt(1.0 - signal**2))[0 if data else 1]

  def psi(x, u, h):
    k = []
    for row in butcher.matrix:
      to = u + sum(row) * h
      place = x / unit(u) + h * sum(w * f for w, f in zip(row, k, strict=False))
      k.append(model(unit(to) * place, to))
    return h * sum(w * f for w, f in zip(butcher.weights, k, strict=True))

  x = other = SIGMA[0] * START
  for u, v in zip(clock[:-1], clock[1:], strict=True):
    keep, h = unit(v) / unit(u), v - u
    mixed = coupling * x + (1 - coupling) * other
    x = keep * mixed + unit(v) * psi(other, u, h)
    other = keep * other - unit(v) * psi(x, v, -h)
  options = dict(method=method, coupling=coupling, output=output)
  table = solvers.rex(VP, TIMES, **options)
  stages = len(butcher.weights)
  assert table.nfe == 13 * stages and table.memory == stages
  np.testing.assert_allclose(play(table, VP), x, rtol=1e-8)
  whole = solvers.rex(VP, TIMES, pair=True, **options)
  assert whole.nfe == 14 * stages
  np.testing.assert_allclose(play(whole, VP), x, rtol=1e-8)


# --- what is refused ---------------------------------------------------------


def test_tables_without_an_exact_inverse_are_told():
  process = PROCESSES["vp"]
  grid = grid_of(process, steps=4)
  for build, said in (
    (solvers.ddim, "row 0 cannot be undone: .* solvers.encoder"),
    (solvers.heun, "row 0 cannot be undone"),
    (solvers.dpmpp_2m, "row 0 cannot be undone"),
    (solvers.belm, "row 3 cannot be undone"),  # ends at one sample
    (functools.partial(solvers.bdia, gamma=0.0, pair=True), "cannot be undone"),
    (solvers.ddpm, "draws noise cannot be undone; build it with eta=0"),
  ):
    table = build(process, grid)
    if build is solvers.belm:
      table = tables.take(table, slice(1, None))
      said = "row 2 cannot"
    with pytest.raises(ValueError, match=said):
      solvers.inverted(table)
  back = tables.row(0.5, "eps", (0.5, 0.5, 0.1, 0.2), (1.0, 0.0, 0.0, 0.0))
  with pytest.raises(ValueError, match="row 1 looks back at calls of the step"):
    first = tables.row(0.6, "eps", (0.5, 0.5, 0.1), (1.0, 0.0, 0.0))
    solvers.inverted(tables.concat(first, back))
  stage = tables.row(0.5, "eps", (1.0, 0.0, 0.1), (0.0, 1.0, 0.0))
  with pytest.raises(ValueError, match="ends within a step"):
    solvers.inverted(stage)
  wide = tables.Tableau(stage.t, *(leaf[..., None] for leaf in stage[1:]))
  with pytest.raises(ValueError, match="coefficients for each dimension"):
    solvers.inverted(wide)


def test_mistakes_are_told():
  process = PROCESSES["vp"]
  grid = grid_of(process, steps=4)
  inversion = solvers.exact_inversion
  with pytest.raises(ValueError, match="forget where they came from"):
    inversion(solvers.belm, process, grids.karras(process, 4, to_zero=True))
  with pytest.raises(ValueError, match="this grid has 1; take more"):
    inversion(solvers.belm, process, grid[:2])
  with pytest.raises(ValueError, match="cannot be undone"):
    inversion(solvers.bdia, process, grid, gamma=0.0)
  for build in (solvers.heun, solvers.from_spec("rex(method=rk4)")):
    with pytest.raises(TypeError, match="does not end at a pair.*method='rk4'"):
      inversion(build, process, grid)
  for build, said in (
    (lambda: solvers.bdia(process, grid, gamma=1.5), "to 1; got gamma=1.5"),
    (lambda: solvers.bdia(process, grid, gamma=-1.0), "gamma of bdia"),
    (lambda: solvers.edict(process, grid, mixing=0.0), "got mixing=0.0"),
    (lambda: solvers.rex(process, grid, coupling=1.1), "got coupling=1.1"),
    (lambda: solvers.rex(process, grid, output="v"), "'eps'; got 'v'"),
    (lambda: solvers.rex(process, grid, method="rk5"), "got 'rk5'"),
  ):
    with pytest.raises(ValueError, match=said):
      build()
  x = jnp.asarray(DATA)
  model = oracles.exact(oracles.g2(), process)
  with pytest.raises(ValueError, match="the pair's a has shape"):
    sampling.sample(
      jax.random.key(0), model, solvers.heun(process, grid), Pair(x, x[:1])
    )


# --- pairs -------------------------------------------------------------------


def test_a_pair_of_equals_ends_where_its_sample_does():
  """Of every kind of table; both states come back, and the anchor is it."""
  process = PROCESSES["vp"]
  model = oracles.exact(oracles.g2(), process)
  grid, key = grid_of(process, steps=4), jax.random.key(0)
  x = process.prior(jax.random.key(1), (8, 2))
  for build in (solvers.ddim, solvers.heun, solvers.unipc, solvers.ddpm):
    table = build(process, grid)
    end = sampling.sample(key, model, table, x)
    pair = sampling.sample(key, model, table, Pair(x, x))
    np.testing.assert_allclose(pair.a, end, rtol=1e-6)
    again = sampling.sample(key, model, table, Pair(x, x), donate=True)
    np.testing.assert_array_equal(again.a, pair.a)
    np.testing.assert_allclose(pair.y, end, rtol=1e-6)


def test_a_pair_keeps_its_states_apart_where_a_table_has_one():
  """A row with y = a from unequal states: what it takes of a is of a."""
  row = tables.row(0.5, "eps", (0.5, 0.25, 0.0))
  zero = lambda x, t: (0 * x, 0 * x)
  y, a = jnp.ones((2, 3)), jnp.full((2, 3), 4.0)
  end = sampling.sample(jax.random.key(0), zero, row, Pair(y, a))
  np.testing.assert_allclose(end.a, 0.5 + 1.0)
  alone = sampling.sample(jax.random.key(0), zero, row, y)
  np.testing.assert_allclose(alone, 0.75)


def test_pairs_of_trees_run_under_jit_and_are_collected():
  process = PROCESSES["vp"]
  encode, decode = solvers.exact_inversion(
    solvers.belm, process, grid_of(process)
  )
  model = oracles.exact(oracles.gaussian([0.3, -0.2], [0.5, 1.0]), process)
  of_tree = lambda v, t: tuple(
    {k: model(leaf, t)[j] for k, leaf in v.items()} for j in (0, 1)
  )
  x = {"one": jnp.asarray(DATA[:8], jnp.float32), "two": -DATA[:8].astype("f4")}
  key = jax.random.key(0)

  @jax.jit
  def round_trip(x):
    code = sampling.sample(key, of_tree, encode, Pair(x, x))
    return sampling.sample(
      key, of_tree, decode, code, collect=sampling.every(1)
    )

  back, kept = round_trip(x)
  assert kept["one"].shape == (decode.nfe, 8, 2)
  for name in x:
    assert apart(back.a[name], x[name]) < 1e-4

"""The algebra of tables, against a reading of the docstring in numpy."""

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
from tests.solvers.cases import CASES

PROCESS = processes.edm(0.05, 20.0)
RNG = np.random.default_rng(1)
X = 20.0 * RNG.normal(size=6)


def curved(y, t):
  """A model that is not linear: x0 = tanh(y) / (1 + t)."""
  x0 = np.tanh(y) / (1 + t)
  return x0, (y - x0) / t


def walk(table, x=X, model=curved, seed=0, length=None):
  """Returns (result, final y) of the loop as the module's docstring says it."""
  rng = np.random.default_rng(seed)
  y, a = x, x
  h = [np.zeros_like(x)] * table.memory  # newest first
  for i in range(table.nfe if length is None else length):
    z0, z = rng.normal(size=(2, *x.shape))
    y = y + table.noise[i, 0] * z0
    x0, eps = model(y, table.t[i])
    h = [table.output[i, 0] * x0 + table.output[i, 1] * eps, *h[:-1]]
    past = [sum(w * v for w, v in zip(ws, h)) for ws in table.history[i]]
    state = table.state[i]
    y, a = (
      state[0, 0] * y + state[0, 1] * a + past[0] + table.noise[i, 1] * z,
      state[1, 0] * y + state[1, 1] * a + past[1] + table.noise[i, 2] * z,
    )
  return a, y


def random_table(n, memory, seed=0):
  rng = np.random.default_rng(seed)
  return tables.Tableau(
    t=np.sort(rng.uniform(0.1, 9, n))[::-1],
    output=rng.normal(size=(n, 2)),
    state=0.5 * rng.normal(size=(n, 2, 2)),
    history=0.5 * rng.normal(size=(n, 2, memory)),
    noise=rng.uniform(size=(n, 3)),
  )


def assert_same(one, other):
  for name, a, b in zip(tables.Tableau._fields, one, other, strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)


# --- one step is what it says ------------------------------------------------


def test_a_row_of_two_stages_is_heun_by_hand():
  t, u = 3.0, 2.0
  h = u - t
  table = tables.concat(
    tables.row(t, "eps", y=(1, 0, h), a=(1, 0)),
    tables.row(u, "eps", y=(0, 1, h / 2, h / 2)),
  )
  v = lambda y, t: curved(y, t)[1]
  first = v(X, t)
  expected = X + h / 2 * (first + v(X + h * first, u))
  result, y = walk(table)
  np.testing.assert_allclose(result, expected, rtol=1e-14)
  np.testing.assert_array_equal(result, y)


def test_history_is_newest_first():
  pick = lambda *w: tables.row(1.0, "x0", y=(0, 0, *w))
  model = lambda y, t: (y + 1, y)  # the outputs are 1, 2, 3 from y = 0
  keep = tables.row(1.0, "x0", y=(0, 0, 1))
  start = np.zeros(1)
  for k, expected in enumerate([3.0, 2.0, 1.0]):
    table = tables.concat(keep, keep, pick(*np.eye(3)[k]))
    assert walk(table, start, model)[0] == expected


def test_multistep_is_rows_with_the_anchor_equal_to_the_state():
  carry, history = RNG.normal(size=3), RNG.normal(size=(3, 2))
  noise = RNG.uniform(size=3)
  t = np.array([3.0, 2.0, 1.0])
  whole = tables.multistep(t, (0.3, -0.7), carry, history, noise)
  rows = [
    tables.row(
      t[i],
      (0.3, -0.7),
      y=(carry[i], 0, *history[i]),
      noise=(0, *[noise[i]] * 2),
    )
    for i in range(3)
  ]
  assert_same(whole, tables.concat(*rows))


def test_sizes_and_randomness_are_read_from_the_leaves():
  table = random_table(5, 3)
  assert (table.nfe, table.memory, table.stochastic) == (5, 3, True)
  assert not table._replace(noise=np.zeros((5, 3))).stochastic


# --- algebra -----------------------------------------------------------------


def test_padding_changes_no_sample():
  table = random_table(4, 2)
  padded = tables.pad(table, 9, 4)
  assert (padded.nfe, padded.memory) == (9, 4)
  result, y = walk(table)
  np.testing.assert_array_equal(walk(padded, length=4)[0], result)
  # the padding rows pay calls, but change neither the anchor nor the state
  np.testing.assert_array_equal(walk(padded)[0], result)
  np.testing.assert_array_equal(walk(padded)[1], y)
  assert_same(tables.pad(table), table)


def test_padding_keeps_the_dtype_and_trailing_dimensions(x64):
  table = tables.Tableau(
    *(jnp.asarray(v, jnp.float32) for v in random_table(3, 1))
  )
  wide = table._replace(
    state=jnp.ones((3, 2, 2, 5), jnp.float32),
    history=jnp.ones((3, 2, 1, 5), jnp.float32),
  )
  for each in (table, wide):
    padded = tables.pad(each, 4, 2)
    assert all(leaf.dtype == jnp.float32 for leaf in padded)
  assert padded.history.shape == (4, 2, 2, 5)
  np.testing.assert_array_equal(
    padded.state[-1], np.broadcast_to(np.eye(2)[..., None], (2, 2, 5))
  )


def test_sample_of_a_padded_table_is_that_of_the_table():
  grid = grids.karras(PROCESS, 4)
  table = solvers.dpmpp_2m(PROCESS, grid)
  padded = tables.pad(table, 7, 3)
  model = oracles.exact(oracles.g2(), PROCESS)
  key = jax.random.key(0)
  x = PROCESS.prior(key, (5, 2))
  plain = sampling.sample(key, model, table, x)
  for length in (4, None):
    other = sampling.sample(key, model, padded, x, length=length)
    np.testing.assert_allclose(other, plain, rtol=1e-6, atol=1e-6)


def test_slices_of_a_stack_are_the_padded_tables():
  each = [random_table(3, 2, 1), random_table(5, 1, 2), random_table(1, 4, 3)]
  stacked, lengths = tables.stack(each)
  assert lengths.tolist() == [3, 5, 1]
  assert stacked.history.shape == (3, 5, 2, 4)
  for i, table in enumerate(each):
    part = tables.Tableau(*(leaf[i] for leaf in stacked))
    assert_same(part, tables.pad(table, 5, 4))
    np.testing.assert_array_equal(
      walk(part, length=lengths[i])[0], walk(table)[0]
    )


@pytest.mark.parametrize("solver", [solvers.ddim, solvers.ddpm, solvers.heun])
def test_one_step_methods_on_two_halves_of_a_grid_are_the_whole(solver):
  grid = grids.karras(PROCESS, 6)
  halves = solver(PROCESS, grid[:3]), solver(PROCESS, grid[2:])
  assert_same(tables.concat(*halves), solver(PROCESS, grid))


def test_concat_carries_the_memory_across():
  one, two = random_table(2, 3, 1), random_table(3, 1, 2)
  both = tables.concat(one, two)
  assert both.memory == 3
  np.testing.assert_array_equal(walk(both, length=2)[0], walk(one)[0])
  reads = tables.row(1.0, "x0", y=(0, 0, 0, 1))  # the output before its own
  model = lambda y, t: (np.full_like(y, t), y)
  table = tables.concat(tables.row(7.0, "x0", y=(1, 0)), reads)
  assert walk(table, np.zeros(1), model)[0] == 7.0


def test_taking_all_rows_in_pieces_is_the_table():
  table = random_table(5, 2)
  pieces = tables.take(table, slice(0, 2)), tables.take(table, [2, 3, 4])
  assert_same(tables.concat(*pieces), table)


def test_repeat_runs_the_rows_over_again():
  table = solvers.ddim(PROCESS, grids.karras(PROCESS, 3))
  twice = tables.repeat(table, 2)
  assert twice.nfe == 6
  again = walk(table, walk(table)[0])[0]
  np.testing.assert_allclose(walk(twice)[0], again, rtol=1e-13)


# --- reversal ----------------------------------------------------------------


@pytest.mark.parametrize(
  "process",
  [PROCESS, processes.vp_linear(), processes.rectified_flow(t_max=0.9)],
)
def test_reverse_undoes_a_table_exactly_if_the_output_is_constant(process):
  grid = grids.uniform(process, 7)
  table = solvers.ddim(process, grid)
  back = tables.reverse(table, grid[-1])
  np.testing.assert_array_equal(back.t, grid[:0:-1])
  point = RNG.normal(size=X.size)
  model = lambda y, t: (point, np.zeros_like(y))
  there = walk(table, X, model)[0]
  assert abs(there - X).max() > 0.1
  np.testing.assert_allclose(walk(back, there, model)[0], X, rtol=1e-9)


def test_error_of_reversal_is_of_first_order():
  errors = []
  for n in (40, 80):
    grid = grids.log_snr(PROCESS, n)
    table = solvers.ddim(PROCESS, grid)
    there = walk(table)[0]
    back = walk(tables.reverse(table, grid[-1]), there)[0]
    errors.append(abs(back - X).max())
  assert 1.7 < errors[0] / errors[1] < 2.3


@pytest.mark.parametrize(
  ("table", "message"),
  [
    (lambda g: solvers.ddpm(PROCESS, g), "draws noise.*eta=0"),
    (lambda g: solvers.dpmpp_2m(PROCESS, g), r"solvers\.encoder"),
    (lambda g: solvers.heun(PROCESS, g), r"solvers\.encoder"),
    (
      lambda g: tables.row(1.0, "x0", y=(1, 0, 1), a=(0.5, 0, 1)),
      r"solvers\.encoder",
    ),
    (
      lambda g: solvers.ddim(PROCESS, np.append(g, 0.0)),
      r"row 3 forgets.*sigma = 0",
    ),
  ],
)
def test_reverse_refuses_what_it_cannot_undo(table, message):
  with pytest.raises(ValueError, match=message):
    tables.reverse(table(grids.karras(PROCESS, 3)), 0.05)


# --- files -------------------------------------------------------------------


@pytest.mark.parametrize("trailing", [(), (4,)])
def test_a_saved_table_comes_back_bit_by_bit(tmp_path, trailing):
  table = random_table(3, 2)
  table = table._replace(
    history=RNG.normal(size=(3, 2, 2, *trailing)),
    noise=RNG.normal(size=(3, 3, *trailing)),
  )
  path = tmp_path / "new folder" / "best.table"
  tables.save(path, table)
  assert_same(tables.load(path), table)
  assert [p.name for p in path.parent.iterdir()] == ["best.table"]
  assert path.stat().st_size < 4000


def test_a_device_table_is_saved_in_float64(tmp_path):
  table = random_table(3, 2)
  single = tables.Tableau(*(jnp.asarray(v, jnp.float32) for v in table))
  tables.save(tmp_path / "t.npz", single)
  loaded = tables.load(tmp_path / "t.npz")
  assert all(leaf.dtype == np.float64 for leaf in loaded)
  assert_same(loaded, tables.Tableau(*(np.float32(v) for v in table)))


def test_files_that_hold_no_table_are_refused(tmp_path):
  path = tmp_path / "x.npz"
  with pytest.raises(FileNotFoundError):
    tables.load(path)
  for content in (b"", b"no zip", b"PK\x03\x04cut short"):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz.*tableau\.save"):
      tables.load(path)
  np.save(tmp_path / "x.npy", np.zeros(3))
  with pytest.raises(ValueError, match=r"not an .npz archive.*tableau\.save"):
    tables.load(tmp_path / "x.npy")
  table = random_table(3, 2)
  np.savez(path, t=table.t, output=table.output)
  with pytest.raises(ValueError, match="holds t, output, but .* state"):
    tables.load(path)
  np.savez(path, **table._replace(noise=np.zeros((2, 3)))._asdict())
  with pytest.raises(ValueError, match=r"tableau\.noise must have shape"):
    tables.load(path)


def test_what_is_no_single_finite_table_is_not_saved(tmp_path):
  table = random_table(3, 2)
  with pytest.raises(ValueError, match="jax.vmap"):
    tables.save(tmp_path / "a", tables.stack([table, table])[0])
  bad = table._replace(t=np.array([1.0, np.nan, 0.5]))
  with pytest.raises(ValueError, match=r"tableau\.t\[1\] is nan"):
    tables.save(tmp_path / "a", bad)
  with pytest.raises(TypeError, match="traced"):
    jax.jit(lambda t: tables.save(tmp_path / "a", t))(table)
  assert not list(tmp_path.iterdir())


# --- refusals ----------------------------------------------------------------


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(t=np.zeros(0)), "at least one row"),
    (dict(t=np.float64(1.0)), "at least one row"),
    (
      dict(output=np.zeros((3, 1))),
      r"tableau\.output must have shape \(3, 2\)",
    ),
    (dict(state=np.zeros((2, 2, 2))), r"tableau\.state must .* n = 3 calls"),
    (dict(history=np.zeros((3, 1, 2))), r"tableau\.history must .*\(3, 2, 2\)"),
    (dict(history=np.zeros((3, 2, 0))), r"history must have shape \(3, 2, 1\)"),
    (dict(noise=np.zeros(3)), r"tableau\.noise must have shape \(3, 3\)"),
    (
      dict(state=np.full((3, 2, 2), [[1, 1], [1, np.inf]])),
      r"tableau\.state\[0, 1, 1\] is inf; row 0",
    ),
  ],
)
def test_validate_names_the_leaf(change, message):
  with pytest.raises(ValueError, match=message):
    tables.validate(random_table(3, 2)._replace(**change))


def test_validate_accepts_trailing_dimensions_and_traced_leaves():
  table = random_table(3, 2)
  wide = table._replace(history=np.zeros((3, 2, 2, 4)))
  assert tables.validate(wide) is wide
  jax.jit(tables.validate)(table)


def test_other_refusals():
  table = random_table(3, 2)
  with pytest.raises(ValueError, match="cannot pad a tableau of 3 rows"):
    tables.pad(table, 2)
  with pytest.raises(ValueError, match="2 to None rows and memory 1"):
    tables.pad(table, memory=1)
  with pytest.raises(ValueError, match="at least 1, got 0"):
    tables.repeat(table, 0)
  with pytest.raises(ValueError, match="at least one tableau"):
    tables.concat()
  with pytest.raises(ValueError, match="output must be one of 'x0', 'eps'"):
    tables.row(1.0, "v", y=(1, 0, 1))


def test_one_step_tables_are_told_from_those_with_memory_or_stages():
  edm = processes.edm()
  grid = grids.karras(edm, 4, to_zero=True)
  for build in ("ddim", "ddpm", "euler", "reverse_diffusion"):
    assert CASES[build].build(edm, grid).one_step, build
  for build in ("heun", "dpmpp_2m", "unipc_2", "rk4"):
    assert not CASES[build].build(edm, grid).one_step, build
  noisy_end = tables.row(1.0, "x0", (0.5, 0.0, 0.5), noise=(0.0, 1.0, 0.0))
  assert not noisy_end.one_step  # y gets noise that a does not


def test_a_saved_table_says_where_it_comes_from(tmp_path):
  table = tables.row(1.0, "x0", y=(0.5, 0.0, 1.0))
  facts = {"model": "abc", "rmse": 0.02, "grid": [1.0, 0.5]}
  tables.save(tmp_path / "a.npz", table, about=facts)
  assert tables.about(tmp_path / "a.npz") == facts
  assert tables.load(tmp_path / "a.npz").t == table.t
  tables.save(tmp_path / "b.npz", table)
  assert tables.about(tmp_path / "b.npz") == {}

"""Learned solvers: gradients, constraints, honesty, and that they win."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import learning
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from tests.solvers.cases import CASES

EDM = processes.edm()
FLOW = processes.rectified_flow()
VP = processes.vp_linear()


def lessons(key, process=EDM, n=256, zero=False):
  model = oracles.exact(oracles.g2(), process)
  t_end = process.t_zero if zero else None
  table = learning.teacher(process, 60, t_end)
  return model, learning.teach(key, model, process, (n, 2), table)


FAMILIES = ("bns", "s4s", "consistent", "ld3", "ld3_decoupled", "amed")


def family(name, process=EDM):
  """Returns what can be learned on 4 calls: (theta, build)."""
  grid = grids.vp_quadratic(process, 4)
  table = solvers.ipndm(process, grid, order=2)
  unipc = CASES["unipc_2"].build
  return {
    "bns": lambda: learning.bns(table, process),
    "s4s": lambda: learning.bns(table, process, memory=2),
    "consistent": lambda: learning.bns(
      table, process, memory=2, consistent=True
    ),
    "consistent_bns": lambda: learning.bns(table, process, consistent=True),
    "ld3": lambda: learning.ld3(unipc, process, grid),
    "ld3_decoupled": lambda: learning.ld3(unipc, process, grid, decoupled=True),
    "amed": lambda: learning.amed(process, grids.vp_quadratic(process, 2)),
  }[name]()


# --- the split ---------------------------------------------------------------


def test_the_three_sets_share_no_noise():
  keys = learning.split(jax.random.key(0))
  starts = [np.asarray(EDM.prior(key, (500, 2))) for key in keys]
  rows = np.concatenate(starts)
  assert len(np.unique(rows, axis=0)) == 1500


def test_noises_in_both_sets_are_refused():
  keys = learning.split(jax.random.key(0))
  model, train = lessons(keys.train, n=32)
  theta, build = family("bns")
  with pytest.raises(ValueError, match="32 noises are in both sets"):
    next(learning.descend(keys.train, model, build, theta, train, train))


def test_lessons_do_not_depend_on_how_they_are_batched():
  model = oracles.exact(oracles.g2(), EDM)
  table = learning.teacher(EDM, 20)
  key = jax.random.key(3)
  one, other = (
    learning.teach(key, model, EDM, (50, 2), table, batch=b) for b in (50, 16)
  )
  np.testing.assert_allclose(one.end, other.end, atol=1e-5)


@pytest.mark.parametrize("process", [EDM, VP, FLOW], ids=["edm", "vp", "flow"])
def test_the_teacher_has_converged(process, x64):
  key = jax.random.key(0)
  end = process.t_zero if process is FLOW else None
  model = oracles.exact(oracles.g2(), process)
  table = learning.teacher(process, t_end=end)
  taught = learning.teach(key, model, process, (128, 2), table)
  finer = learning.teacher(process, 400, end)
  assert learning.errors(model, finer, taught)["rmse"] < 5e-4


# --- families ----------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
  "process",
  [
    pytest.param(EDM, id="edm"),
    pytest.param(FLOW, id="flow", marks=pytest.mark.slow),
  ],
)
def test_a_family_begins_at_its_table(name, process, x64):
  """And is exactly it: the noise ends where the solver takes it."""
  theta, build = family(name, process)
  grid = grids.vp_quadratic(process, 4)
  table = {
    "ld3": CASES["unipc_2"].build(process, grid),
    "ld3_decoupled": CASES["unipc_2"].build(process, grid),
    "amed": solvers.dpm_solver(
      process, grids.vp_quadratic(process, 2), order=2
    ),
  }.get(name, solvers.ipndm(process, grid, order=2))
  model = oracles.exact(oracles.g2(), process)
  x = process.prior(jax.random.key(0), (64, 2), dtype=jnp.float64)
  run = lambda t: np.asarray(sampling.sample(jax.random.key(0), model, t, x))
  np.testing.assert_allclose(
    run(build(jnp.asarray(theta))), run(table), rtol=1e-7, atol=1e-7
  )


@pytest.mark.parametrize(
  "name",
  [
    "bns",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("consistent", "ld3_decoupled", "amed")
    ),
  ],
)
def test_gradients_are_those_of_finite_differences(name, x64):
  theta, build = family(name)
  model, taught = lessons(jax.random.key(0), n=16)

  @jax.jit
  def loss(theta):
    out = sampling.sample(jax.random.key(0), model, build(theta), taught.start)
    return jnp.mean((out - taught.end) ** 2)

  theta = jnp.asarray(theta)
  along = jnp.asarray(np.random.default_rng(0).standard_normal(len(theta)))
  along = along * jnp.maximum(abs(theta), 0.1)
  h = 1e-5
  numeric = (loss(theta + h * along) - loss(theta - h * along)) / (2 * h)
  np.testing.assert_allclose(jax.grad(loss)(theta) @ along, numeric, rtol=1e-4)
  _, forward = jax.jvp(loss, (theta,), (along,))
  np.testing.assert_allclose(forward, numeric, rtol=1e-4)


@pytest.mark.parametrize("name", ["consistent", "consistent_bns"])
@pytest.mark.parametrize("process", [EDM, VP, FLOW], ids=["edm", "vp", "flow"])
def test_consistent_tables_are_exact_for_constant_answers(name, process, x64):
  """Wherever the descent goes: any theta."""
  theta, build = family(name, process)
  noise = np.random.default_rng(1).standard_normal(len(theta))
  table = build(jnp.asarray(theta + 0.1 * noise))
  x0, eps = jnp.asarray([[0.3, -2.0]]), jnp.asarray([[1.5, 0.7]])

  def constant(x, t):
    del x, t
    return x0, eps

  at = lambda t: process.alpha(t) * x0 + process.sigma(t) * eps
  start = at(float(table.t[0]))
  end = sampling.sample(jax.random.key(0), constant, table, start)
  np.testing.assert_allclose(end, at(process.t_min), rtol=1e-9, atol=1e-9)


def test_learned_times_stay_inside_the_process():
  theta, build = family("bns")
  wild = jnp.asarray(theta + 30.0 * np.sign(np.arange(len(theta)) % 2 - 0.5))
  t = np.asarray(build(wild).t)
  assert (t <= EDM.t_max * (1 + 1e-6)).all()
  assert (t >= EDM.t_min * (1 - 1e-6)).all()


def test_a_learned_grid_falls_and_keeps_its_ends():
  from jaxdiff.learning.ld3 import learned_grid

  wild = np.random.default_rng(0).standard_normal(7) * 4
  grid = learned_grid(wild, 80.0, 0.002)
  assert (np.diff(grid) < 0).all()
  assert (grid[0], grid[-1]) == (80.0, 0.002)


def test_memory_bounds_what_a_row_may_use():
  theta, build = family("s4s")
  assert build(jnp.asarray(theta)).memory == 2
  table = solvers.ipndm(EDM, grids.vp_quadratic(EDM, 5), order=4)
  with pytest.raises(ValueError, match="uses 4 answers, but memory=2"):
    learning.bns(table, EDM, memory=2)
  with pytest.raises(ValueError, match="1 to n = 5; got memory=9"):
    learning.bns(table, EDM, memory=9)
  heun = solvers.heun(EDM, grids.vp_quadratic(EDM, 3))
  with pytest.raises(ValueError, match="multistep table to start from"):
    learning.bns(heun, EDM, memory=2)


# --- descent -----------------------------------------------------------------

QUICK = learning.Settings(
  rounds=4, steps=30, batch=128, rate=0.05, metric_batch=64
)


def descend(name, resume=None):
  keys = learning.split(jax.random.key(0))
  model, train = lessons(keys.train, n=1024)
  _, validation = lessons(keys.validation, n=512)
  theta, build = family(name)
  return list(
    learning.descend(
      jax.random.key(1), model, build, theta, train, validation, QUICK, resume
    )
  )


whole_descent = functools.cache(descend)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bns", "ld3", "amed"])
def test_what_is_learned_wins_on_unseen_noises(name):
  model, report = lessons(learning.split(jax.random.key(0)).report, n=512)
  theta, build = family(name)
  error = lambda v: learning.errors(
    model, build(jnp.asarray(v, jnp.float32)), report
  )["rmse"]
  assert error(whole_descent(name)[-1].best) < error(theta)


def test_a_descent_that_is_interrupted_goes_on_to_the_same_end():
  whole = whole_descent("bns")
  rest = descend("bns", resume=whole[1])
  np.testing.assert_array_equal(rest[-1].theta, whole[-1].theta)
  assert rest[-1].best_rmse == whole[-1].best_rmse
  assert [p.round for p in rest] == [3, 4]


@pytest.mark.parametrize(
  "name", ["bns", pytest.param("ld3", marks=pytest.mark.slow)]
)
def test_the_best_iterate_is_kept(name):
  progress = whole_descent(name)
  least = np.minimum.accumulate([p.rmse for p in progress])
  best = [p.best_rmse for p in progress]
  assert all(b <= l for b, l in zip(best, least, strict=True))
  assert (np.diff(best) <= 0).all()


def test_a_learned_table_is_saved_with_its_story(tmp_path):
  theta, build = family("bns")
  table = build(jnp.asarray(theta))
  tables.save(tmp_path / "t.npz", table, about=dict(process="edm"))
  again = tables.load(tmp_path / "t.npz")
  for one, other in zip(table, again, strict=True):
    np.testing.assert_array_equal(one, other)
  assert tables.about(tmp_path / "t.npz")["process"] == "edm"


@pytest.mark.slow
def test_the_script_learns_reports_and_goes_on(tmp_path, capsys):
  from experiments import learn_solver
  from experiments.configs import learn_solver as configs

  config = configs.get_config()
  config.update(
    dict(
      target="g2",
      calls=(3,),
      solvers=("ddim",),
      grids=("karras",),
      noises=64,
      validation=64,
      report=32,
      report_seeds=(0, 1),
      teacher_calls=20,
      reference_calls=20,
      rounds=2,
      steps=10,
      batch=32,
      metric_batch=32,
      float64=False,
      out=str(tmp_path),
    )
  )
  (row,) = learn_solver.run(config)
  assert row["rounds"] == 2
  assert len(row["learned_rmse_by_seed"]) == 2
  assert row["learned_rmse"] < row["start_rmse"]
  assert tables.load(tmp_path / "3.npz").nfe == 3
  story = tables.about(tmp_path / "3.npz")
  assert (story["model"], story["start"]) == ("g2", "ddim on karras")
  assert "ratio" in capsys.readouterr().out
  (again,) = learn_solver.run(config)  # nothing is left to be learned
  assert again["learned_rmse"] == row["learned_rmse"]
  config.method = "nets"
  with pytest.raises(ValueError, match="none of bns, ld3, amed"):
    learn_solver.run(config)


# --- refusals ----------------------------------------------------------------


def test_refusals():
  grid = grids.vp_quadratic(EDM, 4)
  noisy = solvers.ddpm(EDM, grid)
  model = oracles.exact(oracles.g2(), EDM)
  with pytest.raises(ValueError, match="no one end to be learned"):
    learning.teach(jax.random.key(0), model, EDM, (4, 2), noisy)
  with pytest.raises(ValueError, match="draws noise"):
    learning.bns(noisy, EDM)
  with pytest.raises(ValueError, match="ends at t_min=0.002"):
    learning.teacher(EDM, 10, t_end=1.0)
  with pytest.raises(ValueError, match="leaves no step"):
    learning.amed(FLOW, np.asarray([1.0, 0.0]))
  with pytest.raises(ValueError, match="0 < r < 1"):
    from jaxdiff.learning.amed import two_call_steps

    two_call_steps(EDM, grid, middle=1.5)
  keys = learning.split(jax.random.key(0))
  model, train = lessons(keys.train, n=16)
  _, other = lessons(keys.validation, n=16)
  theta, build = family("bns")
  with pytest.raises(ValueError, match="rmse of nan"):
    next(
      learning.descend(keys.train, model, build, theta * np.nan, train, other)
    )

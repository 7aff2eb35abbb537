"""The measured choice: what it takes, what it costs, what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import choosing
from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables

EDM = processes.edm()
FLOW = processes.rectified_flow()
LAW, WIDTH = oracles.g2(), 1.55
KEY = jax.random.key(0)


@functools.cache
def chosen(calls=8, process=EDM):
  model = oracles.exact(LAW, process)
  return choosing.choose(KEY, model, process, calls, (2,), width=WIDTH)


def error(process, table, key, noises=512):
  """Root mean square distance to the ODE on noises of another key."""
  model = oracles.exact(LAW, process)
  x = process.prior(key, (noises, 2))
  run = lambda table: np.asarray(
    sampling.sample(key, model, tables.pad(table, 200, 6), x, length=table.nfe)
  )
  reference = run(solvers.unipc(process, grids.vp_quadratic(process, 200)))
  return float(np.sqrt(np.mean((run(table) - reference) ** 2)))


@pytest.mark.parametrize("process", [EDM, FLOW])
def test_on_other_noises_it_is_near_the_best_of_all_candidates(process):
  table, report = chosen(8, process)
  known = choosing.candidates(process, 8, WIDTH)
  assert len(known) == choosing.COUNT == len(report.rows)
  found = {n: error(process, t, jax.random.key(9)) for n, t in known.items()}
  mine = error(process, table, jax.random.key(9))
  assert mine == found[report.chosen[8]]
  assert mine < 1.5 * min(found.values())
  assert min(found.values()) < 0.6 * np.median(list(found.values()))


def test_the_rows_are_ranked_and_the_first_three_had_more_noises():
  table, report = chosen()
  assert report.best(8) == report.rows[0]
  assert table.nfe == report.rows[0].nfe == 8
  assert [row.noises for row in report.rows[:3]] == [320, 320, 320]
  rest = [row.rmse for row in report.rows[3:]]
  assert rest == sorted(rest)
  assert report.converged
  assert report.disagreement < report.rows[0].rmse / 3
  text = str(report)
  assert text.count("*") == 1
  assert f"{report.calls} network calls in all" in text


def test_all_runs_are_one_program_and_cost_what_was_told():
  counted = []

  @jax.tree_util.register_static
  class Model:
    process = EDM

    def __call__(self, x, t):
      jax.debug.callback(lambda: counted.append(1))
      return oracles.exact(LAW, EDM)(x, t)

  before = sampling.compilations()
  _, report = choosing.choose(KEY, Model(), EDM, 4, (2,), width=WIDTH)
  jax.effects_barrier()
  assert sampling.compilations() - before == 1
  least, most = choosing.cost(4)
  assert least <= report.calls <= most
  assert report.calls == len(counted)


def test_a_range_of_calls_is_a_frontier_with_one_reference():
  model = oracles.exact(LAW, EDM)
  found, report = choosing.choose(KEY, model, EDM, (5, 8), (2,), width=WIDTH)
  assert [found[n].nfe for n in (5, 8)] == [5, 8]
  assert set(report.chosen) == {5, 8}
  assert report.best(8).rmse < report.best(5).rmse
  alone = chosen()[1]
  assert report.chosen[8] == alone.chosen[8]
  least, most = choosing.cost((5, 8))
  assert least <= report.calls <= most


def test_the_width_is_the_models_or_that_of_its_samples():
  model = oracles.exact(LAW, EDM)
  _, report = choosing.choose(KEY, model, EDM, 2, (2,))
  assert 1.4 < report.width < 1.7
  net = lambda params, x, c: params * x
  told = jd.Denoiser(0.5, apply=net, process=EDM, data_width=3.0)
  _, report = choosing.choose(KEY, told, EDM, 2, (2,))
  assert report.width == 3.0


def test_tables_of_ones_own_are_chosen_from():
  model = oracles.exact(LAW, EDM)
  grid = grids.vp_quadratic(EDM, 6)
  mine = {"ddim": solvers.ddim(EDM, grid), "ipndm": solvers.ipndm(EDM, grid)}
  table, report = choosing.choose(
    KEY, model, EDM, 6, (2,), tables=mine, width=WIDTH
  )
  assert report.chosen == {6: "ipndm"}
  np.testing.assert_array_equal(table.history, mine["ipndm"].history)
  many = lambda n: {"ddim": solvers.ddim(EDM, grids.karras(EDM, n))}
  found, _ = choosing.choose(
    KEY, model, EDM, (3, 4), (2,), tables=many, width=WIDTH
  )
  assert {n: t.nfe for n, t in found.items()} == {3: 3, 4: 4}


def test_an_ode_that_no_reference_resolves_is_told_with_its_noise_level():
  """A denoiser that changes its mind between levels 1 and 2, fast."""

  def model(x, t):
    x0 = jnp.where((t > 1.0) & (t < 2.0), 3.0 * jnp.sin(3e4 * t), 0.1 * x)
    return jd.Prediction(x0, (x - x0) / t)

  _, report = choosing.choose(KEY, model, EDM, 20, (2,), width=1.0)
  assert not report.converged
  assert 0.5 < report.parted < 4.0
  assert "NOT CONVERGED" in str(report)


def test_guided_labelled_and_coarse_models_can_be_chosen_for():
  label = jnp.arange(16) % 3
  model = oracles.exact(LAW, EDM)
  guided = jd.cfg(model, label=label, null=3, scale=1.5)
  table, report = choosing.choose(
    KEY, guided, EDM, 4, (2,), noises=16, width=WIDTH, dtype=jnp.bfloat16
  )
  assert table.nfe == 4
  assert np.isfinite(report.best(4).rmse)


def test_pfgm_is_chosen_for_with_its_own_noise():
  process = jd.pfgmpp(128)
  model = oracles.exact(LAW, processes.edm())
  _, report = choosing.choose(
    KEY, lambda x, t: model(x, t), process, 4, (2,), noises=16, width=WIDTH
  )
  assert report.best(4).rmse < 1.0


@pytest.mark.parametrize(
  ("options", "kind", "said"),
  [
    (dict(calls=0), ValueError, "at least one network call"),
    (dict(calls=()), ValueError, "at least one network call"),
    (dict(tables={}), ValueError, "no tables for 4 calls"),
    (dict(noises=1), ValueError, "noises.*at least 2"),
    (dict(width=0.0), ValueError, "width.*more than 0"),
    (dict(reference=()), ValueError, "two tables"),
    (
      dict(tables={"d": solvers.ddpm(EDM, grids.karras(EDM, 4))}),
      ValueError,
      "'d' draws noise",
    ),
  ],
)
def test_what_it_cannot_choose_from_is_refused(options, kind, said):
  model = oracles.exact(LAW, EDM)
  options = dict(calls=4, width=WIDTH) | options
  calls = options.pop("calls")
  with pytest.raises(kind, match=said):
    choosing.choose(KEY, model, EDM, calls, (2,), **options)


def test_a_model_without_finite_samples_is_refused():
  broken = lambda x, t: jd.Prediction(x * jnp.nan, x)
  with pytest.raises(FloatingPointError, match="none of the .* tables"):
    choosing.choose(KEY, broken, EDM, 3, (2,), width=1.0)

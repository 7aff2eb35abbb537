"""The default for a number of calls and a width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from tests.solvers.cases import CASES

PROCESSES = {
  "edm": processes.edm(),
  "vp_cosine": processes.vp_cosine(),
  "flow": processes.rectified_flow(),
}
every_process = pytest.mark.parametrize("name", PROCESSES)


@every_process
def test_it_makes_as_many_calls_as_it_is_given(name):
  for calls in (1, 2, 3, 7, 8, 20):
    for to_zero in (False, True):
      table = solvers.default(PROCESSES[name], calls, to_zero=to_zero)
      assert table.nfe == calls
      assert not table.stochastic
  with pytest.raises(ValueError, match="at least one call, got calls=0"):
    solvers.default(PROCESSES[name], 0)


def test_data_of_another_unit_have_the_same_table_in_that_unit():
  """Twice the width is the table of half the noise levels."""
  wide = solvers.default(processes.edm(0.004, 160.0), 9, width=2.0)
  unit = solvers.default(processes.edm(0.002, 80.0), 9, width=1.0)
  np.testing.assert_allclose(wide.t, 2.0 * unit.t, rtol=1e-9)
  np.testing.assert_allclose(wide.state, unit.state, rtol=1e-9)


def test_a_model_brings_its_process_and_its_width():
  process = processes.edm()
  net = lambda params, x, c: params * x
  model = jd.Denoiser(0.5, apply=net, process=process, data_width=3.0)
  guided = jd.guidance.clip_x0(model, process)
  told = solvers.default(process, 8, width=3.0)
  for given in (model, guided):
    for leaf, other in zip(solvers.default(given, 8), told, strict=True):
      np.testing.assert_array_equal(leaf, other)
  over = solvers.default(model, 8, width=1.0)
  np.testing.assert_array_equal(over.t, solvers.default(process, 8).t)
  with pytest.raises(TypeError, match="takes a process"):
    solvers.default(lambda x, t: (x, x), 8)


@pytest.mark.parametrize("width", [0.5, 4.0])
def test_it_beats_published_solvers_at_any_width(width, x64):
  """On a mixture of a seed that chose none of its numbers."""
  process = processes.edm()
  law = oracles.random_mixture(1001, width=width)
  model = oracles.exact(law, process)
  shape = (128, law.means.shape[1])
  x = process.prior(jax.random.key(3), shape, dtype=np.float64)

  def run(table):
    return sampling.sample(
      jax.random.key(0), model, tables.pad(table, 240, 5), x, length=table.nfe
    )

  truth = run(solvers.rk4(process, grids.karras(process, 60)))
  error = lambda table: float(jnp.sqrt(jnp.mean((run(table) - truth) ** 2)))
  for calls in (10, 20):
    others = [
      error(CASES[name].build(process, grid(process, calls)))
      for name in ("ipndm_3", "unipc_3", "dpmpp_2m")
      for grid in (grids.vp_quadratic, grids.karras)
    ]
    ours = error(solvers.default(process, calls, width=width))
    assert ours < 1.2 * min(others), (calls, ours, others)

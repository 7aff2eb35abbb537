"""One method, many processes: transferred tables, and their normal form."""

import dataclasses

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

EDM = processes.edm()
TARGETS = {  # their noise levels hold 0.002..80, and 113 after churn
  "vp": processes.vp_linear(t_min=1e-6),
  "covering": processes.vp_linear_covering(0.001, 150.0),
  "cosine": processes.vp_cosine(t_min=1e-3),
  "flow": processes.rectified_flow(t_min=1e-4),
  "ve": processes.ve(0.001, 150.0),
}
NAMES = ("ddim", "heun", "unipc_3", "dpm_solver_3", "ipndm_4", "deis_3")


def run(process, table, x, collect=None):
  """Runs a table; without collect, one program for each process."""
  model, length = oracles.exact(oracles.g2(), process), None
  if collect is None:
    table, length = tables.pad(table, 16, 5), table.nfe
  return sampling.sample(
    jax.random.key(7),
    model,
    table,
    jnp.asarray(x),
    collect=collect,
    length=length,
  )


def start(process, t, n=16):
  z = np.random.default_rng(0).standard_normal((n, 2))
  return float(process.sigma(t)) * z


def relative(a, b):
  return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["heun", "unipc_3", "heun_churn", "ddpm"])
def test_a_transferred_table_draws_the_same_samples(name, target, x64):
  process = TARGETS[target]
  table = CASES[name].build(EDM, grids.karras(EDM, 6))
  moved = solvers.transfer(table, EDM, process)
  expected = run(EDM, table, start(EDM, table.t[0]))
  t_end = process.time_at(EDM.t_min)
  got = run(process, moved, start(process, moved.t[0])) / process.alpha(t_end)
  assert relative(got, expected) < 1e-8


def test_there_and_back_is_the_table_itself():
  table = solvers.dpm_solver(EDM, grids.karras(EDM, 4), order=3)
  process = TARGETS["covering"]
  there = solvers.transfer(table, EDM, process)
  end = float(process.time_at(EDM.t_min))
  back = solvers.transfer(there, process, EDM, t_end=end)
  for one, other in zip(table, back, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc_3", "ipndm_3"])
def test_solvers_built_in_the_noise_level_transfer_to_themselves(name):
  """What is defined in lambda alone is one method on every process."""
  build, process = CASES[name].build, TARGETS["covering"]
  grid = grids.log_snr(EDM, 5)
  moved = solvers.transfer(build(EDM, grid), EDM, process)
  built = build(process, process.time_at(grid))
  forms = [solvers.normal_form(table, process) for table in (moved, built)]
  for one, other in zip(*forms, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


def test_ends_without_noise_and_without_signal(x64):
  flow = processes.rectified_flow()
  cosine = processes.vp_cosine(t_min=1e-4)
  table = solvers.unipc(flow, grids.karras(flow, 5, to_zero=True))
  moved = solvers.transfer(table, flow, cosine, t_end=flow.t_zero)
  assert moved.t[0] == cosine.t_max
  expected = run(flow, table, start(flow, 1.0))
  assert relative(run(cosine, moved, start(cosine, 1.0)), expected) < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_the_normal_form_visits_the_same_places(name, x64):
  table = CASES[name].build(EDM, grids.karras(EDM, 3))
  form = solvers.normal_form(table, EDM)
  assert form.memory == table.nfe
  asked = sampling.every(1, lambda info: info.y)
  x = start(EDM, 80.0)
  for one, other in zip(
    run(EDM, form, x, asked), run(EDM, table, x, asked), strict=True
  ):
    assert relative(one, other) < 1e-8


def test_one_method_has_one_normal_form():
  """DPM-Solver-1 in eps and in x0, UniPC of order 1 without its corrector."""
  grid = grids.log_snr(EDM, 4)
  forms = [
    solvers.normal_form(table, EDM)
    for table in (
      solvers.ddim(EDM, grid),
      solvers.ipndm(EDM, grid, order=1),
      solvers.unipc(EDM, grid, order=1, corrector=False, output="eps"),
    )
  ]
  for other in forms[1:]:
    for one, leaf in zip(forms[0], other, strict=True):
      np.testing.assert_allclose(one, leaf, rtol=1e-9, atol=1e-10)
  again = solvers.normal_form(forms[0], EDM)
  np.testing.assert_allclose(again.history, forms[0].history, atol=1e-10)


def test_refusals():
  table = solvers.ddim(EDM, grids.karras(EDM, 3))
  narrow = dataclasses.replace(EDM, t_max=10.0)
  with pytest.raises(ValueError, match="80, which is outside of the target"):
    solvers.transfer(table, EDM, narrow)
  with pytest.raises(TypeError, match="takes a process"):
    solvers.transfer(table, EDM, processes.edm)
  zero = solvers.ddim(EDM, grids.karras(EDM, 3, to_zero=True))
  nowhere = processes.from_alpha_sigma(
    lambda t: 0 * t + 1.0, lambda t: t, 1e-3, 80.0
  )
  with pytest.raises(ValueError, match="t_zero"):
    solvers.transfer(zero, EDM, nowhere, t_end=0.0)
  with pytest.raises(ValueError, match="draws noise"):
    solvers.normal_form(solvers.ddpm(EDM, grids.karras(EDM, 3)), EDM)
  with pytest.raises(ValueError, match="each dimension"):
    wide = tables.Tableau(table.t, *(leaf[..., None] for leaf in table[1:]))
    solvers.normal_form(wide, EDM)
  lost = tables.concat(solvers.building.denoise(EDM, 80.0, 0.0), table)
  with pytest.raises(ValueError, match="call 1 asks at a place"):
    solvers.normal_form(lost, EDM)

"""Solvers by their text, as a command line gives them."""

import re

import numpy as np
import pytest

import jaxdiff as jd
from experiments.configs import search_mixture
from jaxdiff import grids
from jaxdiff import solvers
from jaxdiff.solvers import specs
from jaxdiff.solvers import v3_statistics
from tests.solvers.cases import CASES

EDM = jd.edm()
GRID = grids.karras(EDM, 6)


def same(one, other):
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("spec", "expected"),
  [
    ("dpmpp_2m", lambda g: solvers.dpmpp_2m(EDM, g)),
    (" unipc( order = 3 ) ", lambda g: solvers.unipc(EDM, g, order=3)),
    ("heun_churn(churn=40)", lambda g: solvers.heun_churn(EDM, g, churn=40)),
    (
      "heun_churn(churn=4, s_min=0.05, s_max=inf)",
      lambda g: solvers.heun_churn(EDM, g, churn=4, s_min=0.05),
    ),
    (
      "unipc(order=2, output=eps, corrector=False)",
      lambda g: solvers.unipc(EDM, g, order=2, output="eps", corrector=False),
    ),
    (
      "dpm_solver(order=[1, 2, 1, 3, 2, 1], output='x0')",
      lambda g: solvers.dpm_solver(
        EDM, g, order=[1, 2, 1, 3, 2, 1], output="x0"
      ),
    ),
    (
      "unic(predictor=deis, order=2)",
      lambda g: solvers.unic(EDM, g, predictor=solvers.deis, order=2),
    ),
    (
      "unic(predictor=deis(order=2, variant=rho_ab))",
      lambda g: solvers.unic(
        EDM, g, predictor=solvers.deis, order=2, variant="rho_ab"
      ),
    ),
    (
      "restart(intervals=[(0.1, 0.3, 2, 1)], solver=euler)",
      lambda g: solvers.restart(
        EDM, g, intervals=[(0.1, 0.3, 2, 1)], solver=solvers.euler
      ),
    ),
  ],
)
def test_a_spec_is_the_solver_with_its_options(spec, expected):
  same(solvers.from_spec(spec)(EDM, GRID), expected(GRID))


def test_every_solver_is_named_and_its_options_are_listed():
  named = specs.named()
  made = {n for n in solvers.__all__ if hasattr(getattr(solvers, n), "build")}
  assert set(named) == made | {"default", "restart"} and len(named) > 40
  lines = specs.usage().splitlines()
  assert [re.match(r"\w+", line)[0] for line in lines] == list(named)
  assert "heun_churn(churn=0.0, s_min=0.0, s_max=inf, s_noise=1.0)" in lines
  assert "unic(predictor=dpmpp_2m, ...)" in lines
  assert "dpm_solver_v3(statistics=..., order=None," in specs.usage()
  assert not any("process" in line or "grid=" in line for line in lines)


def test_an_order_is_the_highest_that_the_grid_allows():
  build = solvers.from_spec("ipndm(order=3)")
  two = grids.karras(EDM, 2, to_zero=True)  # one step, and one into sigma = 0
  same(build(EDM, two), solvers.ipndm(EDM, two, order=1))
  for spec in ("unic(predictor=deis, order=3)", "sa_solver(predictor=3)"):
    assert solvers.from_spec(spec)(EDM, two).nfe == 2
  with pytest.raises(ValueError, match="defined for orders"):
    solvers.from_spec("ipndm(order=7)")(EDM, grids.karras(EDM, 9))


def test_an_order_below_the_lowest_is_the_solver_s_to_judge():
  """0 is no corrector for SA-Solver, and an error for every other."""
  for few in (GRID, grids.karras(EDM, 2, to_zero=True)):
    same(
      solvers.from_spec("sa_solver(corrector=0)")(EDM, few),
      solvers.sa_solver(EDM, few, corrector=0),
    )
  for spec in ("ipndm(order=0)", "ipndm(order=-1)", "unipc(order=0)"):
    with pytest.raises(ValueError, match="defined for orders"):
      solvers.from_spec(spec)(EDM, GRID)


def test_a_solver_of_a_spec_can_be_walked_backwards():
  for spec in ("heun", "ipndm(order=3)", "unipc(order=2, variant=bh1)"):
    name, given = specs.parse(spec)
    same(
      solvers.encoder(solvers.from_spec(spec), EDM, GRID),
      solvers.encoder(name, EDM, GRID, **given),
    )


@pytest.mark.parametrize(
  ("spec", "said"),
  [
    # names
    ("ipndm_3", r"no solver 'ipndm_3'; did you mean ipndm\(order=3\)\?"),
    ("dpm_solver_v3_2", r"did you mean dpm_solver_v3\(order=2\)\?"),
    ("unipc_2_eps", r"did you mean unipc\(order=2, output='eps'\)\?"),
    ("dpmpp_2s", r"did you mean dpm_solver\(order=2, output='x0'\)\?"),
    ("kutta3", r"did you mean runge_kutta\(method='kutta3'\)\?"),
    (
      "huen",
      r"there is no solver 'huen'; did you mean heun\?; there are adams",
    ),
    ("dpmpp-2m", "no solver; write a name .*; did you mean dpmpp_2m"),
    ("zzz", "there is no solver 'zzz'; there are adams_bashforth,"),
    # not a spec
    ("", "is no solver; write a name and its options"),
    ("heun(", "is no solver; write a name and its options"),
    ("jd.heun()", "no solver 'jd.heun'"),
    ("ddim(0.5)", r"options are given by name, as in ddim\(eta=...\)"),
    ("ddim(**{'eta': 1})", "options are given by name"),
    ("ddim(eta=0, eta=1)", "is no solver|gives eta twice"),
    # options
    (
      "heun_churn(chrun=40)",
      "no option 'chrun'; did you mean churn.; it takes c",
    ),
    ("heun(order=2)", "heun has no option 'order'; it takes none"),
    ("unic(predictor=deis, ordr=2)", "no option 'ordr'; did you mean order"),
    ("unic(order=2)", "unic has no option 'order'"),
    ("ipndm(order=two)", r"ipndm\(order='two'\): order is a whole number"),
    ("ipndm(order=2.5)", "order is a whole number"),
    ("DDIM", r"no solver 'DDIM'; did you mean ddim\?"),
    ("ddim\0", "is no solver"),
    ("ddim(eta={[]: 1})", r"ddim\(eta={\[\]: 1}\): an option is a number"),
    ("ddim(eta=" + 2000 * "-" + "1)", "is no solver|an option is a number"),
    ("ddim(eta=small)", r"ddim\(eta='small'\): eta is a number"),
    ("ddim(eta=True)", "eta is a number"),
    ("unipc(corrector=1)", "corrector is True or False"),
    ("unipc(variant=3)", "variant is a word"),
    ("deis(clock=3)", "clock is nothing that a text can give"),
    ("ddim(eta=1+1j*2)", "an option is a number|eta is a number"),
    ("ddim(eta=__import__('os').getpid())", "an option is a number, a word"),
    ("unic(predictor=deiss)", "no solver 'deiss'; did you mean deis"),
    ("unic(predictor=default)", "brings a grid"),
  ],
)
def test_mistakes_in_a_spec_say_what_was_meant(spec, said):
  with pytest.raises(ValueError, match=said):
    solvers.from_spec(spec)


def test_every_old_name_of_a_case_is_a_solver_or_refused_with_its_spec():
  for name in CASES:
    if name in specs.named():
      continue
    with pytest.raises(ValueError, match="did you mean") as e:
      specs.parse(name)
    meant = re.search(r"did you mean (.*?)\?;", str(e.value))[1]
    if "v3" not in name:  # statistics of the case: a standard Gaussian's
      same(solvers.from_spec(meant)(EDM, GRID), CASES[name].build(EDM, GRID))


def test_default_is_no_solver_for_a_grid():
  assert specs.parse("default(width=2.0)") == (
    solvers.default,
    {"width": 2.0},
  )
  with pytest.raises(ValueError, match="'default' brings its own grid"):
    solvers.from_spec("default")


def test_v3_takes_no_statistics_but_those_of_its_model(tmp_path):
  with pytest.raises(ValueError, match=r"needs statistics; .*save.*npz"):
    solvers.from_spec("dpm_solver_v3(order=2)")
  held = v3_statistics.of_gaussian(EDM, variance=0.25)
  v3_statistics.save(tmp_path / "s.npz", held)
  spec = f"dpm_solver_v3(order=2, statistics='{tmp_path}/s.npz')"
  same(
    solvers.from_spec(spec)(EDM, GRID),
    solvers.dpm_solver_v3(EDM, GRID, held, order=2),
  )
  vp = jd.vp_linear()
  with pytest.raises(ValueError, match="these statistics were estimated under"):
    solvers.from_spec(spec)(vp, grids.vp_quadratic(vp, 6))


def test_the_search_compares_with_every_deterministic_case():
  built = [
    solvers.from_spec(spec)(EDM, GRID)
    for spec in search_mixture.get_config().solvers
  ]
  assert not any(table.stochastic for table in built)
  for name, case in CASES.items():
    if case.order and "v3" not in name:
      table = case.build(EDM, GRID)
      assert any(
        all(np.array_equal(a, b) for a, b in zip(table, other, strict=True))
        for other in built
      ), name

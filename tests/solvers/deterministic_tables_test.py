"""Deterministic tables: one quadrature under many names, orders, transforms.

Everything here runs in numpy on a mixture of two Gaussians on the line, whose
answers are three lines of code: no compilation, nothing shared with the
library's own loop and oracles.
"""

import functools
import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.integrate

from jaxdiff import grids
from jaxdiff import numerics
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import adams_bashforth
from jaxdiff.solvers.exponential_rk import Exponential
from jaxdiff.solvers.exponential_rk import lawson
from jaxdiff.solvers.exponential_rk import METHODS as ETD
from jaxdiff.solvers.exponential_rk import three_stages
from jaxdiff.solvers.exponential_rk import two_stages
from jaxdiff.solvers.runge_kutta import Butcher
from jaxdiff.solvers.runge_kutta import METHODS as RK
from jaxdiff.solvers.unic import correct
from tests.solvers.cases import CASES

VP = processes.vp_linear()
EDM = processes.edm(0.05, 20.0)
FLOW = processes.rectified_flow(0.01, 0.95)
PROCESSES = {"vp": VP, "edm": EDM, "flow": FLOW, "sub_vp": processes.sub_vp()}
MEANS, SPREADS = np.asarray([1.0, -0.7]), np.asarray([0.5, 0.9])
START = np.linspace(-2.0, 2.0, 8)


def answer(process, x, t):
  """The exact (x0, eps) of two equal Gaussians."""
  alpha, sigma = process.alpha(t), process.sigma(t)
  square = alpha**2 * SPREADS**2 + sigma**2
  offset = x[:, None] - alpha * MEANS
  log = -0.5 * (offset**2 / square + np.log(square))
  weight = np.exp(log - log.max(1, keepdims=True))
  weight /= weight.sum(1, keepdims=True)
  eps = sigma * (weight * offset / square).sum(1)
  x0 = (weight * (MEANS + alpha * SPREADS**2 * offset / square)).sum(1)
  return np.stack([x0, eps])


def play(table, process, x, first=0, outputs=(), anchor=None, ask=answer):
  """Walks a table from its row `first`; returns the accepted samples."""
  y, a = x, x if anchor is None else anchor
  past = list(outputs)[::-1]  # newest first
  for i in range(first, table.nfe):
    past.insert(0, table.output[i] @ ask(process, y, table.t[i]))
    h = np.stack(past[: table.memory])
    state, weights = table.state[i], table.history[i][:, : len(h)]
    y, a = state @ np.stack([y, a]) + weights @ h
  return a


@functools.cache
def path(process, times):
  """The flow at the times to 13 digits, by another's method; [n, 8]."""
  velocity = lambda t, x: np.stack(process.rates(t)) @ answer(process, x, t)
  states = [process.sigma(times[0]) * START]
  for ends in itertools.pairwise(times):
    found = scipy.integrate.solve_ivp(
      velocity, ends, states[-1], method="DOP853", rtol=3e-14, atol=1e-14
    )
    states.append(found.y[:, -1])
  return np.stack(states)


def error(table, process, grid, start_steps=0):
  """The largest error, past the first steps with an exact history."""
  end = path(process, (grid[0], grid[-1]))[-1]
  if start_steps == 0:
    out = play(table, process, path(process, (grid[0],))[0])
  else:
    states = path(process, tuple(grid[: start_steps + 1]))
    outputs = [
      table.output[i] @ answer(process, states[i], grid[i])
      for i in range(start_steps)
    ]
    corrects = np.any(table.history[start_steps, 0, 0] != 0) and np.any(
      table.history[start_steps, 0] != table.history[start_steps, 1]
    )
    anchor = states[start_steps - 1] if corrects else None
    out = play(
      table, process, states[start_steps], start_steps, outputs, anchor
    )
  return abs(out - end).max()


def slope(build, process, grid, sizes, history=0):
  """The order that two sizes of grid show."""
  errors = [
    error(build(process, grid(process, n)), process, grid(process, n), history)
    for n in sizes
  ]
  return math.log(errors[0] / errors[1]) / math.log(sizes[1] / sizes[0])


def same(one, other, rtol=1e-9, atol=1e-11):
  """Asserts that two tables are one, up to unused memory."""
  memory = max(one.memory, other.memory)
  one, other = (tables.pad(t, memory=memory) for t in (one, other))
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# --- one method under many names ---------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_multistep_solvers_are_exponential_adams_bashforth(name):
  process = PROCESSES[name]
  grid = grids.quadratic(process, 7)
  build = functools.partial(solvers.exponential_ab, process, grid)
  same(build(order=2), solvers.dpmpp_2m(process, grid, solver_type="heun"))
  same(build(order=3), solvers.dpmpp_3m(process, grid))
  eps = functools.partial(build, output="eps")
  same(eps(order=2), solvers.dpm_solver_2m(process, grid, solver_type="heun"))
  same(eps(order=3), solvers.dpm_solver_3m(process, grid))
  same(eps(order=4), solvers.deis(process, grid, variant="lambda_ab"))
  deis = solvers.deis(process, grid, clock=process)
  same(eps(order=4, variable=process), deis)
  same(eps(order=4, variable="own"), solvers.lms(process, grid))
  same(solvers.ipndm_v(process, grid), solvers.lms(process, grid))
  for output in ("x0", "eps"):
    same(
      build(order=3, output=output),
      solvers.unipc(
        process,
        grid,
        order=3,
        output=output,
        corrector=False,
        exact=True,
        lower_order_final=False,
      ),
    )


def test_adams_bashforth_in_t_is_the_form_whose_clock_t_is():
  """eps for EDM, the flow for straight paths, v for the cosine's angle."""
  same(
    solvers.adams_bashforth(EDM, grids.karras(EDM, 6), order=4),
    solvers.lms(EDM, grids.karras(EDM, 6)),
  )
  grid = grids.quadratic(FLOW, 6)
  same(
    solvers.adams_bashforth(FLOW, grid, order=3),
    solvers.exponential_ab(FLOW, grid, order=3, output="flow", variable="own"),
  )
  cosine = processes.vp_cosine(t_max=0.95)
  grid = grids.quadratic(cosine, 6)
  ours = solvers.adams_bashforth(cosine, grid, order=3)
  v = solvers.exponential_ab(cosine, grid, order=3, output="v", variable="own")
  speed = np.pi / 2  # of the angle in t
  np.testing.assert_allclose(ours.output, speed * v.output, atol=1e-12)
  np.testing.assert_allclose(speed * ours.history, v.history, rtol=1e-9)
  np.testing.assert_allclose(ours.state, v.state, rtol=1e-12)


def test_order_one_is_ddim_or_euler():
  """Holding x0 or eps is DDIM; v and the flow, Euler on their own paths."""
  cosine = processes.vp_cosine(t_max=0.95)
  for process in (VP, EDM, FLOW, cosine):
    grid = grids.log_snr(process, 4)
    build = functools.partial(solvers.exponential_ab, process, grid, order=1)
    walk = lambda table, process=process: play(table, process, START)
    ddim = walk(solvers.ddim(process, grid))
    for output in ("x0", "eps"):
      np.testing.assert_allclose(walk(build(output=output)), ddim, rtol=1e-11)
    if process in (FLOW, cosine):
      output = "flow" if process == FLOW else "v"
      euler = walk(solvers.euler(process, grid))
      held = walk(build(output=output, variable="own"))
      np.testing.assert_allclose(held, euler, rtol=1e-11)
      close = np.allclose(held, ddim, rtol=1e-11)
      assert close == (process == FLOW)  # a chord is not an arc


@pytest.mark.parametrize("output", ["x0", "eps", "v", "flow"])
@pytest.mark.parametrize("variable", ["own", "log_snr", "time"])
def test_weights_integrate_polynomials_of_their_variable(output, variable):
  """Against 30 digits: c' int p du for p of degrees 0..3."""
  grid = np.asarray([0.9, 0.7, 0.55, 0.4, 0.3])
  process = VP
  mp = mpmath.mp.clone()
  mp.dps = 30
  level = lambda t: mp.sqrt(mp.expm1(0.1 * t + 9.95 * t**2))
  clock = {
    "x0": lambda t: 1 / level(t),
    "eps": level,
    "v": lambda t: mp.atan(level(t)),
    "flow": lambda t: level(t) / (1 + level(t)),
  }[output]
  place = {
    "own": clock,
    "log_snr": lambda t: -mp.log(level(t)),
    "time": lambda t: t,
  }[variable]
  used = process if variable == "time" else variable
  weights = forms.weights(output, process, grid[:4], (grid[3], grid[4]), used)
  scale = forms.FORMS[output].scale(process, grid[4])
  for degree in range(4):
    exact = mp.quad(
      lambda t, d=degree: place(t) ** d * mp.diff(clock, t), [0.4, 0.3]
    )
    ours = sum(
      mp.mpf(float(w)) * place(mp.mpf(float(t))) ** degree
      for w, t in zip(weights, grid[:4], strict=True)
    )
    assert abs(ours / float(scale) / exact - 1) < 1e-9, degree


@pytest.mark.parametrize("output", forms.FORMS)
def test_a_constant_prediction_is_integrated_exactly(output):
  """Any order, any form, any variable: x / c moves by F times the clock."""
  process = FLOW
  grid = grids.karras(process, 6)
  form = forms.FORMS[output]
  x = np.asarray([0.3, -1.2])
  scale, clock = (f(process, grid[[0, -1]]) for f in (form.scale, form.clock))
  exact = scale[1] * (x / scale[0] + 1.7 * np.diff(clock))
  variables = ["own"] if output == "velocity" else ["own", "log_snr", VP]
  built = [
    solvers.exponential_ab(
      process, grid, order=order, output=output, variable=variable
    )
    for order in (1, 2, 4)
    for variable in variables
  ]
  built += [
    solvers.runge_kutta(process, grid, method=name, output=output)
    for name in RK
  ]
  if output in ("x0", "eps"):
    built += [
      solvers.exponential_rk(process, grid, method=name, output=output)
      for name in ETD
    ]
  if output == "eps":
    built += [
      build(process, grid)
      for build in (solvers.pndm, solvers.plms, solvers.s_pndm)
    ]
  for table in built:
    # two answers whose F is 1.7: (x0, eps) along the output's own direction
    ask = lambda process, y, t: np.linalg.lstsq(
      form.output(process, t)[None], 1.7 * np.ones((1, len(y)))
    )[0]
    np.testing.assert_allclose(
      play(table, process, x, ask=ask), exact, rtol=1e-9
    )


def test_orders_may_be_given_step_by_step():
  grid = grids.log_snr(VP, 4)
  table = solvers.exponential_ab(VP, grid, order=[1, 2, 1, 3])
  counts = np.count_nonzero(table.history[:, 0], axis=1)
  assert counts.tolist() == [1, 2, 1, 3]
  same(
    tables.take(table, slice(3, 4)),
    tables.take(solvers.dpmpp_3m(VP, grid), slice(3, 4)),
  )


# --- orders ------------------------------------------------------------------


@pytest.mark.parametrize("output", ["x0", "eps", "v", "flow", "velocity"])
@pytest.mark.parametrize("order", [2, 5])
def test_exponential_adams_bashforth_has_any_order(order, output):
  variable = "own" if output == "velocity" else "log_snr"
  build = lambda process, grid: solvers.exponential_ab(
    process, grid, order=order, output=output, variable=variable
  )
  sizes = (160, 320)
  measured = slope(build, EDM, grids.log_snr, sizes, order)
  assert abs(measured - order) < 0.25, measured


PREDICTORS = {
  "dpmpp_2m": (solvers.dpmpp_2m, 2),
  "dpm_solver_2m": (solvers.dpm_solver_2m, 2),
  "dpmpp_3m": (solvers.dpmpp_3m, 3),
  "ddim": (solvers.ddim, 1),
  "deis_t": (functools.partial(solvers.deis, order=2), 2),
  "deis_rho": (functools.partial(solvers.deis, order=3, variant="rho_ab"), 3),
  "ab": (functools.partial(solvers.adams_bashforth, order=2), 2),
  "v": (functools.partial(solvers.exponential_ab, order=2, output="v"), 2),
}


@pytest.mark.parametrize("name", PREDICTORS)
def test_unic_adds_one_order_to_any_predictor(name):
  predictor, order = PREDICTORS[name]
  process = VP if name in ("v", "ab") else EDM
  build = functools.partial(solvers.unic, predictor=predictor)
  wrapped = lambda process, grid: build(process, grid)
  sizes = (80, 160) if order == 3 else (160, 320)
  measured = slope(wrapped, process, grids.log_snr, sizes, order + 1)
  assert abs(measured - order - 1) < 0.25, measured
  grid = grids.log_snr(process, 8)
  table = wrapped(process, grid)
  assert table.nfe == 8  # at no more calls


@pytest.mark.parametrize("output", ["x0", "eps"])
def test_unic_of_exponential_adams_bashforth_is_unipc(output):
  for order in (1, 2, 3):  # on steps that enlarge no error
    grid = grids.quadratic(VP, 14)
    same(
      solvers.unic(
        VP, grid, predictor=solvers.exponential_ab, order=order, output=output
      ),
      solvers.unipc(
        VP,
        grid,
        order=order,
        output=output,
        exact=True,
        lower_order_final=False,
      ),
    )


def _trees(order):
  """Rooted trees of so many nodes, as sorted tuples of their branches."""
  if order == 1:
    return {()}
  found = set()
  for tree in _trees(order - 1):
    found |= {tuple(sorted(grown)) for grown in _grow(tree)}
  return found


def _grow(tree):
  yield (*tree, ())
  for i, branch in enumerate(tree):
    for grown in _grow(branch):
      yield (*tree[:i], tuple(sorted(grown)), *tree[i + 1 :])


def _size(tree):
  return 1 + sum(map(_size, tree))


def _density(tree):
  return _size(tree) * math.prod(map(_density, tree))


def _inner(tree, a):
  """The stages' elementary weight of a tree, f64[s]."""
  return np.prod([a @ _inner(b, a) for b in tree] + [np.ones(len(a))], axis=0)


def classical_order(a, b):
  """The order that Butcher's conditions on rooted trees give."""
  for order in range(1, 6):
    for tree in _trees(order):
      if abs(b @ _inner(tree, a) - 1 / _density(tree)) > 1e-12:
        return order - 1
  return 5


ORDERS = {
  "euler": 1,
  "midpoint": 2,
  "heun": 2,
  "ralston": 2,
  "kutta3": 3,
  "heun3": 3,
  "ralston3": 3,
  "ssp3": 3,
  "rk4": 4,
  "rk38": 4,
  "dormand_prince5": 5,
}


@pytest.mark.parametrize("name", RK)
def test_butcher_arrays_meet_the_order_conditions(name):
  method = RK[name]
  a, b = method.matrix, np.asarray(method.weights)
  assert classical_order(a, b) == ORDERS[name]


def test_the_trees_are_counted():
  assert [len(_trees(n)) for n in range(1, 6)] == [1, 1, 2, 4, 9]


ETD_ORDERS = {  # classical order, and conditions on b that hold for all z
  "euler": (1, 1),
  "res_2s": (2, 2),
  "exp_heun_2": (2, 2),
  "dpm_2": (2, 1),
  "dpm_3": (3, 2),
  "cox_matthews_4": (4, 3),
  "krogstad_4": (4, 3),
  "hochbruck_4": (4, 3),
}


def _coefficients(method, z):
  s = len(method.places)
  a = np.zeros((s, s))
  for i, row in enumerate(method.stages(z)):
    a[i + 1, : i + 1] = row
  return np.asarray(method.places), a, np.asarray(method.weights(z))


@pytest.mark.parametrize("name", ETD)
def test_exponential_methods_meet_their_order_conditions(name):
  """At z = 0 the classical ones, for all z the quadratures' and row sums'."""
  classical, stiff = ETD_ORDERS[name]
  method = ETD[name]
  c, a, b = _coefficients(method, 0.0)
  assert classical_order(a, b) == classical
  np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
  for z in (-3.0, -0.4, 2.0):
    c, a, b = _coefficients(method, z)
    np.testing.assert_allclose(
      a.sum(1), c * numerics.phi(1, c * z), rtol=1e-12, atol=1e-15
    )
    holds = [
      abs(b @ c ** (k - 1) / math.factorial(k - 1) - numerics.phi(k, z)) < 1e-12
      for k in range(1, 5)
    ]
    assert holds == [k <= stiff for k in range(1, 5)], z


@pytest.mark.parametrize("name", [n for n in ETD if n != "euler"])
@pytest.mark.parametrize("output", ["x0", "eps"])
def test_exponential_methods_have_their_order(name, output):
  order = ETD_ORDERS[name][0]
  build = lambda process, grid: solvers.exponential_rk(
    process, grid, method=name, output=output
  )
  measured = slope(
    build, EDM, grids.log_snr, (40, 80) if order > 3 else (80, 160)
  )
  assert abs(measured - order) < 0.3, measured


@pytest.mark.parametrize("output", ["eps", "v", "velocity"])
@pytest.mark.parametrize("name", ["heun", "kutta3", "rk4"])
def test_runge_kutta_has_its_order_in_every_form(name, output):
  build = lambda process, grid: solvers.runge_kutta(
    process, grid, method=name, output=output
  )
  measured = slope(build, EDM, grids.log_snr, (80, 160))
  assert abs(measured - ORDERS[name]) < 0.3, measured


def test_integrating_factors_keep_the_classical_order():
  for name, order in (("heun", 2), ("rk4", 4)):
    method = lawson(RK[name])
    assert isinstance(method, Exponential)
    build = lambda process, grid, m=method: solvers.exponential_rk(
      process, grid, method=m
    )
    measured = slope(build, EDM, grids.log_snr, (160, 320))
    assert abs(measured - order) < 0.3, measured


# --- singlestep --------------------------------------------------------------


def test_dpm_solver_is_the_exponential_method_of_its_name():
  grid = grids.quadratic(VP, 4)
  for output in ("eps", "x0"):
    for order, method in ((2, "dpm_2"), (3, "dpm_3")):
      same(
        solvers.dpm_solver(VP, grid, order=order, output=output),
        solvers.exponential_rk(VP, grid, method=method, output=output),
      )
    same(
      solvers.dpm_solver(VP, grid, output=output, solver_type="heun"),
      solvers.exponential_rk(VP, grid, method="res_2s", output=output),
    )


def test_dpmpp_2s_is_algorithm_1_of_its_paper():
  """u by DDIM at half the step, then the whole step with its x0 alone."""
  grid = grids.quadratic(VP, 3)
  x = START
  table = solvers.dpm_solver(VP, grid, order=2, output="x0")
  y = x
  for t, t_next in itertools.pairwise(grid):
    lam, end = VP.log_snr(t), VP.log_snr(t_next)
    s = VP.log_snr_inverse((lam + end) / 2)
    h = end - lam
    x0 = answer(VP, y, t)[0]
    u = VP.sigma(s) / VP.sigma(t) * y - VP.alpha(s) * np.expm1(-h / 2) * x0
    x0 = answer(VP, u, s)[0]
    y = (
      VP.sigma(t_next) / VP.sigma(t) * y - VP.alpha(t_next) * np.expm1(-h) * x0
    )
  np.testing.assert_allclose(play(table, VP, x), y, rtol=1e-11)


def test_three_stages_of_any_places_have_order_three_with_the_parabola():
  method = three_stages(0.25, 0.6, "heun")
  c, a, b = _coefficients(method, 0.0)
  assert classical_order(a, b) >= 2  # the last stage's place decides the rest
  for z in (-2.0, 1.0):
    c, a, b = _coefficients(method, z)
    for k in (1, 2, 3):
      moment = b @ c ** (k - 1) / math.factorial(k - 1)
      np.testing.assert_allclose(moment, numerics.phi(k, z), rtol=1e-11)


def test_two_stages_at_any_place_are_second_order():
  for kind in ("heun", "midpoint"):
    _, a, b = _coefficients(two_stages(0.7, kind), 0.0)
    assert classical_order(a, b) == 2


# --- DEIS and its Runge-Kutta ------------------------------------------------


def test_rho_rk_heun_is_edms_heun():
  """Also under VP, where x / alpha walks and t is found by noise level."""
  grid = grids.karras(EDM, 5)
  same(
    solvers.deis_rk(EDM, grid, method="heun"), solvers.heun(EDM, grid), 1e-12
  )
  levels = grids.karras(EDM, 5)
  vp = grids.from_noise_levels(VP, levels)
  x = EDM.sigma(levels[0]) * START
  ours = play(solvers.deis_rk(VP, vp, method="heun"), VP, x * VP.alpha(vp[0]))
  np.testing.assert_allclose(
    ours / VP.alpha(vp[-1]),
    play(solvers.heun(EDM, levels), EDM, x),
    rtol=1e-9,
  )


def test_rho_ab_has_its_closed_forms():
  process = processes.edm(0.1, 10.0)
  grid = grids.karras(process, 6)
  table = solvers.deis(process, grid, order=2, variant="rho_ab")
  step, back = np.diff(grid)[1:], np.diff(grid)[:-1]
  np.testing.assert_allclose(
    table.history[1:, 0, 0], step + step**2 / (2 * back), rtol=1e-11
  )
  np.testing.assert_allclose(
    table.history[1:, 0, 1], -(step**2) / (2 * back), rtol=1e-11
  )


def test_variable_steps_reduce_to_the_classical_weights():
  process = processes.edm(1.0, 9.0)
  grid = grids.uniform(process, 8)
  for build in (solvers.lms, solvers.ipndm_v):
    for order in (1, 2, 3, 4):
      table = build(process, grid, order=order)
      np.testing.assert_allclose(
        table.history[-1, 0], -adams_bashforth(order), rtol=1e-10
      )


def test_published_ipndm_v_is_right_for_equal_steps_in_order_three_alone():
  process = processes.edm(1.0, 9.0)
  even = grids.uniform(process, 8)
  build = functools.partial(solvers.ipndm_v, process, published=True)
  last = lambda grid, order: (
    build(grid, order=order).history[-1, 0] / np.diff(grid)[-1]
  )
  np.testing.assert_allclose(last(even, 3), adams_bashforth(3), rtol=1e-10)
  assert abs(last(even, 4) - adams_bashforth(4)).max() > 0.05
  same(
    build(even, order=2), solvers.ipndm_v(process, even, order=2), rtol=1e-12
  )
  uneven = np.asarray([9.0, 5.0, 4.0, 3.8, 2.0, 1.5])
  assert abs(last(uneven, 3).sum() - 1) < 1e-12
  assert abs(last(uneven, 4).sum() - 1) > 1e-3  # not even consistent


def test_published_ipndm_v_is_third_order_yet_better_at_ten_graded_steps():
  build = functools.partial(solvers.ipndm_v, published=True)
  measured = slope(build, EDM, grids.log_snr, (160, 320), 4)
  assert abs(measured - 3) < 0.2, measured
  process = processes.edm()
  grid = grids.karras(process, 10)
  published, right, equal = (
    error(solve(process, grid), process, grid)
    for solve in (build, solvers.ipndm_v, solvers.ipndm)
  )
  assert published < 0.5 * equal < right


# --- PNDM --------------------------------------------------------------------


def _transfer(e, x, t, s):
  """The paper's eq. 11."""
  bt, bs = VP.alpha(t) ** 2, VP.alpha(s) ** 2
  return x + (bs - bt) * (
    x / (np.sqrt(bt) * (np.sqrt(bt) + np.sqrt(bs)))
    - e / (np.sqrt(bt) * (np.sqrt((1 - bs) * bt) + np.sqrt((1 - bt) * bs)))
  )


def _by_the_paper(grid, start, order):
  """F-PNDM (start 4), S-PNDM and PLMS (start 2), written as loops."""
  eps = lambda x, t: answer(VP, x, t)[1]
  x, past, calls = START, [], 0
  for t, s in itertools.pairwise(grid):
    past.append(eps(x, t))
    m = (t + s) / 2
    warm_up = {4: 3, 2: 1}[start]
    if len(past) <= warm_up and start == 4:
      e1 = past[-1]
      e2 = eps(_transfer(e1, x, t, m), m)
      e3 = eps(_transfer(e2, x, t, m), m)
      e4 = eps(_transfer(e3, x, t, s), s)
      mix, calls = (e1 + 2 * e2 + 2 * e3 + e4) / 6, calls + 4
    elif len(past) <= warm_up:
      mix = (past[-1] + eps(_transfer(past[-1], x, t, s), s)) / 2
      calls += 2
    else:
      weights = adams_bashforth(min(order, len(past)))
      newest = past[::-1][: len(weights)]
      mix, calls = sum(w * e for w, e in zip(weights, newest)), calls + 1
    x = _transfer(mix, x, t, s)
  return x, calls


@pytest.mark.parametrize(
  ("build", "start", "order"),
  [(solvers.pndm, 4, 4), (solvers.s_pndm, 2, 2), (solvers.plms, 2, 4)],
)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_pndm_is_the_papers_algorithm(build, start, order, steps):
  grid = grids.uniform(VP, steps)
  table = build(VP, grid)
  expected, calls = _by_the_paper(grid, start, order)
  assert table.nfe == calls
  np.testing.assert_allclose(
    play(table, VP, START), expected, rtol=1e-8, atol=1e-10
  )


def test_pndm_costs_what_it_says_and_remembers_no_more_than_it_needs():
  grid = grids.uniform(VP, 20)
  for build, calls, memory in (
    (solvers.pndm, 29, 13),
    (solvers.fon, 29, 13),
    (solvers.s_pndm, 21, 3),
    (solvers.plms, 21, 5),
  ):
    table = build(VP, grid)
    assert (table.nfe, table.memory) == (calls, memory)
  same(
    solvers.pndm(VP, grid, start="multistep"), solvers.ipndm(VP, grid), 1e-12
  )


def test_pseudo_methods_are_second_order_and_the_classical_fourth():
  """The mix is a polynomial in t, the transfer's weight is none."""
  process = processes.vp_linear(t_min=0.05, t_max=0.9)
  for build in (solvers.s_pndm, solvers.pndm):
    measured = slope(build, process, grids.quadratic, (160, 640))
    assert abs(measured - 2) < 0.15, (build.__name__, measured)
  measured = slope(solvers.ddim, process, grids.quadratic, (160, 640))
  assert abs(measured - 1) < 0.05, measured
  measured = slope(solvers.fon, process, grids.uniform, (320, 640))
  assert abs(measured - 4) < 0.2, measured
  assert slope(solvers.pndm, process, grids.uniform, (160, 640)) < 2.3


def test_on_equal_noise_levels_pndm_is_a_classical_method():
  """There phi is Euler's step: RK4 starts Adams-Bashforth 4."""
  process = processes.edm(1.0, 5.0)
  grid = grids.uniform(process, 6)
  same(solvers.pndm(process, grid), solvers.fon(process, grid), 1e-12)
  measured = slope(solvers.pndm, process, grids.uniform, (160, 320))
  assert abs(measured - 4) < 0.2, measured


# --- the first and the last step ---------------------------------------------


def _analytic(process, x, t, data_std):
  alpha, sigma = process.alpha(t), process.sigma(t)
  if data_std is None:
    eps = x / np.hypot(alpha, sigma)
    return np.stack([(x - sigma * eps) / alpha, eps])
  square = alpha**2 * data_std**2 + sigma**2
  return np.stack([alpha * data_std**2 * x / square, sigma * x / square])


FIRST = [
  "ipndm_4",
  "deis_4",
  "heun",
  "rk4",
  "unipc_3",
  "dpmpp_3m",
  "dpm_solver_3",
  "unic_deis_3",
  "pndm",
  "exponential_ab_v",
]


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("data_std", [None, 0.6])
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_a_free_first_call_is_the_analytic_answer(name, data_std, process):
  """One call less, and the very samples of a model that answers so."""
  process = PROCESSES[process]
  grid = grids.log_snr(process, 6)
  table = CASES[name].build(process, grid)
  shorter, scale = solvers.analytical_first_step(table, process, data_std)
  assert shorter.nfe == table.nfe - 1
  calls = []

  def ask(process, y, t):
    calls.append(t)
    known = len(calls) == 1
    return (
      _analytic(process, y, t, data_std) if known else answer(process, y, t)
    )

  x = process.sigma(grid[0]) * START
  np.testing.assert_allclose(
    play(shorter, process, scale * x),
    play(table, process, x, ask=ask),
    rtol=1e-8,
    atol=1e-10,
  )


def test_a_free_first_call_costs_nothing_on_gaussian_data():
  gaussian = lambda process, y, t: _analytic(process, y, t, 0.6)
  grid = grids.log_snr(VP, 5)
  table = solvers.dpmpp_3m(VP, grid)
  shorter, scale = solvers.analytical_first_step(table, VP, 0.6)
  np.testing.assert_allclose(
    play(shorter, VP, scale * START, ask=gaussian),
    play(table, VP, START, ask=gaussian),
    rtol=1e-10,
  )


def test_mistakes_about_the_first_step_are_named():
  grid = grids.karras(EDM, 4)
  with pytest.raises(ValueError, match="draws noise"):
    solvers.analytical_first_step(
      solvers.heun_churn(EDM, grid[1:], churn=3.0), EDM
    )
  with pytest.raises(ValueError, match=r"a second one.*makes 1"):
    solvers.analytical_first_step(solvers.ddim(EDM, grid[:2]), EDM)
  table = solvers.ddim(EDM, grid)
  table.state[0] = table.history[0] = 0.0
  with pytest.raises(ValueError, match="keeps nothing of x"):
    solvers.analytical_first_step(table, EDM)


def test_final_steps():
  for name in ("dpmpp_2m", "unipc_3", "heun", "pndm"):
    build = CASES[name].build
    grid = grids.karras(VP, 5)
    clean = grids.karras(VP, 6, to_zero=True)
    np.testing.assert_allclose(clean[:-1], grid)
    open_, closed = build(VP, grid), build(VP, clean)
    same(solvers.final_step(open_, VP, grid, "denoise"), closed, 1e-12)
    same(solvers.final_step(closed, VP, clean, "stop"), open_, 1e-12)
  table = solvers.dpmpp_2m(VP, grid)
  lowered = solvers.final_step(table, VP, grid, "first_order")
  same(lowered, solvers.dpmpp_2m(VP, grid, lower_order_final=True))
  last = tables.take(lowered, slice(-1, None))
  same(last, tables.pad(solvers.ddim(VP, grid[-2:]), memory=2))


def test_lower_order_final_lowers_the_last_steps():
  grid = grids.quadratic(VP, 6)
  for build in (solvers.dpmpp_3m, solvers.dpm_solver_3m):
    for published in (False, True):
      table = build(VP, grid, published=published, lower_order_final=True)
      used = [np.flatnonzero(row)[-1] + 1 for row in table.history[:, 0]]
      assert used == [1, 2, 3, 3, 2, 1]
  table = solvers.exponential_ab(VP, grid, order=4, lower_order_final=True)
  used = [np.flatnonzero(row)[-1] + 1 for row in table.history[:, 0]]
  assert used == [1, 2, 3, 3, 2, 1]


# --- mistakes ----------------------------------------------------------------


def test_mistakes_are_named():
  grid = grids.karras(EDM, 4)
  clean = grids.karras(EDM, 4, to_zero=True)
  table = solvers.ddim(EDM, grid)
  for build in (
    solvers.adams_bashforth,
    solvers.exponential_ab,
    solvers.lms,
    solvers.ipndm_v,
  ):
    with pytest.raises(ValueError, match=r"orders 1\.\.\d+, got order=0"):
      build(EDM, grid, order=0)
  with pytest.raises(ValueError, match="given 2 orders for 4 steps"):
    solvers.exponential_ab(EDM, grid, order=[1, 2])
  with pytest.raises(ValueError, match=r"step 1 can have the orders 1\.\.2"):
    solvers.exponential_ab(EDM, grid, order=[1, 3, 1, 1])
  with pytest.raises(ValueError, match="output must be one of"):
    solvers.exponential_ab(EDM, grid, output="score")
  with pytest.raises(ValueError, match="variable must be one of"):
    solvers.exponential_ab(EDM, grid, variable="t")
  with pytest.raises(ValueError, match="its own time alone"):
    solvers.exponential_ab(EDM, grid, output="velocity")
  with pytest.raises(ValueError, match="variant must be one of"):
    solvers.deis(EDM, grid, variant="rho_rk")
  with pytest.raises(ValueError, match="takes no time; drop one"):
    solvers.deis(EDM, grid, variant="rho_ab", clock=VP)
  with pytest.raises(ValueError, match="method must be one of"):
    solvers.runge_kutta(EDM, grid, method="rk5")
  with pytest.raises(ValueError, match=r"lengths 1\.\.2; got lengths \[1\]"):
    solvers.runge_kutta(EDM, grid, method=Butcher([[0.5]], [0.2, 0.3, 0.5]))
  with pytest.raises(ValueError, match="method must be one of"):
    solvers.exponential_rk(EDM, grid, method="res_9s")
  with pytest.raises(ValueError, match="output must be one of 'x0', 'eps'"):
    solvers.exponential_rk(EDM, grid, output="v")
  with pytest.raises(ValueError, match="solver_type must be one of"):
    solvers.dpmpp_2m(EDM, grid, solver_type="taylor")
  with pytest.raises(ValueError, match="start must be one of"):
    solvers.pndm(EDM, grid, start="rk4")
  with pytest.raises(ValueError, match="order must be one of"):
    solvers.pndm(EDM, grid, order=5)
  with pytest.raises(ValueError, match=r"equal steps in t, but step 0"):
    solvers.pndm(EDM, grid, strict=True)
  with pytest.raises(ValueError, match="stages, a corrector or noise"):
    solvers.unic(EDM, grid, predictor=solvers.heun)
  with pytest.raises(ValueError, match="stages, a corrector or noise"):
    solvers.unic(EDM, grid, predictor=solvers.ddim, eta=1.0)
  with pytest.raises(ValueError, match="makes 4 calls"):
    correct(table, EDM, grid[:-1])
  with pytest.raises(ValueError, match="extrapolates none of"):
    correct(table._replace(output=table.output + 1.0), EDM, grid)
  with pytest.raises(TypeError, match="decorate your function"):
    solvers.unic(EDM, grid, predictor=lambda process, grid: table)
  with pytest.raises(ValueError, match="policy must be one of"):
    solvers.final_step(table, EDM, grid, "euler")
  with pytest.raises(ValueError, match="clean already"):
    solvers.final_step(solvers.ddim(EDM, clean), EDM, clean, "denoise")
  with pytest.raises(ValueError, match="make the grid with to_zero=True"):
    solvers.final_step(table, EDM, grid, "stop")
  with pytest.raises(ValueError, match="takes several"):
    solvers.final_step(solvers.heun(EDM, grid), EDM, grid, "first_order")
  own = processes.from_alpha_sigma(lambda t: 1.0 + 0 * t, lambda t: t, 0.1, 9.0)
  times = grids.karras(own, 3)
  with pytest.raises(ValueError, match="give from_alpha_sigma its t_zero"):
    solvers.final_step(solvers.ddim(own, times), own, times, "denoise")

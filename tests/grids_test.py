"""Grids: exact ends, strictly falling, and the formulas of their papers."""

import functools

import numpy as np
import pytest
import scipy.stats

from jaxdiff import grids
from jaxdiff import processes
from tests.processes.cases import every_process
from tests.processes.cases import PROCESSES

GRIDS = {
  "uniform": grids.uniform,
  "quadratic": grids.quadratic,
  "cubic": lambda *args, **options: grids.polynomial(*args, 3.0, **options),
  "log_snr": grids.log_snr,
  "karras": grids.karras,
  "cosine": grids.cosine,
  "clocked": lambda *args, **options: grids.quadratic(
    *args, clock=processes.vp_linear_covering(0.002, 80.0), **options
  ),
  "vp_quadratic": grids.vp_quadratic,
  "vp_uniform": grids.vp_uniform,
  "kl_optimal": functools.partial(grids.kl_optimal, data_std=0.5),
}
# To zero these replace their last time, or go there in one sweep.
OTHER_ENDS = {
  "shift": grids.shift,
  "beta": grids.beta,
  "beta57": grids.beta57,
  "sgm_uniform": grids.sgm_uniform,
  "linear_quadratic": grids.linear_quadratic,
  "bong_tangent": grids.bong_tangent,
}
every_grid = pytest.mark.parametrize("grid", list(GRIDS))
EDM = processes.edm()


@pytest.mark.parametrize("grid", list(OTHER_ENDS))
@every_process
def test_grids_with_other_ends_are_exact_and_fall(name, grid):
  process, build = PROCESSES[name], OTHER_ENDS[grid]
  few = name == "pair"  # whose inverse is a bisection
  for n in (1, 2, 7) if few else (*range(1, 13), 30):
    t = build(process, n)
    assert t.shape == (n + 1,) and t.dtype == np.float64
    assert (t[0], t[-1]) == (process.t_max, process.t_min)
    t = build(process, n, to_zero=True)
    assert t.shape == (n + 1,)
    assert (t[0], t[-1]) == (process.t_max, process.t_zero)
    assert n == 1 or t[-2] >= process.t_min
  t = build(processes.vp_linear(), 6, start=0.61)
  assert (t[0], t[-1]) == (0.61, processes.vp_linear().t_min)


@every_grid
@every_process
def test_ends_are_exact_and_every_step_falls(name, grid):
  process = PROCESSES[name]
  few = name == "pair"  # whose inverse is a bisection
  for n in (1, 2, 7, 30) if few else range(1, 31):
    t = GRIDS[grid](process, n)
    assert t.shape == (n + 1,)
    assert t.dtype == np.float64
    assert (np.diff(t) < 0).all()
    assert (t[0], t[-1]) == (process.t_max, process.t_min)


@every_grid
@every_process
def test_to_zero_is_the_grid_of_one_step_less_and_a_last_one(name, grid):
  process = PROCESSES[name]
  for n in (1, 2, 9):
    t = GRIDS[grid](process, n, to_zero=True)
    assert t.shape == (n + 1,)
    assert (t[0], t[-1]) == (process.t_max, process.t_zero)
    assert process.sigma(t[-1]) == 0
    if n > 1:
      np.testing.assert_array_equal(t[:-1], GRIDS[grid](process, n - 1))


@every_grid
def test_start_is_the_first_time_bit_by_bit(grid):
  process = processes.vp_linear()
  t = GRIDS[grid](process, 6, start=0.61)
  assert (t[0], t[-1]) == (0.61, process.t_min)
  assert t.shape == (7,)
  assert (np.diff(t) < 0).all()


def test_karras_is_equation_5_of_its_paper():
  n, high, low = 18, 80.0, 0.002
  i = np.arange(n)
  for rho in (7.0, 3.0):
    sigma = high ** (1 / rho) + i / (n - 1) * (
      low ** (1 / rho) - high ** (1 / rho)
    )
    paper = np.append(sigma**rho, 0.0)
    t = grids.karras(EDM, n, rho=rho, to_zero=True)
    np.testing.assert_allclose(t, paper, rtol=1e-12)
  t = grids.karras(EDM, n, to_zero=True)
  np.testing.assert_allclose(t[1:3], [57.586, 40.786], rtol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.02, 20.0)])
def test_quadratic_with_a_vp_clock_is_the_formula_of_diff_sampler(low, high):
  n, eps_s = 12, 1e-3
  top, bottom = np.log(high**2 + 1), np.log(low**2 + 1)
  beta_d = 2 * (bottom / eps_s - top) / (eps_s - 1)
  beta_min = top - 0.5 * beta_d
  t = np.linspace(1, np.sqrt(eps_s), n + 1) ** 2
  paper = np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t))
  clock = processes.vp_linear_covering(low, high)
  mine = grids.quadratic(processes.edm(low, high), n, clock=clock)
  np.testing.assert_allclose(mine, paper, rtol=1e-10)
  mine = grids.vp_quadratic(processes.edm(low, high), n)
  np.testing.assert_allclose(mine, paper, rtol=1e-10)


@every_process
def test_steps_are_equal_in_what_the_grid_is_named_after(name):
  process, n = PROCESSES[name], 9
  inside = slice(1, None) if process.alpha(process.t_max) == 0 else slice(None)

  def equal(values):
    steps = np.diff(values)
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-8)

  equal(grids.uniform(process, n))
  equal(np.sqrt(grids.quadratic(process, n)))
  equal(process.log_snr(grids.log_snr(process, n)[inside]))
  equal(process.noise_level(grids.karras(process, n)[inside]) ** (1 / 7))
  equal(np.arctan(process.noise_level(grids.cosine(process, n))))


@pytest.mark.parametrize(
  "grid",
  [
    "log_snr",
    "karras",
    "cosine",
    "clocked",
    "vp_quadratic",
    "vp_uniform",
    "kl_optimal",
  ],
)
def test_grids_in_the_noise_level_are_the_same_for_every_process(grid):
  first = GRIDS[grid](processes.edm(0.01, 50.0), 8)
  for process in (
    processes.ve(0.01, 50.0),
    processes.vp_linear_covering(0.01, 50.0),
  ):
    levels = process.noise_level(GRIDS[grid](process, 8))
    np.testing.assert_allclose(levels, first, rtol=1e-9)


@pytest.mark.parametrize("name", ["vp_cosine", "flow", "pair"])
def test_noise_level_grids_leave_alpha_zero_and_continue_from_signal(name):
  process = PROCESSES[name]
  t = grids.log_snr(process, 5)
  lam = process.log_snr(t)
  assert lam[0] == -np.inf
  last = process.log_snr(process.t_min)
  expected = np.linspace(-7, last, 6)[1:]
  np.testing.assert_allclose(lam[1:], expected, rtol=1e-9)


# --- what other libraries call so --------------------------------------------

FLOW = processes.rectified_flow()
# Stable Diffusion's: the betas are uniform in their root.
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SD = processes.vp_discrete(BETAS)
# sigma / alpha at its whole steps, by cumulated products
SIGMAS = np.sqrt(1.0 / np.cumprod(1.0 - BETAS) - 1.0)


def levels(times, process=SD):
  return process.noise_level(times)


@pytest.mark.parametrize("n", [1, 2, 4, 20, 28])
@pytest.mark.parametrize("factor", [1.0, 3.0, 0.5])
def test_shift_is_the_formula_of_flow_models_once(n, factor):
  """Flux's pipeline hands sigmas of linspace(1, 1 / n, n) to the scheduler."""
  sigma = np.linspace(1.0, 1.0 / n, n)
  paper = factor * sigma / (1.0 + (factor - 1.0) * sigma)
  t = grids.shift(FLOW, n, factor=factor, to_zero=True)
  np.testing.assert_allclose(t, np.append(paper, 0.0), rtol=1e-12)
  # the same places, shifted afterwards
  even = grids.shift(FLOW, n, factor=1.0, to_zero=True)
  np.testing.assert_allclose(grids.shifted(FLOW, even, factor), t, rtol=1e-12)
  # of no other shift of it: twice is the square
  twice = grids.shifted(FLOW, t, factor)
  square = grids.shift(FLOW, n, factor=factor**2, to_zero=True)
  np.testing.assert_allclose(twice, square, rtol=1e-12)


def test_shift_keeps_both_ends_and_multiplies_noise_levels():
  t = grids.shift(EDM, 6, factor=4.0)
  before = t / (4.0 + t)  # u of levels / 4
  np.testing.assert_allclose(np.diff(before), np.diff(before)[0], rtol=1e-9)


def test_dynamic_shifts_are_those_of_flux_and_sd3():
  """Flux: mu on a line in the tokens; SD3: the root of the pixels' ratio."""
  for tokens in (256, 1024, 4096):
    m = (1.15 - 0.5) / (4096 - 256)
    mu = tokens * m + (0.5 - m * 256)
    assert np.isclose(grids.shift_of(tokens), np.exp(mu), rtol=1e-12)
    root = grids.shift_of(tokens, rule="sqrt")
    assert np.isclose(root, np.sqrt(tokens / 256), rtol=1e-12)
  assert np.isclose(grids.shift_of(4096), 3.1581929)
  sigma = np.linspace(1.0, 0.1, 10)  # diffusers' "exponential" time shift
  flux = np.exp(1.15) / (np.exp(1.15) + (1.0 / sigma - 1.0))
  t = grids.shift(FLOW, 10, factor=grids.shift_of(4096), to_zero=True)
  np.testing.assert_allclose(t[:-1], flux, rtol=1e-12)


@pytest.mark.parametrize(
  ("build", "a", "b"), [(grids.beta, 0.6, 0.6), (grids.beta57, 0.5, 0.7)]
)
@pytest.mark.parametrize("n", [1, 8, 20])
def test_beta_is_comfyuis_in_whole_steps(build, a, b, n):
  u = 1.0 - np.linspace(0.0, 1.0, n, endpoint=False)
  at = np.rint(scipy.stats.beta.ppf(u, a, b) * 999).astype(int)
  published = np.append(SIGMAS[at[np.diff(at, prepend=-1) != 0]], 0.0)
  t = build(SD, n, to_zero=True)
  assert t.shape == (n + 1,)
  whole = grids.whole_steps(SD, t, 1000)
  np.testing.assert_allclose(levels(whole), published, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 4, 7, 30])
def test_spacings_are_those_of_diffusers_and_comfyui(n):
  published = {
    "trailing": np.round(np.arange(1000, 0, -1000 / n)) - 1,
    "leading": (np.arange(n) * (1000 // n))[::-1],
    "linspace": np.linspace(0, 999, n).round()[::-1],
    "simple": np.asarray([999 - int(x * (1000 / n)) for x in range(n)]),
  }
  if n == 1:
    published["linspace"] = np.asarray([999.0])  # numpy begins at the start
  for spacing, at in published.items():
    t = grids.spaced(SD, n, spacing=spacing, to_zero=True)
    expected = np.append(SIGMAS[at.astype(int)], 0.0)
    np.testing.assert_allclose(levels(t), expected, rtol=1e-9)
  moved = grids.spaced(SD, n, spacing="leading", offset=1, to_zero=True)
  at = (np.arange(n) * (1000 // n))[::-1] + 1
  np.testing.assert_allclose(levels(moved)[:-1], SIGMAS[at], rtol=1e-9)
  every = grids.spaced(SD, n)  # n + 1 places, none of them zero
  np.testing.assert_array_equal(
    every, grids.spaced(SD, n + 1, to_zero=True)[:-1]
  )


def test_normal_and_sgm_uniform_are_linear_in_the_step():
  """Between whole steps log(sigma / alpha) is linear, as ComfyUI has it."""
  index = lambda at: np.exp(np.interp(at, np.arange(1000), np.log(SIGMAS)))
  for n in (2, 9, 20):
    t = grids.sgm_uniform(SD, n, to_zero=True)
    sgm = index(np.linspace(999, 0, n + 1)[:-1])
    np.testing.assert_allclose(levels(t), np.append(sgm, 0.0), rtol=1e-9)
    t = grids.uniform(SD, n, to_zero=True)
    normal = index(np.linspace(999, 0, n))
    np.testing.assert_allclose(levels(t), np.append(normal, 0.0), rtol=1e-9)


def test_kl_optimal_is_its_formula():
  """Align Your Steps, theorem 3.1; with a standard deviation of 1 ComfyUI's."""
  share = np.arange(10) / 9
  for std in (1.0, 0.5):
    angle = share * np.arctan(0.002 / std) + (1 - share) * np.arctan(80 / std)
    t = grids.kl_optimal(EDM, 10, data_std=std, to_zero=True)
    np.testing.assert_allclose(t[:-1], std * np.tan(angle), rtol=1e-9)
  np.testing.assert_allclose(
    grids.kl_optimal(EDM, 9), grids.cosine(EDM, 9), rtol=1e-9
  )


@pytest.mark.parametrize("n", [1, 2, 5, 8, 20])
def test_linear_quadratic_is_mochis(n):
  threshold, linear = 0.025, n // 2
  f = [k * threshold / linear for k in range(linear)]
  if linear:
    over, rest = linear - threshold * n, n - linear
    bend = over / (linear * rest**2)
    slope = threshold / linear - 2 * over / rest**2
    f += [bend * (k**2 + linear**2) + slope * k for k in range(linear, n)]
  f = [*f, 1.0] if linear else [0.0, 1.0]
  t = grids.linear_quadratic(FLOW, n, to_zero=True)
  np.testing.assert_allclose(t, 1.0 - np.asarray(f), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n", [2, 8, 19, 40])
def test_bong_tangent_is_res4lyfs(n):
  """Its two pieces at the defaults, in the arithmetic of the public code."""
  size = n + 2
  joint = int((size * 0.6 + size * 0.6) / 2)
  pivot, slope = int(size * 0.6), 0.2 / (size / 40)

  def piece(steps, pivot, start, end):
    g = lambda x: (2 / np.pi * np.arctan(-slope * (x - pivot)) + 1) / 2
    high, low = g(0), g(steps - 1)
    return [
      (g(x) - low) / (high - low) * (start - end) + end for x in range(steps)
    ]

  published = piece(joint, pivot, 1.0, 0.5)[:-1]
  published += piece(size - joint, pivot - joint, 0.5, 0.0)
  t = grids.bong_tangent(FLOW, n, to_zero=True)
  np.testing.assert_allclose(t, published, rtol=1e-11, atol=1e-15)


def test_vp_uniform_is_k_diffusions_get_sigmas_vp():
  t = np.linspace(1.0, 1e-3, 12)
  published = np.sqrt(np.expm1(19.9 * t**2 / 2 + 0.1 * t))
  process = processes.edm(published[-1], published[0])
  np.testing.assert_allclose(grids.vp_uniform(process, 11), published)


# --- published and given times -----------------------------------------------


@pytest.mark.parametrize("table", ["sd15", "sdxl", "svd"])
def test_align_your_steps_is_its_table_at_ten_steps(table):
  process = processes.edm(0.002, 700.0)
  levels = grids._ALIGN_YOUR_STEPS[table]
  ten = grids.align_your_steps(process, table=table)
  np.testing.assert_allclose(ten, levels, rtol=1e-12)
  twenty = grids.align_your_steps(process, 20, table=table)
  np.testing.assert_allclose(twenty[::2], levels, rtol=1e-12)
  between = np.sqrt(np.multiply(levels[1:], levels[:-1]))
  np.testing.assert_allclose(twenty[1::2], between, rtol=1e-12)
  one = grids.align_your_steps(process, 1, table=table, to_zero=True)
  np.testing.assert_allclose(one, [levels[0], 0.0], rtol=1e-12)
  zero = grids.align_your_steps(process, 11, table=table, to_zero=True)
  np.testing.assert_array_equal(zero, np.append(ten, 0.0))


def test_align_your_steps_numbers_of_sdxl():
  t = grids.align_your_steps(EDM)
  published = "14.615 6.315 3.771 2.181 1.342 .862 .555 .380 .234 .113 .029"
  np.testing.assert_allclose(t, [float(v) for v in published.split()])


def test_from_times_is_verbatim_and_a_copy():
  given = np.array([0.9, 0.33, 0.05, 0.0])
  t = grids.from_times(processes.vp_linear(), given)
  np.testing.assert_array_equal(t, given)
  t[0] = 0.5
  assert given[0] == 0.9
  assert grids.from_times(EDM, [3, 2, 1]).dtype == np.float64


def test_from_times_forgives_the_rounding_of_t_max():
  process = processes.rectified_flow()
  t = grids.from_times(process, [1.0 + 1e-12, 0.5])
  assert t[0] == 1.0
  assert np.isfinite(process.alpha(t)).all()


@every_process
def test_from_noise_levels_inverts_noise_level(name):
  process = PROCESSES[name]
  t = grids.uniform(process, 5, to_zero=True)[1:]
  levels = process.noise_level(t)
  assert levels[-1] == 0
  back = grids.from_noise_levels(process, levels)
  np.testing.assert_allclose(back, t, rtol=1e-11)


# --- refusals ----------------------------------------------------------------

PAIR = processes.from_alpha_sigma(lambda t: 1.0, lambda t: t, 0.1, 10.0)


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: grids.karras(EDM, 0), "n >= 1 steps, an integer; got n=0"),
    (lambda: grids.karras(EDM, 3, rho=0.0), "rho must be positive"),
    (lambda: grids.polynomial(EDM, 3, 0.0), "power must be positive"),
    (
      lambda: grids.log_snr(EDM, 3, start=81.0),
      r"start=81 must lie in \(0",
    ),
    (lambda: grids.log_snr(EDM, 3, start=0.002), "start=0.002 must lie"),
    (
      lambda: grids.log_snr(EDM, 3, start=np.nan),
      "start .* finite number.*, got nan",
    ),
    (lambda: grids.quadratic(EDM, 3, clock=processes.ve()), "the clock gives"),
    (lambda: grids.uniform(PAIR, 3, to_zero=True), "give .* its t_zero"),
    (lambda: grids.align_your_steps(EDM, table="sd3"), "'sdxl', 'svd'; got"),
    (lambda: grids.align_your_steps(EDM, table="svd"), "700 is outside"),
    (lambda: grids.align_your_steps(PAIR, table="svd"), "700 is outside"),
    (lambda: grids.from_noise_levels(PAIR, [50.0, 1.0]), "50 is outside"),
    (lambda: grids.from_noise_levels(PAIR, [5.0, 0.0]), "t_zero"),
    (lambda: grids.from_noise_levels(PAIR, [5.0, np.nan]), "nan is outside"),
    (lambda: grids.from_noise_levels(PAIR, [1.0, 5.0]), "strictly decreasing"),
    (lambda: grids.from_noise_levels(PAIR, 1.0), "1-D array"),
    (lambda: grids.from_times(EDM, [80.0, 0.001]), "outside of the process"),
    (lambda: grids.kl_optimal(EDM, 3, data_std=0.0), "deviation, above 0"),
    (lambda: grids.shift(FLOW, 3, factor=0.0), "positive; got 0"),
    (lambda: grids.shifted(FLOW, [1.0, 0.5], -1.0), "positive; got -1"),
    (lambda: grids.shifted(EDM, [80.0, 0.5], 2.0), "160 is outside"),
    (lambda: grids.shift_of(0), "positive, and low and high"),
    (lambda: grids.shift_of(9, rule="log"), "'linear', 'sqrt'; got 'log'"),
    (lambda: grids.beta(EDM, 3, a=0.0), "are positive; got 0"),
    (lambda: grids.linear_quadratic(FLOW, 3, threshold=1.0), "inside .0, 1."),
    (lambda: grids.linear_quadratic(FLOW, 3, linear=3), "1..n - 1; got 3"),
    (lambda: grids.bong_tangent(FLOW, 3, middle=0.0), "shares inside"),
    (lambda: grids.spaced(SD, 3, spacing="even"), "'simple'; got 'even'"),
    (lambda: grids.spaced(SD, 1000), "1001 places of a model that has 1000"),
    (lambda: grids.spaced(SD, 3, offset=1), "not of 'trailing'; drop it"),
    (
      lambda: grids.spaced(SD, 999, spacing="leading", offset=2),
      "first place to step 1001, but",
    ),
    (lambda: grids.whole_steps(SD, [1.0, 0.5], 0), "at least 1; got 0"),
  ],
)
def test_grids_refuse_what_they_cannot_walk(build, message):
  with pytest.raises(ValueError, match=message):
    build()


def test_uniform_steps_take_a_clock_with_negative_times():
  t = grids.uniform(EDM, 4, clock=processes.ve())
  np.testing.assert_allclose(t, grids.log_snr(EDM, 4), rtol=1e-12)


def test_repeated_times_are_refused_and_dropped_by_what_the_error_names():
  """A schedule rounded to whole steps, as published ones are."""
  process = processes.vp_discrete(np.linspace(1e-4, 0.02, 20))
  times = np.round(np.linspace(20, 1, 26)) / 20
  with pytest.raises(ValueError, match=r"length 0 .*grids.distinct\(times\)"):
    grids.from_times(process, times)
  kept = grids.from_times(process, grids.distinct(times))
  np.testing.assert_array_equal(kept, np.arange(20, 0, -1) / 20)
  levels = [80.0, 80.0, 1.0, 1.0, 0.0, 0.0]
  np.testing.assert_array_equal(grids.distinct(levels), [80.0, 1.0, 0.0])
  # a rising one is no repetition, and stays to be refused
  np.testing.assert_array_equal(grids.distinct([1.0, 2.0, 1.0]), [1, 2, 1])
  assert grids.distinct([]).shape == (0,)
  with pytest.raises(ValueError, match=r"1-D array, got shape \(2, 1\)"):
    grids.distinct([[1.0], [2.0]])

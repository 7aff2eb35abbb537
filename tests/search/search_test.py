"""The searches: their spaces, their exactness, and that they are honest."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import search as experiment
from experiments.configs import search_mixture
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import metrics
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff.search import autodiffusion
from jaxdiff.search import fitness
from jaxdiff.search import gits
from jaxdiff.search import populations
from jaxdiff.search import predictor
from jaxdiff.search import s3
from jaxdiff.search import skipping
from jaxdiff.search import usf
from jaxdiff.search.autodiffusion import Candidate
from jaxdiff.search.usf import Schedule
from jaxdiff.search.usf import StepChoice
from tests.solvers.cases import CASES

EDM = processes.edm(0.02, 20.0)
VP = processes.vp_linear()
FLOW = processes.rectified_flow(1e-3, 0.98)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
  """64 noises of g2 under EDM and where its ODE takes them."""
  model = oracles.exact(oracles.g2(), EDM)
  return populations.converged(KEY, model, EDM, (2,), 64, steps=50)


def eight(process=EDM):
  """Tables of one shape, deterministic."""
  grid = grids.karras(process, 6)
  names = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc_2", "ipndm_4", "deis_3")
  made = [CASES[n].build(process, grid) for n in names]
  return [tables.pad(t, memory=4) for t in made]


def by_hand(schedule, process, model, x):
  """Walks a schedule on samples by the formulas of the paper, call by call.

  Returns (result, number of calls). Independent of `usf.table`: differences by
  the Taylor conditions, phi functions by quadrature.
  """
  lam = np.asarray(schedule.lam)
  t = process.log_snr_inverse(lam)
  alpha, sigma = process.alpha(t), process.sigma(t)
  calls = 0

  def ask(y, i):
    nonlocal calls
    calls += 1
    answer = model(jnp.asarray(y), t[i])
    return {"x0": np.asarray(answer.x0), "eps": np.asarray(answer.eps)}

  def phi(k, z):
    if k == 0:
      return np.exp(z)
    u, w = np.polynomial.legendre.leggauss(40)
    u, w = 0.5 * (u + 1), 0.5 * w
    f = np.exp((1 - u) * z) * u ** (k - 1)
    return float(w @ f) / float(np.prod(range(1, k)) or 1)

  def step(i, y, nodes, m_first, scale):
    h = lam[i + 1] - lam[i]
    kind = schedule.steps[i].kind
    z = -h if kind == "x0" else h
    value = h * phi(1, z) * known[i][kind]
    for k in range(1, len(nodes) + 1):
      use = nodes[:m_first] if k == 1 else nodes
      d = np.asarray([lam[j] - lam[i] for j in use])
      q = np.arange(1, len(d) + 1)
      factorial = np.asarray([float(np.prod(range(1, v + 1))) for v in q])
      a = np.linalg.solve(d[None] ** q[:, None] / factorial[:, None], q == k)
      slope = sum(w * (known[j][kind] - known[i][kind]) for w, j in zip(a, use))
      rest = np.exp(z) - 1 - z
      c = {
        "none": 1.0,
        "bh1": z**2 / 2 / rest,
        "bh2": z / 2 * np.expm1(z) / rest,
        "plus": 1 + np.expm1(z) / 2,
        "minus": 1 - np.expm1(z) / 2,
      }.get(scale, 1.0 + h * scale if not isinstance(scale, str) else None)
      value = value + h ** (k + 1) * phi(k + 1, z) * slope * (
        c if k == 1 else 1
      )
    if kind == "x0":
      return sigma[i + 1] / sigma[i] * y + alpha[i + 1] * value
    return alpha[i + 1] / alpha[i] * y - sigma[i + 1] * value

  y = np.asarray(x)
  known = {}
  if schedule.first == "zero":
    known[0] = {"x0": np.zeros_like(y)}
  else:
    known[0] = ask(y, 0)
  for i, choice in enumerate(schedule.steps):
    past = [i - j for j in range(1, choice.order)]
    m = choice.nodes or len(past)
    end = step(i, y, past, m, choice.scale)
    if i < len(schedule.steps) - 1:
      known[i + 1] = ask(end, i + 1)
      if choice.corrector != "none":
        nodes = [i + 1, *past]
        end = step(i, y, nodes, len(nodes), choice.corrector_scale)
        if choice.corrector == "implicit":
          known[i + 1] = ask(end, i + 1)
    y = end
  return y, calls


MIXED = (
  StepChoice(1, "x0", corrector="pseudo", corrector_scale="bh1"),
  StepChoice(2, "eps", scale="plus", corrector="implicit"),
  StepChoice(3, "x0", nodes=1, scale="minus"),
  StepChoice(4, "eps", nodes=2, scale=0.02, corrector="pseudo"),
  StepChoice(3, "eps", scale="bh1"),
)


def schedule_on(process, steps, first="network"):
  lam = process.log_snr(grids.karras(process, len(steps)))
  return Schedule(tuple(float(v) for v in lam), tuple(steps), first)


# --- schedules are tables ----------------------------------------------------


@pytest.mark.parametrize("process", [EDM, VP, FLOW])
@pytest.mark.parametrize("name", usf.SOLVERS)
def test_known_solvers_are_points_of_the_space(name, process, x64):
  grid = grids.vp_quadratic(process, 7)
  schedule = usf.from_solver(name, process, grid)
  own = CASES[name].build(process, grid)
  table = usf.table(schedule, process)
  assert table.nfe == own.nfe == usf.nfe(schedule)
  model = oracles.exact(oracles.g2(), process)
  x = process.prior(KEY, (8, 2), dtype=jnp.float64)
  one, other = (
    sampling.sample(KEY, model, tables.pad(t, memory=7), x)
    for t in (own, table)
  )
  np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("process", [EDM, VP])
@pytest.mark.parametrize("first", usf.FIRSTS)
def test_a_table_makes_the_steps_one_by_one(first, process, x64):
  """Any mixture of kinds, orders, nodes, scales and correctors."""
  steps = MIXED
  if first == "zero":  # what would need the noise of a guess is left out
    lower = dataclasses.replace(MIXED[3], order=3)
    steps = (
      StepChoice(),
      StepChoice(2, scale="bh2"),
      MIXED[2],
      lower,
      MIXED[4],
    )
  schedule = schedule_on(process, steps, first)
  table = usf.table(schedule, process)
  model = oracles.exact(oracles.g2(), process)
  x = np.asarray(process.prior(KEY, (8, 2), dtype=jnp.float64))
  expected, calls = by_hand(schedule, process, model, x)
  start = x * (process.sigma(table.t[0]) / process.sigma(process.t_max))
  if first == "network":
    np.testing.assert_array_equal(start, x)
  result = sampling.sample(KEY, model, table, jnp.asarray(start))
  np.testing.assert_allclose(result, expected, rtol=0, atol=1e-11)
  assert calls == usf.nfe(schedule) == table.nfe


def test_only_an_implicit_corrector_costs_a_call():
  plain = [StepChoice(min(2, i + 1)) for i in range(4)]
  cost = lambda how: usf.nfe(
    schedule_on(EDM, [dataclasses.replace(plain[0], corrector=how), *plain[1:]])
  )
  assert (cost("none"), cost("pseudo"), cost("implicit")) == (4, 4, 5)
  assert usf.nfe(schedule_on(EDM, plain, "zero")) == 3


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_differences_are_exact_on_polynomials(m):
  rng = np.random.default_rng(m)
  d = np.asarray([0.7, -0.4, -1.1, -1.9])[:m]
  f = np.polynomial.Polynomial(rng.normal(size=m + 1))
  for k in range(1, m + 1):
    a = usf.derivative(d, k)
    assert a @ (f(d) - f(0)) == pytest.approx(f.deriv(k)(0.0), abs=1e-10)


@pytest.mark.parametrize("scale", [*usf.SCALES, 0.7])
@pytest.mark.parametrize("sign", [-1, 1])
def test_scales_tend_to_one(scale, sign):
  for h in (1e-1, 1e-2, 1e-4):
    assert abs(usf.first_scale(scale, h, sign * h) - 1.0) < h


def test_the_table_of_a_schedule_is_the_same_twice():
  schedule = schedule_on(VP, MIXED)
  for a, b in zip(usf.table(schedule, VP), usf.table(schedule, VP)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(lam=(0.0, 2.0, 1.0)), "step 1 goes from 2 to 1"),
    (dict(lam=(0.0, 1.0, 1.0)), "step 1 goes from 1 to 1"),
    (dict(lam=(0.0, 1.0)), "2 steps need 3 log-SNRs"),
    (dict(lam=(-9.0, 0.0, 1.0)), "runs over the log-SNRs -9..1"),
    (dict(steps=(StepChoice(2), StepChoice())), "step 0: order 2"),
    (dict(steps=(StepChoice(), StepChoice(2, nodes=2))), "step 1: 2 nodes"),
    (
      dict(steps=(StepChoice(), StepChoice(corrector="pseudo"))),
      "step 1: the last step has no corrector",
    ),
    (dict(steps=(StepChoice(), StepChoice(kind="v"))), "step 1: kind"),
    (dict(steps=(StepChoice(), StepChoice(scale="x"))), "step 1: scale"),
    (
      dict(steps=(StepChoice(corrector="pseudo"), StepChoice()), first="zero"),
      "step 0: .* nothing to correct",
    ),
    (
      dict(steps=(StepChoice(), StepChoice(2, "eps")), first="zero"),
      "step 1: eps of the first node",
    ),
    (
      dict(lam=(0.0, 1.0), steps=(StepChoice(),), first="zero"),
      "without a network call",
    ),
  ],
)
def test_broken_rules_are_named(change, message):
  good = Schedule((0.0, 1.0, 2.0), (StepChoice(), StepChoice(2)))
  with pytest.raises(ValueError, match=message):
    usf.table(dataclasses.replace(good, **change), EDM)


# --- populations -------------------------------------------------------------


def test_a_population_is_its_members_one_by_one(problem):
  made = eight()
  alone = [
    problem.fitness(sampling.sample(KEY, problem.model, t, problem.start))
    for t in made
  ]
  for chunk in (1, 4):
    values = populations.evaluate(problem, made, chunk=chunk)
    np.testing.assert_allclose(values, alone, rtol=2e-5)


def test_populations_of_other_sizes_tables_and_noises_share_a_program(problem):
  made = eight()
  populations.evaluate(problem, made * 6, chunk=4)
  before = populations.compilations()
  populations.evaluate(problem, made * 6 + made[:3], chunk=4)
  other = populations.held_out(
    problem, EDM, range(64, 128), fitness.Rmse(problem.fitness.target)
  )
  populations.evaluate(other, made[::-1] * 8, chunk=4)
  assert populations.compilations() == before


def test_stochastic_candidates_are_what_sample_draws(problem):
  grid = grids.karras(EDM, 6)
  made = [solvers.ddpm(EDM, grid), solvers.ddim(EDM, grid)]
  values = populations.evaluate(problem, made)
  for value, table in zip(values, made):
    x = sampling.sample(
      KEY, problem.model, table, problem.start, index=problem.index
    )
    assert value == pytest.approx(float(problem.fitness(x)), rel=1e-5)


def test_a_scaled_start_and_a_shorter_table(problem):
  grid = grids.karras(EDM, 6)
  late = solvers.ddim(EDM, grid[2:])
  scale = grid[2] / grid[0]
  values = populations.evaluate(
    problem, [solvers.ddim(EDM, grid), late], scale=[1.0, scale]
  )
  x = sampling.sample(KEY, problem.model, late, scale * problem.start)
  assert values[1] == pytest.approx(float(problem.fitness(x)), rel=1e-5)


def test_what_is_not_finite_is_infinitely_bad_and_warned_of(problem):
  bad = eight()[0]
  bad = bad._replace(state=1e30 * bad.state)
  with pytest.warns(UserWarning, match="1 of 2 candidates .* number 1 first"):
    values = populations.evaluate(problem, [eight()[0], bad])
  assert np.isfinite(values[0]) and values[1] == np.inf


def test_noises_are_not_reported_on_twice(problem):
  target = fitness.Rmse(problem.fitness.target)
  with pytest.raises(ValueError, match="search and evaluation noises must"):
    populations.held_out(problem, EDM, range(60, 100), target)
  other = populations.held_out(problem, EDM, range(64, 100), target)
  assert not np.isin(other.start, problem.start).any()
  populations.check_apart(problem, other)
  with pytest.raises(ValueError, match="belong together"):
    populations.evaluate(problem, eight(), settings=np.ones((6, 6)))


def test_settings_change_from_call_to_call(problem):
  """A temperature on x0 at every call, against the same by hand."""

  def warm(model, factor):
    def model_of_call(x, t):
      x0, eps = model(x, t)
      return predictions.Prediction(factor * x0, eps)

    return model_of_call

  table = solvers.ddim(EDM, grids.karras(EDM, 3))
  factors = np.asarray([[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]])
  values = populations.evaluate(
    problem, [table, table], settings=factors, bind=warm
  )
  plain = populations.evaluate(problem, [table])
  assert values[0] == pytest.approx(plain[0], rel=1e-6)
  x = problem.start
  for i, factor in enumerate(factors[1]):
    x0 = problem.model(x, table.t[i]).x0
    x = table.state[i, 0, 0] * x + table.history[i, 0, 0] * factor * x0
  assert values[1] == pytest.approx(float(problem.fitness(x)), rel=1e-5)


def test_the_frechet_fitness_is_the_metric(x64):
  rng = np.random.default_rng(0)
  y = rng.normal(size=(400, 3)) * [1.0, 2.0, 0.5]
  x = 0.9 * rng.normal(size=(300, 3)) + 0.2
  ours = fitness.frechet_to(y, features=16, seed=3)(jnp.asarray(x))
  metric = metrics.random_feature_frechet(x, y, features=16, seed=3)
  assert float(ours) == pytest.approx(metric, rel=1e-8)
  with pytest.raises(ValueError, match="at least 32"):
    fitness.frechet_to(y[:31], features=16)


def test_the_median_is_over_samples():
  target = np.zeros((3, 2))
  x = jnp.asarray([[3.0, 4.0], [1.0, 1.0], [0.0, 0.0]])
  assert float(fitness.Median(target)(x)) == pytest.approx(1.0)
  assert float(fitness.Rmse(target)(x)) == pytest.approx(np.sqrt(27 / 6))


# --- S^3 ---------------------------------------------------------------------


SMALL = s3.Config(4, generation=20, inner_size=60)


@pytest.mark.parametrize(
  "guided", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_search_improves_and_is_a_function_of_its_key(problem, guided):
  run = lambda key, budget: s3.search(
    key, problem, EDM, SMALL, budget=budget, guided=guided
  )
  first, again, other = run(KEY, 52), run(KEY, 52), run(jax.random.key(1), 52)
  assert first.schedules == again.schedules != other.schedules
  np.testing.assert_array_equal(first.scores, again.scores)
  one = run(KEY, 150)
  known = len(s3.seeds(EDM, SMALL))
  assert one.score < one.scores[:known].min()
  assert len(set(one.schedules)) == len(one.schedules) == 150
  assert one.score == one.scores.min()
  assert one.table.nfe == 4
  value = populations.evaluate(problem, [one.table])
  assert value[0] == pytest.approx(one.score, rel=1e-4)
  assert bool(one.tau) == guided


def test_an_interrupted_search_goes_on_to_the_same_end(problem):
  kept = []
  keep = lambda schedules, scores: kept.append((list(schedules), scores.copy()))
  run = lambda **more: s3.search(
    KEY, problem, EDM, SMALL, budget=60, guided=False, **more
  )
  whole = run(progress=keep)
  rest = run(known=kept[1])
  assert rest.schedules == whole.schedules
  np.testing.assert_array_equal(rest.scores, whole.scores)


def test_what_is_bred_keeps_the_rules_and_the_budget():
  config = s3.Config(
    6, correctors=usf.CORRECTORS, firsts=usf.FIRSTS, p_mutate=0.9
  )
  rng = np.random.default_rng(0)
  pool = s3.seeds(EDM, config)
  kinds = set()
  for _ in range(300):
    child = s3.crossover(
      rng, *(pool[i] for i in rng.integers(len(pool), size=2))
    )
    child = s3.repair(rng, s3.mutate(rng, child, config), EDM, config)
    usf.validate(child)
    assert usf.nfe(child) == 6
    assert usf.table(child, EDM).nfe == 6
    assert child.lam[0] == EDM.log_snr(20.0)
    assert np.diff(child.lam).min() > 0.99e-2
    kinds |= {child.first} | {s.corrector for s in child.steps}
    pool.append(child)
  assert kinds == {"network", "zero", "none", "pseudo", "implicit"}


def test_a_search_of_times_leaves_the_solver_alone(problem):
  config = dataclasses.replace(SMALL, times_only=True)
  result = s3.search(KEY, problem, EDM, config, budget=60, guided=False)
  known = {s.steps for s in s3.seeds(EDM, config)}
  # children may take steps of two parents, but none is changed
  assert all(
    step in {k[i] for k in known}
    for s in result.schedules
    for i, step in enumerate(s.steps)
  )


def test_a_bad_candidate_is_no_parent(problem):
  rng = np.random.default_rng(0)
  pool = s3.seeds(EDM, SMALL)
  config = dataclasses.replace(SMALL, times_only=True, p_cross=0.0)
  scores = np.full(len(pool), np.inf)
  scores[2] = 1.0
  born = s3.breed(rng, pool, scores, EDM, config, 10)
  assert {s.steps for s in born} == {pool[2].steps}


def test_budgets_that_make_no_search_are_refused(problem):
  with pytest.raises(ValueError, match="at least 2 calls"):
    s3.Config(1)
  with pytest.raises(ValueError, match="does not reach beyond"):
    s3.search(KEY, problem, EDM, SMALL, budget=5)
  with pytest.raises(ValueError, match="begin a little later"):
    flow = processes.rectified_flow()
    s3.search(KEY, problem, flow, SMALL, budget=50)


def test_the_predictor_ranks_what_it_has_not_seen():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(300, 12))
  score = np.exp(x[:, 0] - 0.5 * x[:, 1] + 0.2 * x[:, 2] ** 2)
  fitted = predictor.fit(KEY, x[:200], score[:200], capacity=256)
  tau = predictor.kendall(predictor.predict(fitted, x[200:]), score[200:])
  assert tau > 0.5
  again = predictor.fit(KEY, x[:200], score[:200], capacity=256)
  np.testing.assert_array_equal(
    predictor.predict(again, x), predictor.predict(fitted, x)
  )


# --- GITS --------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 1.15])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_dynamic_programming_is_brute_force(n, gamma):
  rng = np.random.default_rng(n)
  last = 8
  costs = np.triu(rng.uniform(size=(last + 1, last + 1)), 1)

  def total(path):
    return sum(
      gamma**m * costs[i, j] for m, (i, j) in enumerate(zip(path, path[1:]))
    )

  paths = [
    (0, *inner, last) for inner in itertools.combinations(range(1, last), n - 1)
  ]
  best = min(paths, key=total)
  np.testing.assert_array_equal(gits.choose(costs, n, gamma), best)


def test_a_ladder_refuses_what_it_does_not_hold():
  with pytest.raises(ValueError, match=r"1\.\.3 steps, not of 4"):
    gits.choose(np.ones((4, 4)), 4)
  model = oracles.exact(oracles.g2(), processes.vp_cosine())
  with pytest.raises(ValueError, match="begin the ladder later"):
    gits.ladder(KEY, model, processes.vp_cosine(), jnp.zeros((2, 2)))


def test_costs_are_the_errors_of_single_steps(x64):
  """Of one Gaussian, whose flow map is known; none for data at a point."""
  single = oracles.gaussian([1.0, -0.5], [0.25, 1.5])
  model = oracles.exact(single, VP)
  x = VP.prior(KEY, (16, 2), dtype=jnp.float64)
  times = grids.vp_quadratic(VP, 5)
  held = gits.ladder(KEY, model, VP, x, times=times, steps=64)
  i, j = 1, 3
  ends = lambda t: (VP.alpha(t), VP.sigma(t))
  at = lambda t: oracles.flow_map(single, x, ends(times[0]), ends(t))
  step = solvers.ddim(VP, times[[i, j]])
  moved = sampling.sample(KEY, model, step, at(times[i]))
  error = (moved - at(times[j])) / VP.alpha(times[j])
  expected = np.mean(np.sqrt(np.mean(np.square(error), axis=1)))
  assert held.costs[i, j] == pytest.approx(float(expected), rel=1e-5)
  assert np.isinf(held.costs[j, i]) and np.isinf(held.costs[i, i])
  grid = gits.grid(held, 3)
  assert len(grid) == 4 and np.isin(grid, times).all()
  point = oracles.exact(oracles.gaussian([1.0, -0.5], 0.0), VP)
  held = gits.ladder(KEY, point, VP, x, times=times, steps=64)
  assert held.costs[np.isfinite(held.costs)].max() < 1e-3


def test_a_grid_of_gits_beats_those_of_the_shelf_for_its_own_solver(problem):
  held = gits.ladder(KEY, problem.model, EDM, problem.start)
  own = gits.grid(held, 6)
  shelf = (grids.karras(EDM, 6), grids.log_snr(EDM, 6))
  values = populations.evaluate(
    problem, [solvers.ddim(EDM, g) for g in (own, *shelf)]
  )
  assert values[0] < 0.8 * values[1:].min()


# --- AutoDiffusion -----------------------------------------------------------


def test_all_steps_are_ddim_and_one_step_is_the_denoiser(x64):
  model = oracles.exact(oracles.g2(), VP)
  times = autodiffusion.ladder(VP, 1000)
  x = VP.prior(KEY, (8, 2), dtype=jnp.float64)
  every = Candidate(tuple(range(1000)))
  table = autodiffusion.table(every, VP, times)
  whole = solvers.ddim(VP, np.append(times[::-1], 0.0))
  one, other = (sampling.sample(KEY, model, t, x) for t in (table, whole))
  np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)
  single = autodiffusion.table(Candidate((700,)), VP, times)
  result = sampling.sample(KEY, model, single, x)
  expected = model(x, times[700]).x0
  np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def test_a_candidate_is_a_set():
  skips = (frozenset({1}), frozenset(), frozenset({0, 2}))
  one = Candidate((5, 80, 30), skips)
  for order in itertools.permutations(range(3)):
    other = Candidate(
      tuple((5, 80, 30)[i] for i in order), tuple(skips[i] for i in order)
    )
    assert one == other and hash(one) == hash(other)
  assert one.steps == (80, 30, 5)
  assert one.skips == (frozenset(), frozenset({0, 2}), frozenset({1}))
  assert autodiffusion.cost(one, 8) == 24 - 3
  assert Candidate((3, 4), (frozenset(), frozenset())) == Candidate((4, 3))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Candidate((3, 3, 5)), r"\[3\] are repeated"),
    (lambda: Candidate(()), "at least one"),
    (lambda: Candidate((3, 4), (frozenset(),)), "2 steps need as many"),
    (
      lambda: autodiffusion.table(
        Candidate((12, 3)), VP, np.linspace(0.1, 1, 10)
      ),
      r"steps 0\.\.9, the candidate also \[12\]",
    ),
    (
      lambda: autodiffusion.table(
        Candidate((3, 5)), VP, np.linspace(0.1, 1, 10), solver=solvers.heun
      ),
      "3 calls for 2 steps",
    ),
    (
      lambda: autodiffusion.masks(Candidate((1,), (frozenset({9}),)), 8, 1),
      r"blocks \[9\]",
    ),
    (
      lambda: autodiffusion.search_steps(KEY, len, 5, 6),
      r"1\.\.5 of them, not of 6",
    ),
    (
      lambda: autodiffusion.search_joint(KEY, len, 10, 7, 8),
      "below one step of 8 blocks",
    ),
    (
      lambda: autodiffusion.search_joint(KEY, len, 10, 32, 8),
      "less than one block",
    ),
  ],
)
def test_impossible_candidates_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_search_that_may_see_all_finds_the_best():
  """66 sets of 2 of 12 steps, by brute force and by a budget of 66."""
  distribution = oracles.g2()
  model = oracles.exact(distribution, VP)
  data, _ = distribution.sample(jax.random.key(1), 2000)
  start = VP.prior(KEY, (200, 2))
  task = populations.Problem(
    KEY, model, start, fitness.frechet_to(data, features=8), np.arange(200)
  )
  times = autodiffusion.ladder(VP, 12)
  judge = autodiffusion.fitness(task, VP, times, chunk=66)  # one program
  pairs = [Candidate(p) for p in itertools.combinations(range(12), 2)]
  values = judge(pairs)
  result = autodiffusion.search_steps(KEY, judge, 12, 2, budget=66)
  assert set(result.visited) == set(pairs)
  assert result.best == pairs[int(values.argmin())]
  assert result.score == pytest.approx(values.min(), rel=1e-6)
  again = autodiffusion.search_steps(KEY, judge, 12, 2, budget=40)
  assert list(again.visited) == list(result.visited)[:40]


def test_a_fitness_that_changes_is_refused():
  calls = itertools.count()
  stateful = lambda some: np.full(len(some), float(next(calls)))
  with pytest.raises(TypeError, match="the same noises"):
    autodiffusion.search_steps(KEY, stateful, 50, 4)


def test_a_joint_search_keeps_its_budget_and_buys_steps_with_blocks():
  """A fitness that rewards steps, and does not miss the blocks."""
  judge = lambda some: np.asarray([-float(len(c.steps)) for c in some])
  config = autodiffusion.Config(
    epochs=12, population=30, n_mutate=18, n_cross=7, max_prune=0.4
  )
  result = autodiffusion.search_joint(KEY, judge, 100, 32, 8, config)
  assert all(autodiffusion.cost(c, 8) <= 32 for c in result.visited)
  assert max(len(s) for c in result.visited for s in c.skips or [()]) == 3
  first = list(result.visited)[:30]
  assert all(len(c.steps) == 4 and not c.skips for c in first)
  assert len(result.best.steps) == 6  # 6 * (8 - 3) = 30


# --- skipped blocks ----------------------------------------------------------


@pytest.fixture(scope="module")
def network():
  """A residual MLP of four blocks, none of which does nothing."""
  module = networks.ResidualMLP(width=16, blocks=4, hidden=1, embedding=8)
  x, c = jnp.zeros((1, 5)), jnp.zeros(1)
  params = jax.eval_shape(module.init, KEY, x, c)["params"]
  leaves, treedef = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  leaves = [0.3 * rng.normal(size=v.shape).astype(np.float32) for v in leaves]
  params = jax.tree.unflatten(treedef, leaves)
  return denoisers.from_linen(module, params, EDM)


def test_an_empty_skip_set_is_the_whole_network_bit_by_bit(network):
  x = jax.random.normal(KEY, (7, 5))
  gated = skipping.gated(network)
  assert skipping.blocks(gated) == 4
  call = jax.jit(lambda model, x: model(x, 1.5).x0)
  np.testing.assert_array_equal(call(gated, x), call(network, x))
  kept = skipping.with_mask(gated, jnp.ones(4, bool))
  np.testing.assert_array_equal(call(kept, x), call(network, x))


@pytest.mark.parametrize("skips", [(0,), (1, 3), (0, 1, 2, 3)])
def test_a_skipped_block_is_the_identity(network, skips):
  """As if its last layer were zero; masked and left out alike."""
  x = jax.random.normal(KEY, (7, 5))
  params = dict(network.params)
  for i in skips:
    params[f"block{i}_out"] = jax.tree.map(
      np.zeros_like, params[f"block{i}_out"]
    )
  expected = dataclasses.replace(network, params=params)(x, 1.5).x0
  gated = skipping.gated(network)
  mask = np.ones(4, bool)
  mask[list(skips)] = False
  for model in (
    skipping.with_mask(gated, mask),
    skipping.without(gated, skips),
  ):
    np.testing.assert_allclose(model(x, 1.5).x0, expected, rtol=1e-6)


def test_blocks_that_are_left_out_cost_nothing(network):
  gated = skipping.gated(network)
  x = jnp.zeros((64, 5))

  def flops(skips):
    model = skipping.without(gated, skips)
    call = jax.jit(lambda model: model(x, 1.0).x0)
    return call.lower(model).compile().cost_analysis()["flops"]

  saved = np.diff([flops(skips) for skips in ((), (1,), (0, 1), (0, 1, 3))])
  # block: two layers of 16 x 16 for 64 samples, and the norm before them
  assert (saved < -2 * 2 * 16 * 16 * 64).all()
  assert np.ptp(saved) < 0.02 * abs(saved).mean()


@pytest.mark.slow
def test_a_u_net_passes_whole_blocks_by():
  module = networks.UNet(channels=8, multipliers=(1,), blocks=1, attention=())
  x = jax.random.normal(KEY, (2, 4, 4, 1))
  params = jax.jit(module.init)(KEY, x, jnp.zeros(2))["params"]
  model = denoisers.from_linen(module, params, EDM)
  gated = skipping.gated(model, ["down0_0", "middle"])
  call = jax.jit(lambda model: model(x, 1.5).x0)
  np.testing.assert_array_equal(call(gated), call(model))
  one = skipping.without(gated, [1])
  np.testing.assert_allclose(
    call(one), call(skipping.with_mask(gated, np.asarray([True, False])))
  )
  wide = skipping.gated(model, ["up0_0"])  # it takes a skip connection too
  with pytest.raises(ValueError, match="up0_0 cannot be skipped: it turns"):
    call(wide)


def test_masks_of_a_population_are_masks_one_by_one(network):
  gated = skipping.gated(network)
  start = EDM.prior(KEY, (6, 5))
  task = populations.Problem(
    KEY, gated, start, fitness.Rmse(np.zeros((6, 5))), np.arange(6)
  )
  times = grids.karras(EDM, 20)[::-1]
  judge = autodiffusion.fitness(
    task, EDM, times, bind=skipping.with_mask, n_blocks=4, rows=3
  )
  skips = (frozenset({2}), frozenset(), frozenset({0, 3}))
  some = [
    Candidate((20, 9, 3)),
    Candidate((20, 9, 3), skips),
    Candidate((18, 2)),
  ]
  values = judge(some)
  for value, candidate in zip(values, some):
    table = autodiffusion.table(candidate, EDM, times)
    x = start * autodiffusion.start_scale(EDM, table.t[0])
    plan = candidate.skips or (frozenset(),) * len(candidate.steps)
    for i, skip in enumerate(plan):  # each step by its own pruned network
      step = tables.take(table, slice(i, i + 1))
      x = sampling.sample(KEY, skipping.without(gated, skip), step, x)
    assert value == pytest.approx(float(task.fitness(x)), rel=1e-4)


def test_what_cannot_be_skipped_is_refused(network):
  with pytest.raises(TypeError, match="Linen networks"):
    skipping.gated(denoisers.from_function(lambda p, x, c: x, (), EDM))
  with pytest.raises(ValueError, match="no module 'middle'"):
    skipping.gated(network, ["middle"])
  with pytest.raises(ValueError, match=r"0\.\.3, got \[7\]"):
    skipping.without(skipping.gated(network), [7])
  params = dict(network.params)
  params["block2_out"] = dict(kernel=np.zeros((16, 9)), bias=np.zeros(9))
  with pytest.raises(ValueError, match="block2_out cannot be skipped"):
    skipping.gated(dataclasses.replace(network, params=params))


# --- the script --------------------------------------------------------------


def small(out, **changes):
  """A search of seconds."""
  config = search_mixture.get_config()
  config.update(
    target="g2",
    calls=4,
    budget=60,
    chunk=16,
    noises=16,
    held_out=16,
    reference_steps=25,
    method="evolution",
    out=str(out),
  )
  config.update(changes)
  return config


@pytest.mark.slow
def test_the_script_goes_on_where_it_was_interrupted(tmp_path, capsys):
  config = small(tmp_path)
  whole = experiment.run(config)
  text = capsys.readouterr().out
  assert "60 of 60 candidates" in text
  assert "on 16 others" in text
  lines = (tmp_path / "search.csv").read_text().splitlines(keepends=True)
  assert len(lines) == 2 + 60
  table = tables.load(tmp_path / "best.npz")
  assert table.nfe == 4
  assert (tmp_path / "search.png").read_bytes()[:4] == b"\x89PNG"
  # stopped in the last generation, while a line was written
  (tmp_path / "search.csv").write_text("".join(lines[:40]) + lines[40][:9])
  again = experiment.run(config)
  assert again["rows"] == whole["rows"]
  assert (tmp_path / "search.csv").read_text().splitlines() == [
    line.rstrip() for line in lines
  ]
  other = experiment.run(small(tmp_path, seed=1))
  assert other["rows"] != whole["rows"]


@pytest.mark.slow
def test_the_script_takes_grids_from_a_cost_matrix(tmp_path):
  summary = experiment.run(small(tmp_path, method="gits"))
  assert "on gits(" in summary["rows"][0]["name"]
  with pytest.raises(ValueError, match="'magic' is none of s3, evolution"):
    experiment.run(small(tmp_path, method="magic"))

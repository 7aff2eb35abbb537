"""Learned numbers of DC-Solver, DyWeight, EPD and NeuralSolver.

Each begins at its solver, has the gradient of finite differences, and ends
nearer to the converged ODE, on noises that neither taught nor chose.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import learn_solver
from jaxdiff import grids
from jaxdiff import learning
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers

EDM = processes.edm()
FLOW = processes.rectified_flow()
FAMILIES = ("dc_solver", "dyweight", "epd", "neural_solver")


def family(name, process=EDM, to_zero=False):
  """Returns (theta, build) and the table that it begins at, six calls."""
  grid = grids.karras(process, 6, to_zero=to_zero)
  two = grids.karras(process, 3 if to_zero else 2, to_zero=to_zero)
  if name == "dc_solver":
    return learning.dc_solver(process, grid), solvers.unipc(process, grid)
  if name == "dyweight":
    made = learning.dyweight(process, grid)
    return made, solvers.ipndm(process, grid, order=3)
  if name == "epd":
    return learning.epd(process, two), solvers.epd(process, two)
  made = learning.neural_solver(process, grid)
  return made, solvers.neural_solver(process, grid)


def ends(process, table, x):
  model = oracles.exact(oracles.g2(), process)
  return sampling.sample(jax.random.key(0), model, table, x)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
  ("process", "to_zero"),
  [(EDM, False), (EDM, True), (FLOW, True)],
  ids=["edm", "edm_to_zero", "flow"],
)
def test_a_family_begins_at_its_solver(name, process, to_zero, x64):
  (theta, build), table = family(name, process, to_zero)
  x = process.prior(jax.random.key(0), (64, 2), dtype=jnp.float64)
  got = ends(process, build(jnp.asarray(theta)), x)
  np.testing.assert_allclose(got, ends(process, table, x), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_finite_differences(name, x64):
  (theta, build), _ = family(name)
  x = EDM.prior(jax.random.key(0), (16, 2), dtype=jnp.float64)
  loss = jax.jit(lambda v: jnp.mean(ends(EDM, build(v), x) ** 2))
  random = np.random.default_rng(0)
  theta = jnp.asarray(theta + 0.01 * random.standard_normal(len(theta)))
  along = jnp.asarray(random.standard_normal(len(theta)))
  h = 1e-5
  numeric = (loss(theta + h * along) - loss(theta - h * along)) / (2 * h)
  np.testing.assert_allclose(jax.grad(loss)(theta) @ along, numeric, rtol=1e-4)


@functools.cache
def taught():
  model = oracles.exact(oracles.g2(), EDM)
  table = learning.teacher(EDM, 60)
  keys = learning.split(jax.random.key(0))
  make = lambda key, n: learning.teach(key, model, EDM, (n, 2), table)
  return (
    model,
    make(keys.train, 512),
    make(keys.validation, 256),
    make(keys.report, 512),
  )


@pytest.mark.parametrize(
  ("name", "share"),
  [
    ("dc_solver", 0.5),
    pytest.param("dyweight", 0.8, marks=pytest.mark.slow),
    pytest.param("epd", 0.25, marks=pytest.mark.slow),
    ("neural_solver", 0.7),
  ],
)
def test_three_rounds_bring_six_calls_nearer_to_the_ode(name, share):
  model, train, validation, report = taught()
  (theta, build), table = family(name)
  settings = learning.Settings(
    rounds=4, steps=40, batch=64, rate=0.05, metric_batch=128
  )
  *_, last = learning.descend(
    jax.random.key(1), model, build, theta, train, validation, settings
  )
  learned = build(jnp.asarray(last.best, jnp.float32))
  before = learning.errors(model, table, report)["rmse"]
  after = learning.errors(model, learned, report)["rmse"]
  print(name, before, after)
  assert after < share * before


def test_levels_and_places_stay_inside_whatever_is_learned():
  for name in FAMILIES:
    (theta, build), _ = family(name)
    wild = 3.0 * np.random.default_rng(0).standard_normal(len(theta))
    table = build(jnp.asarray(theta + wild))
    assert all(np.isfinite(leaf).all() for leaf in table), name
    t = np.asarray(table.t)
    assert (t >= EDM.t_min * (1 - 1e-6)).all(), name
    assert (t <= EDM.t_max * (1 + 1e-6)).all(), name


def test_mistakes_are_told():
  short = grids.karras(EDM, 2, to_zero=True)
  with pytest.raises(ValueError, match="this grid has 1 between"):
    learning.dc_solver(EDM, short)
  for build in (learning.dyweight, learning.epd):
    with pytest.raises(ValueError, match="leaves no step"):
      build(EDM, short[1:])
  with pytest.raises(ValueError, match="got 5"):
    learning.dyweight(EDM, short, order=5)
  with pytest.raises(ValueError, match="points of epd"):
    learning.epd(EDM, short, points=0)
  with pytest.raises(ValueError, match="got 't'"):
    learning.neural_solver(EDM, short, output="t")
  with pytest.raises(TypeError, match="takes a process"):
    learning.epd(short, EDM)


@pytest.mark.parametrize(
  ("process", "to_zero"), [(EDM, False), (FLOW, True)], ids=["edm", "flow"]
)
def test_the_command_finds_the_grid_that_makes_the_calls(process, to_zero):
  """Or says that no number of steps does."""
  for method, calls, never in (
    ("amed", 6, 5),
    ("dc_solver", 6, None),
    ("dyweight", 6, None),
    ("epd", 5 if to_zero else 6, 4 if to_zero else 5),
    ("neural_solver", 6, None),
  ):
    config = types.SimpleNamespace(method=method, to_zero=to_zero)
    room = types.SimpleNamespace(config=config, process=process)
    theta, build = learn_solver.family(room, calls, "ddim", "karras", None)
    assert build(jnp.asarray(theta)).nfe == calls, method
    if never:
      with pytest.raises(ValueError, match=f"which is never {never} here"):
        learn_solver.family(room, never, "ddim", "karras", None)

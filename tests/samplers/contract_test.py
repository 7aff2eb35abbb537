"""What all samplers have in common: the order of arguments, and a pair."""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import oracles
from jaxdiff import phase_space
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import solvers
from jaxdiff import tableau as tables

KEY = jax.random.key(0)
EDM = processes.edm(0.05, 20.0)
GRID = np.asarray([2.0, 1.0, 0.5])
CLD = phase_space.CriticallyDamped()

# the four arguments by position, and what is needed besides
CASES = {
  samplers.predictor_corrector: ("key model tableau x", "process"),
  samplers.adaptive: ("key model span x", "process"),
  samplers.picard: ("key model tableau x", "process"),
  samplers.side_by_side: ("key model tableau x", "process"),
  samplers.langevin: ("key score steps x", "step"),
  samplers.vanilla_sample: ("key score time data", "n step"),
  samplers.dmcmc: ("key model finish chain", "process posterior levels"),
  samplers.teleport_sample: ("key model tableau x", "process stats"),
  samplers.addim: ("key model grid x", "process"),
  phase_space.sample: ("key model grid start", "process"),
}
every_sampler = pytest.mark.parametrize(
  "sampler", CASES, ids=lambda f: f.__name__
)


@every_sampler
def test_arguments_stand_in_one_order_and_all_else_is_named(sampler):
  parameters = inspect.signature(sampler).parameters.values()
  of = lambda kind, needed: " ".join(
    p.name
    for p in parameters
    if p.kind is kind and (p.default is p.empty) is needed
  )
  placed, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, CASES[sampler][1]
  assert of(placed, True) == CASES[sampler][0]
  assert of(placed, False) == ""
  assert of(inspect.Parameter.KEYWORD_ONLY, True) == named


def test_no_sampler_is_left_out():
  """What draws samples says so by its annotation: a pair with its info."""
  found = {
    value
    for room in (samplers, phase_space)
    for name, value in vars(room).items()
    if inspect.isfunction(value) and _info(value) is not None
  }
  assert found == {*CASES}


def _info(function):
  """Returns the NamedTuple of a function that returns (x, info), or None."""
  hints = typing.get_type_hints(function)
  parts = typing.get_args(hints.get("return"))
  last = parts[-1] if parts else None
  return last if hasattr(last, "_fields") else None


def results():
  """Returns (x, info) of all samplers, each on two samples of two values."""
  x = jnp.ones((2, 2))
  model = oracles.exact(oracles.g2(), EDM)
  table = solvers.ddim(EDM, GRID)
  finish = tables.stack([table, table])[0]
  chain = samplers.Chain(x, jnp.zeros(2, jnp.int32))
  one = lambda v: jnp.zeros((2, 2))
  score, under = jnp.negative, dict(process=EDM)
  damped = phase_space.exact_phase(oracles.g2(), CLD)
  return {
    samplers.predictor_corrector: samplers.predictor_corrector(
      KEY, model, table, x, **under
    ),
    samplers.adaptive: samplers.adaptive(
      KEY, model, (2.0, 0.5), x, rtol=0.1, atol=0.1, **under
    ),
    samplers.picard: samplers.picard(KEY, model, table, x, **under),
    samplers.side_by_side: samplers.side_by_side(
      KEY, model, solvers.epd(EDM, GRID), x, **under
    ),
    samplers.langevin: samplers.langevin(KEY, score, 2, x, step=0.1),
    samplers.vanilla_sample: samplers.vanilla_sample(
      KEY, score, 0.2, x, n=2, step=0.1
    ),
    samplers.dmcmc: samplers.dmcmc(
      KEY, model, finish, chain, posterior=one, levels=[0.5, 2.0], **under
    ),
    samplers.teleport_sample: samplers.teleport_sample(
      KEY, model, table, x, stats=oracles.fit(np.eye(2)), **under
    ),
    samplers.addim: samplers.addim(KEY, model, GRID, x, **under),
    phase_space.sample: phase_space.sample(
      KEY, damped, [1.0, 0.5], (2, 2), process=CLD
    ),
  }


def test_a_pair_is_returned_whose_info_names_its_calls():
  drawn = results()
  assert drawn.keys() == CASES.keys()
  for sampler, result in drawn.items():
    assert type(result) is tuple and len(result) == 2, sampler
    x, info = result
    assert type(info) is _info(sampler)
    for leaf in jax.tree.leaves(x):
      assert leaf.shape[-2:] == (2, 2) and jnp.isfinite(leaf).all(), sampler
    assert np.all(np.asarray(info.nfe) > 0), sampler
    assert getattr(info, "kept", None) is None

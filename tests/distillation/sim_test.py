"""Score implicit matching: divergences, slopes, limits."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import oracles
from tests.distillation import cases

# the methods' names hide their modules
sid = sys.modules["jaxdiff.distillation.sid"]
sim = sys.modules["jaxdiff.distillation.sim"]


@pytest.mark.parametrize("name", sim.DISTANCES)
def test_the_implicit_gradient_is_that_of_the_divergence(name):
  pair = distillation.check_score_gradient(name, c=0.05, power=1.5)
  np.testing.assert_allclose(pair["implicit"], pair["direct"], rtol=1e-6)
  assert np.all(abs(pair["direct"]) > 0.1)


def test_a_teacher_that_stops_gradients_is_found_out():
  stopped = lambda model: lambda x, t: jax.lax.stop_gradient(model(x, t))
  with pytest.raises(RuntimeError, match="without stop_gradient"):
    distillation.check_score_gradient("squared", wrap=stopped)


@pytest.mark.parametrize("name", sim.DISTANCES)
def test_slopes_are_the_table_of_the_docstring(name, x64):
  c, p = 0.3, 1.5
  y = np.random.default_rng(0).standard_normal((4, 3, 2))
  norm = np.sqrt(np.sum(y**2, axis=(1, 2), keepdims=True) + c**2)
  expected = {
    "squared": y,
    "huber": y / norm,
    "power": y * norm ** (p - 2),
    "l1": y / np.sqrt(y**2 + c**2),
  }
  d, slope = distillation.score_distance(name, c, p)
  np.testing.assert_allclose(slope(y), expected[name], rtol=1e-12)
  np.testing.assert_allclose(d(np.zeros_like(y)), 0.0, atol=1e-15)


def test_the_pseudo_huber_loss_tends_to_the_squared_one(x64):
  teacher, fake = oracles.exact(oracles.g2(), cases.EDM), cases.affine_model()
  x0 = cases.six_points(dtype=jnp.float64)["image"]
  c = 1e5
  both = sim.objective("huber", c=c), sim.objective("squared")
  huber, squared = jax.jit(
    lambda x: [
      cases.implicit_loss(objective, teacher, fake, x) for objective in both
    ]
  )(x0)
  np.testing.assert_allclose(c * huber, squared, rtol=1e-6)


def test_a_student_like_its_teacher_has_no_gradient():
  model = oracles.exact(oracles.g2(), cases.EDM)
  every = [*map(sim.objective, sim.DISTANCES), sid.objective()]
  slopes = jax.jit(
    lambda x: [
      jax.value_and_grad(lambda x: cases.implicit_loss(o, model, model, x))(x)  # noqa: B023
      for o in every
    ]
  )
  for value, slope in slopes(cases.six_points()["image"]):
    assert float(value) == 0.0
    np.testing.assert_array_equal(slope, np.zeros_like(slope))


def test_sim_says_what_is_wrong():
  with pytest.raises(ValueError, match=r"needs c > 0, got c=0\.0"):
    distillation.score_distance("huber", c=0.0)
  with pytest.raises(ValueError, match="must be one of 'squared', 'huber'"):
    distillation.score_distance("cosine")
  with pytest.raises(ValueError, match=r"power must be at least 1, got 0\.5"):
    distillation.score_distance("power", power=0.5)
  with pytest.raises(ValueError, match="weighting must be one of"):
    sid.objective(weighting="edm")
  model = cases.affine_model()
  with pytest.raises(ValueError, match=r"sigma_init=80\.0 is outside"):
    distillation.sim(model, model, optimizer=cases.SGD, sigma_init=80.0)

"""Consistency in continuous time: tangents of exact flow maps, gradients."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import oracles
from jaxdiff.distillation.parts import trigflow
from jaxdiff.distillation.scm import field as field_of
from jaxdiff.distillation.scm import tangent
from jaxdiff.predictions import Prediction
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.CONTINUOUS_NAMES)
def test_the_tangent_of_a_gaussians_flow_map_vanishes(name, x64):
  process, variance = cases.CONTINUOUS[name], 0.6
  x, t = cases.points(process)
  model = cases.map_of_gaussian(process, variance)
  pair = oracles.exact(oracles.gaussian(np.zeros(2), variance), process)(x, t)
  _, g = tangent(model, x, t, pair)
  np.testing.assert_allclose(g, 0.0, atol=1e-12)
  wrong = tangent(cases.map_of_gaussian(process, 1.3), x, t, pair)[1]
  assert float(abs(wrong).max()) > 0.05


def test_the_velocity_of_the_data_is_the_teachers_in_the_mean(x64):
  """Data at +1 and -1: the tangents of both, by their odds given x."""
  law = oracles.mixture(np.asarray([[1.0], [-1.0]]), [0.0, 0.0], [0.3, 0.7])
  x = jnp.asarray([[0.2], [-1.1], [3.0]])
  t = jnp.asarray([0.7, 1.5, 6.0])
  mean = oracles.exact(law, cases.EDM)(x, t).x0
  x0 = jnp.concatenate([mean, jnp.ones_like(x), -jnp.ones_like(x)])
  x, t = jnp.tile(x, (3, 1)), jnp.tile(t, 3)
  pair = Prediction(x0, (x - x0) / t[:, None])
  _, g = tangent(cases.map_of_gaussian(cases.EDM, 0.8), x, t, pair)
  expected, above, below = g.reshape(3, 3, 1)
  odds = 0.5 * (1.0 + mean)  # of +1
  np.testing.assert_allclose(
    odds * above + (1.0 - odds) * below, expected, rtol=1e-11, atol=1e-12
  )


def test_without_warm_up_the_student_learns_the_teachers_velocity(x64):
  x, t = cases.points(cases.EDM)
  pair, student = cases.TEACHER(x, t), cases.student(dtype=jnp.float64)
  own, g = tangent(student, x, t, pair, r=0.0)
  cos, _ = trigflow.turn(cases.EDM, t, cases.D)
  aim = trigflow.velocity(cases.EDM, pair, t, cases.D) / cases.D
  np.testing.assert_allclose(g, -(cos[:, None] ** 2) * (own - aim), rtol=1e-12)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_normalised_tangent():
  """d loss / d F = -2 g / (|g| + c) / D, for every sample."""
  student = cases.student()
  times = lambda key, n: jnp.geomspace(0.1, 10.0, n)
  method = distillation.scm(
    cases.TEACHER, student, optimizer=cases.SGD, times=times, c=0.1
  )
  key = jax.random.key(0)
  (value, said), found = cases.value_and_gradient(method, key)
  t = times(None, 8)
  x, _ = cases.EDM.perturb(
    jax.random.split(key)[1], cases.EIGHT_POINTS["image"], t
  )
  _, g = tangent(student, x, t, cases.TEACHER(x, t))
  norm = jnp.linalg.norm(g, axis=1, keepdims=True)
  step = g / (norm + 0.1)
  answer = lambda p: field_of(dataclasses.replace(student, params=p))(x, t)
  pull = jax.vjp(answer, student.params)[1]
  (expected,) = pull(-2.0 * step / step.size)
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
  assert float(value) == pytest.approx(float(jnp.mean(step**2)), rel=1e-5)
  assert float(said["tangent"]) == pytest.approx(float(norm.mean()), rel=1e-5)
  assert float(
    cases.value_and_gradient(method, key, step=99)[0][1]["warmup"]
  ) == pytest.approx(0.01)


def test_a_sample_whose_tangent_is_not_finite_is_left_out():
  def broken(x, t):
    pair = cases.TEACHER(x, t)
    bad = (jnp.arange(len(x)) == 0)[:, None]
    return Prediction(jnp.where(bad, jnp.nan, pair.x0), pair.eps)

  method = distillation.scm(broken, cases.student(), optimizer=cases.SGD)
  (value, _), grads = cases.value_and_gradient(method, jax.random.key(0))
  assert 0 < float(value) < 7 / 8 / 2  # |step|^2 < 1 of seven samples of two
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_a_learned_weight_begins_as_none():
  key = jax.random.key(0)
  plain = distillation.scm(cases.TEACHER, cases.student(), optimizer=cases.SGD)
  learned = distillation.scm(
    cases.TEACHER, cases.student(), optimizer=cases.SGD, adaptive=True
  )
  (one, _), grads = cases.value_and_gradient(plain, key)
  (two, _), same = cases.value_and_gradient(learned, key)
  assert float(one) == float(two)
  chex.assert_trees_all_equal(grads, same)
  _, slope = cases.value_and_gradient(learned, key, player="weight")
  # d / du E e^-u l + u = 1 - E l at u = 0
  assert float(slope["bias"]) == pytest.approx(1.0 - float(one), rel=1e-5)

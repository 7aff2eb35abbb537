"""MeanFlow: the identity of mean velocities; flow matching as a limit."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import oracles
from jaxdiff.distillation.mean_flow import correction
from jaxdiff.distillation.mean_flow import mean_velocity
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.CONTINUOUS_NAMES)
def test_the_mean_velocity_of_a_gaussian_keeps_the_identity(name, x64):
  process, variance = cases.CONTINUOUS[name], 0.6
  x, t = cases.points(process)
  s = jnp.asarray(process.time_at(0.5 * process.noise_level(t)))
  model = cases.map_of_gaussian(process, variance, jumps=True)
  pair = oracles.exact(oracles.gaussian(np.zeros(2), variance), process)(x, t)
  u = mean_velocity(model, x, t, s)
  less = correction(model, x, t, s, pair)
  assert float(abs(less).max()) > 1e-2
  np.testing.assert_allclose(u, pair.eps - pair.x0 - less, atol=1e-9)


@pytest.mark.parametrize(
  "velocity", ["teacher", pytest.param("data", marks=pytest.mark.slow)]
)
def test_mean_flow_without_jumps_is_flow_matching(velocity):
  process = cases.CONTINUOUS["flow"]
  student = cases.student(process, jumps=True, prediction="flow")
  times = losses.times.uniform(process)
  teacher = oracles.exact(oracles.g2(), process)
  method = distillation.mean_flow(
    teacher,
    student,
    optimizer=cases.SGD,
    velocity=velocity,
    times=times,
    share=1.0,
    power=0.0,
  )
  key = jax.random.key(0)
  (value, _), grads = cases.value_and_gradient(method, key)
  *_, time_key, noise_key = jax.random.split(key, 5)
  t = times(time_key, 8)
  x, eps = process.perturb(noise_key, cases.EIGHT_POINTS["image"], t)
  pair = (
    teacher(x, t)
    if velocity == "teacher"
    else (cases.EIGHT_POINTS["image"], eps)
  )

  def matching(params):
    answer = dataclasses.replace(student, params=params)(x, t)
    error = losses.error(student, answer, *pair, t, "output")
    return 2.0 * error.mean()  # the sum over two values

  expected, same = jax.value_and_grad(matching)(student.params)
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  chex.assert_trees_all_close(grads, same, rtol=1e-4, atol=1e-5)

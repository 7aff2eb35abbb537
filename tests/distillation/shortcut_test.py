"""Shortcut models: halves of jumps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff.distillation.mean_flow import mean_velocity
from jaxdiff.distillation.parts import tangents
from jaxdiff.distillation.shortcut import lengths
from jaxdiff.distillation.shortcut import two_halves
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.CONTINUOUS_NAMES)
def test_two_halves_of_an_exact_flow_map_are_the_whole(name, x64):
  process = cases.CONTINUOUS[name]
  t, m, s, last = lengths(jax.random.key(0), process, 64, 3)
  tau = [tangents.flow_time(process, v) for v in (t, m, s)]
  np.testing.assert_allclose(tau[1], 0.5 * (tau[0] + tau[2]), rtol=1e-9)
  ends = tangents.flow_time(process, np.asarray([process.t_min, process.t_max]))
  length = (tau[0] - tau[2]) / (ends[1] - ends[0])
  level = np.log2(np.asarray(length))
  np.testing.assert_allclose(level, np.round(level), atol=1e-9)
  assert set(np.round(level)) == {0.0, -1.0, -2.0}
  np.testing.assert_array_equal(last, np.round(level) == -2.0)
  model = cases.map_of_gaussian(process, 0.6, jumps=True)
  x = jax.random.normal(jax.random.key(1), (64, 2), jnp.float64)
  x = x * jnp.hypot(process.alpha(t), process.sigma(t))[:, None]
  np.testing.assert_allclose(
    two_halves(model, x, t, m, s),
    mean_velocity(model, x, t, s),
    rtol=1e-7,
    atol=1e-8,
  )


def test_the_halves_of_the_shortest_jump_are_steps_of_the_velocity():
  """A student that answers x0 = how far it jumps; no length at the last."""

  def apply(params, x, c):
    return jnp.broadcast_to((c[:, 0] - c[:, 1])[:, None], x.shape)

  model = denoisers.from_function(
    apply, {}, cases.EDM, prediction="x0", time="t", jumps=True
  )
  t, m, s = (jnp.asarray([v, v]) for v in (4.0, 2.0, 1.0))
  x = jnp.ones((2, 1))
  last = jnp.asarray([False, True])
  mean = two_halves(model, x, t, m, s, last=last)
  # eps = (x - x0) / t, and x_m = x0 + m eps
  far = 0.5 * ((1 - 2) / 4 - 2 + ((2 - 0.5) - 1) / 2 - 1)
  near = 0.5 * (1 / 4 + (1 / 2) / 2)
  np.testing.assert_allclose(mean[:, 0], [far, near], rtol=1e-6)


@pytest.mark.slow
def test_shortcuts_learn_velocities_and_halves():
  method = distillation.shortcut(
    cases.TEACHER, cases.student(jumps=True), optimizer=cases.SGD
  )
  (value, said), _ = cases.value_and_gradient(method, jax.random.key(0))
  parts = 0.75 * said["flow"] + 0.25 * said["consistency"]
  assert float(value) == pytest.approx(float(parts), rel=1e-5)

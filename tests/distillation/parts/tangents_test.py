"""Derivatives along an ODE, and their clocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import oracles
from jaxdiff.distillation.parts import tangents
from jaxdiff.distillation.parts import trigflow
from jaxdiff.distillation.scm import field as field_of
from jaxdiff.predictions import Prediction
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.CONTINUOUS_NAMES)
def test_the_derivative_is_that_along_the_trajectory(name, x64):
  """Against differences of F at exact points of a Gaussian's trajectory."""
  process = cases.CONTINUOUS[name]
  x, t = cases.points(process, dtype=jnp.float64)
  law = oracles.gaussian(np.asarray([0.3, -0.2]), 0.5)
  pair = oracles.exact(law, process)(x, t)
  field = field_of(cases.student(process, dtype=jnp.float64))
  ends = lambda t: (process.alpha(t)[:, None], process.sigma(t)[:, None])
  at = lambda s: field(oracles.flow_map(law, x, ends(t), ends(s)), s)
  h = 1e-5 * process.t_min
  slope = (at(t + h) - at(t - h)) / (2 * h)
  for mode in ("exact", "finite_difference"):
    rate = tangents.log_noise_rate(process, t)
    value, found = tangents.along_ode(field, process, x, t, pair, rate, mode)
    expected = rate[:, None] * slope
    np.testing.assert_allclose(value, field(x, t), rtol=1e-12)
    error = abs(found - expected).max() / abs(expected).max()
    assert float(error) < 1e-6, mode


@pytest.mark.parametrize("name", cases.CONTINUOUS_NAMES)
def test_clocks_are_what_their_names_say(name, x64):
  process = cases.CONTINUOUS[name]
  _, t = cases.points(process)
  h = 1e-6 * t
  slope = lambda f: (f(t + h) - f(t - h)) / (2 * h)
  log_noise = slope(lambda t: -process.log_snr(t))
  flow = slope(lambda t: tangents.flow_time(process, t))
  one = tangents.log_noise_rate(process, t) * log_noise
  np.testing.assert_allclose(one, 1.0, rtol=1e-7)
  np.testing.assert_allclose(
    tangents.flow_rate(process, t) * flow, 1.0, rtol=1e-7
  )


def test_the_clock_is_the_rearrangement_of_the_paper(x64):
  """cos a sin a dF / da, the factor put in afterwards, is dF / du."""
  process = cases.CONTINUOUS["trig"]
  x, a = cases.points(process)
  model = cases.student(process, dtype=jnp.float64)
  pair = oracles.exact(oracles.g2(), process)(x, a)
  field = field_of(model)
  velocity = trigflow.velocity(
    process, pair, a, cases.D
  )  # dx / da, as y = x here
  _, plain = jax.jvp(field, (x, a), (velocity, jnp.ones_like(a)))
  expected = (jnp.cos(a) * jnp.sin(a))[:, None] * plain
  rate = tangents.log_noise_rate(process, a)
  _, found = tangents.along_ode(field, process, x, a, pair, rate)
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_networks_without_a_forward_mode_and_integer_times_are_refused():
  fused = jax.custom_vjp(lambda x: 3.0 * x)
  fused.defvjp(lambda x: (3.0 * x, None), lambda _, g: (3.0 * g,))
  x, t = jnp.ones((2, 1)), jnp.asarray([0.5, 2.0])
  pair = Prediction(x, 2.0 * x)  # dx / dt = eps under EDM
  along = lambda t, mode="exact": tangents.along_ode(
    lambda x, t: fused(x), cases.EDM, x, t, pair, jnp.ones(2), mode
  )[1]
  with pytest.raises(TypeError, match='or choose jvp="finite_difference"'):
    along(t)
  slope = along(t, "finite_difference")
  np.testing.assert_allclose(slope, 6.0 * x, rtol=1e-3)
  with pytest.raises(ValueError, match="jvp must be one of 'exact'"):
    along(t, "central")
  with pytest.raises(TypeError, match="a time of training must be floating"):
    along(jnp.asarray([1, 2]))

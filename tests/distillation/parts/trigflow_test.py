"""TrigFlow: every process as a turn by an angle."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff.distillation.parts import trigflow
from jaxdiff.predictions import Prediction
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.CONTINUOUS_NAMES)
def test_every_process_is_a_turn_by_an_angle(name, x64):
  process = cases.CONTINUOUS[name]
  x, t = cases.points(process)
  eps = jnp.sin(5.0 * x)
  x0 = (x - process.sigma(t)[:, None] * eps) / process.alpha(t)[:, None]
  pair = Prediction(x0, eps)
  cos, sin = trigflow.turn(process, t, cases.D)
  a = trigflow.angle(process, t, cases.D)
  np.testing.assert_allclose(cos, np.cos(a), rtol=1e-12)
  np.testing.assert_allclose(sin, np.sin(a), rtol=1e-12)
  np.testing.assert_allclose(
    np.tan(a), process.sigma(t) / (cases.D * process.alpha(t)), rtol=1e-10
  )
  v = trigflow.velocity(process, pair, t, cases.D)
  alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
  edm = predictions.target("edm", pair.x0, pair.eps, alpha, sigma, cases.D)
  np.testing.assert_allclose(v, -cases.D * edm, rtol=1e-10)
  y = cases.D * predictions.input_scale(alpha, sigma, cases.D) * x
  back = cos[:, None] * y - sin[:, None] * v
  np.testing.assert_allclose(back, pair.x0, rtol=1e-9, atol=1e-12)


def test_models_carried_between_flow_trig_and_edm_agree(x64):
  levels = np.geomspace(0.05, 10.0, 6)
  z = jax.random.normal(jax.random.key(0), (6, 2), jnp.float64)
  for own, other in (("edm", "flow"), ("flow", "trig"), ("trig", "edm")):
    model = oracles.exact(oracles.g2(), cases.CONTINUOUS[own])
    process = cases.CONTINUOUS[other]
    t = jnp.asarray(process.time_at(levels))
    x = jnp.hypot(process.alpha(t), process.sigma(t))[:, None] * z
    told = trigflow.under(model, process)(x, t)
    exact = oracles.exact(oracles.g2(), process)(x, t)
    np.testing.assert_allclose(told.x0, exact.x0, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(told.eps, exact.eps, rtol=1e-9, atol=1e-12)


def test_the_process_of_trigflow_is_consistent(x64):
  process = trigflow.process(cases.D)
  t = np.linspace(process.t_min, process.t_max, 9)
  np.testing.assert_allclose(
    process.log_snr_inverse(process.log_snr(t)), t, rtol=1e-12
  )
  h = 1e-6
  for f, rate in zip((process.alpha, process.sigma), process.rates(t)):
    np.testing.assert_allclose((f(t + h) - f(t - h)) / (2 * h), rate, atol=1e-9)
  assert process.alpha(process.t_max) == 0.0
  assert process.noise_level(process.t_min) == pytest.approx(0.002)
  x = process.prior(jax.random.key(0), (4000, 2))
  assert float(x.std()) == pytest.approx(cases.D, rel=0.03)


def test_the_velocity_of_trigflow_is_finite_at_both_ends():
  flow = processes.rectified_flow()
  pair = Prediction(jnp.ones((2, 1)), jnp.full((2, 1), 2.0))
  v = trigflow.velocity(flow, pair, jnp.asarray([0.0, 1.0]), cases.D)
  np.testing.assert_allclose(v[:, 0], [2.0 * cases.D, -1.0], rtol=1e-6)
  field = trigflow.field(
    lambda x, t: Prediction(0.0 * x, x), cases.D, cases.EDM
  )
  assert np.isfinite(field(jnp.ones((1, 2)), jnp.asarray([math.pi / 2]))).all()


def test_bad_angles_and_scales_are_refused():
  field = trigflow.field(cases.TEACHER, cases.D)
  with pytest.raises(ValueError, match=r"inside \(0, pi / 2\], got 0.0"):
    field(jnp.ones((1, 2)), 0.0)
  with pytest.raises(ValueError, match="got 1.7"):
    field(jnp.ones((1, 2)), 1.7)
  with pytest.raises(TypeError, match="floating point, got int"):
    field(jnp.ones((1, 2)), jnp.asarray([1]))
  x = 2.0 * np.random.default_rng(0).standard_normal((500, 2))
  trigflow.check_sigma_data(x, 1.9)
  with pytest.raises(ValueError, match="deviation of the data is 1.95"):
    distillation.scm(
      cases.TEACHER, cases.student(), optimizer=cases.SGD, data=x
    )
  with pytest.raises(ValueError, match="deviation of the data is 1.95"):
    distillation.rcm(
      cases.TEACHER, cases.student(), optimizer=cases.SGD, data=x
    )

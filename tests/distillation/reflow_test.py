"""Reflow: straight lines, banks of pairs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff.distillation.reflow import line
from tests.distillation import cases


def test_the_reflow_of_a_gaussian_is_straight(x64):
  """x_0 = c x_T, so that v(z) = (1 - c) z / ((1 - tau) c + tau)."""
  process = processes.rectified_flow(1e-6)
  variance = 0.25
  law = oracles.exact(oracles.gaussian(np.zeros(2), variance), process)
  x = jax.random.normal(jax.random.key(0), (64, 2), jnp.float64)
  bent = distillation.straightness(law, process, x)
  assert float(bent) > 0.01
  c = math.sqrt(variance)

  def apply(params, z, tau):
    tau = tau[:, None]
    return (1.0 - c) * z / ((1.0 - tau) * c + tau)

  student = denoisers.from_function(
    apply, {}, process, prediction="flow", time="t"
  )
  straight = distillation.straightness(student, process, x)
  assert float(straight) < 1e-20
  bank = {"noise": x, "image": c * x}
  method = distillation.reflow(None, student, optimizer=cases.SGD)
  (value, _), _ = cases.value_and_gradient(
    method, jax.random.key(1), batch=bank
  )
  assert float(value) < 1e-25


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_lines_lead_from_the_noise_to_the_end_of_the_ode(name):
  process = cases.CONTINUOUS[name]
  start = 3.0 * jax.random.normal(jax.random.key(0), (5, 2))
  x0 = jax.random.normal(jax.random.key(1), (5, 2))
  pair = line(process, start, x0)
  alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
  np.testing.assert_allclose(
    alpha * pair.x0 + sigma * pair.eps, start, rtol=1e-5, atol=1e-6
  )


@pytest.mark.slow
def test_a_bank_holds_what_is_drawn_on_the_fly():
  table = solvers.ddim(cases.EDM, np.asarray([20.0, 1.0, 0.02]))
  student = cases.student()
  method = distillation.reflow(
    cases.TEACHER, student, optimizer=cases.SGD, table=table
  )
  key = jax.random.key(0)
  (value, _), _ = cases.value_and_gradient(method, key)
  bank = distillation.pairs(
    jax.random.split(key)[0],
    cases.TEACHER,
    cases.EDM,
    table,
    cases.EIGHT_POINTS,
  )
  (same, _), _ = cases.value_and_gradient(method, key, batch=bank)
  assert float(value) == pytest.approx(float(same), rel=1e-6)
  noisy = solvers.gamma_sampling(cases.EDM, np.asarray([20.0, 1.0, 0.02]))
  with pytest.raises(ValueError, match="this table draws noise"):
    distillation.reflow(
      cases.TEACHER, student, optimizer=cases.SGD, table=noisy
    )

"""Score identity distillation: its loss by hand, its players."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import oracles
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import implicit
from tests.distillation import cases

# the methods' names hide their modules
sid = sys.modules["jaxdiff.distillation.sid"]
sim = sys.modules["jaxdiff.distillation.sim"]


@pytest.mark.parametrize("process", [cases.EDM, cases.VP], ids=["edm", "vp"])
def test_the_squared_distance_is_sid_at_alpha_one(process, x64):
  teacher = oracles.exact(oracles.g2(), process)
  fake = cases.affine_model(process)
  x0 = cases.six_points(dtype=jnp.float64)["image"]
  key = jax.random.key(0)
  times = losses.times.uniform_log_snr(process)

  def by_hand(x0, alpha):
    time_key, noise_key = jax.random.split(key)
    t = times(time_key, len(x0))
    x, _ = process.perturb(noise_key, x0, t)
    real, other = teacher(x, t).x0, fake(x, t).x0
    w = 1 / jax.lax.stop_gradient(jnp.mean(abs(x0 - real), axis=1))
    each = (real - other) * (other - x0) + (1 - alpha) * (real - other) ** 2
    return jnp.mean(w * jnp.sum(each, axis=1))

  @jax.jit
  def both(x0):
    alike = sim.objective("squared", weighting="adaptive")
    pairs = [(sid.objective(alpha), alpha) for alpha in (1.0, 1.2)]
    return [
      (
        jax.value_and_grad(
          lambda x: cases.implicit_loss(own, teacher, fake, x)  # noqa: B023
        )(x0),
        jax.value_and_grad(by_hand)(x0, alpha),
      )
      for own, alpha in [*pairs, (alike, 1.0)]
    ]

  for own, expected in both(x0):
    np.testing.assert_allclose(own[0], expected[0], rtol=1e-9)
    np.testing.assert_allclose(own[1], expected[1], rtol=1e-9, atol=1e-12)


def test_the_players_are_the_objective_and_denoising_of_samples():
  student, batch = cases.affine_model(cases.VP), cases.six_points()
  teacher = oracles.exact(oracles.g2(), cases.VP)
  fake = denoisers.from_function(
    cases.affine, jax.tree.map(lambda p: 0.5 * p, student.params), cases.VP,
    prediction="x0", time="t",
  )  # fmt: skip
  method = distillation.sid(teacher, student, optimizer=cases.SGD, fake=fake)
  nets = {"teacher": teacher, "student": student.params, "fake": fake.params}
  key = jax.random.key(0)
  draw, match = jax.random.split(key)
  x0 = generators.one_step(cases.VP, implicit.start(student))(
    draw, student, batch
  )
  times = losses.times.uniform_log_snr(cases.VP)
  play = lambda name, params: jax.jit(method.players[name].loss)(
    key, params, nets, batch
  )
  own, said = play("student", student.params)
  expected, _ = jax.jit(
    lambda x0: implicit.matching(
      match, x0, teacher, fake, times, batch, sid.objective()
    )
  )(x0)
  assert float(own) == pytest.approx(float(expected), rel=1e-5)
  assert float(said["delta"]) > 0
  own, _ = play("fake", fake.params)
  expected, _ = jax.jit(losses.denoising(fake))(
    match, fake.params, batch | {"image": x0}
  )
  assert float(own) == pytest.approx(float(expected), rel=1e-5)

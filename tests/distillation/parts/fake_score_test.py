"""Fake scores: denoisers of a generator's samples, which they do not move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import losses
from jaxdiff.distillation.parts import fake_score
from jaxdiff.distillation.parts import generators
from tests.distillation import cases


def _loss(fake, student):
  generator = generators.one_step(cases.EDM)
  return fake_score.fake_score(fake, student, generator)


def test_the_fake_score_of_a_generator_of_one_point_is_that_point():
  student = fake = cases.point_student(cases.EDM)
  loss = jax.jit(
    lambda params: _loss(fake, student)(
      cases.KEY, params, {"student": student.params}, cases.SIX_POINTS
    )[0]
  )
  assert float(loss(fake.params)) < 1e-10
  assert float(loss(fake.params + 0.1)) > 1e-3


def test_it_is_denoising_of_the_samples_and_does_not_move_the_student():
  student = cases.affine_model()
  fake = cases.network(seed=1)
  draw, noise = jax.random.split(cases.KEY)
  x = generators.one_step(cases.EDM)(draw, student, cases.SIX_POINTS)
  expected, _ = jax.jit(losses.denoising(fake))(
    noise, fake.params, cases.SIX_POINTS | {"image": x}
  )

  @jax.jit
  @jax.value_and_grad
  def of_student(params):
    nets = {"student": params}
    return _loss(fake, student)(cases.KEY, fake.params, nets, cases.SIX_POINTS)[
      0
    ]

  value, slope = of_student(student.params)
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  assert cases.is_zero(slope)
  assert np.any(jnp.asarray(x))

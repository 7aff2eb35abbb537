"""Imitation: its minimum is the teacher, its loss and gradient by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from tests.distillation import cases

TIMES = jnp.linspace(0.5, 4.0, 6)


def _imitation(teacher, student):
  method = distillation.imitation(
    teacher,
    student,
    optimizer=cases.SGD,
    times=lambda key, n: TIMES[:n],
    weighting="x0",
  )
  loss = method.players["student"].loss
  return jax.jit(
    jax.value_and_grad(
      lambda params: loss(
        cases.KEY, params, {"teacher": teacher}, cases.SIX_POINTS
      )[0]
    )
  )


def test_a_student_like_its_teacher_has_no_loss_and_no_gradient():
  model = cases.affine_model(cases.VP)
  value, slope = _imitation(model, model)(model.params)
  assert float(value) == 0.0
  assert cases.is_zero(slope)


def test_the_loss_is_the_mean_square_of_the_difference_in_x0():
  """Shifts that differ by d make x0 differ by d (1 + t)."""
  teacher = cases.affine_model()
  d = jnp.asarray([0.3, -0.1])
  moved = teacher.params | {"shift": teacher.params["shift"] + d}
  value, slope = _imitation(teacher, teacher)(moved)
  far = np.asarray(d) * (1.0 + np.asarray(TIMES))[:, None]
  assert float(value) == pytest.approx(np.mean(far**2), rel=1e-5)
  expected = np.mean(far * (1.0 + np.asarray(TIMES))[:, None], axis=0)
  np.testing.assert_allclose(slope["shift"], expected, rtol=1e-5)

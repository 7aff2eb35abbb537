"""Consistency training: its intervals and its average."""

import jax.numpy as jnp
import numpy as np

from jaxdiff import distillation
from tests.distillation import cases


def test_the_discretization_and_the_decay_of_consistency_training():
  method = distillation.consistency_training(
    cases.point_student(cases.EDM), optimizer=cases.SGD, updates=100
  )
  k = np.arange(101)
  paper = np.ceil(np.sqrt(k / 100 * (151**2 - 4) + 4) - 1) + 1  # times
  assert paper[0] == 2
  assert paper[-1] == 151
  np.testing.assert_allclose(
    method.ema(jnp.asarray(k + 1.0)),
    np.exp(2 * np.log(0.9) / paper),
    rtol=1e-6,
  )

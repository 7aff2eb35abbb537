"""Guided teachers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import guidance
from jaxdiff import networks
from jaxdiff import oracles
from tests.distillation import cases


def test_guidance_of_one_is_the_teacher_and_two_that_of_cfg():
  teacher = oracles.exact(oracles.g2(), cases.EDM)
  assert distillation.guided(teacher, 1.0) is teacher
  label = jnp.asarray([0, 1, 2, 0, 1, 2])
  given = distillation.guided(teacher, 2.0, null=3)(
    cases.SIX_POINTS["image"], 1.0, label
  )
  expected = guidance.cfg(teacher, label=label, null=3, scale=2.0)
  np.testing.assert_array_equal(
    given.x0, expected(cases.SIX_POINTS["image"], 1.0).x0
  )
  module = networks.MLP(features=(8,), embedding=8, num_classes=3)
  assert distillation.guided(cases.network(module=module), 2.0).null == 3
  vectors = networks.DiT(label_dim=5)  # whose null is zeros
  told = denoisers.from_linen(vectors, {}, cases.EDM)
  assert distillation.guided(told, 2.0).null == 0.0
  with pytest.raises(ValueError, match="guidance=2.0 needs a teacher"):
    distillation.guided(teacher, 2.0)

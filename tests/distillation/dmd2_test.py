"""DMD2: the adversarial terms."""

import jax
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import oracles
from tests.distillation import cases


@pytest.mark.slow
def test_the_adversary_adds_its_weighted_terms_and_nothing_else():
  """A head of 0 costs 1 on data and 0, the generator 1, by least squares."""
  teacher, student = oracles.exact(oracles.g2(), cases.EDM), cases.network()
  plain = distillation.dmd(teacher, student, optimizer=cases.SGD)
  method = distillation.dmd2(
    teacher, student, optimizer=cases.SGD, shape=(2,), layer="Dense_0",
    kind="least_squares", weight=0.3, critic_weight=0.7,
  )  # fmt: skip
  for player, more in (("student", 0.3), ("fake", 0.7)):
    one, two = (
      m.players[player].loss(
        cases.KEY, cases.nets(m)[player], cases.nets(m), cases.SIX_POINTS
      )[0]
      for m in (plain, method)
    )
    assert float(two - one) == pytest.approx(more, rel=1e-4)
  nets = cases.nets(method)
  fake = cases.gradient(method, "fake")
  assert not cases.is_zero(fake["head"])
  # once the head reads them, the features are trained by it and by denoising
  head = jax.tree.map(lambda p: p + 0.1, nets["fake"]["head"])
  nets = nets | {"fake": nets["fake"] | {"head": head}}
  both = cases.gradient(method, "fake", nets)["score"]
  plain_nets = cases.nets(plain)
  alone = cases.gradient(plain, "fake", plain_nets)["score"]
  np.testing.assert_allclose(
    both["Dense_0"]["kernel"] - alone["Dense_0"]["kernel"] != 0, True
  )
  # the output layer comes after the features
  np.testing.assert_allclose(
    both["out"]["kernel"], alone["out"]["kernel"], rtol=1e-4, atol=1e-6
  )

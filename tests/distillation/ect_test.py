"""Easy consistency tuning: the pairs of times."""

import jax
import numpy as np

from jaxdiff import distillation
from jaxdiff.distillation.parts import consistency
from tests.distillation import cases


def test_pairs_of_ect_begin_at_the_end_and_close(monkeypatch):
  """r / t = 1 - (1 + k sigmoid(-b t)) / q^a, and not below t_min."""
  kept = lambda student, pairs, **options: pairs
  monkeypatch.setattr(consistency, "training_loss", kept)
  method = distillation.ect(
    cases.point_student(cases.EDM), optimizer=cases.SGD, every=10
  )
  pairs = jax.jit(
    lambda step: method.players["student"].loss(jax.random.key(0), 64, step)
  )
  for step, a in ((0, 1), (9, 1), (10, 2), (75, 8)):
    t, r = map(np.asarray, pairs(step))
    ratio = 1 - (1 + 8 / (1 + np.exp(t))) / 2.0**a
    np.testing.assert_allclose(r, np.maximum(ratio * t, 0.02), rtol=1e-4)
    assert np.any(r > 0.021)
    assert np.all(r <= t)

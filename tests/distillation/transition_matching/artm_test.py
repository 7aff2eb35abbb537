"""ARTM: the state that is read."""

import numpy as np

from tests.distillation import cases


def test_the_read_state_is_seen_by_all_tokens():
  model = cases.chain("artm", steps=2)
  base = np.random.default_rng(1).standard_normal((1, 8, 4))
  moved = base.copy()
  moved[:, 3] += 1.0  # the last token of X_t
  both = np.concatenate([base, moved]).astype(np.float32)
  h = cases.chain_features(model, both, np.zeros(2, np.float32))
  assert np.all(abs(h[0] - h[1]).max(-1) > 1e-5)

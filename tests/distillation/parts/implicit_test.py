"""Score projection, and where one-step students start."""

import numpy as np
import pytest

from jaxdiff.distillation.parts import implicit
from tests.distillation import cases


def test_scores_project_to_the_score_of_the_kernel():
  """E u(x_t) (s(x_t) - grad log p(x_t | x0)) = 0 for every u."""
  m, s, sigma = 0.7, 0.6, 1.3
  z, w = np.polynomial.hermite_e.hermegauss(80)
  w = w / w.sum()
  x0 = m + s * z[:, None]
  eps = z[None, :]
  x = x0 + sigma * eps
  score = -(x - m) / (s**2 + sigma**2)
  for u in (lambda x: x, np.square, np.sin):
    mean = np.einsum("i,j,ij->", w, w, u(x) * (score + eps / sigma))
    assert abs(mean) < 1e-10


@pytest.mark.parametrize("process", [cases.EDM, cases.VP], ids=["edm", "vp"])
def test_students_start_at_a_noise_level(process):
  model = cases.affine_model(process)
  t = implicit.start(model, 2.5)
  assert process.noise_level(t) == pytest.approx(2.5, rel=1e-6)

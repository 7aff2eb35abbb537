"""Improved consistency training: its intervals and their probabilities."""

import jax
import numpy as np
import pytest
from scipy import special

from jaxdiff import grids
from jaxdiff import losses
from jaxdiff.distillation.ict import intervals
from jaxdiff.distillation.parts import consistency
from tests.distillation import cases


def test_the_schedule_of_ict():
  steps = np.arange(0, 801, 100)
  found = [float(intervals(800)(k)) for k in steps]
  assert found == [10, 20, 40, 80, 160, 320, 640, 1280, 1280]
  with pytest.raises(ValueError, match="first=20, last=10"):
    intervals(800, 20, 10)


def test_intervals_of_ict_have_the_probabilities_of_the_paper(x64):
  n, size = 10, 40000
  place, _ = consistency.karras_clock(cases.EDM)
  times = losses.times.log_normal(cases.EDM, -1.1, 2.0)
  i = np.floor(n * place(times(jax.random.key(0), size))).clip(0, n - 1)
  share = np.bincount(i.astype(int), minlength=n) / size
  edges = np.log(grids.karras(cases.EDM, n)[::-1])
  odds = np.diff(special.erf((edges + 1.1) / (np.sqrt(2) * 2.0)))
  # the draws are stratified: a count is off by one or two
  np.testing.assert_allclose(share, odds / odds.sum(), atol=2 / size)

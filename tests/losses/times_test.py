"""Laws of training times."""

import numpy as np
import pytest

from jaxdiff import losses
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_karras_times_are_the_grid_without_end(name, x64):
  process = cases.PROCESSES[name]
  t = losses.times.karras(process, stratified=False)(cases.KEY, 4096)
  level = np.clip(process.noise_level(np.asarray(t)), 0, np.exp(10.0))
  ends = (np.exp(-max(min(float(process.log_snr(e)), 10.0), -10.0)) ** (1 / 7)
          for e in (process.t_min, process.t_max))  # fmt: skip
  low, high = ends
  place = np.sort((level ** (1 / 7) - low) / (high - low))
  uniform = (np.arange(4096) + 0.5) / 4096
  assert abs(place - uniform).max() < 1.63 / np.sqrt(4096)  # 1 % of Kolmogorov

"""The step of a table moves what it must, by the compiler's own count."""

import numpy as np
import pytest

from experiments.bench import overhead
from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff import tableau as tables

EDM = processes.edm()
GRID = grids.karras(EDM, 8)


def test_a_step_without_an_anchor_moves_twelve_states_at_most():
  moved, least, products = overhead.traffic(solvers.ipndm(EDM, GRID, order=4))
  assert (least, products) == (10, 0)
  assert 8 < moved <= 12
  staged = tables.pad(solvers.heun(EDM, GRID), memory=4)
  assert overhead.traffic(staged)[0] > moved


@pytest.mark.slow  # it forgets what the other tests have compiled
def test_the_first_call_is_measured_beside_the_same_solver_by_hand():
  model = oracles.exact(oracles.g2(), EDM)
  x = 80.0 * np.ones((2, 2), np.float32)
  found = overhead.first_call(model, solvers.dpmpp_2m(EDM, GRID), x, repeats=1)
  assert found["seconds"] > 0 and found["first_call"] > 0.5
  assert 0.5 < found["program"] < 3

"""The teacher's steps along a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff.distillation.parts import teacher_steps
from tests.distillation import cases
from tests.solvers.cases import CASES


@pytest.mark.parametrize(
  ("name", "solver"),
  [
    ("edm", "heun"),
    ("flow", "heun"),
    pytest.param("vp", "ddim", marks=pytest.mark.slow),
  ],
)
def test_a_walk_is_the_table_on_its_part_of_the_grid(name, solver, x64):
  process = cases.PROCESSES[name]
  grid = grids.karras(process, 4)
  teacher = cases.bent_teacher(process)
  steps = teacher_steps.of(solver, process, grid)
  x = jax.random.normal(jax.random.key(0), (3, 2))
  walk = jax.jit(
    lambda x, count: teacher_steps.walk(
      teacher, steps, x, jnp.asarray([2, 0, 1]), count
    )
  )
  there = walk(x, 2)
  for b, i in enumerate([2, 0, 1]):
    table = CASES[solver].build(process, grid[i : i + 3])
    alone = sampling.sample(jax.random.key(0), teacher, table, x)[b]
    np.testing.assert_allclose(there[b], alone, rtol=1e-9, atol=1e-12)
  np.testing.assert_array_equal(walk(x, 0), x)


def test_grids_end_where_the_function_is_x():
  with pytest.raises(ValueError, match="ends at 0, but trajectories end"):
    teacher_steps.falling(cases.EDM, grids.karras(cases.EDM, 4, to_zero=True))
  with pytest.raises(ValueError, match="strictly decreasing"):
    teacher_steps.falling(cases.EDM, np.asarray([20.0, 1.0, 1.0, 0.02]))
  with pytest.raises(ValueError, match="draws noise"):
    teacher_steps.of("ddpm", cases.EDM, grids.karras(cases.EDM, 2))
  with pytest.raises(ValueError, match="no solver .*did you mean heun"):
    teacher_steps.of("huen", cases.EDM, grids.karras(cases.EDM, 2))

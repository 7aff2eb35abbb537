"""Progressive distillation: targets, rounds, halved grids."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff.distillation.parts import jumps
from jaxdiff.distillation.progressive import annealed
from jaxdiff.distillation.progressive import solved
from jaxdiff.distillation.progressive import student_grid
from tests.distillation import cases


@pytest.mark.parametrize("name", cases.PROCESSES)
def test_the_target_makes_one_step_of_two(name, x64):
  """Also out of alpha = 0 and into sigma = 0."""
  process = cases.PROCESSES[name]
  teacher = cases.bent_teacher(process)
  grid = grids.cosine(process, 4, to_zero=True)
  x = jax.random.normal(jax.random.key(0), (2, 2))
  t, m, s = (jnp.asarray(grid[k::2][:2]) for k in range(3))
  x_m = jumps.jump(process, teacher(x, t), x, t, m)
  x_s = jumps.jump(process, teacher(x_m, m), x_m, m, s)
  assert np.all(np.isfinite(x_s))
  x0 = solved(process, x, x_s, t, s)
  one = jumps.jump(process, teacher(x, t)._replace(x0=x0), x, t, s)
  np.testing.assert_allclose(one, x_s, rtol=1e-10)


def test_a_student_that_steps_as_its_teacher_twice_has_no_loss(x64):
  """Where data are one point DDIM is exact, in one step or two."""
  process = cases.PROCESSES["flow"]
  student = cases.point_student(process)
  method = distillation.progressive(
    student, student, optimizer=cases.SGD, updates=1, grid=4
  )
  batch = {"image": jnp.broadcast_to(student.params, (16, 2))}
  loss = cases.loss_of(method)
  for step in (0, 1, 5):
    value = loss(student.params, jax.random.key(0), batch, step)
    assert float(value) < 1e-20
  value = loss(student.params + 0.1, jax.random.key(0), batch, step)
  assert float(value) > 1e-3


def test_rounds_make_the_student_the_next_teacher():
  student = cases.network(cases.EDM)
  method = distillation.progressive(
    student, student, optimizer=optax.sgd(annealed(0.1, 2)), updates=2, grid=8
  )
  state = distillation.init_state(jax.random.key(0), method)
  update = distillation.make_update(method)
  batch = {"image": jax.random.normal(jax.random.key(1), (8, 2))}
  steps, first = [], jax.tree.map(np.asarray, student.params)
  for k in range(7):
    state, metrics = update(state, batch)
    steps.append(int(metrics["steps"]))
    taught = state.loss_params["memory"]["teacher"]
    if k % 2 == 1:
      chex.assert_trees_all_close(taught, state.params, rtol=1e-6)
      first = jax.tree.map(np.asarray, taught)
    else:
      chex.assert_trees_all_close(taught, first, rtol=0)
  assert steps == [4, 4, 2, 2, 1, 1, 1]
  np.testing.assert_array_equal(
    student_grid(grids.cosine(cases.EDM, 8), 3), [20.0, 0.02]
  )
  assert annealed(0.1, 4)(5) == pytest.approx(0.075)


def test_grids_that_cannot_be_halved_are_refused():
  make = lambda **options: distillation.progressive(
    cases.point_student(cases.EDM),
    cases.point_student(cases.EDM),
    optimizer=cases.SGD,
    updates=1,
    **options,
  )
  with pytest.raises(ValueError, match="12 steps can be halved 2 times"):
    make(grid=12, rounds=3)
  with pytest.raises(ValueError, match="7 steps can be halved 0 times"):
    make(grid=7)
  with pytest.raises(ValueError, match="weighting must be one of"):
    make(weighting="snr")

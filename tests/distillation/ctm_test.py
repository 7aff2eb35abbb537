"""Consistency trajectory models: exact jumps, weights of terms, critics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import distillation
from jaxdiff import oracles
from jaxdiff import tableau as tables
from jaxdiff.distillation.parts import critic as critics
from jaxdiff.distillation.parts.jumps import flow_map
from tests.distillation import cases


def _exact_solver(process, grid):
  """A table whose one call follows the ODE of N(0, V) exactly."""
  ratio = np.sqrt((grid[1:] ** 2 + cases.V) / (grid[:-1] ** 2 + cases.V))
  return tables.multistep(grid[:-1], "x0", ratio, np.zeros((len(grid) - 1, 1)))


def test_exact_jumps_have_no_loss_and_no_gradient(x64):
  """Along the exact ODE both ways to s end at one place, for every t, u, s."""
  model = cases.exact_student()
  method = distillation.ctm(
    # the exact solver does not look at its answers
    cases.bent_teacher(cases.EDM),
    model,
    optimizer=cases.SGD,
    grid=6,
    solver=_exact_solver,
    dsm=0.0,
  )
  batch = {"image": jax.random.normal(jax.random.key(1), (32, 2))}
  loss = jax.jit(jax.value_and_grad(cases.loss_of(method)))
  value, slope = loss(jnp.asarray(1.0), jax.random.key(2), batch)
  assert float(value) < 1e-24
  assert abs(float(slope)) < 1e-12
  value, slope = loss(jnp.asarray(1.1), jax.random.key(2), batch)
  assert float(value) > 1e-6
  assert float(slope) > 1e-6


def test_terms_are_added_with_weights_that_make_them_pull_alike(x64):
  student = cases.network(cases.EDM, jumps=True)
  method = distillation.ctm(
    cases.bent_teacher(cases.EDM),
    student,
    optimizer=cases.SGD,
    grid=4,
    solver="euler",
  )
  nets = {**method.frozen, "ema": student.params, "step": 0}
  batch = {"image": jax.random.normal(jax.random.key(1), (6, 2))}
  loss = method.players["student"].loss

  def parts(params):
    value, said = loss(jax.random.key(2), params, nets, batch)
    return jnp.stack([value, said["ctm"], said["dsm"]]), said

  slope, said = jax.jit(jax.jacrev(parts, has_aux=True))(student.params)
  a = float(said["dsm_weight"])
  whole, ctm, dsm = slope["out"]["kernel"]
  np.testing.assert_allclose(whole, ctm + a * dsm, rtol=1e-9, atol=1e-12)
  _, ctm, dsm = (
    jnp.sqrt(sum(jnp.sum(g[k] ** 2) for g in slope["out"].values()))
    for k in range(3)
  )
  assert a * float(dsm) == pytest.approx(float(ctm), rel=1e-9)


@pytest.mark.slow
def test_an_update_with_a_critic(x64):
  student = cases.network(cases.EDM, jumps=True)
  network = cases.network(cases.EDM)
  for trained in (False, True):
    critic = critics.make(
      jax.random.key(0), network, "Dense_0", (2,), width=8, trained=trained
    )
    method = distillation.ctm(
      None,
      student,
      optimizer=optax.adam(1e-2),
      grid=4,
      gan="adaptive",
      critic=critic,
      gan_start=1,
    )
    state = distillation.init_state(jax.random.key(1), method)
    update = distillation.make_update(method)
    batch = {"image": jax.random.normal(jax.random.key(2), (8, 2))}
    moved, before = [], critic.params
    for _ in range(3):
      state, metrics = update(state, batch)
      after = jax.tree.map(np.asarray, state.loss_params["critic"])
      moved.append(
        any(
          np.any(a != b)
          for a, b in zip(
            jax.tree.leaves(after), jax.tree.leaves(before), strict=True
          )
        )
      )
      before = after
      assert float(metrics["skipped"]) == 0.0
    assert moved == [False, True, True]
    assert set(metrics) >= {"ctm", "dsm", "gan", "critic/real", "gan_weight"}
    assert ("network" in before) == trained


def test_trajectories_check_what_they_are_given():
  student, teacher = (
    cases.network(cases.EDM, jumps=True),
    oracles.exact(oracles.g2(), cases.EDM),
  )
  make = lambda student=student, **options: distillation.ctm(
    teacher, student, optimizer=cases.SGD, grid=4, **options
  )
  with pytest.raises(ValueError, match="told one time alone; make it with"):
    make(cases.network(cases.EDM))
  with pytest.raises(ValueError, match="needs a critic"):
    make(gan=0.1)
  with pytest.raises(ValueError, match="takes 1..4 steps .* max_steps=5"):
    make(max_steps=5)
  with pytest.raises(ValueError, match="no layer 'last' .* it has Dense_0"):
    make(last="last")
  with pytest.raises(ValueError, match="dsm is the weight .* got 'large'"):
    make(dsm="large")
  with pytest.raises(ValueError, match="until must be one of"):
    make(until="middle")
  with pytest.raises(ValueError, match="target must be one of"):
    make(target="teacher")
  with pytest.raises(ValueError, match="t=1 and s=2"):
    flow_map(student, jnp.ones((2, 2)), 1.0, np.asarray([0.5, 2.0]))

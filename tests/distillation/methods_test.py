"""Contracts of all methods: labels, updates, mistakes, known optima."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from tests.distillation import cases

UNTAUGHT = ("consistency_training", "ict", "ect")
PAIRED = dict(zip(UNTAUGHT, cases.PROCESSES, strict=True))


@pytest.mark.parametrize(
  ("method", "name"),
  [
    pytest.param(m, n, marks=() if PAIRED[m] == n else pytest.mark.slow)
    for m in UNTAUGHT
    for n in cases.PROCESSES
  ],
)
def test_training_is_done_where_data_are_one_point(name, method, x64):
  """Both ends of every pair lie on one path: no loss if, and only if, known."""
  process = cases.PROCESSES[name]
  student = cases.point_student(process)
  build = getattr(distillation, method)
  option = {"every": 2} if method == "ect" else {"updates": 9}
  made = build(student, optimizer=cases.SGD, **option)
  batch = {"image": jnp.broadcast_to(student.params, (8, 2))}
  loss = cases.loss_of(made)
  for step in (0, 8):
    value = loss(student.params, jax.random.key(0), batch, step)
    assert abs(float(value)) < 1e-6
    value = loss(student.params + 0.1, jax.random.key(0), batch, step)
    assert 1e-5 < float(value) < np.inf


def test_methods_without_a_teacher_refuse_one():
  student = cases.point_student(cases.EDM)
  for build, option in (
    (distillation.consistency_training, {"updates": 9}),
    (distillation.ict, {"updates": 9}),
    (distillation.ect, {"every": 9}),
  ):
    with pytest.raises(TypeError, match="takes at most 1 arguments"):
      build(student, student, optimizer=cases.SGD, **option)
  with pytest.raises(ValueError, match="q=1.0"):
    distillation.ect(student, optimizer=cases.SGD, every=9, q=1.0)
  with pytest.raises(ValueError, match="updates=0"):
    distillation.consistency_training(student, optimizer=cases.SGD, updates=0)


def test_labels_reach_teacher_and_student():
  """Every call is given the batch's; for samples of three axes."""
  seen = []

  def network(params, x, c, label):
    seen.append(label)
    return params * x

  process = cases.PROCESSES["vp"]
  student = denoisers.from_function(
    network, jnp.asarray(0.5), process, prediction="v", jumps=True
  )
  batch = {
    "image": jnp.ones((3, 2, 2, 1)),
    "label": jnp.asarray([4, 0, 7]),
    "index": jnp.arange(3),
  }
  exact = cases.bent_teacher(process)
  teacher = lambda x, t, label: (seen.append(label), exact(x, t))[1]
  one_time = dataclasses.replace(student, jumps=False)
  options = dict(optimizer=cases.SGD)
  for method in (
    distillation.consistency_distillation(teacher, student, grid=3, **options),
    distillation.ctm(teacher, student, grid=3, dsm=0.0, **options),
    distillation.ict(student, updates=9, **options),
    distillation.progressive(teacher, one_time, updates=9, grid=2, **options),
  ):
    seen.clear()
    value = jax.eval_shape(
      cases.loss_of(method), student.params, jax.random.key(0), batch
    )
    assert value.shape == ()
    assert len(seen) >= 2
    kind = batch["label"].dtype
    assert all(v.shape == (3,) and v.dtype == kind for v in seen)


def test_students_of_mean_velocities_jump():
  for method in (distillation.mean_flow, distillation.shortcut):
    with pytest.raises(ValueError, match="jumps=True"):
      method(cases.TEACHER, cases.student(), optimizer=cases.SGD)
  student = cases.student(jumps=True)
  for method, bad, match in (
    (distillation.mean_flow, dict(share=1.5), "share is a part of the batch"),
    (distillation.shortcut, dict(share=1.0), "share is a part of the batch"),
    (distillation.shortcut, dict(levels=0), "levels counts the lengths"),
  ):
    with pytest.raises(ValueError, match=match):
      method(cases.TEACHER, student, optimizer=cases.SGD, **bad)


OF_VELOCITIES = {
  "scm": lambda **o: distillation.scm(adaptive=True, **o),
  "rcm": lambda **o: distillation.rcm(warmup=1, fake_steps=2, calls=2, **o),
  "mean_flow": distillation.mean_flow,
  "shortcut": distillation.shortcut,
  "reflow": lambda **o: distillation.reflow(steps=3, **o),
}


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", OF_VELOCITIES)
@pytest.mark.parametrize("process", cases.CONTINUOUS)
def test_updates_with_labels_train_a_student_that_any_table_runs(
  process, name, double
):
  process = cases.CONTINUOUS[process]
  with jax.enable_x64(double):
    dtype = jnp.float64 if double else jnp.float32
    network = networks.MLP(features=(8,), embedding=8, num_classes=3)
    jumps = name in ("mean_flow", "shortcut")
    x = jnp.zeros((1, 2, 1), dtype)
    c = jnp.zeros((1, 2) if jumps else 1, dtype)
    params = network.init(jax.random.key(0), x, c, jnp.zeros(1, int))["params"]
    student = denoisers.from_linen(
      network, params, process, sigma_data=cases.D, jumps=jumps
    )
    teacher = oracles.exact(oracles.g2(), process)
    method = OF_VELOCITIES[name](
      teacher=teacher, student=student, optimizer=optax.adam(1e-3)
    )
    state = distillation.init_state(jax.random.key(1), method)
    update = distillation.make_update(method)
    batch = {
      "image": jax.random.normal(jax.random.key(2), (8, 2, 1), dtype),
      "label": jnp.arange(8) % 3,
    }
    for _ in range(3):
      state, said = update(state, batch)
      assert float(said["skipped"]) == 0.0, said
    grid = np.asarray(process.time_at(np.asarray([10.0, 1.0, 0.05])))
    model, table = distillation.sampler(
      method.finished(state), grid, gamma=method.gamma
    )
    drawn = sampling.sample(
      jax.random.key(3), model, table, (4, 2, 1), process=process
    )
    assert np.isfinite(drawn).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_VELOCITIES)
def test_losses_are_finite_where_there_is_no_signal_left(name):
  """At t = 1 a rectified flow has alpha = 0 and no finite log-SNR."""
  process = processes.rectified_flow()
  student = cases.student(process, jumps=name in ("mean_flow", "shortcut"))
  ends = lambda key, n: jnp.where(jnp.arange(n) % 2, process.t_max, 0.3)
  options = dict(dmd_times=ends) if name == "rcm" else {}
  method = OF_VELOCITIES[name](
    teacher=oracles.exact(oracles.g2(), process),
    student=student,
    optimizer=cases.SGD,
    times=ends,
    **options,
  )
  for player in method.players:
    (value, _), grads = cases.value_and_gradient(
      method, jax.random.key(0), player=player
    )
    assert np.isfinite(value), player
    for leaf in jax.tree.leaves(grads):
      assert np.isfinite(leaf).all(), player


OF_SCORES = {
  "sim": distillation.sim,
  "sid": distillation.sid,
  "sign": distillation.sign,
  # which has no teacher
  "score_mismatching": lambda _, *args, **o: distillation.score_mismatching(
    *args, **o
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_SCORES)
def test_an_update_moves_everyone(name):
  """On another process than EDM's, with labels."""
  module = networks.MLP(features=(8,), embedding=8, num_classes=3)
  teacher = cases.network(cases.VP, module)
  student = cases.network(cases.VP, module, seed=1)
  if name == "sign":
    student = cases.network(module=module, seed=1, prediction="x0", time="none")
  method = OF_SCORES[name](teacher, student, optimizer=optax.adam(1e-2))
  batch = cases.six_points() | {"label": jnp.asarray([0, 1, 2, 0, 1, 2])}
  state = distillation.init_state(jax.random.key(0), method)
  before = jax.tree.map(np.asarray, (state.params, state.loss_params))
  state, metrics = distillation.make_update(method)(state, batch)
  assert float(metrics["skipped"]) == 0.0
  for old, new in zip(before, (state.params, state.loss_params)):
    moved = jax.tree.map(lambda a, b: np.any(a != b), old, new)
    assert all(
      jax.tree.leaves({k: v for k, v in moved.items() if k != "memory"})
    )
  grid = grids.karras(student.process, 2)
  model, table = distillation.sampler(method.finished(state), grid)
  x = sampling.sample(
    jax.random.key(1), denoisers.with_label(model, 1), table, batch["image"]
  )
  assert np.isfinite(x).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.PROCESSES)
@pytest.mark.parametrize("builder", ["dmd2", "presto", "phased_dmd"])
def test_updates_are_finite_and_move_the_student(name, builder):
  process = cases.PROCESSES[name]
  teacher, student = (
    oracles.exact(oracles.g2(), process),
    cases.network(process),
  )
  options = dict(shape=(2,), layer="Dense_0")
  grid = grids.karras(process, 2, to_zero=True)
  if builder == "phased_dmd":
    options = dict(grid=grid, updates=2)
  elif builder == "dmd2":
    options["grid"] = grid
  method = getattr(distillation, builder)(
    teacher, student, optimizer=optax.adam(1e-3, b1=0.0), **options
  )
  state = distillation.init_state(cases.KEY, method)
  update = distillation.make_update(method)
  for _ in range(4):
    state, metrics = update(state, dict(cases.SIX_POINTS))
    assert float(metrics["skipped"]) == 0
  moved = jax.tree.map(lambda a, b: a - b, state.params, method.student.params)
  assert not cases.is_zero(moved)

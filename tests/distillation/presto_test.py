"""Presto: which player moves, guidance, dropped layers."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import distillation
from jaxdiff import networks
from jaxdiff import oracles
from tests.distillation import cases


def test_no_player_moves_another():
  """Losses reach the fake score through x_t or nets with no gradient."""
  teacher, student = oracles.exact(oracles.g2(), cases.EDM), cases.network()
  method = distillation.presto(
    teacher, student, optimizer=cases.SGD, shape=(2,), layer="Dense_0"
  )
  nets = cases.nets(method)
  head = jax.tree.map(lambda p: p + 0.1, nets["fake"]["head"])
  nets = nets | {"fake": nets["fake"] | {"head": head}}
  generator, critic = (method.players[n].loss for n in ("student", "fake"))
  to_fake = lambda fake: generator(
    cases.KEY, nets["student"], nets | {"fake": fake}, cases.SIX_POINTS
  )[0]
  assert cases.is_zero(jax.jit(jax.grad(to_fake))(nets["fake"]))
  to_student = lambda student: critic(
    cases.KEY, nets["fake"], nets | {"student": student}, cases.SIX_POINTS
  )[0]
  assert cases.is_zero(jax.jit(jax.grad(to_student))(nets["student"]))


def test_a_fake_score_like_the_teacher_gives_no_gradient():
  student = cases.network()
  options = dict(optimizer=cases.SGD, shape=(2,), layer="Dense_0", weight=0.0)
  method = distillation.presto(student, student, **options)
  assert cases.is_zero(cases.gradient(method, "student"))


@pytest.mark.slow
def test_a_guided_teacher_and_labels_reach_every_loss():
  module = networks.MLP(features=(8,), embedding=8, num_classes=3)
  student = cases.network(module=module)
  method = distillation.presto(
    oracles.exact(oracles.g2(), cases.EDM),
    student,
    optimizer=cases.SGD,
    shape=(2,),
    layer="Dense_0",
    guidance=1.5,
    null=3,
  )
  batch = cases.SIX_POINTS | {"label": jnp.asarray([0, 1, 2, 0, 1, 2])}
  other = batch | {"label": jnp.asarray([1, 1, 2, 0, 1, 2])}
  for player in ("student", "fake"):
    values = [
      method.players[player].loss(
        cases.KEY, cases.nets(method)[player], cases.nets(method), b
      )
      for b in (batch, other)
    ]
    assert float(values[0][0]) != float(values[1][0])


def test_the_laws_of_the_noise_are_checked():
  def beyond(key, n):
    return jnp.linspace(0.02, 80.0, n)

  with pytest.raises(ValueError, match="input_times draws times from .* to 80"):
    distillation.presto(
      cases.network(),
      cases.network(),
      optimizer=cases.SGD,
      shape=(2,),
      layer="Dense_0",
      input_times=beyond,
    )
  with pytest.raises(ValueError, match="fake_steps of dmd.* at least 1"):
    distillation.dmd(
      cases.network(), cases.network(), optimizer=cases.SGD, fake_steps=0
    )


@pytest.mark.slow
def test_presto_ls_keeps_the_fake_score_at_full_depth():
  """Where nothing is dropped it is Presto-S: the self-teacher costs nothing."""
  teacher, student = cases.dropped((0, 0))
  options = dict(optimizer=cases.SGD, shape=(2,), layer="block3_out")
  s = distillation.presto(teacher, student, **options)
  ls = distillation.presto_ls(teacher, student, **options)
  values = [
    m.players["student"].loss(
      cases.KEY, student.params, cases.nets(m), cases.SIX_POINTS
    )[0]
    for m in (s, ls)
  ]
  assert float(values[0]) == float(values[1])
  teacher, student = cases.dropped((2, 2))
  ls = distillation.presto_ls(teacher, student, **options, weight=0.0)
  loss = ls.players["student"].loss
  _, said = loss(cases.KEY, student.params, cases.nets(ls), cases.SIX_POINTS)
  # the fake score is the teacher itself, although the student is not
  assert float(said["matching"]) == 0.0
  assert float(said["self_teacher"]) > 0

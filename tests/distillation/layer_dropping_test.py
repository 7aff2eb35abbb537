"""Dropped layers: budgets, self-teacher, storage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import models
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff.distillation.layer_dropping import at_budget
from tests.distillation import cases

TRUNK = ("block0_out", "block1_out", "block2_out", "block3_out")


def test_no_budget_is_the_whole_network_bit_for_bit():
  teacher, student = cases.dropped((0, 0))
  x, t = (
    cases.SIX_POINTS["image"],
    jnp.asarray([0.02, 0.1, 0.3, 1.0, 5.0, 20.0]),
  )
  np.testing.assert_array_equal(student(x, t).x0, teacher(x, t).x0)
  assert set(student.params) == set(teacher.params)


@pytest.mark.slow
@pytest.mark.parametrize("keep_last", [True, False])
def test_a_budget_drops_the_blocks_before_the_last(keep_last):
  """As if their last layers were zero; masked, left out, and compiled alike."""
  teacher, student = cases.dropped((0, 1, 2), keep_last=keep_last)
  t = jnp.asarray([0.02, 0.3, 20.0, 0.3, 0.02, 20.0])
  masked = student(cases.SIX_POINTS["image"], t).x0
  for i, time in enumerate((0.02, 0.3, 20.0)):
    params = dict(teacher.params)
    for block in [2, 1][:i] if keep_last else [3, 2][:i]:
      name = TRUNK[block]
      params[name] = jax.tree.map(jnp.zeros_like, params[name])
    whole = distillation.with_params(teacher, params)
    expected = whole(cases.SIX_POINTS["image"], time).x0
    of_use = distillation.compiled(student)(cases.SIX_POINTS["image"], time).x0
    np.testing.assert_allclose(of_use, expected, rtol=2e-5, atol=1e-6)
    here = np.flatnonzero(np.isclose(t, time))
    np.testing.assert_allclose(
      masked[here], expected[here], rtol=2e-5, atol=1e-6
    )


@pytest.mark.slow
def test_what_a_program_leaves_out_costs_nothing():
  _, student = cases.dropped((0, 2))
  x = jnp.zeros((64, 2))

  def flops(m):
    model = at_budget(student, m)
    call = jax.jit(lambda model: model(x, 1.0).x0)
    return call.lower(model).compile().cost_analysis()["flops"]

  saved = np.diff([flops(m) for m in (0, 1, 2)])
  assert (saved < -2 * 2 * 8 * 8 * 64).all()


def test_the_edges_are_quantiles_of_the_training_law():
  wide = cases.network(
    processes.edm(1e-5, 1e5), cases.RESIDUAL
  )  # cuts nothing off
  student = distillation.drop_layers(wide, (2,), budgets=(0, 1, 1, 2))
  edges = np.asarray(student.apply.module.edges)
  law = [-1.2 + 1.2 * z for z in (-0.67449, 0.0, 0.67449)]
  np.testing.assert_allclose(4 * edges, law, atol=1e-3)


def test_the_student_is_told_its_budget():
  _, student = cases.dropped((0, 2))
  kernel = student.params["condition"]["until_in"]["kernel"]
  assert cases.is_zero(kernel)
  params = dict(student.params)
  params["condition"] = params["condition"] | {
    "until_in": {"kernel": kernel + 1.0}
  }
  told = distillation.with_params(student, params)
  assert np.any(
    told(cases.SIX_POINTS["image"], 20.0).x0
    != student(cases.SIX_POINTS["image"], 20.0).x0
  )


@pytest.mark.slow
def test_a_transformer_drops_whole_blocks():
  module = networks.DiT(width=8, depth=3, heads=1)
  x, c = jax.random.normal(cases.KEY, (2, 4, 4, 1)), jnp.zeros(2)
  shapes = jax.eval_shape(module.init, cases.KEY, x, c)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype), shapes
  )
  teacher = denoisers.from_linen(module, params, cases.EDM)
  student = distillation.drop_layers(
    teacher, (4, 4, 1), budgets=(0, 1), told=False
  )
  small = {k: v for k, v in params.items() if k != "block1"}
  small["block1"] = small.pop("block2")
  shallow = dataclasses.replace(
    teacher, params=small, apply=denoisers.LinenApply(module.clone(depth=2))
  )
  np.testing.assert_allclose(
    student(x, 20.0).x0, shallow(x, 20.0).x0, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    student(x, 0.02).x0, teacher(x, 0.02).x0, rtol=1e-5, atol=1e-6
  )


@pytest.mark.slow
def test_the_self_teacher_is_the_full_depth_without_gradient():
  teacher, student = cases.dropped((0, 0))
  method = distillation.layer_dropping(teacher, student, optimizer=cases.SGD)
  value, said = method.players["student"].loss(
    cases.KEY, student.params, cases.nets(method), cases.SIX_POINTS
  )
  assert float(value) == float(said["self_teacher"]) == 0.0
  _, shallow = cases.dropped((1, 2))
  method = distillation.layer_dropping(None, shallow, optimizer=cases.SGD)
  value, said = method.players["student"].loss(
    cases.KEY, shallow.params, cases.nets(method), cases.SIX_POINTS
  )
  assert float(said["self_teacher"]) > 0
  assert float(value) == pytest.approx(
    float(said["teacher"] + 0.1 * said["self_teacher"])
  )


def test_budgets_are_checked():
  with pytest.raises(ValueError, match="need 0 <= m <= L - 2 = 2"):
    cases.dropped((0, 3))
  with pytest.raises(ValueError, match="budget of -1"):
    cases.dropped((0, -1))
  with pytest.raises(ValueError, match="2 budgets .* need 1 edges"):
    networks.LayerDropped(budgets=(0, 1)).init(
      cases.KEY, jnp.zeros((1, 2)), cases.KEY
    )
  with pytest.raises(TypeError, match="ResidualMLP or a DiT, got one of MLP"):
    distillation.drop_layers(cases.network(), (2,), budgets=(0, 1))
  _, student = cases.dropped((0, 1))
  with pytest.raises(ValueError, match="t must be a scalar"):
    distillation.compiled(student)(cases.SIX_POINTS["image"], jnp.ones(6))


def test_a_dropped_student_is_stored_as_data(tmp_path):
  teacher, student = cases.dropped((0, 2))
  module = student.apply.module
  config = models.ModelConfig(
    shape=(2,),
    network="layer_dropped",
    network_options=dict(
      network="residual_mlp",
      options=dict(width=8, blocks=4, hidden=1, embedding=8),
      edges=module.edges,
      budgets=module.budgets,
    ),
    process_options=dict(sigma_min=0.02, sigma_max=20.0),
  )
  models.save_config(tmp_path, config)
  again = models.make_denoiser(models.load_config(tmp_path))
  again = distillation.with_params(again, student.params)
  np.testing.assert_array_equal(
    again(cases.SIX_POINTS["image"], 1.0).x0,
    student(cases.SIX_POINTS["image"], 1.0).x0,
  )

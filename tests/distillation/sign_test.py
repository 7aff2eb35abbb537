"""SIGN: minima of its terms, which map each one reaches."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff.distillation.parts import generators
from tests.distillation import cases

sign = sys.modules["jaxdiff.distillation.sign"]
ONTO = np.asarray([[0.36, 0.48], [0.48, 0.64]])  # onto (3, 4) / 5


def _sign(student, batch, teacher=None, key=0, **options):
  """Returns (terms, their gradients) of params by the method's own loss."""
  teacher = cases.affine_model() if teacher is None else teacher
  method = distillation.sign(teacher, student, optimizer=cases.SGD, **options)
  nets = {"teacher": teacher, "ema": student.params, **method.params}
  nets["step"] = jnp.asarray(0)
  loss = method.players["student"].loss
  terms = lambda params: loss(jax.random.key(key), params, nets, batch)[1]
  return jax.jit(lambda p: (terms(p), jax.jacrev(terms)(p)))(student.params)


def test_a_projection_onto_the_data_is_a_minimum(x64):
  """On the line of (3, 4): rec, idem and the gradient of dmd vanish."""
  x = cases.six_points(dtype=jnp.float64)["image"] @ ONTO
  sigma_in = 2.0
  law = oracles.mixture([[0.0, 0.0]], [sigma_in**2 * ONTO])  # that of f(z)
  teacher = oracles.exact(law, cases.EDM)
  fake = denoisers.from_function(
    lambda p, x, c: oracles.exact(law, cases.EDM)(x, c).x0,
    {},
    cases.EDM,
    prediction="x0",
    time="t",
  )
  student = cases.linear_map(ONTO)
  said, slopes = _sign(
    student, {"image": x}, teacher, fake=fake, sigma_in=sigma_in
  )
  assert float(said["rec"]) < 1e-12
  assert float(said["idem"]) < 1e-12
  np.testing.assert_allclose(slopes["dmd"], 0.0, atol=1e-12)


def test_the_identity_is_a_minimum_of_rec_and_idem():
  student = cases.linear_map(np.eye(2, dtype=np.float32))
  teacher = oracles.exact(oracles.g2(), cases.EDM)
  said, slopes = _sign(
    student, cases.six_points(), teacher, fake=cases.affine_model()
  )
  for name in ("rec", "idem"):
    assert float(said[name]) == 0.0
    np.testing.assert_array_equal(slopes[name], np.zeros((2, 2)))
  for name in ("dmd", "flow", "denoise"):  # these leave it
    assert np.abs(slopes[name]).max() > 1e-3


def _noise(batch, key=0, sigma_in=2.0):
  first = jax.random.split(jax.random.key(key), 6)[0]
  return sigma_in * generators.noise(first, batch, processes.edm())


ALONE = dict(w_dmd=0.0, w_flow=0.0)  # quicker to compile without them


def test_idempotence_reaches_the_inner_map_alone(x64):
  batch, student = (
    cases.six_points(dtype=jnp.float64),
    cases.linear_map(cases.MATRIX.astype(np.float64)),
  )
  _, slopes = _sign(student, batch, **ALONE)
  copy, z = student.params, _noise(batch)

  def explicit(params):
    y = z @ params
    return jnp.mean(jnp.square(y @ copy - y))

  expected = jax.jit(jax.grad(explicit))(student.params)
  np.testing.assert_allclose(slopes["idem"], expected, rtol=1e-13)


def test_tightness_reaches_the_outer_map_alone(x64):
  batch = cases.six_points(dtype=jnp.float64)
  matrix = cases.MATRIX.astype(np.float64)
  student = cases.linear_map(matrix)
  _, slopes = _sign(
    student, batch, w_tight=1.0, allow_adversarial=True, tight_limit=None,
    **ALONE,
  )  # fmt: skip
  y = np.asarray(_noise(batch)) @ matrix
  outer = lambda m: -np.mean((y @ m - y) ** 2)
  for i, j in np.ndindex(2, 2):
    h = np.zeros((2, 2))
    h[i, j] = 1e-5
    slope = (outer(matrix + h) - outer(matrix - h)) / 2e-5
    assert float(slopes["tight"][i, j]) == pytest.approx(slope, rel=1e-5)


def test_tightness_stays_below_its_limit():
  batch, student = cases.six_points(), cases.linear_map(cases.MATRIX)
  said, _ = _sign(student, batch, w_tight=1.0, allow_adversarial=True, **ALONE)
  y = _noise(batch) @ cases.MATRIX
  free, most = -np.mean((y @ cases.MATRIX - y) ** 2), 1.5 * float(said["rec"])
  assert said["tight"] == pytest.approx(most * np.tanh(free / most), rel=1e-5)


def test_rec_is_an_autoencoder_and_flow_without_a_step_is_nothing():
  batch, student = cases.six_points(), cases.linear_map(cases.MATRIX)
  said, _ = _sign(student, batch, **ALONE)
  x = np.asarray(batch["image"])
  assert said["rec"] == pytest.approx(
    np.mean((x @ cases.MATRIX - x) ** 2), rel=1e-6
  )
  t = jnp.full(len(x), 1.7)
  teacher = oracles.exact(oracles.g2(), cases.EDM)
  start, end = sign.flow(jax.random.key(0), teacher, cases.EDM, t, t, batch)
  f = sign.mapping(student)
  assert float(sign.distance(f(start), f(end))) == 0.0


@pytest.mark.parametrize("process", [cases.EDM, cases.VP], ids=["edm", "vp"])
def test_the_flow_ends_where_the_teacher_denoises(process, x64):
  """The last step leads into the data: x_s / alpha_s is the teacher's x0."""
  batch = cases.six_points(dtype=jnp.float64)
  teacher = oracles.exact(oracles.g2(), process)
  t = jnp.full(6, float(process.time_at(0.7)))
  start, end = sign.flow(
    jax.random.key(0), teacher, process, t, jnp.full(6, process.t_zero), batch
  )
  x = process.alpha(0.0 * t[0] + t[0]) * start
  np.testing.assert_allclose(end, teacher(x, t).x0, rtol=1e-9)
  noise = (start - batch["image"]) / 0.7
  np.testing.assert_allclose(
    noise,
    generators.noise(jax.random.key(0), batch, process),
    rtol=1e-9,
    atol=1e-9,
  )


def test_maps_are_applied_again_and_again():
  x = cases.six_points()["image"]
  student = cases.linear_map(cases.MATRIX)
  twice = distillation.project(student, x, 2)
  np.testing.assert_allclose(
    twice, x @ cases.MATRIX @ cases.MATRIX, rtol=1e-5, atol=1e-6
  )
  onto = distillation.idempotence_error(
    cases.linear_map(ONTO.astype(np.float32)), x
  )
  np.testing.assert_allclose(onto, 0.0, atol=1e-6)
  double = distillation.idempotence_error(cases.linear_map(2.0 * np.eye(2)), x)
  rms = np.sqrt(np.mean(np.square(x), axis=1))
  np.testing.assert_allclose(double, 2.0 * rms, rtol=1e-6)


def test_maps_begin_as_the_identity():
  module = networks.MLP(features=(8,), embedding=8, residual=True)
  x = cases.six_points()["image"]
  params = module.init(jax.random.key(0), x, jnp.zeros(6))["params"]
  student = denoisers.from_linen(
    module, params, cases.EDM, prediction="x0", time="none"
  )
  np.testing.assert_array_equal(distillation.project(student, x, 3), x)


def test_any_table_runs_a_map():
  student = cases.linear_map(cases.MATRIX)
  model, table = distillation.sampler(student, np.asarray([2.0, 0.0]))
  x = cases.six_points()["image"]
  made = sampling.sample(jax.random.key(0), model, table, x)
  np.testing.assert_allclose(made, x @ cases.MATRIX, rtol=1e-5, atol=1e-6)


def test_sign_says_what_is_wrong():
  teacher, student = cases.affine_model(), cases.linear_map(cases.MATRIX)
  make = lambda student=student, **o: distillation.sign(
    teacher, student, optimizer=cases.SGD, **o
  )
  with pytest.raises(TypeError, match="SIGN maps take x only"):
    make(teacher)
  with pytest.raises(TypeError, match="depends on the time"):
    make(
      denoisers.from_function(
        cases.linear, student.params, cases.EDM, prediction="eps", time="none"
      )
    )
  with pytest.raises(ValueError, match="shrinks the data"):
    make(
      denoisers.from_function(
        cases.linear, student.params, cases.VP, prediction="x0", time="none"
      )
    )
  with pytest.raises(ValueError, match="the identity is a solution"):
    make(w_dmd=0.0, w_flow=0.0, w_denoise=0.0)
  with pytest.raises(ValueError, match=r"at least 0, got \{'idem': -1.0\}"):
    make(w_idem=-1.0)
  with pytest.raises(ValueError, match="say allow_adversarial=True"):
    make(w_tight=0.1)
  with pytest.raises(TypeError, match="give a Denoiser as fake="):
    distillation.sign(
      oracles.exact(oracles.g2(), cases.EDM), student, optimizer=cases.SGD
    )
  wide = cases.linear_map(np.ones((2, 3)))
  with pytest.raises(ValueError, match=r"returned shape \(6, 3\)"):
    sign.project(wide, cases.six_points()["image"])

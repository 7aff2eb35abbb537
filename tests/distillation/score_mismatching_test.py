"""Score mismatching: closed forms of the best score, routing of gradients."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import oracles
from tests.distillation import cases

smm = sys.modules["jaxdiff.distillation.score_mismatching"]
REAL = oracles.mixture([[-0.5], [1.2]], [0.3, 0.1], [0.4, 0.6])
FAKE = oracles.gaussian(np.asarray([0.5]), 0.8)
POINTS = np.asarray([[-1.0], [0.5], [2.0]])


@pytest.mark.parametrize("kappa", [1.0, 0.3, 0.0])
def test_the_best_score_is_a_damped_denoiser(kappa, x64):
  """Weighted least squares at x: both targets by quadrature over the noise."""
  sigma = 0.5
  eps = np.linspace(-9.0, 9.0, 4001)
  normal = np.exp(-0.5 * eps**2)

  def density(law, x):  # of (x, eps), up to one factor for both
    v = law.means.ravel() - (x - sigma * eps[:, None])
    p = np.exp(law.log_weights - 0.5 * v**2 / law.variances.ravel())
    return normal * np.sum(p / np.sqrt(law.variances.ravel()), axis=1)

  own = jax.jit(smm.optimal_score, static_argnums=4)(
    jnp.asarray(POINTS), sigma, REAL, FAKE, kappa
  )
  for x, value in zip(POINTS.ravel(), np.ravel(own)):
    real, fake = density(REAL, x), density(FAKE, x)
    expected = np.sum(real * eps) / (np.sum(real) + kappa * np.sum(fake))
    assert value == pytest.approx(expected, rel=1e-8)


def test_between_equal_laws_the_score_is_half_the_denoiser(x64):
  own, full = jax.jit(
    lambda x: (
      smm.optimal_score(x, 0.5, REAL, REAL),
      REAL.predict(x, 1.0, 0.5).eps,
    )
  )(jnp.asarray(POINTS))
  np.testing.assert_allclose(own, 0.5 * full, rtol=1e-12)


def test_the_generators_gradient_is_that_of_its_loss(x64):
  """G = m + s z against S*: autodiff and differences of the quadrature."""
  z, w = np.polynomial.hermite_e.hermegauss(40)
  z, eps = (v.reshape(-1, 1) for v in np.meshgrid(z, z, indexing="ij"))
  w = np.outer(w, w).ravel() / w.sum() ** 2

  def loss(theta):
    x = theta[0] + theta[1] * z + 0.5 * eps
    answer = smm.optimal_score(jnp.asarray(x), 0.5, REAL, FAKE)
    return jnp.sum(w * jnp.sum((answer - eps) ** 2, axis=1))

  loss, theta = jax.jit(loss), np.asarray([0.5, 0.9])
  own = jax.grad(loss)(theta)
  for i, h in enumerate(1e-4 * np.eye(2)):
    slope = (loss(theta + h) - loss(theta - h)) / 2e-4
    assert float(own[i]) == pytest.approx(float(slope), rel=1e-5)


LEVELS = np.asarray([0.1, 0.5])


def _score(params, x, c):
  return params * x / c[:, None]  # eps itself, if it is 1 and the data are at 0


def _score_model(scale=1.0):
  return denoisers.from_function(
    _score, jnp.asarray(scale), cases.EDM, prediction="eps", time="t"
  )


@pytest.mark.parametrize("mismatch", smm.MISMATCHES)
def test_samples_are_told_another_noise(mismatch):
  """S answers with the noise: it is right for data, wrong for samples."""
  n, d = 4096, 2
  batch = {"image": jnp.zeros((n, d))}
  value, said = smm.score_loss(
    jax.random.key(0), _score_model(), jnp.zeros((n, d)), LEVELS, batch,
    mismatch=mismatch,
  )  # fmt: skip
  expected = {"independent": 2 * d, "none": 0.0, "opposite": 4 * d}[mismatch]
  assert float(said["real"]) < 1e-10
  # the standard error of |eps|^2 is sqrt(2 d / n)
  error = 4 * 4 * np.sqrt(2 * d / n)
  assert float(said["fake"]) == pytest.approx(expected, abs=error)
  assert float(value) == pytest.approx(float(said["real"] + said["fake"]))


def test_without_mismatch_it_is_denoising_score_matching():
  batch, model = cases.six_points(), _score_model(0.7)
  key = jax.random.key(3)
  value, _ = smm.score_loss(
    key, model, batch["image"], LEVELS, batch, kappa=0.0
  )
  level_key, noise_key = jax.random.split(jax.random.split(key, 3)[0])
  t = jnp.asarray(LEVELS, jnp.float32)[
    jax.random.randint(level_key, (6,), 0, 2)
  ]
  x, eps = cases.EDM.perturb(noise_key, batch["image"], t, batch["index"])
  plain = jnp.mean(jnp.sum((model(x, t).eps - eps) ** 2, axis=1))
  assert float(value) == float(plain)


def test_r1_is_the_squared_gradient_and_comes_when_due():
  batch, model, key = cases.six_points(), _score_model(0.7), jax.random.key(3)
  loss = lambda r1: smm.score_loss(
    key, model, batch["image"], LEVELS[:1], batch, r1=r1
  )[0]
  plain, due = float(loss(None)), float(loss(jnp.asarray(0.3)))
  assert float(loss(jnp.asarray(0.0))) == plain
  # S is 7 x, at every value of every sample
  assert due - plain == pytest.approx(0.5 * 0.3 * 2 * 7.0**2, rel=1e-5)
  student = cases.affine_model()
  method = distillation.score_mismatching(
    student, optimizer=cases.SGD, score=model, sigmas=LEVELS[:1], r1=0.1,
    r1_every=3,
  )  # fmt: skip
  at = lambda step: float(
    method.players["score"].loss(
      key,
      model.params,
      {"student": student.params, "step": jnp.asarray(step)},
      batch,
    )[0]
  )
  assert at(1) == at(2)
  assert at(3) - at(2) == pytest.approx(0.5 * 0.1 * 3 * 2 * 49.0, rel=1e-4)


def test_the_score_network_does_not_move_the_generator():
  batch, model, student = (
    cases.six_points(),
    _score_model(0.7),
    cases.affine_model(),
  )
  method = distillation.score_mismatching(
    student, optimizer=cases.SGD, score=model
  )

  def loss(name, student_params, score_params):
    nets = {"student": student_params, "score": score_params}
    own = student_params if name == "student" else score_params
    nets["step"] = jnp.asarray(0)
    player = method.players[name]
    return player.loss(jax.random.key(0), own, nets, batch)[0]

  slope = jax.grad(lambda p: loss("score", p, model.params))(student.params)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(slope))
  slope = jax.grad(lambda p: loss("student", p, model.params))(student.params)
  assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(slope))


def test_noise_levels_are_those_of_ten_small_betas():
  levels = smm.noise_levels()
  betas = np.linspace(1e-4, 0.02, 10)
  np.testing.assert_allclose(
    levels, np.sqrt(1 - np.cumprod(1 - betas)), rtol=1e-9
  )
  assert levels[0] == pytest.approx(0.01, abs=1e-3)
  assert levels[-1] == pytest.approx(0.310, abs=1e-3)


def test_score_mismatching_says_what_is_wrong():
  model = cases.affine_model()
  make = lambda **o: distillation.score_mismatching(
    model, optimizer=cases.SGD, **o
  )
  with pytest.raises(ValueError, match="at least one noise level, got 0"):
    smm.noise_levels(0)
  with pytest.raises(ValueError, match=r"inside of \(0, 1\), got beta_min=0"):
    smm.noise_levels(10, 0.0)
  with pytest.raises(ValueError, match="r1 must be at least 0, got -1"):
    make(r1=-1)
  with pytest.raises(ValueError, match="mismatch must be one of"):
    make(mismatch="all")
  with pytest.raises(ValueError, match="positive noise levels"):
    make(sigmas=[0.1, 0.0])
  with pytest.raises(TypeError, match='but this one has time="none"'):
    make(score=cases.linear_map(cases.MATRIX))
  method = make(generator=lambda key, model, batch: jnp.zeros((6, 3)))
  nets = {"score": model.params, "step": jnp.asarray(0)}
  with pytest.raises(ValueError, match=r"shape \(6, 3\), but the data have"):
    method.players["student"].loss(
      jax.random.key(0), model.params, nets, cases.six_points()
    )

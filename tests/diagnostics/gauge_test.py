"""Conservativity, gauge freedom, and the dimension of data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import jacobians
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.diagnostics import conservativity
from jaxdiff.diagnostics import gauge
from jaxdiff.diagnostics import intrinsic_dimension
from jaxdiff.diagnostics.fields import score_of

EDM = processes.edm(0.02, 20.0)
VP = processes.vp_linear()


def mixture(d):
  rng = np.random.default_rng(0)
  return oracles.mixture(
    rng.standard_normal((3, d)), rng.uniform(0.05, 0.5, (3, d)), [3, 2, 1]
  )


def skew(d, seed=0):
  a = np.random.default_rng(seed).standard_normal((d, d))
  return a - a.T


def noised(process, d, t, n=32):
  x0 = mixture(d).sample(jax.random.key(0), n)[0].astype(jnp.float64)
  return process.perturb(jax.random.key(1), x0, t)[0]


# --- gauge -------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("process", [EDM, VP], ids=["edm", "vp"])
def test_a_rotated_score_obeys_the_gauge_condition(x64, d, process):
  t = 0.5
  x = noised(process, d, t)
  model = oracles.exact(mixture(d), process)
  rotated = gauge.rotate(model, skew(d), process)
  score = lambda x: score_of(model, process)(x, t)
  remainder = lambda x: score_of(rotated, process)(x, t) - score(x)
  residual = jax.jit(lambda x: gauge.condition_residual(score, remainder, x))(x)
  assert np.abs(remainder(x)).max() > 0.1
  assert np.abs(residual).max() < 1e-9
  inner = jnp.sum(remainder(x) * score(x), axis=1)
  assert np.abs(inner).max() < 1e-12 * float(jnp.sum(score(x) ** 2, 1).max())


def test_a_scaled_score_does_not(x64):
  x = noised(EDM, 2, 0.5)
  model = oracles.exact(mixture(2), EDM)
  score = lambda x: score_of(model, EDM)(x, 0.5)
  residual = jax.jit(
    lambda x: gauge.condition_residual(score, lambda x: 0.1 * score(x), x)
  )(x)
  assert np.abs(residual).max() > 0.1


def test_a_rotated_model_is_a_pair(x64):
  x = noised(VP, 3, 0.3)
  model = gauge.rotate(oracles.exact(mixture(3), VP), skew(3), VP)
  x0, eps = model(x, jnp.full(len(x), 0.3))
  np.testing.assert_allclose(VP.alpha(0.3) * x0 + VP.sigma(0.3) * eps, x)


def test_rotation_moves_samples_and_leaves_a_gaussian_law(x64):
  """d = 2: the flow of (I + a J) s turns by a known angle, in closed form.

  For N(0, c I) the score is -x / (c + sigma^2), so that the rotated flow is the
  flow map times a rotation by a log of the radius's ratio.
  """
  c, a = 0.5, 1.5
  model = oracles.exact(oracles.gaussian([0.0, 0.0], c), EDM)
  turn = np.asarray([[0.0, a], [-a, 0.0]])
  rotated = gauge.rotate(model, turn, EDM)
  x = np.asarray(jax.random.normal(jax.random.key(0), (16, 2)))
  x = jnp.asarray(20.0 * x, jnp.float64)
  table = solvers.rk4(EDM, grids.log_snr(EDM, 200))
  out = sampling.sample(jax.random.key(1), rotated, table, x)
  shrink = np.sqrt((c + EDM.t_min**2) / (c + EDM.t_max**2))
  angle = a * np.log(shrink)
  matrix = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
  np.testing.assert_allclose(
    out, shrink * np.asarray(x) @ np.asarray(matrix).T, rtol=1e-4, atol=1e-5
  )


def test_weak_overlap_tells_gauge_fields_from_gradients(x64):
  d, t, n = 2, 0.7, 20000
  x = noised(EDM, d, t, n)
  model = oracles.exact(mixture(d), EDM)
  score = score_of(model, EDM)(x, t)
  w = jnp.asarray(np.random.default_rng(1).standard_normal((5, d)))
  gradients = jnp.cos(x @ w.T).T[:, :, None] * w[:, None, :]  # of sin(w . x)
  rest = score @ jnp.asarray(skew(d)).T
  assert np.abs(gauge.weak_overlap(rest, gradients)).max() < 5 / np.sqrt(n)
  assert np.abs(gauge.weak_overlap(score, gradients)).max() > 10 / np.sqrt(n)


def test_projection_recovers_the_gradient_of_a_gaussian():
  """phi is fitted within quadratic forms, where the projection is known."""
  c = np.asarray([0.5, 2.0])
  a = np.asarray([[0.0, 0.6], [-0.6, 0.0]])
  field = lambda x: -(x / c) @ (np.eye(2) + a).T.astype(np.float32)
  draw = lambda key, n: jax.random.normal(key, (n, 2)) * np.sqrt(c)
  potential = lambda params, x: jnp.einsum("bi,ij,bj->b", x, params, x)
  params, energy = gauge.project(
    jax.random.key(0), field, draw, potential, jnp.zeros((2, 2)), steps=1500
  )
  np.testing.assert_allclose(params + params.T, -np.diag(1 / c), atol=0.02)
  assert abs(energy.overlap) < 0.02
  assert energy.remainder == pytest.approx(0.36 * np.sum(1 / c), rel=0.05)
  np.testing.assert_allclose(
    energy.field, energy.gradient + energy.remainder, rtol=0.05
  )


# --- conservativity ----------------------------------------------------------


def test_asymmetry_of_linear_fields_exact_and_by_probes(x64):
  rng = np.random.default_rng(0)
  s = rng.standard_normal((6, 6))
  s, k = s + s.T, skew(6)
  x = rng.standard_normal((3, 6))
  expected = np.linalg.norm(k) / np.linalg.norm(s + k)
  field = lambda x: x @ (s + k).T
  exact = conservativity.asymmetry(field, x)
  np.testing.assert_allclose(exact, expected, rtol=1e-10)
  probes = jacobians.rademacher(jax.random.key(0), x, 4000)
  estimate = conservativity.asymmetry(field, x, probes)
  np.testing.assert_allclose(estimate, expected, rtol=0.03)
  assert np.abs(conservativity.asymmetry(lambda x: x @ s, x)).max() < 1e-12
  np.testing.assert_allclose(
    conservativity.asymmetry(lambda x: x @ k, x), 1.0, rtol=1e-12
  )


def test_circulation_of_a_rotation_is_one_and_of_a_score_zero(x64):
  x = noised(EDM, 2, 0.5, 8)
  law = mixture(2)
  score = lambda x: law.score(x, 1.0, 0.5)
  work = conservativity.circulation(jax.random.key(0), score, x, 0.5, 128)
  assert np.abs(work).max() < 1e-9
  turn = lambda y: (y - x) @ jnp.asarray([[0.0, 1.0], [-1.0, 0.0]])
  work = conservativity.circulation(jax.random.key(0), turn, x, 0.5)
  np.testing.assert_allclose(np.abs(work), 1.0, rtol=1e-9)


def test_circulation_sees_a_vortex_that_no_jacobian_shows(x64):
  vortex = lambda x: (
    jnp.stack([-x[:, 1], x[:, 0]], 1) / jnp.sum(x**2, 1, keepdims=True)
  )
  there = jnp.asarray([[1.0, 0.5]])
  assert np.abs(conservativity.asymmetry(vortex, there)).max() < 1e-12
  work = conservativity.circulation(
    jax.random.key(0), vortex, jnp.zeros((1, 2)), 0.3
  )
  np.testing.assert_allclose(np.abs(work), 1.0, rtol=1e-9)


def test_a_free_network_is_not_conservative_and_a_potential_is():
  x = jax.random.normal(jax.random.key(0), (8, 3))
  c = jnp.zeros(8)
  potential = networks.Potential((16, 16))
  params = jax.jit(potential.init)(jax.random.key(1), x, c)
  field = lambda x: denoisers.GradientApply(potential.apply)(params, x, c)
  assert jax.jit(lambda x: conservativity.asymmetry(field, x))(x).max() < 1e-6
  free = lambda x: jnp.sin(x @ jax.random.normal(jax.random.key(2), (3, 3)))
  assert conservativity.asymmetry(free, x).min() > 1e-2


# --- dimension ---------------------------------------------------------------


def test_singular_values_of_a_gaussian_flow_are_known(x64):
  c = np.asarray([4.0, 1.0, 0.0])
  model = oracles.exact(oracles.gaussian(np.zeros(3), c), EDM)
  grid = grids.log_snr(EDM, 300)
  x = jnp.asarray(20.0 * np.random.default_rng(0).standard_normal((2, 3)))
  y = intrinsic_dimension.flow_jacobian(model, EDM, grid, x, solvers.rk4)
  s = intrinsic_dimension.singular_trajectories(y)
  sigma = EDM.sigma(grid[1:])
  expected = np.sqrt((c + sigma[:, None] ** 2) / (c + EDM.sigma(grid[0]) ** 2))
  np.testing.assert_allclose(
    s, np.broadcast_to(np.sort(expected, 1)[:, ::-1], s.shape), rtol=1e-6
  )
  np.testing.assert_allclose(
    intrinsic_dimension.slopes(s, sigma), [[0, 0, 1]] * 2, atol=0.01
  )
  assert (intrinsic_dimension.dimension(s, sigma) == 2).all()
  local = intrinsic_dimension.local_dimension(model, EDM, x / 400, 0.05)
  assert (local == 2).all()


def test_refusals_of_the_gauge_room():
  model = oracles.exact(mixture(2), EDM)
  with pytest.raises(ValueError, match="antisymmetric"):
    gauge.rotate(model, np.eye(2), EDM)
  with pytest.raises(ValueError, match="square"):
    gauge.rotate(model, np.ones(3), EDM)
  x = jnp.ones((2, 2))
  with pytest.raises(ValueError, match="draws noise"):
    intrinsic_dimension.flow_jacobian(
      model, EDM, grids.karras(EDM, 4), x, solvers.ddpm
    )
  with pytest.raises(ValueError, match="outside of the process"):
    intrinsic_dimension.flow_jacobian(model, EDM, np.asarray([1.0, 0.01]), x)
  with pytest.raises(ValueError, match="end the grid above"):
    intrinsic_dimension.flow_jacobian(
      model, EDM, grids.karras(EDM, 4, to_zero=True), x
    )
  with pytest.raises(ValueError, match="noise levels"):
    intrinsic_dimension.dimension(np.ones((1, 3, 2)), [10.0, 1.0, 0.1])
  with pytest.raises(ValueError, match="on a line"):
    conservativity.circulation(jax.random.key(0), model, jnp.ones((3, 1)), 1.0)

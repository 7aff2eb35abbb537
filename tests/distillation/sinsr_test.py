"""SinSR: its step is DDIM, its three terms, a Gaussian in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import models
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import sampling
from jaxdiff import solvers
from tests.distillation import cases


def test_the_step_of_sinsr_is_ddim():
  """x' = k f + m x + j y for every step of the grid, written in r = x - y."""
  grid = grids.power_log(cases.RESSHIFT, 8, to_zero=True)
  table = solvers.ddim(cases.RESSHIFT, grid)
  eta, after = grid[:-1] ** 2, grid[1:] ** 2
  m = np.sqrt(after / eta)
  j = after - np.sqrt(after * eta)
  k = 1 - after + np.sqrt(after * eta) - np.sqrt(after / eta)
  np.testing.assert_allclose(k + m * (1 - eta), 1 - after, atol=1e-12)
  np.testing.assert_allclose(m * eta + j, after, atol=1e-12)
  np.testing.assert_allclose(table.state[:, 0, 0] + table.state[:, 0, 1], m)
  np.testing.assert_allclose(table.history[:, 0, 0], k, atol=1e-12)
  np.testing.assert_allclose(1 - k - m, j, atol=1e-12)


def test_a_teacher_that_knows_the_image_walks_along_its_forward_samples():
  """So does one jump: steps compose for a constant answer."""
  rng = np.random.default_rng(0)
  x0, y, eps = rng.standard_normal((3, 5))
  grid = grids.power_log(cases.RESSHIFT, 5, to_zero=True)
  at = lambda t: (
    cases.RESSHIFT.alpha(t) * (x0 - y) + cases.RESSHIFT.sigma(t) * eps
  )
  for stop in (3, 5):
    for times in (grid[: stop + 1], grid[[0, stop]]):
      table, x = solvers.ddim(cases.RESSHIFT, times), at(grid[0])
      for state, history in zip(table.state, table.history):
        x = state[1].sum() * x + history[1, 0] * (x0 - y)
      np.testing.assert_allclose(x, at(grid[stop]), atol=1e-12)


def test_a_restorer_is_an_ordinary_model_that_is_stored_and_read(tmp_path):
  options = dict(network={"name": "mlp", "features": [4], "embedding": 4})
  config = models.ModelConfig(
    cases.SHAPE, network="beside", network_options=options, process="resshift"
  )
  models.save_config(tmp_path, config)
  model = models.make_denoiser(models.load_config(tmp_path))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.3 * rng.standard_normal(s.shape), s.dtype),
    model.params,
  )
  model = dataclasses.replace(model, params=params)
  y = cases.images(0, 2)
  found = distillation.restore(jax.random.key(1), model, y)
  z = cases.RESSHIFT.sigma(cases.RESSHIFT.t_max) * sampling.initial_noise(
    jax.random.key(1), cases.RESSHIFT.noise, y, jnp.arange(2)
  )
  call = jax.jit(lambda z, y: model(z, cases.RESSHIFT.t_max, y).x0)
  expected = y + call(z, y)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  other = y + call(z, jnp.zeros_like(y))
  assert float(jnp.abs(other - expected).max()) > 1e-3
  with pytest.raises(ValueError, match="the image beside an input"):
    model(z, 1.0, y[:, :2])
  with pytest.raises(ValueError, match="so it has no classes"):
    networks.make("beside", num_classes=3)


def test_the_three_terms_of_sinsr_are_what_they_say():
  teacher, student = (
    cases.restorer(cases.RESSHIFT, 1),
    cases.restorer(cases.RESSHIFT, 2),
  )
  batch, key = cases.pairs(), jax.random.key(3)
  method = distillation.sinsr(
    teacher, student, optimizer=optax.sgd(0.1), steps=3
  )
  value, _, said = cases.restored_gradient(method, batch, key)
  assert float(value) == pytest.approx(
    float(said["distill"] + said["inverse"] + said["truth"]), rel=1e-6
  )
  z = distillation.generators.noise(key, batch, cases.RESSHIFT)
  sigma, y = cases.RESSHIFT.sigma(cases.RESSHIFT.t_max), batch["label"]
  grid = grids.power_log(cases.RESSHIFT, 3, to_zero=True)
  bound = denoisers.with_label(teacher, y)
  table = solvers.ddim(cases.RESSHIFT, grid)
  aim = sampling.sample(key, bound, table, sigma * z)
  mean = lambda v: float(jnp.mean(v**2))
  distill = mean(student(sigma * z, cases.RESSHIFT.t_max, y).x0 - aim)
  assert float(said["distill"]) == pytest.approx(distill, rel=1e-5)
  # the inverse: at t = 0 the network alone is the noise
  noise = -student.apply(student.params, *student.inputs(aim, 0.0, y))
  assert float(said["inverse"]) == pytest.approx(
    mean(sigma * (noise - z)), rel=1e-5
  )
  own = sigma * student(batch["image"], 0.0, y).eps
  back = student(own, cases.RESSHIFT.t_max, y).x0 - batch["image"]
  assert float(said["truth"]) == pytest.approx(mean(back), rel=1e-5)


def test_a_linear_student_learns_the_posterior_mean_of_a_gaussian(x64):
  """x0 ~ N(0, 1), y = x0 + N(0, 1/4): least squares on (r_t, y) is E[r0 | .].

  Given y, r0 = x0 - y is N(-y / 5, 1 / 5), whose denoiser is known.
  """
  t = 0.6
  alpha, sigma = cases.RESSHIFT.alpha(t), cases.RESSHIFT.sigma(t)
  of_r0 = np.asarray([alpha * 0.25, -0.25])  # covariances of r0 with (r_t, y)
  joint = np.asarray(
    [[alpha**2 * 0.25 + sigma**2, -alpha * 0.25], [-alpha * 0.25, 1.25]]
  )
  weights = np.linalg.solve(joint, of_r0)
  for r, y in ((0.3, -1.2), (2.0, 0.7)):
    law = oracles.gaussian([-y / 5], 0.2)
    found = oracles.exact(law, cases.RESSHIFT)(jnp.asarray([[r]]), t).x0
    assert float(found[0, 0]) == pytest.approx(weights @ [r, y], abs=1e-10)

"""Diffusion as a gradient flow of the free energy: identities and audits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import losses
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.diagnostics import wasserstein_flow as wgf

KEY = jax.random.key(0)
PROCESSES = {
  "edm": processes.edm(),
  "ve": processes.ve(),
  "vp_linear": processes.vp_linear(),
  "sub_vp": processes.sub_vp(),
  "flow": processes.rectified_flow(),
}
every_process = pytest.mark.parametrize("name", PROCESSES)
TIME = 0.4


@dataclasses.dataclass(frozen=True)
class Scaled:
  """A wrong model with one parameter: eps = p tanh(x)."""

  process: processes.GaussianProcess
  params: float = 1.0
  label: None = None
  prediction: str = "eps"
  sigma_data: float = 1.0
  apply: None = None

  def __call__(self, x, t, label=None):
    size = lambda v: jnp.asarray(v).reshape(-1, 1)
    alpha, sigma = size(self.process.alpha(t)), size(self.process.sigma(t))
    output = self.params * jnp.tanh(x)
    return predictions.decode("eps", output, x, alpha, sigma)


@every_process
def test_matching_the_velocity_is_weighted_score_matching(name, x64):
  """|v_theta - v_c|^2 = (g^4 / 4) |s_theta - s_c|^2 for every sample."""
  process = PROCESSES[name]
  model = Scaled(process)
  x0 = jax.random.normal(KEY, (9, 3))
  t = jnp.linspace(0.2, 0.9, 9)
  x, eps = process.perturb(jax.random.key(1), x0, t)
  sigma, g = process.sigma(t), process.diffusion(t)
  conditional = lambda y, s: predictions.Prediction(x0, eps)
  off = wgf.velocity(model, process, x, t) - wgf.velocity(
    conditional, process, x, t
  )
  left = jnp.sum(off**2, axis=1)
  scores = -(model(x, t).eps - eps) / sigma[:, None]
  right = g**4 / 4.0 * jnp.sum(scores**2, axis=1)
  np.testing.assert_allclose(left, right, rtol=1e-9)
  found = losses.error(model, model(x, t), x0, eps, t, wgf.weighting(process))
  np.testing.assert_allclose(3.0 * found, left, rtol=1e-7)


def test_its_parameter_gradient_is_the_score_s_in_another_weight(x64):
  process = PROCESSES["vp_linear"]
  x0 = jax.random.normal(KEY, (64, 3))
  t = jnp.linspace(0.2, 0.9, 64)
  x, eps = process.perturb(jax.random.key(1), x0, t)

  def matching(p):
    model = Scaled(process, p)
    error = losses.error(model, model(x, t), x0, eps, t, wgf.weighting(process))
    return jnp.mean(error)

  def score(p):
    off = (Scaled(process, p)(x, t).eps - eps) / process.sigma(t)[:, None]
    return jnp.mean(process.diffusion(t)[:, None] ** 4 / 4.0 * off**2)

  np.testing.assert_allclose(
    jax.grad(matching)(0.7), jax.grad(score)(0.7), rtol=1e-7
  )


@every_process
def test_the_velocity_is_the_gradient_of_the_first_variation(name, x64):
  """v = -(g^2 / 2) grad (V + log p) by differentiating log p itself."""
  process, law = PROCESSES[name], oracles.g2()
  model = oracles.exact(law, process)
  x = jax.random.normal(KEY, (7, 2))
  alpha, sigma = process.alpha(TIME), process.sigma(TIME)

  def variation(y):
    return jnp.sum(
      wgf.potential(process, y, TIME) + law.log_prob(y, alpha, sigma)
    )

  expected = -0.5 * process.diffusion(TIME) ** 2 * jax.grad(variation)(x)
  found = wgf.velocity(model, process, x, TIME)
  np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_sampling_walks_the_flow_backwards(x64):
  """A step of Euler's method on the probability-flow ODE is x + h v."""
  process = PROCESSES["vp_linear"]
  model = oracles.exact(oracles.g2(), process)
  x = jax.random.normal(KEY, (5, 2))
  table = solvers.euler(process, np.asarray([0.5, 0.4]))
  stepped = sampling.sample(KEY, model, table, x)
  expected = x - 0.1 * wgf.velocity(model, process, x, 0.5)
  np.testing.assert_allclose(stepped, expected, rtol=1e-12)


@every_process
def test_the_free_energy_falls_as_the_flow_moves(name, x64):
  """Of a Gaussian in closed form; two points have its two moments."""
  process, mean, variance = PROCESSES[name], 0.7, 0.3
  law = oracles.gaussian([mean], [variance])
  model = oracles.exact(law, process)

  def points(t):
    w = process.alpha(t) ** 2 * variance + process.sigma(t) ** 2
    spread = jnp.sqrt(w) * jnp.asarray([[-1.0], [1.0]])
    return process.alpha(t) * mean + spread

  def energy(t):
    log_prob = lambda x: law.log_prob(x, process.alpha(t), process.sigma(t))
    return wgf.free_energy(log_prob, process, points(t), t)

  t = jnp.asarray(TIME)
  found = wgf.free_energy_rate(model, process, points(t), t)
  np.testing.assert_allclose(found, jax.grad(energy)(t), rtol=1e-7)
  if name in ("edm", "ve", "vp_linear"):  # V does not depend on the time
    assert found < 0


def test_the_gap_between_paths_is_the_curl_inside(x64):
  """Green: of f = M x with legs a and b it is a . (M - M^T) b / 2."""
  rng = np.random.default_rng(0)
  matrix = jnp.asarray(rng.standard_normal((4, 4)))
  x, y = jnp.asarray(rng.standard_normal((2, 5, 4)))
  leg = jnp.asarray([1.0, 1.0, 0.0, 0.0])
  a, b = (y - x) * leg, (y - x) * (1.0 - leg)
  # to the corner x + a first: the enclosed curl is b . M a - a . M b, halved
  expected = 0.5 * jnp.sum(b * (a @ matrix.T) - a * (b @ matrix.T), axis=1)
  gap = wgf.path_gap(lambda v: v @ matrix.T, x, y)
  np.testing.assert_allclose(gap, expected, rtol=1e-10)
  symmetric = matrix + matrix.T
  gap = wgf.path_gap(lambda v: v @ symmetric, x, y)
  np.testing.assert_allclose(gap, 0.0, atol=1e-12)
  with pytest.raises(ValueError, match="two paths need two dimensions"):
    wgf.path_gap(lambda v: v, x[:, :1], y[:, :1])


def test_exact_models_pass_the_audit_and_rotated_ones_do_not(x64):
  process = processes.edm()
  model = oracles.exact(oracles.g2(), process)
  x0 = oracles.g2().sample(KEY, 16)[0].astype(jnp.float64)
  times = [0.3, 3.0]
  found = wgf.audit(KEY, model, process, x0, times, points=256)
  assert all((part < 1e-9).all() for part in found)

  def turned(x, t):
    answer = model(x, t)
    eps = answer.eps @ jnp.asarray([[1.0, 0.5], [-0.5, 1.0]])
    return predictions.Prediction(x - t * eps, eps)

  found = wgf.audit(KEY, turned, process, x0, times)
  assert all((part > 0.05).all() for part in found)
  with pytest.raises(ValueError, match="points=8"):
    wgf.audit(KEY, model, process, x0, times, points=8)
  with pytest.raises(ValueError, match="of 257 values a sample"):
    wgf.audit(KEY, model, process, jnp.ones((2, 257)), times)
  with pytest.raises(ValueError, match="radius=0"):
    wgf.audit(KEY, model, process, x0, times, radius=0)


class Still:
  """What a process looks like that moves nothing."""

  t_max = 1.0

  def log_snr(self, t):
    return 0.0 * t

  def diffusion(self, t):
    return 0.0 * t


def test_a_flow_that_stands_still_is_refused():
  with pytest.raises(ValueError, match="g\\(t\\) = 0 at t = 0.5"):
    wgf.potential(Still(), jnp.ones((2, 2)), 0.5)

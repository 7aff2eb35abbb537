"""Noise as a path: one Brownian motion under the draws of any grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import grids
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.predictions import Prediction

EDM = processes.edm()
KEY = jax.random.key(0)
PROCESSES = {
  "edm": EDM,
  "vp": processes.vp_linear(),
  "flow": processes.rectified_flow(),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_draws_are_normal_and_independent_of_each_other(name):
  process = PROCESSES[name]
  grid = grids.log_snr(process, 6)
  z = np.asarray(processes.path_noise(KEY, process, grid, (20_000, 1)))[..., 0]
  covariance = z @ z.T / z.shape[1]
  np.testing.assert_allclose(covariance, np.eye(len(z)), atol=0.03)
  np.testing.assert_allclose(z.mean(1), 0.0, atol=0.03)
  np.testing.assert_allclose((z**4).mean(1), 3.0, atol=0.3)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_a_step_is_the_sum_of_its_parts(eta, x64):
  """W(s'') - W(s) = W(s'') - W(s') + W(s') - W(s), s = e^{2 eta lambda}."""
  grid = grids.karras(EDM, 12)
  make = functools.partial(
    processes.path_noise, KEY, EDM, shape=(5, 3), eta=eta, dtype=jnp.float64
  )
  s = np.exp(2.0 * eta * EDM.log_snr(grid))
  fine = np.sqrt(np.diff(s))[:, None, None] * make(grid)
  few = grid[[0, 1, 5, 12]]
  coarse = np.sqrt(np.diff(np.exp(2.0 * eta * EDM.log_snr(few))))
  coarse = coarse[:, None, None] * make(few)
  parts = [fine[:1].sum(0), fine[1:5].sum(0), fine[5:].sum(0)]
  scale = np.sqrt(np.mean(np.square(coarse), axis=(1, 2), keepdims=True))
  np.testing.assert_allclose(coarse / scale, parts / scale, atol=1e-9)


def test_where_the_answer_is_constant_any_grid_gives_the_same_sample(x64):
  """The noise of ancestral sampling is then all that a sample is made of."""
  model = lambda x, t: Prediction(0.3 + 0.0 * x, (x - 0.3) / t)
  x = EDM.prior(KEY, (8, 2), dtype=jnp.float64)
  ends = []
  for steps in (3, 40):
    grid = grids.karras(EDM, steps)
    z = processes.path_noise(KEY, EDM, grid, x.shape, dtype=jnp.float64)
    table = solvers.ddim(EDM, grid, eta=1.0)
    ends.append(
      (sampling.sample(KEY, model, table, x, noise=z) - 0.3) / grid[-1]
    )
  assert abs(ends[0]).max() > 0.5
  np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


STRONG = {  # eta, and the order that was measured
  "ddim(eta=1.0)": (1.0, 1.0),
  "dpmpp_2m_sde": (1.0, 1.0),
  "dpmpp_3m_sde": (1.0, 1.0),
  "sa_solver": (1.0, 1.0),
}


@pytest.mark.parametrize(
  "spec",
  [
    "ddim(eta=1.0)",
    pytest.param("dpmpp_2m_sde", marks=pytest.mark.slow),
    pytest.param("dpmpp_3m_sde", marks=pytest.mark.slow),
    pytest.param("sa_solver", marks=pytest.mark.slow),
  ],
)
def test_samples_converge_on_a_fixed_path(spec, x64):
  """Strongly, of order 1 (the noise is additive), and not without one."""
  eta, order = STRONG[spec]
  model = oracles.exact(oracles.g2(), EDM)
  x = EDM.prior(KEY, (128, 2), dtype=jnp.float64)
  solver = solvers.from_spec(spec)

  def end(steps, key=None):
    grid = grids.log_snr(EDM, steps)
    z = None
    if key is not None:
      options = dict(eta=eta, depth=18, dtype=jnp.float64)
      z = processes.path_noise(key, EDM, grid, x.shape, **options)
    return sampling.sample(KEY, model, solver(EDM, grid), x, noise=z)

  error = lambda a, b: float(jnp.median(jnp.sqrt(jnp.mean((a - b) ** 2, -1))))
  truth = end(640, KEY)
  found = [error(end(n, KEY), truth) for n in (30, 90)]
  slope = np.log(found[0] / found[1]) / np.log(3)
  print(spec, found, slope)
  assert abs(slope - order) < 0.35, (found, slope)
  assert error(end(30), truth) > 5 * found[0]  # draws of its own


def test_a_sample_has_its_path_whatever_the_batch():
  grid = grids.karras(EDM, 4)
  whole = processes.path_noise(KEY, EDM, grid, (6, 3))
  part = processes.path_noise(KEY, EDM, grid, (2, 3), index=jnp.asarray([4, 1]))
  np.testing.assert_array_equal(part, whole[:, jnp.asarray([4, 1])])
  other = processes.path_noise(jax.random.key(1), EDM, grid, (6, 3))
  assert abs(other - whole).min() > 0


def test_a_last_step_into_no_noise_is_finite():
  grid = grids.karras(EDM, 4, to_zero=True)
  z = processes.path_noise(KEY, EDM, grid, (6, 3))
  assert z.shape == (4, 6, 3) and np.isfinite(z).all()


@pytest.mark.parametrize(
  ("times", "process", "said"),
  [
    ([1.0, 2.0], EDM, "times that fall"),
    ([1.0], EDM, "times that fall"),
    ([100.0, 1.0], EDM, "beyond the path's"),
    ([2.0, 1.0], processes.pfgmpp(8.0), "normal noise"),
  ],
)
def test_what_has_no_path_is_refused(times, process, said):
  with pytest.raises(ValueError, match=said):
    processes.path_noise(KEY, process, times, (2, 2))

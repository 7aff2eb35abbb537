"""With 64-bit JAX everything runs, and in the bits of what it is given."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import guidance
from jaxdiff import losses
from jaxdiff import oracles
from jaxdiff import phase_space
from jaxdiff import processes
from jaxdiff import quantization
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import training
from jaxdiff.phase_space import sampler

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
EDM = processes.edm(0.05, 10.0)
LAW = oracles.gaussian(np.asarray([0.3, -0.2]), 0.5)
TABLE = solvers.ddpm(EDM, grids.karras(EDM, 3))
KEPT = sampling.both(sampling.every(2), sampling.first_nonfinite)


def model():
  return oracles.exact(LAW, EDM)


def points(dtype):
  return jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), dtype)


def sample(x):
  x, (kept, first) = sampling.sample(KEY, model(), TABLE, x, collect=KEPT)
  assert first.dtype == jnp.int32 and first == TABLE.nfe
  return x, kept


def corrected(x):
  return samplers.predictor_corrector(
    KEY, model(), TABLE, x, process=EDM, collect=KEPT
  )[0]


def langevin(x):
  log_prob = lambda x: -0.5 * jnp.sum(x * x, axis=1)
  plain, _ = samplers.langevin(KEY, jnp.negative, 3, x, step=0.1)
  return plain, samplers.langevin(
    KEY, jnp.negative, 3, x, step=0.1, log_prob=log_prob
  )[0]


def damped(x):
  process = phase_space.CriticallyDamped()
  start = phase_space.Phase(x, x)
  ask = lambda state, t: 0.1 * state.x
  grid = np.linspace(1.0, 0.1, 4)
  return sampler.sample(KEY, ask, grid, start, process=process, collect=KEPT)[0]


CALLS = dict(
  sample=sample,
  corrected=corrected,
  adaptive=lambda x: samplers.adaptive(KEY, model(), None, x, process=EDM)[0],
  picard=lambda x: samplers.picard(KEY, model(), TABLE, x, process=EDM)[0],
  side_by_side=lambda x: samplers.side_by_side(
    KEY, model(), solvers.epd(EDM, grids.karras(EDM, 3)), x, process=EDM
  )[0],
  langevin=langevin,
  damped=damped,
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_samplers_keep_the_bits_of_the_state(call, dtype):
  for leaf in jax.tree.leaves(call(points(dtype))):
    assert leaf.dtype == dtype
    assert jnp.isfinite(leaf).all()


def test_a_guidance_scale_has_64_bits():
  x, t = points(jnp.float64), jnp.asarray(1.0)
  teacher = oracles.exact(oracles.grid25(), EDM)
  on, off = (teacher(x, t, jnp.full(4, k)) for k in (0, 25))
  want = off.x0 + 1.1 * (on.x0 - off.x0)
  guide = guidance.cfg(teacher, label=jnp.zeros(4, int), null=25, scale=1.1)
  np.testing.assert_allclose(guide(x, t).x0, want, rtol=1e-13)


@pytest.mark.parametrize("symmetric", [False, True])
def test_ranges_of_the_quantizer_are_of_32_bits(symmetric):
  found = quantization.search_range(points(jnp.float64), 8, symmetric)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


def test_transitions_sample():
  built = distillation.transitions(
    KEY, (2,), "dtm", token=(1,), steps=2, width=8
  )
  x = distillation.sample_transitions(KEY, built, 4, head_steps=2)
  assert jnp.isfinite(x).all()


def test_simulated_samples_have_the_bits_of_the_batch():
  grid = grids.karras(EDM, 3, to_zero=True)
  generate = distillation.generators.backward_simulation(EDM, grid)
  x = generate(KEY, model(), {"image": points(jnp.float32)})
  assert x.dtype == jnp.float32


def test_an_update_keeps_the_types_of_its_state():
  apply = lambda params, x, c: params * x
  for dtype in (jnp.float32, jnp.float64):
    network = denoisers.from_function(apply, jnp.asarray(0.5, dtype), EDM)
    update = training.make_update(
      losses.denoising(network), optax.adam(1e-2), accumulate=2
    )
    state = training.init_state(KEY, network.params, optax.adam(1e-2))
    before = jax.tree.map(jnp.result_type, state)
    after, _ = update(state, dict(image=points(dtype)))
    chex.assert_trees_all_equal(jax.tree.map(jnp.result_type, after), before)

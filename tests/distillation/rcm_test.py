"""rCM: its limits are sCM and DMD."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import oracles
from tests.distillation import cases


def test_rcm_without_matching_is_scm_bitwise():
  times = losses.times.log_normal(cases.EDM, -1.0, 1.4)
  options = dict(optimizer=cases.SGD, times=times, warmup=100)
  one = distillation.scm(cases.TEACHER, cases.student(), **options)
  two = distillation.rcm(
    cases.TEACHER, cases.student(), dmd_weight=0.0, **options
  )
  assert set(two.players) == {"student"}
  (value, _), grads = cases.value_and_gradient(one, jax.random.key(0), 30)
  (same, _), other = cases.value_and_gradient(two, jax.random.key(0), 30)
  assert float(value) == float(same)
  chex.assert_trees_all_equal(grads, other)


def test_rcm_without_consistency_is_dmd_after_its_warm_up():
  generator = distillation.generators.one_step(cases.EDM)
  times = losses.times.uniform_log_snr(cases.EDM)
  options = dict(optimizer=cases.SGD, generator=generator)
  one = distillation.dmd(cases.TEACHER, cases.student(), times=times, **options)
  two = distillation.rcm(
    cases.TEACHER,
    cases.student(),
    scm_weight=0.0,
    dmd_weight=1.0,
    warmup=7,
    dmd_times=times,
    **options,
  )
  key = jax.random.key(0)
  fake = jax.tree.map(lambda p: 1.1 * p, two.params["fake"])
  (value, _), grads = cases.value_and_gradient(
    one, jax.random.fold_in(key, 2), fake={"score": fake}
  )
  (same, said), other = cases.value_and_gradient(two, key, 7, fake=fake)
  assert float(value) == pytest.approx(float(same), rel=1e-6)
  assert float(said["dmd"]) == float(same)
  chex.assert_trees_all_close(grads, other, rtol=1e-5, atol=1e-8)
  (nothing, _), rest = cases.value_and_gradient(two, key, 6, fake=fake)
  assert float(nothing) == 0.0
  assert all(not leaf.any() for leaf in jax.tree.leaves(rest))
  assert not two.players["fake"].when(6)
  assert two.players["fake"].when(7)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.CONTINUOUS_NAMES)
def test_random_simulation_asks_at_falling_times(name):
  """With a teacher of one point the samples are that point."""
  process = cases.CONTINUOUS[name]
  point = oracles.exact(oracles.gaussian(np.ones(2), 0.0), process)
  seen = []

  def model(x, t, *label):
    seen.append(t)
    return point(x, t)

  with jax.disable_jit():
    generate = distillation.random_simulation(
      process, losses.times.uniform_log_snr(process), 4
    )
    calls = set()
    for i in range(6):
      seen.clear()
      x = generate(jax.random.key(i), model, {"image": jnp.zeros((3, 2))})
      np.testing.assert_allclose(x, np.ones((3, 2)), rtol=2e-4, atol=2e-4)
      times = np.asarray(seen)
      np.testing.assert_allclose(times[0], process.t_max, rtol=1e-6)
      assert (np.diff(times, axis=0) <= 0).all()
      calls.add(len(seen))
  assert calls <= {1, 2, 3, 4}
  assert len(calls) > 1


def test_rcm_refuses_what_trains_nothing():
  with pytest.raises(ValueError, match="one of them is positive"):
    distillation.rcm(
      cases.TEACHER,
      cases.student(),
      optimizer=cases.SGD,
      scm_weight=0.0,
      dmd_weight=0.0,
    )
  with pytest.raises(ValueError, match="got calls=0"):
    distillation.rcm(
      cases.TEACHER, cases.student(), optimizer=cases.SGD, calls=0
    )
  with pytest.raises(ValueError, match="velocity must be one of 'teacher'"):
    distillation.scm(
      cases.TEACHER, cases.student(), optimizer=cases.SGD, velocity="exact"
    )
  with pytest.raises(ValueError, match="needs a teacher, got None"):
    distillation.scm(None, cases.student(), optimizer=cases.SGD)

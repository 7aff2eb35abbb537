"""Consistency distillation: loss and gradient written out for EDM."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import distillation
from tests.distillation import cases


@pytest.mark.parametrize(
  "target", ["student", pytest.param("ema", marks=pytest.mark.slow)]
)
def test_one_step_to_the_end_is_consistency_distillation(target, x64):
  """Loss and gradient of CD, of CTM, and of both written out for EDM."""
  student, n, d, e = cases.network(cases.EDM, jumps=True), 5, 0.5, 0.02
  ema = cases.network(cases.EDM, jumps=True, seed=1).params
  teacher = cases.bent_teacher(cases.EDM)
  options = dict(optimizer=cases.SGD, grid=n, target=target)
  cd = distillation.consistency_distillation(teacher, student, **options)
  ctm = distillation.ctm(
    teacher, student, until="end", max_steps=1, dsm=0.0, **options
  )
  x0 = jax.random.normal(jax.random.key(1), (6, 2))
  key = jax.random.key(2)
  keys = jax.random.split(key, 3)
  i = jax.random.randint(keys[0], (6,), 0, n)
  eps = cases.EDM.perturb(keys[1], x0, 1.0)[1]
  ramp = np.linspace(20.0 ** (1 / 7), e ** (1 / 7), n + 1) ** 7
  t, s = (ramp[np.asarray(i) + k][:, None] for k in (0, 1))

  def f(params, x, t):
    c = np.log(np.append(t, np.full_like(t, e), axis=1)) / 4
    out = student.apply(params, x / np.sqrt(t**2 + d**2), c)
    skip = (d**2 + e * t) / (d**2 + t**2)
    return skip * x + d * (t - e) / np.sqrt(d**2 + t**2) * out

  def own(params):
    velocity = lambda x, t: (x - teacher(x, t[:, 0]).x0) / t
    x = x0 + t * eps
    here = velocity(x, t)
    y = x + (s - t) * (here + velocity(x + (s - t) * here, s)) / 2
    aim = f(ema if target == "ema" else jax.lax.stop_gradient(params), y, s)
    return jnp.mean((f(params, x, t) - aim) ** 2)

  expected, expected_slope = jax.jit(jax.value_and_grad(own))(student.params)
  assert float(expected) > 1e-3
  for method in (cd, ctm):
    value, slope = jax.jit(jax.value_and_grad(cases.loss_of(method, ema=ema)))(
      student.params, key, {"image": x0}
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-9)
    chex.assert_trees_all_close(slope, expected_slope, rtol=1e-6, atol=1e-10)

"""Students that begin as their teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import networks
from jaxdiff import oracles
from tests.distillation import cases


@pytest.mark.parametrize(
  "network",
  [
    networks.MLP(features=(8,), embedding=8),
    networks.ResidualMLP(width=8, blocks=1, hidden=1, embedding=8),
    networks.UNet(channels=4, multipliers=(1,), blocks=1, attention=()),
  ],
  ids=lambda n: type(n).__name__,
)
def test_a_student_that_jumps_begins_as_its_teacher(network):
  shape = (4, 4, 1)
  x = jax.random.normal(jax.random.key(0), (2, *shape))
  shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(2))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: jnp.asarray(0.1 * rng.standard_normal(s.shape), s.dtype),
    shapes["params"],
  )
  teacher = denoisers.from_linen(network, params, cases.EDM)
  student = distillation.student_of(
    jax.random.key(1), teacher, shape, jumps=True
  )
  t, s = jnp.asarray([2.0, 5.0]), jnp.asarray([0.1, 0.3])
  same, told = teacher(x, t), student(x, t, until=s)
  np.testing.assert_allclose(told.x0, same.x0, rtol=1e-6, atol=1e-6)


def test_students_are_made_of_denoisers():
  with pytest.raises(TypeError, match="must be a Denoiser, got"):
    distillation.student_of(
      jax.random.key(0), oracles.exact(oracles.g2(), cases.EDM), (2,)
    )
  dit = networks.DiT(width=16, depth=1)
  teacher = denoisers.from_linen(dit, {}, cases.EDM)
  with pytest.raises(ValueError, match="cannot be told two times"):
    distillation.student_of(jax.random.key(0), teacher, (8, 8, 3), jumps=True)

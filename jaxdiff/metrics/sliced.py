r"""The sliced Wasserstein distance between two sets of samples.

  SW_2^2 = E_theta W_2^2(theta . x, theta . y),

over directions theta uniform on the sphere; in one dimension W_2 compares
sorted values. Sets of different sizes are compared at common quantiles.
Reference: Bonneel et al. (2015), https://doi.org/10.1007/s10851-014-0506-3.
"""

import functools

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control


@checks.door
def sliced_wasserstein(
  key: jax.Array, x: jax.Array, y: jax.Array, directions: int = 128
) -> jax.Array:
  """Returns SW_2 in the units of the data, a scalar.

  It is biased upward: two sets of n draws from one law are about
  n^{-1/2} apart. Compare with that floor, at equal sizes.

  Args:
    key: PRNG key of the directions.
    x: f[n, ...].
    y: f[m, ...], of the same trailing shape.
    directions: number of directions.

  Raises:
    ValueError: if the samples have different shapes.
  """
  if x.shape[1:] != y.shape[1:]:
    raise ValueError(
      f"samples of shape {x.shape[1:]} cannot be compared with samples of"
      f" shape {y.shape[1:]}"
    )
  distance = functools.partial(_distance, directions=directions)
  return control.automatic(distance, key, x, y, batch=(x, y))


def _distance(key, x, y, directions):
  x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
  centre = y.mean(0)  # projections of what is far off hold few digits
  x, y = x - centre, y - centre
  theta = jax.random.normal(key, (x.shape[1], directions), x.dtype)
  theta = theta / jnp.linalg.norm(theta, axis=0)
  n = min(len(x), len(y))
  at = (jnp.arange(n) + 0.5) / n
  project = lambda v: jnp.matmul(v, theta, precision="highest")
  quantiles = lambda v: (
    jnp.sort(project(v), axis=0)
    if len(v) == n
    else jnp.quantile(project(v), at, axis=0)
  )
  return jnp.sqrt(jnp.mean((quantiles(x) - quantiles(y)) ** 2))

"""What users write with the names of `jaxdiff`: `make types` checks it.

Nothing here is run by the tests: a type checker reads it, with the annotations
of the library, as it reads the code of a user.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import choosing
from jaxdiff import tableau


class Net(nn.Module):
  """A network of somebody's own."""

  @nn.compact
  def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
    return nn.Dense(x.shape[-1])(x)


def sampled(key: jax.Array) -> jax.Array:
  """Samples of a trained model."""
  model: jd.Denoiser = jd.zoo.load("digits")
  table: jd.Tableau = jd.default(model, 10)
  x = jd.sample(key, model, table, (64, 8, 8, 1), process=model.process)
  return jnp.asarray(x)


def measured(key: jax.Array) -> tuple[jd.Tableau, int]:
  """The choice for a model, for one and for several numbers of calls."""
  process: jd.GaussianProcess = jd.edm(0.002, 80.0)
  model = jd.exact(jd.oracles.grid25(), process)
  table, report = jd.choose(key, model, process, 10, (2,), noises=64)
  assert isinstance(table, jd.Tableau)
  print(report, report.best(10).rmse)
  many, _ = jd.choose(key, model, process, (5, 8), (2,), width=0.7)
  assert isinstance(many, Mapping)
  least, most = choosing.cost((5, 8))
  return many[5], most - least


def by_hand(key: jax.Array) -> jax.Array:
  """A network of one's own, a solver and a grid by name, guidance."""
  net = Net()
  params = net.init(key, jnp.zeros((1, 2)), jnp.zeros(1))
  process = jd.vp_linear()
  model = jd.from_linen(net, params, process, prediction="eps")
  grid: np.ndarray = jd.grids.karras(process, 10, to_zero=True)
  table = jd.dpmpp_2m(process, grid)
  padded = tableau.pad(table, 20, 3)
  labelled = jd.with_label(model, jnp.arange(4))
  guided = jd.cfg(labelled, label=jnp.arange(4), null=10, scale=2.0)
  x = process.prior(key, (4, 2))
  return jnp.asarray(jd.sample(key, guided, padded, x, length=table.nfe))


@jd.solver
def mine(process: jd.GaussianProcess, grid: np.ndarray) -> jd.Tableau:
  """A solver of one's own."""
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  carry = np.asarray(sigma[1:]) / np.asarray(sigma[:-1])
  weights = np.asarray(alpha[1:]) - np.asarray(alpha[:-1]) * carry
  return tableau.multistep(grid[:-1], "x0", carry, weights[:, None])


def noised(key: jax.Array, images: jax.Array) -> tuple[float, jax.Array]:
  """Data and what their noise is."""
  process = jd.rectified_flow()
  x, eps = process.perturb(key, images, jnp.full(len(images), 0.5))
  pair = jd.Prediction(jnp.asarray(x), jnp.asarray(eps))
  return jd.width(images), jnp.asarray(pair.x0)

r"""Generators: how a student makes samples while it is trained.

generator(key, model, batch) -> x0, like batch["image"]. The model is the
student with the parameters that are trained; x0 carries gradients through its
last call alone.

| generator             | the student is called at                           |
|-----------------------|----------------------------------------------------|
| `one_step`            | noise, at one time                                 |
| `noised_data`         | noised data, at random times (Presto, DMD2's first |
|                       | stage of several steps)                            |
| `backward_simulation` | its own samples, at a random time of a grid (DMD2; |
|                       | stochastic gradient truncation of Self-Forcing)    |
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import control
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Times

Generator = Callable[[jax.Array, Any, Mapping[str, Any]], jax.Array]


def noise(
  key: jax.Array, batch: Mapping[str, Any], process: GaussianProcess
) -> jax.Array:
  """Returns noise of the process like batch["image"], by the index."""
  return process.noise.draw(key, batch["image"], batch.get("index"))


def label(batch: Mapping[str, Any]) -> tuple:
  """Returns the labels as arguments of a model: () if there are none."""
  return (batch["label"],) if "label" in batch else ()


def one_step(
  process: GaussianProcess, t: float | None = None, data_std: float = 0.0
) -> Generator:
  """Returns x0(x, t) of noise x.

  Args:
    process: the forward process.
    t: where the noise is taken to be; t_max by default, 2.5 for SIM on EDM.
    data_std: adds the data's spread to the noise, as `process.prior` does.
  """
  t = process.t_max if t is None else t
  scale = float(np.hypot(process.sigma(t), process.alpha(t) * data_std))

  def generate(key, model, batch):
    return ask(model, scale * noise(key, batch, process), t, *label(batch)).x0

  return generate


def noised_data(process: GaussianProcess, times: Times) -> Generator:
  """Returns x0(x_t, t) of noised data, t of `losses.times`."""

  def generate(key, model, batch):
    time_key, noise_key = jax.random.split(key)
    x = batch["image"]
    t = control.own_rows(lambda n: times(time_key, n), x)
    x, _ = process.perturb(noise_key, x, t, batch.get("index"))
    return ask(model, x, t, *label(batch)).x0

  return generate


def backward_simulation(
  process: GaussianProcess, grid: np.ndarray, *, last: bool = False
) -> Generator:
  """Returns x0 of a random call of the student's own sampler.

  The sampler renoises, x' = alpha' x0 + sigma' z, as `solvers.gamma_sampling`
  with gamma = 1 on a grid that ends without noise. Each sample stops at a call
  of its own, all equally likely; calls before it carry no gradients.

  A fake score that is not told of the call knows the mixture over the calls
  alone: it is the mixture that is matched, and the calls may err against one
  another. With `last` all samples stop at the last call, whose law is that of
  the sampler.

  Args:
    process: the forward process.
    grid: f64[n + 1], of the sampler that the student will be run with.
    last: whether every sample stops at the last call.
  """
  times = np.asarray(grid, np.float64)[:-1]
  n = len(times)
  # Python numbers: NumPy's would make 64 bits of 32, where JAX has them
  alpha, sigma = process.alpha(times).tolist(), process.sigma(times).tolist()

  def generate(key, model, batch):
    keys = jax.random.split(key, n + 1)
    least = n - 1 if last else 0
    stop = control.own_rows(
      lambda m: jax.random.randint(keys[n], (m,), least, n), batch["image"]
    )
    x = sigma[0] * noise(keys[0], batch, process)
    for i in range(1, n):
      x0 = jax.lax.stop_gradient(ask(model, x, times[i - 1], *label(batch)).x0)
      further = alpha[i] * x0 + sigma[i] * noise(keys[i], batch, process)
      x = jnp.where(tree.expand(stop >= i, x), further, x)
    t = jnp.asarray(times, x.dtype)[stop]
    return ask(model, x, t, *label(batch)).x0

  return generate

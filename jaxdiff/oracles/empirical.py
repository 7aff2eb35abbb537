r"""The empirical distribution of a finite data set, and its exact denoiser.

x0(x) = sum_i p_i x_i with p_i proportional to the kernel p(x | x_i), which is
exp(-|x - alpha x_i|^2 / (2 sigma^2)) for normal noise and for PFGM++

  (|x - alpha x_i|^2 + r^2)^{-(N + D) / 2},   r = sigma sqrt(D):

what a network that memorized its training set would answer. For normal noise
the distances are one matrix product about the mean of the data; those to the 64
nearest points are taken anew as differences, so that points much closer to one
another than to the mean are told apart.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxdiff import control
from jaxdiff import tree
from jaxdiff.predictions import Prediction
from jaxdiff.processes import Normal
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike

_NEAREST = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Empirical:
  """Equal point masses at the rows of `data`, f[M, ...]; a pytree.

  Attributes:
    data: f[M, ...].
    noise: the law of the noise, the process's; `exact` fills it in.
  """

  data: Array
  noise: Array = dataclasses.field(default=Normal(), metadata={"static": True})

  def predict(
    self,
    x: ArrayLike,
    alpha: ArrayLike,
    sigma: ArrayLike,
    label: ArrayLike | None = None,
  ) -> Prediction:
    """Returns the exact (x0, eps) at x, f[batch, ...].

    Args:
      x: noisy samples, shaped like the data.
      alpha: scalar or [batch].
      sigma: scalar or [batch]; 0 gives the nearest point and eps = 0.
      label: must be None, the data has no classes here.
    """
    if label is not None:
      raise ValueError(
        "an Empirical distribution has no classes; make one of the rows of"
        " each class"
      )
    return control.automatic(self._predict, x, alpha, sigma, batch=x)

  def _predict(self, x, alpha, sigma):
    dtype = tree.compute_dtype(x.dtype)
    flat = x.reshape(x.shape[0], -1).astype(dtype)
    data = jnp.asarray(self.data, dtype).reshape(len(self.data), -1)
    column = lambda v: jnp.broadcast_to(
      jnp.asarray(v, dtype).reshape(-1, 1), (x.shape[0], 1)
    )
    alpha, sigma = column(alpha), column(sigma)
    seen = jnp.maximum(sigma, jnp.finfo(dtype).tiny ** 0.25)
    # float32 is float32: accelerators round matrix products to fewer bits
    dot = functools.partial(jnp.matmul, precision="highest")
    if self.noise == Normal():
      # |x|^2 is common to all points; without it no square is lost in another
      centre = jnp.mean(data, axis=0)
      own, off = flat - alpha * centre, data - centre
      square = jnp.sum(off**2, axis=1)
      logits = (alpha * dot(own, off.T) - 0.5 * alpha**2 * square) / seen**2
      most, near = jax.lax.top_k(logits, min(_NEAREST, len(data)))
      apart = flat[:, None] - alpha[:, None] * data[near]
      exact = -0.5 * jnp.sum((apart / seen[:, None]) ** 2, axis=-1)
      rows = jnp.arange(len(flat))[:, None]
      logits = (logits - most[:, :1]).at[rows, near].set(exact - exact[:, :1])
    else:  # all of |x - x_i|^2 counts against r^2: no expanded squares
      apart = flat[:, None] - alpha[:, None] * data
      square = jnp.sum((apart / seen[:, None]) ** 2, axis=-1)
      logits = self.noise.log_radial(square, data.shape[1])
    x0 = dot(jax.nn.softmax(logits, axis=1), data)
    eps = jnp.where(sigma > 0, (flat - alpha * x0) / seen, 0.0)
    return Prediction(x0.reshape(x.shape), eps.reshape(x.shape))

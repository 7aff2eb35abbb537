r"""Inpainting and colorization by replacement: `project` hooks.

Where x0 is known, the noisy sample is replaced, after every step, by a fresh
draw of p_t(known | x0) = N(alpha known, sigma^2): in pixels for inpainting, in
an orthonormal basis of the channels whose first axis is grey for colorization.

This approximates the conditional score: the unknown coordinates are moved as if
the known ones' noisy values were independent evidence, and the coupling through
the noise is ignored. In low dimension the error is plain to see. The exact
alternatives weigh or correct the samples (sequential Monte Carlo). Reference:
Song et al. (2021), appendix I, https://arxiv.org/abs/2011.13456.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Known:
  """Replaces known coordinates by draws of p_t; a pytree.

  Attributes:
    values: f[batch, ...], the known coordinates, anything elsewhere.
    mask: 1 where known, broadcasts against values.
    basis: f[C, C] with orthonormal rows, of the last axis; None is pixels.
    process: the forward process.
  """

  values: Array
  mask: Array
  basis: Array = None
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(
    self, key: jax.Array, x: jax.Array, t: jax.Array, index: jax.Array
  ) -> jax.Array:
    """Returns x [batch, ...] at time t with its known coordinates redrawn."""
    values = jnp.broadcast_to(self.values, x.shape).astype(x.dtype)
    noisy, _ = self.process.perturb(key, values, t, index)
    if self.basis is None:
      return jnp.where(self.mask > 0, noisy, x)
    basis = jnp.asarray(self.basis, x.dtype)
    rotated = jnp.matmul(x, basis.T, precision="highest")
    rotated = jnp.where(self.mask > 0, noisy, rotated)
    return jnp.matmul(rotated, basis, precision="highest")


@checks.door
def inpaint(
  process: GaussianProcess, known: ArrayLike, mask: ArrayLike
) -> Known:
  """Returns the projection onto known pixels.

  Args:
    process: the forward process.
    known: f[batch, ...] or f[...], clean values; anything where mask is 0.
    mask: 1 where known and 0 where not, broadcasting against `known`.

  Raises:
    ValueError: if the mask holds other values or does not fit `known`.
  """
  checks.process(process, "inpaint(process, known, mask)")
  known, mask = jnp.asarray(known), jnp.asarray(mask)
  try:
    fits = jnp.broadcast_shapes(known.shape, mask.shape) == known.shape
  except ValueError:
    fits = False
  if not fits:
    raise ValueError(
      f"the mask of shape {mask.shape} does not broadcast to the known values,"
      f" {known.shape}"
    )
  if checks.concrete(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
    raise ValueError(
      "a mask holds 1 where a value is known and 0 where it is not; got values"
      f" from {float(mask.min()):.4g} to {float(mask.max()):.4g}"
    )
  return Known(known, mask, process=process)


@checks.door
def colorize(
  process: GaussianProcess, grey: ArrayLike, channels: int = 3
) -> Known:
  """Returns the projection onto images of known grey values.

  Args:
    process: the forward process.
    grey: f[batch, ..., 1], the mean over the channels.
    channels: channels of the image.

  Raises:
    ValueError: if `grey` has more than one channel.
  """
  checks.process(process, "colorize(process, grey)")
  grey = jnp.asarray(grey)
  if grey.shape[-1] != 1:
    raise ValueError(
      "colorize takes grey values with one channel, the mean over the colours,"
      f" got shape {grey.shape}; pass image.mean(-1, keepdims=True)"
    )
  # the first row of Q^T is +-(1, ..., 1) / sqrt(C); the sign is made +
  first = np.ones((channels, 1))
  q, r = np.linalg.qr(np.concatenate([first, np.eye(channels)[:, 1:]], axis=1))
  basis = (q * np.sign(np.diag(r))).T
  values = jnp.concatenate(
    [
      math.sqrt(channels) * grey,
      jnp.zeros((*grey.shape[:-1], channels - 1), grey.dtype),
    ],
    axis=-1,
  )
  return Known(values, np.eye(channels)[0], basis, process=process)

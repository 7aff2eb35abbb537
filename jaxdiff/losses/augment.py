r"""Non-leaking augmentation: the network is given the augmentation labels.

An augmentation is a frozen dataclass, augment(key, images) -> (images, told)
with told f[batch, width] or, of width 0, None. All its numbers are 0 for an
image that was left alone; a network that is given zeros when it samples draws
from the data as they are (Karras et al. 2022, appendix F.2).

| name        | what                                               | told      |
|-------------|----------------------------------------------------|-----------|
| `Mirror`    | half of the images mirrored; right where the data  | nothing   |
|             | are as likely the other way round                  |           |
| `Geometric` | EDM's: mirrored (1/2); each with `probability`:    | 9 numbers |
|             | upside down, scaled, turned, stretched, moved      |           |

Departure from EDM: one bilinear interpolation, without their upsampling by
wavelets, so that changed images are a little softer, which the network is told
with the rest; what is outside of an image is its mirror image.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

from jaxdiff import control


@dataclasses.dataclass(frozen=True)
class Mirror:
  """Half of the images mirrored left to right; the network is told nothing."""

  width = 0

  def __call__(
    self, key: jax.Array, images: jax.Array
  ) -> tuple[jax.Array, None]:
    """Returns the images f[batch, h, w, c], and None."""
    flip = control.own_rows(
      lambda n: jax.random.bernoulli(key, 0.5, (n,)), images
    )
    return _where(flip, images[:, :, ::-1], images), None


@dataclasses.dataclass(frozen=True)
class Geometric:
  """EDM's geometric augmentations (Karras et al. 2022, table 6).

  Told, in this order: mirrored, upside down (0 or 1), log2 of the scale in
  units of `scale`, cos - 1 and sin of the turn, log2 of the stretch in its
  units times cos and sin of its axis, the shift in its units, (x, y).

  Attributes:
    probability: probability of each but the mirror image.
    scale: standard deviation of log2 of the scale.
    stretch: standard deviation of log2 of the stretch.
    shift: standard deviation of the shift, a share of the side.
  """

  probability: float = 0.12
  scale: float = 0.2
  stretch: float = 0.2
  shift: float = 0.125

  width = 9

  def __call__(
    self, key: jax.Array, images: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the images f[batch, h, w, c] and what was done, f[batch, 9]."""
    keys = control.own_rows(lambda n: jax.random.split(key, n), images)
    told, inverse = jax.vmap(self._draw)(keys)
    images = _where(told[:, 0] > 0, images[:, :, ::-1], images)
    images = _where(told[:, 1] > 0, images[:, ::-1], images)
    moved = jax.vmap(_transform)(images, inverse)
    # bilinear interpolation at the pixels themselves is exact, but may round
    same = (told[:, 2:] == 0).all(1)
    return _where(same, images, moved), told.astype(images.dtype)

  def _draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (told f[9], inverse map f[2, 3] in halves of the side)."""
    chosen, size, normal = jax.random.split(key, 3)
    on = jax.random.uniform(chosen, (7,)) < self.probability
    mirror, half, turn, axis = jax.random.uniform(size, (4,))
    w_scale, w_stretch, x, y = jax.random.normal(normal, (4,))
    turn = jnp.where(on[1], math.pi * (2 * turn - 1), 0.0)
    axis = jnp.where(half < 0.5, math.pi * (2 * axis - 1), 0.0)
    w_scale, w_stretch = w_scale * on[2], w_stretch * on[3]
    x, y = x * on[4], y * on[4]
    told = jnp.stack(
      [
        (mirror < 0.5).astype(jnp.float32),
        on[0].astype(jnp.float32),
        w_scale,
        jnp.cos(turn) - 1,
        jnp.sin(turn),
        w_stretch * jnp.cos(axis),
        w_stretch * jnp.sin(axis),
        x,
        y,
      ]
    )
    shrink = jnp.exp2(-self.scale * w_scale)
    wide = jnp.exp2(-self.stretch * w_stretch)
    stretch = _turn(axis) @ jnp.diag(jnp.stack([wide, 1 / wide])) @ _turn(-axis)
    linear = shrink * _turn(-turn) @ stretch
    offset = -linear @ jnp.stack([x, y]) * 2 * self.shift
    return told, jnp.concatenate([linear, offset[:, None]], axis=1)


def _turn(angle: jax.Array) -> jax.Array:
  """Returns the rotation f[2, 2] of (x, y) by an angle in radians."""
  c, s = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])])


def _transform(image: jax.Array, inverse: jax.Array) -> jax.Array:
  """Returns the image f[h, w, c] whose pixel p is that at inverse(p)."""
  height, width, _ = image.shape
  half = jnp.asarray([width, height]) / 2
  x = (jnp.arange(width) + 0.5) / half[0] - 1
  y = (jnp.arange(height) + 0.5) / half[1] - 1
  # in pixels, so that a turn of an oblong picture is a turn
  points = jnp.stack(jnp.meshgrid(x * half[0], y * half[1]))
  shift = inverse[:, 2] * half
  at = jnp.einsum("ij,jhw->ihw", inverse[:, :2], points) + shift[:, None, None]
  at = at + half[:, None, None] - 0.5
  sample = lambda plane: ndimage.map_coordinates(
    plane, [at[1], at[0]], order=1, mode="mirror"
  )
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def _where(chosen: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)

"""Position embeddings: rotary for attention, sinusoidal on a grid."""

import jax
import jax.numpy as jnp
import numpy as np


def rotate(x: jax.Array) -> jax.Array:
  """Turns pairs of features by position x 1e-4^(2 j / head) (Su et al. 2021).

  Feature j is paired with j + head / 2. Scores then depend on the difference
  of two positions alone.

  Args:
    x: queries or keys, [batch, length, heads, head].
  """
  length, half = x.shape[1], x.shape[-1] // 2
  w = 1e-4 ** (np.arange(half) / half)
  angle = (np.arange(length)[:, None] * w)[:, None]  # [length, 1, half]
  cos, sin = np.cos(angle), np.sin(angle)
  wide = jnp.promote_types(x.dtype, jnp.float32)
  a, b = jnp.split(x.astype(wide), 2, axis=-1)
  cos, sin = jnp.asarray(cos, wide), jnp.asarray(sin, wide)
  turned = [a * cos - b * sin, a * sin + b * cos]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def waves(height: int, width: int, features: int) -> np.ndarray:
  """Returns f32[height, width, features]: waves of column, then row.

  Each takes half of the features, with angular frequencies 1e-4^(4 j /
  features) in radians per place (the fixed embedding of MAE and DiT).
  """
  quarter = features // 4
  w = 1e-4 ** (np.arange(quarter) / quarter)
  rows, columns = np.meshgrid(
    np.arange(height), np.arange(width), indexing="ij"
  )
  angles = [columns[..., None] * w, rows[..., None] * w]
  waves = [f(angle) for angle in angles for f in (np.sin, np.cos)]
  return np.concatenate(waves, axis=-1).astype(np.float32)

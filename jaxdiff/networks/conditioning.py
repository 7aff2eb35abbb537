r"""Condition of EDM's networks: time, label and augmentation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import ArrayLike


def positional(
  c: jax.Array, features: int, *, endpoint: bool = False
) -> jax.Array:
  r"""Returns [cos(w_k c), sin(w_k c)], f32[batch, features].

  The frequencies fall from 1 to 1e-4, w_k = 1e-4^(k / m) with m = features / 2
  of them; with `endpoint` it is k / (m - 1), so that the last one is 1e-4
  itself. Vaswani et al. (2017), https://arxiv.org/abs/1706.03762.

  Args:
    c: f[batch], a step 0..999 or any other number.
    features: number of features, even and at least 4.
    endpoint: whether the last frequency is 1e-4.

  Raises:
    ValueError: if c is not 1-D or `features` is odd or below 4.
  """
  _check_time(c)
  if features % 2 or features < 4:
    raise ValueError(
      "positional features come in pairs of a cosine and a sine; their number"
      f" must be even and at least 4, got {features}"
    )
  m = features // 2
  w = 1e-4 ** (np.arange(m) / (m - 1 if endpoint else m))
  dtype = jnp.promote_types(c.dtype, jnp.float32)
  angle = c.astype(dtype)[:, None] * jnp.asarray(w, dtype)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def turns(c: jax.Array, freqs: jax.Array, phases: Any = 0.0) -> jax.Array:
  """Returns 2 pi (c freqs + phases), f32[batch, features], for random freqs.

  `freqs` are parameters only for storage: no gradient reaches them.
  """
  _check_time(c)
  dtype = jnp.promote_types(c.dtype, jnp.float32)
  stop = lambda v: jax.lax.stop_gradient(jnp.asarray(v, dtype))
  return 2 * np.pi * (c.astype(dtype)[:, None] * stop(freqs) + stop(phases))


def label_vector(
  label: ArrayLike, batch: int, num_classes: int = 0, label_dim: int = 0
) -> jax.Array | None:
  """Returns the condition as f[batch, d], None for a network without one.

  Args:
    label: i32[batch] or i32[]: classes, of which `num_classes` is the null
      label, all zeros as None is; or f[batch, d]: any vectors, also mixtures
      of classes. An integer that is no class gives NaN.
    batch: number of samples.
    num_classes: number of classes, 0 for none.
    label_dim: length of vectors that are no classes, 0 for none.

  Raises:
    ValueError: for a label that the network has no use for.
  """
  d = num_classes or label_dim
  if num_classes and label_dim:
    raise ValueError(
      f"a network has classes or a vector condition, but num_classes ="
      f" {num_classes} and label_dim = {label_dim} were given; set one to 0"
    )
  if not d:
    if label is not None:
      raise ValueError(
        "a label was given to a network without classes; build it with"
        " num_classes or label_dim, or drop the label"
      )
    return None
  if label is None:
    return jnp.zeros((batch, d))
  label = jnp.asarray(label)
  if jnp.issubdtype(label.dtype, jnp.floating):
    if label.shape != (batch, d):
      raise ValueError(
        f"a label of floats must be f[{batch}, {d}], got shape {label.shape};"
        " classes are integers"
      )
    return label
  if label_dim or label.ndim > 1:
    raise ValueError(
      f"expected a label f[{batch}, {d}]"
      + (f" or classes i32[{batch}]" if num_classes else "")
      + f", got {label.dtype}{list(label.shape)}"
    )
  known = (label >= 0) & (label <= num_classes)
  hot = jax.nn.one_hot(label, num_classes)
  hot = jnp.where(known[..., None], hot, jnp.nan)
  return jnp.broadcast_to(hot, (batch, num_classes))


def augment_vector(augment: ArrayLike, batch: int, augment_dim: int) -> Any:
  """Returns the augmentation labels f[batch, augment_dim]; None are zeros.

  Raises:
    ValueError: for labels of another shape.
  """
  if augment is None:
    return jnp.zeros((batch, augment_dim)) if augment_dim else None
  if augment.shape != (batch, augment_dim) or not augment_dim:
    raise ValueError(
      f"augmentation labels of shape {augment.shape} were given to a network"
      f" with augment_dim = {augment_dim}; they must be [{batch},"
      f" {augment_dim}]"
      + ("" if augment_dim else ": build it with augment_dim, or drop them")
    )
  return augment


def check_images(x: jax.Array, levels: int) -> None:
  """Refuses what is no batch of images whose sides can be halved."""
  if x.ndim != 4:
    raise ValueError(
      "the U-Net takes images [batch, height, width, channels], got shape"
      f" {x.shape}; add a channel dimension (x[..., None]) to grey images, or"
      " use an MLP for points"
    )
  factor = 2 ** (levels - 1)
  if x.shape[1] % factor or x.shape[2] % factor:
    raise ValueError(
      f"a U-Net with {levels} levels takes images whose sides are multiples of"
      f" {factor}, got {x.shape[1]}x{x.shape[2]}; pad the images or shorten"
      " `multipliers`"
    )


def _check_time(c: jax.Array) -> None:
  if c.ndim != 1:
    raise ValueError(
      f"the time condition c must be f[batch], got shape {c.shape};"
      " broadcast a scalar with jnp.full(x.shape[:1], c)"
    )

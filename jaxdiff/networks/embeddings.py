r"""Features of the scalar time condition c and of class labels.

A network is told the time as one number per sample, c f32[batch]. It is spread
over sines and cosines of geometrically spaced angular frequencies,

  [cos(w_k c), sin(w_k c)],   w_k = low (high / low)^{k / (m - 1)}.

Networks see c = log(sigma / alpha) / 4, between -2 and 2 as a rule, or t
itself, between 0 and 1. The default frequencies resolve both, and are lower
than those of Song et al. (2021): the network stays smooth in time, which
high-order solvers live on. As positional features of a discrete index they are
Vaswani et al. (2017), with low = 1e-4 and high = 1.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import tree
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike


def fourier(
  c: jax.Array, features: int, low: float = 0.5, high: float = 16.0
) -> jax.Array:
  """Returns the cosines, then the sines, of c, in float32 or wider.

  Args:
    c: f32[batch], the time condition.
    features: number of features, even.
    low: smallest angular frequency, radians per unit of c.
    high: largest angular frequency, radians per unit of c.

  Returns:
    f32[batch, features], float64 where c is.

  Raises:
    ValueError: if `features` is odd or below 4.
  """
  if features % 2 or features < 4:
    raise ValueError(
      "Fourier features come in pairs of a cosine and a sine; features must"
      f" be even and at least 4, got {features}"
    )
  w = np.geomspace(low, high, features // 2)
  dtype = tree.compute_dtype(c.dtype)
  angle = c.astype(dtype)[:, None] * jnp.asarray(w, dtype)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class Condition(nn.Module):
  """An embedding of the time and, with `num_classes`, of a class label.

  A network that jumps is told two times, where it is and where it goes. The
  second one enters by a matrix that begins at zero: a network that was trained
  with one time goes on as it was.

  Attributes:
    features: width of the embedding.
    num_classes: number of classes; label `num_classes` stands for "no class"
      and is also what label None means. 0 is a network without classes.
    dtype: dtype of the computation; None is that of the parameters.
  """

  features: int
  num_classes: int = 0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, c: jax.Array, label: ArrayLike | None = None) -> jax.Array:
    """Returns [batch, features] for c f32[batch], label i32[batch] or None.

    Two times are c f32[batch, 2]. Labels are looked up, not clipped: one above
    `num_classes` gives NaN.

    Raises:
      ValueError: if c is neither f[batch] nor f[batch, 2], or a label is given
        to a network without classes, or is not an integer.
    """
    if c.ndim != 1 and c.shape[1:] != (2,):
      raise ValueError(
        "the time condition c must be f[batch], or f[batch, 2] for a network"
        f" that is told where to jump, got shape {c.shape}; broadcast a scalar"
        " with jnp.full(x.shape[:1], c)"
      )
    until = c[:, 1] if c.ndim == 2 else None
    c = c[:, 0] if c.ndim == 2 else c
    h = nn.Dense(self.features, dtype=self.dtype, name="time_in")(
      fourier(c, self.features)
    )
    if until is not None:
      h = h + nn.Dense(
        self.features,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=nn.initializers.zeros,
        name="until_in",
      )(fourier(until, self.features))
    if self.num_classes:
      label = self.num_classes if label is None else label
      label = jnp.asarray(label)
      if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
          f"labels must be integers in 0..{self.num_classes} (the last is"
          f" the null label), got dtype {label.dtype}"
        )
      table = nn.Embed(
        self.num_classes + 1,
        self.features,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(1.0 / math.sqrt(2.0)),
        name="label",
      )
      h = h + table(jnp.broadcast_to(label, c.shape))
    elif label is not None:
      raise ValueError(
        "a label was given to a network without classes; build it with"
        " num_classes, or drop the label"
      )
    h = nn.silu(h)
    h = nn.Dense(self.features, dtype=self.dtype, name="time_out")(h)
    return nn.silu(h)

"""Condition of transformers: the time, and a class, a vector or nothing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks import embeddings
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree

# First and last angular frequency of the 256 features of the index 0..999 of a
# discrete process in DiT and SiT; diffusers' last is 1e-4.
STEPS = (1.0, 1e-4 ** (127 / 128))

WITHOUT_CLASSES = (
  "a label was given to a network without classes; build it with num_classes"
  " (or label_dim, for vectors), or drop the label"
)


class TimeAndLabel(nn.Module):
  """The sum of an embedding of the time and one of the label.

  Attributes:
    width: width of the embedding.
    num_classes: number of classes; label `num_classes` stands for "no class"
      and is also what label None means. 0 is a network without classes.
    label_dim: width of a vector label f[batch, label_dim]; None means zeros.
    augment_dim: width of EDM's augmentation labels; None means zeros.
    frequencies: angular frequencies of the first and the last time feature.
    features: number of time features.
    dtype: dtype of the computation.
  """

  width: int
  num_classes: int = 0
  label_dim: int = 0
  augment_dim: int = 0
  frequencies: tuple[float, float] = (0.5, 16.0)
  features: int = 256
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    c: jax.Array,
    label: ArrayLike | None = None,
    augment: ArrayLike | None = None,
  ) -> jax.Array:
    """Returns [batch, width] for c f[batch]; see the attributes for the rest.

    Raises:
      ValueError: if c is not 1-D, or a label or an augmentation label is given
        to a network that has none, or is of another shape or dtype.
    """
    check_time(c)
    if self.num_classes and self.label_dim:
      raise ValueError(
        f"a label is a class or a vector, but num_classes={self.num_classes}"
        f" and label_dim={self.label_dim} were given; set one to 0"
      )
    dense = functools.partial(
      nn.Dense,
      self.width,
      dtype=self.dtype,
      kernel_init=nn.initializers.normal(0.02),
    )
    h = embeddings.fourier(c, self.features, *self.frequencies)
    h = dense(name="time_out")(nn.silu(dense(name="time_in")(h)))
    if self.num_classes:
      table = nn.Embed(
        self.num_classes + 1,
        self.width,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(0.02),
        name="label",
      )
      h = h + table(as_class(label, self.num_classes, len(c)))
    elif self.label_dim:
      vector = as_vector(label, self.label_dim, len(c), "label", "label_dim")
      h = h + dense(name="label")(vector)
    elif label is not None:
      raise ValueError(WITHOUT_CLASSES)
    if self.augment_dim:
      vector = as_vector(
        augment, self.augment_dim, len(c), "augment", "augment_dim"
      )
      h = h + dense(use_bias=False, name="augment")(vector)
    elif augment is not None:
      raise ValueError(
        "augmentation labels were given to a network without them; build it"
        " with augment_dim, or train without augmentation"
      )
    return h


def check_time(c: jax.Array) -> None:
  """Raises a ValueError unless the time condition is f[batch]."""
  if c.ndim != 1:
    raise ValueError(
      f"the time condition c must be f[batch], got shape {c.shape};"
      " broadcast a scalar with jnp.full(x.shape[:1], c)"
    )


def as_class(label: ArrayLike, num_classes: int, batch: int) -> jax.Array:
  """Returns i32[batch] for a class label, or for None, the null label.

  Raises:
    ValueError: if the label is not an integer.
  """
  label = jnp.asarray(num_classes if label is None else label)
  if not jnp.issubdtype(label.dtype, jnp.integer):
    raise ValueError(
      f"labels must be integers in 0..{num_classes} (the last is the null"
      f" label), got dtype {label.dtype}; for vectors build the network with"
      " label_dim"
    )
  return jnp.broadcast_to(label, (batch,))


def as_vector(
  value: PyTree, width: int, batch: int, name: str, attribute: str
) -> jax.Array:
  """Returns f[batch, width] for a vector label, or for None, zeros.

  Raises:
    ValueError: if it is of another width.
  """
  value = jnp.zeros((batch, width)) if value is None else jnp.asarray(value)
  if value.shape[-1:] != (width,):
    raise ValueError(
      f"{name} must be f[batch, {width}] ({attribute} of this network), got"
      f" shape {value.shape}"
    )
  return jnp.broadcast_to(value, (batch, width))

r"""Classifier-free guidance: a model made from a conditional model.

  x0 = x0_null + scale (x0_label - x0_null),   eps likewise,

so scale = 1 is the conditional model, 0 the unconditional one, and more than 1
sharpens. (Ho and Salimans (2022), https://arxiv.org/abs/2207.12598, whose w is
scale - 1.) x0 and eps give the same map, since both halves are affine in one
another at the same x. One network call of twice the batch, whose label is the
condition of the first half and the null of the second.

The samples may be an array or a tree of them, and so may the condition:

| condition            | label          | for all samples | null             |
|----------------------|----------------|-----------------|------------------|
| a class              | i[batch]       | i[]             | i[]              |
| a vector             | f[batch, d]    | f[d]            | f[d], or f[]     |
| tokens, images, ...  | [batch, ...]   |                 | [...], or a number |

and null may also have the batch axis. Leaves of a tree follow it one by one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CFG:
  """A guided model; its fields are arguments of compiled programs."""

  model: Model
  label: Array
  null: Array
  scale: Array

  def __call__(self, x: jax.Array, t: jax.Array) -> Prediction:
    """Returns the guided (x0, eps) for x [batch, ...], t scalar or [batch]."""
    size = tree.batch_size(x)
    label, null = _conditions(self.label, self.null, size)
    scale = jnp.asarray(self.scale)
    if scale.shape not in ((), (size,)):
      raise ValueError(
        f"a guidance scale is one number, or one for each of the {size}"
        f" samples; got shape {scale.shape}"
      )
    laid = lambda leaf: control.along_batch(leaf, x)
    both = lambda one, other: jax.tree.map(
      lambda u, v: jnp.concatenate([laid(u), laid(v)]), one, other
    )
    t = jnp.concatenate([t, t]) if jnp.ndim(t) else t
    pair = ask(self.model, both(x, x), t, both(label, null))

    def guide(leaf):
      wide = leaf.astype(tree.compute_dtype(leaf.dtype))
      with_label, without = jnp.split(wide, 2)
      by = tree.expand(scale.astype(wide.dtype), without)
      return without + by * (with_label - without)

    return jax.tree.map(guide, pair)


def _conditions(label, null, size):
  """Returns label and null with a batch axis on every leaf."""
  if not jax.tree.leaves(label):
    raise ValueError(
      f"guidance leads toward a label, but it is {label!r}; give label=..., or"
      " use the model itself"
    )
  if jax.tree.structure(null) != jax.tree.structure(label):
    if jax.tree.structure(null) != jax.tree.structure(0):
      raise ValueError(
        f"null is a tree {jax.tree.structure(null)} but label"
        f" {jax.tree.structure(label)}; give one null for each leaf of the"
        " label, or one number for all"
      )
    null = jax.tree.map(lambda _: null, label)
  label = jax.tree.map(lambda leaf: _labels(leaf, size), label)
  return label, jax.tree.map(_nulls, null, label)


def _labels(label, size):
  """Returns classes [batch], or conditions [batch, ...]."""
  label = jnp.asarray(label)
  vector = jnp.issubdtype(label.dtype, jnp.floating)
  if vector and label.ndim == 0:
    raise ValueError(
      "a condition that is one floating-point number is a vector of length 1,"
      f" shape (1,) or ({size}, 1), got shape (); a class is an integer"
    )
  if label.ndim == vector:  # one for all, as a Denoiser reads it
    return jnp.broadcast_to(label, (size, *label.shape))
  if label.shape[0] != size:
    raise ValueError(
      f"label has shape {label.shape}, but there are {size} samples; a label"
      f" is an integer or i[{size}] for classes, f[d] or f[{size}, d] for"
      " vectors, and begins with the batch axis otherwise"
    )
  return label


def _nulls(null, label):
  """Returns null shaped like the labels [batch, ...]."""
  null = jnp.asarray(null)
  if jnp.issubdtype(label.dtype, jnp.integer) and not jnp.issubdtype(
    null.dtype, jnp.integer
  ):
    raise TypeError(
      f"labels are classes of dtype {label.dtype}, but null has dtype"
      f" {null.dtype}; it is the integer that stands for no class, usually"
      " num_classes"
    )
  if null.shape not in ((), label.shape[1:], label.shape):
    raise ValueError(
      f"null has shape {null.shape} beside labels of shape {label.shape}; give"
      f" one for all samples, shape {label.shape[1:]}, or a number for each of"
      " its values"
    )
  return jnp.broadcast_to(null.astype(label.dtype), label.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guided:
  """A model that guides toward the label of each call; see `guided`."""

  model: Model
  null: Array
  scale: Array

  def __call__(
    self, x: jax.Array, t: jax.Array, label: ArrayLike
  ) -> Prediction:
    """Returns the (x0, eps) guided toward the label, as `cfg` takes it."""
    label = jax.tree.map(jnp.asarray, _array(label))
    return CFG(self.model, label, self.null, self.scale)(x, t)


@checks.door
def guided(model: Model, *, null: ArrayLike, scale: ArrayLike) -> Guided:
  """Returns model(x, t, label), guided toward the label of the call.

  What a distillation's teacher is, whose labels are those of the batch.

  Args:
    model: as in `cfg`.
    null: the label that stands for "no condition".
    scale: scalar or [batch]; 1.0 is conditional, 0.0 unconditional.
  """
  null = _array(null)
  _check(model, scale, null=null)
  return Guided(model, null, jnp.asarray(scale, jnp.result_type(float)))


@checks.door
def cfg(
  model: Model, *, label: ArrayLike, null: ArrayLike, scale: ArrayLike
) -> CFG:
  """Returns `model` guided toward `label`.

  Args:
    model: model(x, t, label) -> Prediction, e.g. a class-conditional
      `Denoiser` or the exact model of a mixture.
    label: the condition: classes i32[batch] or one for all, vectors f[batch, d]
      or f[d], anything else with a batch axis, or a tree of them. A list of
      numbers is an array.
    null: the label that stands for "no condition": usually num_classes for
      classes, zeros for vectors (0.0 is short for them).
    scale: scalar or [batch]; 1.0 is conditional, 0.0 unconditional.

  The model raises ValueError for labels, nulls or scales of another batch, and
  TypeError for a null that is no class where labels are.

  Example:
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> two = jd.oracles.mixture([[-1.0], [1.0]], [0.1, 0.1])
    >>> model = jd.exact(two, jd.edm())
    >>> x = jnp.zeros((1, 1))
    >>> for scale in 0.0, 1.0, 2.0:  # the label 2 stands for no condition
    ...   guided = jd.cfg(model, label=1, null=2, scale=scale)
    ...   print(scale, round(float(guided(x, 1.0).x0[0, 0]), 3))
    0.0 0.0
    1.0 0.909
    2.0 1.818
  """
  label, null = _array(label), _array(null)
  _check(model, scale, label=label, null=null)
  # an array, not a Python number: both would be programs of their own
  scale = jnp.asarray(scale, jnp.result_type(float))
  return CFG(model, jax.tree.map(jnp.asarray, label), null, scale)


def _array(condition):
  """Returns a list of numbers as the array that is meant, else the same."""
  number = lambda leaf: isinstance(leaf, (int, float, np.generic))
  leaves = jax.tree.leaves(condition)
  if isinstance(condition, list) and leaves and all(map(number, leaves)):
    return np.asarray(condition)
  return condition


def _check(model, scale, **conditions):
  """Refuses what a model cannot be guided by, where it can be read."""
  checks.model(model, "guidance")
  checks.scale(scale)
  for name, condition in conditions.items():
    checks.labels(condition, getattr(model, "num_classes", None), name)

r"""Classifier-free guidance: a model made from a conditional model.

  x0 = x0_null + scale (x0_label - x0_null),   eps likewise,

so scale = 1 is the conditional model, 0 the unconditional one, and more than 1
sharpens. (Ho and Salimans (2022), https://arxiv.org/abs/2207.12598, whose w is
scale - 1.) x0 and eps give the same map, since both halves are affine in one
another at the same x. One network call of twice the batch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import tree
from jaxdiff.predictions import Prediction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CFG:
  """A guided model; its fields are arguments of compiled programs."""

  model: Any
  label: Any
  null: Any
  scale: Any

  def __call__(self, x: jax.Array, t: jax.Array) -> Prediction:
    """Returns the guided (x0, eps) for x [batch, ...], t scalar or [batch]."""
    null = jnp.broadcast_to(
      jnp.asarray(self.null, self.label.dtype), x.shape[:1]
    )
    label = jnp.broadcast_to(self.label, x.shape[:1])
    t = jnp.concatenate([t, t]) if jnp.ndim(t) else t
    pair = self.model(
      jnp.concatenate([x, x]), t, jnp.concatenate([label, null])
    )
    scale = tree.expand(jnp.asarray(self.scale), x)

    def guide(both):
      wide = both.astype(tree.compute_dtype(both.dtype))
      with_label, without = jnp.split(wide, 2)
      return without + scale.astype(wide.dtype) * (with_label - without)

    return Prediction(guide(pair.x0), guide(pair.eps))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guided:
  """A model that guides toward the label of each call; see `guided`."""

  model: Any
  null: Any
  scale: Any

  def __call__(self, x: jax.Array, t: jax.Array, label: Any) -> Prediction:
    """Returns the (x0, eps) guided toward label, i32[batch] or a scalar."""
    return CFG(self.model, jnp.asarray(label), self.null, self.scale)(x, t)


def guided(model: Any, *, null: Any, scale: Any) -> Guided:
  """Returns model(x, t, label), guided toward the label of the call.

  What a distillation's teacher is, whose labels are those of the batch.

  Args:
    model: as in `cfg`.
    null: the label that stands for "no condition".
    scale: scalar or [batch]; 1.0 is conditional, 0.0 unconditional.
  """
  return Guided(model, null, jnp.asarray(scale, jnp.float32))


def cfg(model: Any, *, label: Any, null: Any, scale: Any) -> CFG:
  """Returns `model` guided toward `label`.

  Args:
    model: model(x, t, label) -> Prediction, e.g. a class-conditional
      `Denoiser` or the exact model of a mixture.
    label: i32[batch] or a scalar, the condition.
    null: the label that stands for "no condition" (usually num_classes).
    scale: scalar or [batch]; 1.0 is conditional, 0.0 unconditional.
  """
  # an array, not a Python number: both would be programs of their own
  return CFG(model, jnp.asarray(label), null, jnp.asarray(scale, jnp.float32))

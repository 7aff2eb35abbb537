"""A guided teacher: classifier-free guidance toward the labels of a batch."""

import dataclasses
from typing import Any

import jax

from jaxdiff import guidance
from jaxdiff.predictions import Prediction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guided:
  """A conditional model under guidance, called with labels as it is.

  Attributes:
    model: model(x, t, label) -> Prediction.
    null: the label that stands for none.
    scale: of the guidance.
  """

  model: Any
  null: Any
  scale: Any

  def __call__(self, x: jax.Array, t: jax.Array, label: Any) -> Prediction:
    """Returns the guided (x0, eps) for x [batch, ...], label i32[batch]."""
    model = guidance.cfg(
      self.model, label=label, null=self.null, scale=self.scale
    )
    return model(x, t)


def guided(teacher: Any, scale: float, null: int | None = None) -> Any:
  """Returns the teacher, guided; itself if scale = 1.

  Args:
    teacher: model(x, t, label) -> Prediction.
    scale: of the guidance, as in `guidance.cfg`.
    null: the label that stands for none; by default num_classes of its network.

  Raises:
    ValueError: if null is not given and the teacher does not say it.
  """
  if scale == 1.0:
    return teacher
  if null is None:
    module = getattr(getattr(teacher, "apply", None), "module", None)
    null = getattr(module, "num_classes", 0)
    if not null:
      raise ValueError(
        f"guidance={scale} needs a teacher that also knows the law without"
        f" labels, but this {type(teacher).__name__} names no null label; give"
        " null=K, or guidance=1"
      )
  return Guided(teacher, null, scale)

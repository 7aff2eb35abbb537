"""A guided teacher: classifier-free guidance toward the labels of a batch."""

from typing import Any

from jaxdiff import checks
from jaxdiff import guidance
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model


@checks.door
def guided(teacher: Model, scale: float, null: ArrayLike | None = None) -> Any:
  """Returns the teacher, guided; itself if scale = 1.

  Args:
    teacher: model(x, t, label) -> Prediction.
    scale: scale of the guidance, as in `guidance.cfg`.
    null: the label that stands for none; by default num_classes of its network,
      or zeros where that is conditioned on vectors, as `losses.denoising` drops
      them.

  Raises:
    ValueError: if null is not given and the teacher does not say it.
  """
  if scale == 1.0:
    return teacher
  if null is None:
    module = getattr(getattr(teacher, "apply", None), "module", None)
    null = getattr(module, "num_classes", 0) or None
    if null is None and getattr(module, "label_dim", 0):
      null = 0.0
    if null is None:
      raise ValueError(
        f"guidance={scale} needs a teacher that also knows the law without"
        f" labels, but this {type(teacher).__name__} names no null label; give"
        " null=K, or guidance=1"
      )
  return guidance.guided(teacher, null=null, scale=scale)

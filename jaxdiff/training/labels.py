"""Checks of labels against the classes of a network."""

import numpy as np

from jaxdiff import checks
from jaxdiff.types import ArrayLike


@checks.door
def check_labels(labels: ArrayLike, num_classes: int) -> None:
  """Refuses labels outside of 0..num_classes-1, which jit would not notice.

  Args:
    labels: i[n], on the host.
    num_classes: number of classes; `num_classes` itself is the null label.

  Raises:
    ValueError: naming the offending value and the usual cause.
  """
  labels = np.asarray(labels)
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels must be whole numbers, got {labels.dtype}; convert them with"
      " label.astype(np.int32)"
    )
  if not labels.size:
    return
  low, high = int(labels.min()), int(labels.max())
  if low >= 0 and high < num_classes:
    return
  wrong = low if low < 0 else high
  if low == 1 and high == num_classes:
    cause = "they seem to be counted from 1: subtract 1"
  elif low < 0:
    cause = "give the classes the numbers from 0 on"
  else:
    cause = f"num_classes is too small: set it to {high + 1} or more"
  raise ValueError(
    f"there is a label {wrong}, but a network of {num_classes} classes takes"
    f" 0..{num_classes - 1}; {cause}"
  )

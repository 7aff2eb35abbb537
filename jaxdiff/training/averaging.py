"""The mean of metrics over updates, or over the parts of a batch."""

from typing import Any

import jax
import numpy as np

from jaxdiff import numerics


def merge(stack: dict[str, Any], empty: float) -> dict[str, Any]:
  """Returns the mean over the first axis of every metric.

  An array "x_loss" beside "x_count" is averaged with the counts as weights.

  Args:
    stack: of arrays f[n, ...], NumPy's or JAX's.
    empty: mean of what has no count at all.
  """
  mean = {}
  for name, values in stack.items():
    xp = numerics.namespace(values)
    count = stack.get(name.removesuffix("_loss") + "_count")
    if name.endswith("_loss") and count is not None:
      total = count.sum(0)
      some = xp.where(total > 0, total, 1.0)
      mean[name] = xp.where(total > 0, (values * count).sum(0) / some, empty)
    else:
      mean[name] = values.mean(0)
  return mean


def average(metrics: list[dict]) -> dict[str, Any]:
  """Returns the mean of every metric, as floats and lists of floats.

  Entries of "x_loss" for which "x_count" is 0 throughout are NaN.
  """
  if not metrics:
    return {}
  metrics = jax.device_get(metrics)
  stack = {
    name: np.stack([np.asarray(m[name], np.float64) for m in metrics])
    for name in metrics[0]
  }
  return {k: v.tolist() for k, v in merge(stack, np.nan).items()}

"""Means of metrics over updates, or over parts of a batch."""

from typing import Any

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff import tree

_WHOLE = ("fault", "param_norm", "skipped")  # of the update, not of a player


def merge(stack: dict[str, Any], empty: float) -> dict[str, Any]:
  """Returns the mean over the first axis of every metric.

  An array "x_loss" beside "x_count" is averaged with the counts as weights, and
  whatever a player says that may rest ("moved", see `alternating`) over the
  updates in which it moved.

  Args:
    stack: stack of arrays f[n, ...], NumPy's or JAX's.
    empty: mean of what has no count at all.
  """
  mean = {}
  for name, values in stack.items():
    xp = numerics.namespace(values)
    count = _counts(stack, name)
    if count is not None:
      count = tree.expand(count, values)
      total = count.sum(0)
      some = xp.where(total > 0, total, 1.0)
      mean[name] = xp.where(total > 0, (values * count).sum(0) / some, empty)
    else:
      mean[name] = values.mean(0)
  return mean


def _counts(stack: dict[str, Any], name: str) -> Any:
  """Returns the weights of a metric, None where all updates count alike."""
  own = stack.get(name.removesuffix("_loss") + "_count")
  if name.endswith("_loss") and own is not None:
    return own
  player, _, what = name.rpartition("/")
  if what in ("moved", *_WHOLE):
    return None
  return stack.get(f"{player}/moved" if player else "moved")


@checks.door
def average(metrics: list[dict]) -> dict[str, Any]:
  """Returns the mean of every metric, as floats and lists of floats.

  Entries of "x_loss" for which "x_count" is 0 throughout are NaN, and so is
  what is said of a player that rested all the time.
  """
  if not metrics:
    return {}
  metrics = jax.device_get(metrics)
  stack = {
    name: np.stack([np.asarray(m[name], np.float64) for m in metrics])
    for name in metrics[0]
  }
  return {k: v.tolist() for k, v in merge(stack, np.nan).items()}

"""Reads a random-access source into arrays in memory."""

import os
from concurrent import futures
from typing import Any

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff.data import loader
from jaxdiff.types import PyTree

_CHUNK = 256  # examples that a thread reads at a time


@checks.door
def in_memory(source: PyTree, *, threads: int | None = None) -> Any:
  """Reads all of a source once: for sets that fit, decoded in every epoch.

  CIFAR-10 takes 150 MB as u8 (`load("cifar10", scale=False)`), 600 MB as f32.

  Args:
    source: as for `batches`; arrays are returned as they are.
    threads: that read; by default one for every core.

  Returns:
    A tree of arrays like an example, examples along a new first axis.

  Raises:
    ValueError: it is empty, or examples have different shapes.
  """
  if loader.is_in_memory(source):
    return source
  size = len(source)
  if not size:
    raise ValueError("source: it has no examples.")
  first = loader.take(source, np.arange(1))
  whole = jax.tree.map(
    lambda leaf: np.empty((size, *leaf.shape[1:]), leaf.dtype), first
  )

  def read(start: int) -> None:
    rows = np.arange(start, min(start + _CHUNK, size))
    part = loader.take(source, rows)

    def put(to: np.ndarray, leaf: np.ndarray) -> None:
      if leaf.shape[1:] != to.shape[1:]:
        raise ValueError(
          f"source: examples 0 and {start} have shapes {to.shape[1:]} and "
          f"{leaf.shape[1:]}; arrays need one shape. Pictures of a folder are "
          "resized by size=..."
        )
      to[rows] = leaf

    jax.tree.map(put, whole, part)

  with futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
    list(pool.map(read, range(0, size, _CHUNK)))
  return whole

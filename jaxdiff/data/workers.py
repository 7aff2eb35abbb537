"""Batches read by other processes through Grain, in the same order.

Batch number `step` is a pure function of `step`. So Grain is given the sequence
of batches rather than of examples, and nothing to shuffle, cut or remember: its
worker w of W reads the batches w, w + W, ... and hands them over in shared
memory, in order.
"""

import multiprocessing
import os
import signal
import sys
import threading
import weakref
from typing import Any

import jax
import numpy as np
from absl import flags

from jaxdiff.data import optional


class _From:
  """The batches first, first + 1, ... of a sequence without an end."""

  def __init__(self, numbered: Any, first: int, end: int | None):
    self._numbered = numbered
    self._first = first
    self._end = end

  def __len__(self) -> int:
    end = sys.maxsize // 2 if self._end is None else self._end
    return end - self._first

  def __getitem__(self, i: int) -> Any:
    return self._numbered[self._first + i]


class Reading:
  """Grain's iterator, which ends its workers when it is closed or forgotten."""

  def __init__(self, iterator: Any):
    self._held = [iterator]
    # At exit too, before the modules that Grain needs for it are taken down.
    self.close = weakref.finalize(self, _close, self._held)

  def __next__(self) -> Any:
    # Copies: shared memory goes back when Grain's own array is collected, and
    # a device may still be reading from it.
    return jax.tree.map(np.array, next(self._held[0]))


def _close(held: list[Any]) -> None:
  held.pop().close()


def check() -> None:
  """Raises ImportError, with the command that installs it, without Grain."""
  optional.require("grain", "Reading by several processes (workers)")


def _begin(index: int, count: int) -> None:
  """Makes a worker end with its parent, and not otherwise."""
  del index, count
  # Ctrl-C, and SIGTERM on a cluster, reach all processes: the parent finishes
  # what it does and saves, and needs its workers until then.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def watch() -> None:
    parent.join()
    os._exit(1)  # it was killed: nobody else ends this process

  threading.Thread(target=watch, daemon=True).start()


def read(
  numbered: Any, first: int, end: int | None, *, workers: int, ahead: int
) -> "Reading":
  """Returns an iterator over numbered[first], numbered[first + 1], ...

  Args:
    numbered: the batches by number; it is pickled for every worker.
    first: number of the first batch.
    end: number of the last batch + 1; None goes on for ever.
    workers: processes.
    ahead: batches that each of them reads ahead.
  """
  grain = optional.require("grain", "Reading by several processes (workers)")
  if not flags.FLAGS.is_parsed():
    # Grain looks up flags of its own, which in a notebook nobody has parsed.
    flags.FLAGS.mark_as_parsed()
  one_by_one = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  options = grain.MultiprocessingOptions(
    num_workers=workers, per_worker_buffer_size=ahead
  )
  iterator = iter(
    grain.MapDataset.source(_From(numbered, first, end))
    .to_iter_dataset(one_by_one)
    .mp_prefetch(options, _begin)
  )
  return Reading(iterator)

"""Batches on the device ahead of their use.

A thread reads batches and copies them to the device while the one before is
computed with, so that neither reading nor copying is waited for. The position
that belongs to a batch travels with it: a state is that of the batch last
handed out, and not of the one last read.
"""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Sharding

from jaxdiff import checks
from jaxdiff.types import PyTree


class OnDevice:
  """An iterator over batches of `jax.Array`s; made by `to_device`."""

  def __init__(
    self, iterator: Iterator[Any], put: Callable[[Any], Any], size: int
  ):
    self._iterator = iterator
    self._put = put
    self._size = size
    self._state = _state(iterator)
    self._stop: Callable[[], None] | None = None
    self._ready: queue.Queue | None = None

  def __iter__(self) -> "OnDevice":
    return self

  def __next__(self) -> Any:
    if self._ready is None:
      self._start()
    batch, state, error = self._ready.get()
    if error is not None:
      # Whoever asks again gets the batch that failed, not the one after it.
      self._back()
      raise error
    self._state = state
    return batch

  def get_state(self) -> Any:
    """Returns the iterator's state after the batch last handed out."""
    return self._state

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes on where `state` was taken."""
    self._end_thread()
    self._iterator.set_state(state)
    self._state = _state(self._iterator)

  def close(self) -> None:
    """Ends the thread, and closes the iterator where it has `close`.

    The iterator goes on after the batch last handed out, if it has a state.
    """
    self._back()
    if hasattr(self._iterator, "close"):
      self._iterator.close()

  def __enter__(self) -> "OnDevice":
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def _start(self) -> None:
    self._ready = queue.Queue(self._size)
    ended = threading.Event()
    thread = threading.Thread(
      target=_read,
      args=(self._iterator, self._put, self._ready, ended),
      name="to_device",
      daemon=True,
    )
    thread.start()
    # The thread holds no reference to self, so that it ends with it; and at
    # exit, before the interpreter is taken down under it.
    self._stop = weakref.finalize(self, _end, self._ready, ended, thread)

  def _back(self) -> None:
    """Ends the thread and takes the iterator back to what was handed out."""
    self._end_thread()
    if self._state is not None:
      self._iterator.set_state(self._state)

  def _end_thread(self) -> None:
    if self._stop is not None:
      self._stop()
    self._stop = self._ready = None


@checks.door
def to_device(
  iterator: Iterator[Any], sharding: Sharding | None = None, *, size: int = 2
) -> OnDevice:
  """Copies batches to the device ahead of their use.

  Args:
    iterator: iterator of trees of arrays; with get_state() and
      set_state(state), as `batches` returns it, its position can be stored and
      restored. It is read by a thread: leave it alone until `close`.
    sharding: sharding of every array; for instance
      `parallel.batch_sharding(mesh)`. With several processes each gives its own
      rows of the global batch. None is the default device.
    size: batches that lie ready, beside the one in use and one on its way;
      each takes memory of the device.

  Returns:
    An iterator over the same batches as `jax.Array`s, in the same order, with
    `get_state`, `set_state` and `close`, also by `with`. Errors of the
    iterator are raised where its batch would be handed out.

  Raises:
    ValueError: if size is not positive; from the iterator: a batch that the
      devices cannot share equally.
  """
  checks.sharding(sharding)
  if size < 1:
    raise ValueError(
      f"size: got {size}, expected 1 or more batches that lie ready; without"
      " any, use jax.device_put on the batches themselves."
    )

  def put(batch: PyTree) -> Any:
    if sharding is None:
      return jax.device_put(batch)
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: _shard(path, leaf, sharding), batch
    )

  return OnDevice(iterator, put, size)


def _shard(path: Any, leaf: PyTree, sharding: Sharding) -> jax.Array:
  try:
    return jax.make_array_from_process_local_data(sharding, leaf)
  except ValueError as error:
    raise ValueError(
      f"leaf {jax.tree_util.keystr(path) or 'batch'} of shape {leaf.shape} on"
      f" this process cannot be laid out as {sharding}: {error}. Choose a batch"
      " size that is a multiple of the number of devices."
    ) from error


def _read(
  iterator: Iterator[Any],
  put: Callable[[Any], Any],
  ready: queue.Queue,
  ended: threading.Event,
) -> None:
  """Reads and copies until it is told to end, or cannot go on."""
  try:
    while not ended.is_set():
      # No name is bound to the batch: it must not outlive its use by a turn.
      ready.put((put(next(iterator)), _state(iterator), None))
  except BaseException as error:  # the consumer is to see it, whatever it is
    ready.put((None, None, error))


def _end(
  ready: queue.Queue, ended: threading.Event, thread: threading.Thread
) -> None:
  ended.set()
  while thread.is_alive():
    try:  # makes room, for it may be waiting to put a batch
      ready.get(timeout=0.05)
    except queue.Empty:
      thread.join(0.05)


def _state(iterator: Iterator[Any]) -> Any:
  return iterator.get_state() if hasattr(iterator, "get_state") else None

r"""Batches of examples: shuffled from a seed, cut by host, exactly resumable.

A batch is a pure function of the arguments and of its number: see order.py.
Hence the whole state is `step`, any step is reached at once, and it does not
matter which thread, process or host reads it.

Why the order is not Grain's, which would do most of it: its shuffle seeds epoch
e with seed + e, so that epoch 1 of seed 0 is epoch 0 of seed 1 and repetitions
over seeds are not independent; it cuts hosts before it forms batches; and it
handles one example at a time where arrays in memory can be indexed at once.
What it does well, decoding in several processes, is used: see workers.py.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np

from jaxdiff import checks
from jaxdiff.data import arrays
from jaxdiff.data import order as orders
from jaxdiff.data import workers as processes
from jaxdiff.types import PyTree


class Numbered:
  """A source's batches as a sequence: `numbered[step]` is this host's share."""

  def __init__(
    self,
    source: PyTree,
    order: orders.Order,
    host: tuple[int, int],
    transform: Callable[[Any], Any] | None,
  ):
    self._arguments = (source, order, host, transform)
    # Two epochs are in use at once while batches of the next are read ahead.
    self._permutation = functools.lru_cache(maxsize=2)(order.permutation)

  def __reduce__(self) -> tuple[Any, ...]:
    return Numbered, self._arguments  # to another process, without the cache

  def __getitem__(self, step: int) -> Any:
    source, order, host, transform = self._arguments
    epoch, part = order.place(step)
    rows = orders.share(self._permutation(epoch)[part], *host)
    batch = take(source, rows)
    return batch if transform is None else transform(batch)


class Batches:
  """An iterator over batches; made by `batches`, which documents it.

  Attributes:
    order: all that the order of examples depends on: a state of another order
      is refused. The number of hosts is not among it, on purpose.
    batches_per_epoch: global batches in one pass over the source.
    step: number of the next batch, counted over all epochs.
  """

  def __init__(
    self,
    numbered: Numbered,
    order: orders.Order,
    *,
    num_epochs: int | None,
    prefetch: int,
    workers: int,
  ):
    self._numbered = numbered
    self.order = order
    self.batches_per_epoch = order.batches_per_epoch
    self._end = (
      None if num_epochs is None else num_epochs * self.batches_per_epoch
    )
    self.step = 0
    self._prefetch = prefetch
    self._workers = workers
    self._from_workers: Any = None
    self._ahead: collections.deque[futures.Future] = collections.deque()
    self._threads = (
      futures.ThreadPoolExecutor(prefetch, thread_name_prefix="batches")
      if prefetch and not workers
      else None
    )

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Any:
    if self._over(self.step):
      raise StopIteration
    try:
      batch = self._read()
    except BaseException:
      # Whoever asks again gets the batch that failed, not the one after it.
      self.close()
      raise
    self.step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """Returns what `set_state` needs to go on from here: plain ints."""
    return {"step": self.step, **dataclasses.asdict(self.order)}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes on where `state` was taken.

    The numbers of hosts, threads and workers may differ.

    Raises:
      ValueError: `state` belongs to another order of examples.
    """
    identity = dataclasses.asdict(self.order)
    expected = {"step", *identity}
    if set(state) != expected:
      raise ValueError(
        f"state: got the entries {sorted(state)}, expected {sorted(expected)}, "
        "as get_state() returns them."
      )
    differing = [
      f"{name} {int(state[name])} (here {value})"
      for name, value in identity.items()
      if int(state[name]) != value
    ]
    if differing:
      raise ValueError(
        f"state: it was taken with {', '.join(differing)}; resuming would "
        "repeat some examples and skip others. Make the iterator with the "
        "arguments and the data that it was made with."
      )
    self.close()
    self.step = int(state["step"])

  def close(self) -> None:
    """Ends what reads ahead; the next batch asked for starts it again."""
    for future in self._ahead:
      future.cancel()
    self._ahead.clear()
    if self._from_workers is not None:
      self._from_workers.close()
      self._from_workers = None

  def _over(self, step: int) -> bool:
    return self._end is not None and step >= self._end

  def _read(self) -> Any:
    """Returns the next batch, from where it is read."""
    if self._workers:
      if self._from_workers is None:
        self._from_workers = processes.read(
          self._numbered,
          self.step,
          self._end,
          workers=self._workers,
          ahead=max(1, self._prefetch),
        )
      return next(self._from_workers)
    if self._threads is None:
      return self._numbered[self.step]
    while len(self._ahead) < self._prefetch:
      step = self.step + len(self._ahead)
      if self._over(step):
        break
      self._ahead.append(self._threads.submit(self._numbered.__getitem__, step))
    return self._ahead.popleft().result()


@checks.door
def batches(
  source: PyTree,
  batch_size: int,
  *,
  seed: int,
  shuffle: bool = True,
  num_epochs: int | None = None,
  host_index: int = 0,
  host_count: int = 1,
  drop_remainder: bool = True,
  prefetch: int = 0,
  workers: int = 0,
  transform: Callable[[Any], Any] | None = None,
) -> Batches:
  """Iterates over batches of `source`.

  Args:
    source: a dict of arrays (nested ones too) or one array, examples along
      the first axis; or anything with `len(source)` and `source[i]`, an
      example being a tree of arrays, for instance what `from_tfds` returns.
      Where it has `__getitems__(indices)`, a batch is read by one call.
    batch_size: examples in a global batch, over all hosts.
    seed: seed of the order; 0 or more. Different seeds give unrelated orders.
    shuffle: whether every epoch is permuted; otherwise the source's order.
    num_epochs: passes before the iterator ends; None goes on for ever.
    host_index: this host, 0 <= host_index < host_count: jax.process_index().
    host_count: number of hosts: jax.process_count(). Each host reads its own
      rows of every global batch only.
    drop_remainder: leaves out the last examples of an epoch that do not fill
      a batch (others in every epoch, where it is shuffled). Otherwise the
      last batch is short, and hosts' shares of it may differ by one row.
    prefetch: batches read ahead, each by its own thread; 0 reads when asked,
      right for arrays in memory. The batches are the same either way.
    workers: processes that read batches ahead (`prefetch` each, or one), by
      Grain: for pictures whose decoding one process cannot keep up with. They
      start anew, so a script needs its `if __name__ == "__main__":`. Arrays in
      memory are read by this process in any case. The batches are the same.
    transform: applied to every batch of this host, where it is read; for
      instance `scaled`. A pure function.

  Returns:
    An iterator over trees of arrays, [batch_size / host_count, ...] each, with
    `get_state() -> dict[str, int]` and `set_state(state)`, which continues bit
    for bit, also in the middle of an epoch and with another number of hosts;
    and `close()`, which ends threads and processes.

  Raises:
    ImportError: Grain is not installed, which `workers` needs.
    ValueError: an argument is out of range, the batch does not split evenly
      over hosts, or arrays of the source differ in length; from the iterator:
      an image that was read holds NaN or infinity.
  """
  if host_count < 1 or not 0 <= host_index < host_count:
    raise ValueError(
      f"host_index: got {host_index} of {host_count} hosts, expected 0 <= "
      "host_index < host_count; pass jax.process_index() and "
      "jax.process_count()."
    )
  if batch_size < 1 or batch_size % host_count:
    raise ValueError(
      f"batch_size: got {batch_size}, expected a positive multiple of the "
      f"{host_count} host(s): it counts the examples of all hosts together."
    )
  if seed < 0:
    raise ValueError(f"seed: got {seed}, expected 0 or more.")
  if num_epochs is not None and num_epochs < 0:
    raise ValueError(
      f"num_epochs: got {num_epochs}, expected 0 or more, or None to go on for "
      "ever."
    )
  if prefetch < 0:
    raise ValueError(f"prefetch: got {prefetch}, expected 0 or more batches.")
  if workers < 0:
    raise ValueError(f"workers: got {workers}, expected 0 or more processes.")
  if workers:
    processes.check()
  size = _size(source)
  if size < (batch_size if drop_remainder else 1):
    raise ValueError(
      f"source: it has {size} examples, too few for one batch of {batch_size}. "
      "Lower batch_size, or pass drop_remainder=False."
    )
  order = orders.Order(
    seed=int(seed),
    size=size,
    batch_size=int(batch_size),
    shuffle=int(shuffle),
    drop_remainder=int(drop_remainder),
  )
  return Batches(
    Numbered(source, order, (host_index, host_count), transform),
    order,
    num_epochs=num_epochs,
    prefetch=prefetch,
    workers=0 if is_in_memory(source) else workers,
  )


def is_in_memory(source: PyTree) -> bool:
  """Whether `source` is a tree of arrays rather than a sequence of examples."""
  return isinstance(source, Mapping) or hasattr(source, "shape")


def _size(source: PyTree) -> int:
  if not is_in_memory(source):
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
      raise TypeError(
        f"source: got {checks.given(source)}, expected arrays, or something"
        " with len(source) and source[i], such as data.load(name) returns."
      )
    return len(source)
  leaves = jax.tree_util.tree_flatten_with_path(source)[0]
  return arrays.check_lengths(
    {jax.tree_util.keystr(path) or "source": leaf for path, leaf in leaves}
  )


def take(source: PyTree, rows: np.ndarray) -> Any:
  """Reads examples `rows`, i64[k], stacked along a new first axis.

  The result is always a copy, so that its buffers may be donated.
  """
  if is_in_memory(source):
    return jax.tree.map(lambda leaf: np.asarray(leaf[rows]), source)
  indices = rows.tolist()
  if hasattr(source, "__getitems__"):
    examples = source.__getitems__(indices)
  else:
    examples = [source[i] for i in indices]
  for i, example in zip(indices, examples):
    if isinstance(example, Mapping) and "image" in example:
      arrays.check_finite(np.asarray(example["image"])[None], f"source[{i}]")
  return jax.tree_util.tree_map_with_path(
    functools.partial(_stack, indices), *examples
  )


def _stack(indices: list[int], path: Any, *leaves: Any) -> np.ndarray:
  shapes = [np.shape(leaf) for leaf in leaves]
  for index, shape in zip(indices, shapes):
    if shape != shapes[0]:
      raise ValueError(
        f"source: examples {indices[0]} and {index} have shapes {shapes[0]} and"
        f" {shape} under {jax.tree_util.keystr(path) or 'source'}; a batch"
        " needs one shape. Cut them to it; pictures of a folder are resized by"
        " size=..., for instance load('folder:/path', size=64)."
      )
  return np.stack(leaves)

r"""Batches of examples: shuffled from a seed, cut by host, exactly resumable.

Batch number `step`, counted from 0 over all epochs, is a pure function of the
arguments: with b batches in an epoch, it holds the examples

  order(epoch)[i batch_size : (i + 1) batch_size],   epoch, i = divmod(step, b),

where order(epoch) is a permutation that depends on (seed, epoch) only. Hence
the whole state is `step`; any step is reached at once; and a host's share,
rows [h n / H, (h + 1) n / H) of the n rows of a global batch, joins in host
order to the same global batch for every number of hosts H.

Why this is not built on Grain, whose samplers do most of it: its shuffle seeds
epoch e with seed + e, so that epoch 1 of seed 0 is epoch 0 of seed 1 and
repetitions over seeds are not independent; it cuts hosts before it forms
batches; and it handles one example at a time where arrays in memory can be
indexed at once.
"""

import collections
import functools
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np

from jaxdiff.data import arrays


class Batches:
  """An iterator over batches; made by `batches`, which documents it.

  Attributes:
    batches_per_epoch: global batches in one pass over the source.
    step: number of the next batch, counted over all epochs.
  """

  def __init__(
    self,
    source: Any,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool,
    num_epochs: int | None,
    host_index: int,
    host_count: int,
    drop_remainder: bool,
    prefetch: int,
  ):
    self._source = source
    # Everything the order of examples depends on: a state of another order is
    # refused. The number of hosts is not among it, on purpose.
    self._identity = {
      "seed": int(seed),
      "size": _size(source),
      "batch_size": int(batch_size),
      "shuffle": int(shuffle),
      "drop_remainder": int(drop_remainder),
    }
    self._host = (host_index, host_count)
    whole, rest = divmod(self._identity["size"], batch_size)
    self.batches_per_epoch = whole + (rest > 0 and not drop_remainder)
    self._end = (
      None if num_epochs is None else num_epochs * self.batches_per_epoch
    )
    self.step = 0
    # Two epochs are in use at once while batches of the next are read ahead.
    self._order = functools.lru_cache(maxsize=2)(self._permutation)
    self._prefetch = prefetch
    self._ahead: collections.deque[futures.Future] = collections.deque()
    self._threads = (
      futures.ThreadPoolExecutor(prefetch, thread_name_prefix="batches")
      if prefetch
      else None
    )

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Any:
    if self._over(self.step):
      raise StopIteration
    if self._threads is None:
      batch = self._read(self.step)
    else:
      while len(self._ahead) < self._prefetch:
        step = self.step + len(self._ahead)
        if self._over(step):
          break
        self._ahead.append(self._threads.submit(self._read, step))
      batch = self._ahead.popleft().result()
    self.step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """Returns what `set_state` needs to go on from here: plain ints."""
    return {"step": self.step, **self._identity}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes on where `state` was taken; the number of hosts may differ.

    Raises:
      ValueError: `state` belongs to another order of examples.
    """
    expected = {"step", *self._identity}
    if set(state) != expected:
      raise ValueError(
        f"state: got the entries {sorted(state)}, expected {sorted(expected)}, "
        "as get_state() returns them."
      )
    differing = [
      f"{name} {int(state[name])} (here {value})"
      for name, value in self._identity.items()
      if int(state[name]) != value
    ]
    if differing:
      raise ValueError(
        f"state: it was taken with {', '.join(differing)}; resuming would "
        "repeat some examples and skip others. Make the iterator with the "
        "arguments and the data that it was made with."
      )
    for future in self._ahead:
      future.cancel()
    self._ahead.clear()
    self.step = int(state["step"])

  def _over(self, step: int) -> bool:
    return self._end is not None and step >= self._end

  def _permutation(self, epoch: int) -> np.ndarray:
    """Returns the order of all examples in `epoch`, i64[size]."""
    size = self._identity["size"]
    if not self._identity["shuffle"]:
      return np.arange(size)
    # A spawn key, unlike a list [seed, epoch], never meets another seed's.
    bits = np.random.Philox(
      np.random.SeedSequence(self._identity["seed"], spawn_key=(epoch,))
    )
    # The order of raw bits, not Generator.permutation: NumPy keeps the former
    # the same in every version, and a run may be resumed under a later one.
    return np.argsort(bits.random_raw(size), kind="stable")

  def _read(self, step: int) -> Any:
    epoch, batch = divmod(step, self.batches_per_epoch)
    size = self._identity["batch_size"]
    rows = self._order(epoch)[batch * size : (batch + 1) * size]
    index, count = self._host
    n = len(rows)
    return _take(
      self._source, rows[n * index // count : n * (index + 1) // count]
    )


def batches(
  source: Any,
  batch_size: int,
  *,
  seed: int,
  shuffle: bool = True,
  num_epochs: int | None = None,
  host_index: int = 0,
  host_count: int = 1,
  drop_remainder: bool = True,
  prefetch: int = 0,
) -> Batches:
  """Iterates over batches of `source`.

  Args:
    source: a dict of arrays (nested ones too) or one array, examples along
      the first axis; or anything with `len(source)` and `source[i]`, an
      example being a tree of arrays, for instance what `from_tfds` returns.
      Where it has `__getitems__(indices)`, a batch is read by one call.
    batch_size: examples in a global batch, over all hosts.
    seed: of the order; 0 or more. Different seeds give unrelated orders.
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

  Returns:
    An iterator over trees of arrays, [batch_size / host_count, ...] each, with
    `get_state() -> dict[str, int]` and `set_state(state)`, which continues bit
    for bit, also in the middle of an epoch and with another number of hosts.

  Raises:
    ValueError: an argument is out of range, the batch does not split evenly
      over hosts, or arrays of the source differ in length.
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
  size = _size(source)
  if size < (batch_size if drop_remainder else 1):
    raise ValueError(
      f"source: it has {size} examples, too few for one batch of {batch_size}. "
      "Lower batch_size, or pass drop_remainder=False."
    )
  return Batches(
    source,
    batch_size,
    seed=seed,
    shuffle=shuffle,
    num_epochs=num_epochs,
    host_index=host_index,
    host_count=host_count,
    drop_remainder=drop_remainder,
    prefetch=prefetch,
  )


def _in_memory(source: Any) -> bool:
  """Whether `source` is a tree of arrays rather than a sequence of examples."""
  return isinstance(source, Mapping) or hasattr(source, "shape")


def _size(source: Any) -> int:
  if not _in_memory(source):
    return len(source)
  leaves = jax.tree_util.tree_flatten_with_path(source)[0]
  return arrays.check_lengths(
    {jax.tree_util.keystr(path) or "source": leaf for path, leaf in leaves}
  )


def _take(source: Any, rows: np.ndarray) -> Any:
  """Reads examples `rows`, i64[k], stacked along a new first axis.

  The result is always a copy, so that its buffers may be donated.
  """
  if _in_memory(source):
    return jax.tree.map(lambda leaf: np.asarray(leaf[rows]), source)
  indices = rows.tolist()
  if hasattr(source, "__getitems__"):
    examples = source.__getitems__(indices)
  else:
    examples = [source[i] for i in indices]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)

"""The order of examples: which rows a batch holds, a function of its number.

Batch number `step`, counted from 0 over all epochs, holds with b batches in an
epoch the examples

  order(epoch)[i batch_size : (i + 1) batch_size],   epoch, i = divmod(step, b),

where order(epoch) is a permutation that depends on (seed, epoch) only. A host's
share is rows [h n / H, (h + 1) n / H) of the n rows of a global batch, so that
shares join in host order to the same global batch for every number of hosts H.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Order:
  """All that the order of examples depends on; its fields are plain ints.

  Attributes:
    seed: seed of the permutations.
    size: examples in the source.
    batch_size: examples in a global batch.
    shuffle: 1 to permute every epoch, 0 for the source's own order.
    drop_remainder: 1 to leave out the last examples that fill no batch.
  """

  seed: int
  size: int
  batch_size: int
  shuffle: int
  drop_remainder: int

  @property
  def batches_per_epoch(self) -> int:
    whole, rest = divmod(self.size, self.batch_size)
    return whole + (rest > 0 and not self.drop_remainder)

  def permutation(self, epoch: int) -> np.ndarray:
    """Returns the order of all examples in `epoch`, i64[size]."""
    if not self.shuffle:
      return np.arange(self.size)
    # A spawn key, unlike a list [seed, epoch], never meets another seed's.
    bits = np.random.Philox(
      np.random.SeedSequence(self.seed, spawn_key=(epoch,))
    )
    # The order of raw bits, not Generator.permutation: NumPy keeps the former
    # the same in every version, and a run may be resumed under a later one.
    return np.argsort(bits.random_raw(self.size), kind="stable")

  def place(self, step: int) -> tuple[int, slice]:
    """Returns the epoch of batch `step`, and its part of the permutation."""
    epoch, batch = divmod(step, self.batches_per_epoch)
    return epoch, slice(batch * self.batch_size, (batch + 1) * self.batch_size)


def share(rows: np.ndarray, index: int, count: int) -> np.ndarray:
  """Returns the rows of host `index` of `count`."""
  n = len(rows)
  return rows[n * index // count : n * (index + 1) // count]

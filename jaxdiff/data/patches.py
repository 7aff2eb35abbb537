"""Colour patches of scikit-learn's two photographs: no download.

Natural image statistics at 16 x 16 and 32 x 32 for tests, examples and
miniatures: a Chinese temple (label 0) and a flower (label 1), 427 x 640 each.
Training patches lie wholly left of column 480, test patches wholly right of
it, so the two share no pixel.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.data import arrays
from jaxdiff.data import optional

# First and last + 1 column of each split.
COLUMNS = {"train": (0, 480), "test": (480, 640)}


@checks.door
def patches(
  size: int,
  *,
  split: str = "train",
  count: int = 4096,
  seed: int = 0,
  scale: bool = True,
) -> dict[str, np.ndarray]:
  """Cuts `count` patches at positions drawn without replacement.

  Half come from each photograph (one more from the first where `count` is
  odd); patches may overlap others of their split.

  Args:
    size: height and width in pixels.
    split: `"train"` or `"test"`.
    count: how many patches.
    seed: seed of the choice of positions; the same set on every machine.
    scale: False leaves the pixels u8, for `scaled`.

  Returns:
    `image` f32[count, size, size, 3] in [-1, 1] and `label` i32[count], the
    number of the photograph, in an order that alternates between the two.

  Raises:
    ImportError: scikit-learn or Pillow is not installed.
    ValueError: an unknown split, or more patches than positions.
  """
  checks.one_of(split, tuple(COLUMNS), "split")
  purpose = f"The data set 'patches{size}'"
  optional.require("PIL", purpose)
  photographs = (
    optional.require("sklearn.datasets", purpose).load_sample_images().images
  )
  first, last = COLUMNS[split]
  image = np.empty((count, size, size, 3), np.uint8)
  for label, photograph in enumerate(photographs):
    region = photograph[:, first:last]
    rows = max(0, region.shape[0] - size + 1)
    columns = max(0, region.shape[1] - size + 1)
    share = len(range(label, count, len(photographs)))
    if size < 1 or share > rows * columns:
      raise ValueError(
        f"count: got {count} patches of size {size}, but the split {split!r} "
        f"has {rows * columns} positions in each of {len(photographs)} "
        "photographs; ask for fewer or smaller patches."
      )
    windows = np.lib.stride_tricks.sliding_window_view(
      region, (size, size), axis=(0, 1)
    )  # u8[rows, columns, 3, size, size], a view
    # The split is part of the seed: train and test positions are unrelated.
    bits = np.random.Philox(
      np.random.SeedSequence(seed, spawn_key=(label, first, size))
    )
    # The order of raw bits, not Generator.choice: NumPy keeps the former the
    # same in every version, the latter not.
    chosen = np.argsort(bits.random_raw(rows * columns), kind="stable")[:share]
    cut = windows[chosen // columns, chosen % columns]
    image[label :: len(photographs)] = np.moveaxis(cut, 1, -1)
  label = np.arange(count, dtype=np.int32) % len(photographs)
  return {"image": arrays.scale(image) if scale else image, "label": label}

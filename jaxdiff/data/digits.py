"""Handwritten digits, 8 x 8, as shipped with scikit-learn: no download."""

import numpy as np

from jaxdiff.data import optional


def digits() -> dict[str, np.ndarray]:
  """Returns the 1,797 test digits of UCI's optical recognition data set.

  Pixels are counts 0..16 of inked cells, mapped to [-1, 1] by x / 8 - 1.

  Returns:
    `image` f32[1797, 8, 8, 1] and `label` i32[1797], 0..9.

  Raises:
    ImportError: scikit-learn is not installed.
  """
  datasets = optional.require("sklearn.datasets", "The data set 'digits'")
  bunch = datasets.load_digits()
  return {
    "image": (bunch.images / 8 - 1).astype(np.float32)[..., None],
    "label": bunch.target.astype(np.int32),
  }

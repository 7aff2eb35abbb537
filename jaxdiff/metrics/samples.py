"""Checks of the sample arrays that metrics take."""

import numpy as np

from jaxdiff.types import ArrayLike


def matrix(x: ArrayLike, name: str = "x", least: int = 1) -> np.ndarray:
  """Returns samples [n, ...] as f64[n, d], all finite.

  Args:
    x: the samples.
    name: name of the argument, for messages.
    least: number of samples that are needed.

  Raises:
    ValueError: for fewer samples, or one with NaN, which is named.
  """
  x = np.asarray(x, np.float64)
  if x.ndim < 2:
    raise ValueError(
      f"{name}: expected samples [n, ...] of features, got shape {x.shape};"
      " give numbers as [n, 1]"
    )
  if len(x) < least:
    raise ValueError(
      f"{name}: expected {least} samples [n, ...] or more, got {len(x)}"
    )
  x = x.reshape(len(x), -1)
  bad = ~np.isfinite(x).all(1)
  if bad.any():
    raise ValueError(
      f"{name}: {bad.sum()} of {len(x)} samples are not finite, the first of"
      f" them is number {int(bad.argmax())} (from 0)"
    )
  return x


def pair(
  x: ArrayLike, y: ArrayLike, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """Returns two sets of samples of one shape as f64[n, d] and f64[m, d].

  Raises:
    ValueError: as `matrix`, and for samples of different shapes.
  """
  shapes = np.shape(x)[1:], np.shape(y)[1:]
  x, y = matrix(x, "x", least), matrix(y, "y", least)
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"samples of shape {shapes[0]} cannot be compared with samples of shape"
      f" {shapes[1]}; both must come from one extractor"
    )
  return x, y


def probabilities(p: ArrayLike) -> np.ndarray:
  """Returns class probabilities f64[n, classes], whose rows add up to 1.

  Raises:
    ValueError: as `matrix`, and for rows that are no probabilities.
  """
  p = matrix(p, "probabilities")
  wrong = (p < 0).any(1) | (abs(p.sum(1) - 1.0) > 1e-3)
  if wrong.any():
    row = p[wrong.argmax()]
    raise ValueError(
      f"probabilities: row {int(wrong.argmax())} (from 0) adds up to"
      f" {row.sum():.4g} with a least entry of {row.min():.4g}; of logits take"
      " the softmax first"
    )
  return p

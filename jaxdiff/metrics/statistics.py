r"""Mean and covariance of features, streamed, merged and kept in a file.

Sets A and B of n_A and n_B features merge exactly (Chan's formula):

  n = n_A + n_B,   delta = m_B - m_A,
  m = m_A + delta n_B / n,
  S = S_A + S_B + delta delta^T n_A n_B / n,   C = S / (n - 1),

with the sums of squares S about each mean: nothing cancels, however far the
mean is from zero, and how a set is split plays no role but for rounding. All is
float64 on the host. Reference: Chan, Golub and LeVeque (1983),
https://doi.org/10.1080/00031305.1983.10483115.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxdiff import archives
from jaxdiff.metrics import samples
from jaxdiff.metrics.frechet import frechet
from jaxdiff.metrics.frechet import root
from jaxdiff.metrics.frechet import warn_of_bias
from jaxdiff.types import PyTree


@dataclasses.dataclass(frozen=True)
class Statistics:
  """The first two moments of a set of features.

  Attributes:
    mean: f64[d].
    cov: f64[d, d], divided by count - 1; zeros for a single sample.
    count: number of samples; None where a file does not say.
    features: name of the extractor, with the checksum of its weights.
    dataset: name of the data.
  """

  mean: np.ndarray
  cov: np.ndarray
  count: int | None
  features: str = ""
  dataset: str = ""


def of(
  features: Any | Iterable[Any], *, extractor: str = "", dataset: str = ""
) -> Statistics:
  """Returns the moments of features f[n, d], or of batches of them.

  Args:
    features: one array, or an iterable of arrays f[batch, d].
    extractor: what made them, kept as `features`.
    dataset: name of the data.

  Raises:
    ValueError: for no features, or ones that are not finite.
  """
  batches = [features] if hasattr(features, "shape") else features
  parts = (_of(batch) for batch in batches if len(batch))
  total = functools.reduce(merge, parts, None)
  if total is None:
    raise ValueError("features: the set is empty, so it has no mean")
  return dataclasses.replace(total, features=extractor, dataset=dataset)


def merge(a: Statistics | None, b: Statistics) -> Statistics:
  """Returns the moments of the union of two sets.

  Raises:
    ValueError: for another number or kind of features, or an unknown count.
  """
  if a is None:
    return b
  comparable(a, b)
  if a.count is None or b.count is None:
    raise ValueError(
      "statistics without a count cannot be merged: a file with mu and sigma"
      " alone does not say of how many samples; compute them from the samples"
    )
  n = a.count + b.count
  delta = b.mean - a.mean
  between = np.outer(delta, delta) * (a.count * b.count / n)
  scatter = (a.count - 1) * a.cov + (b.count - 1) * b.cov + between
  return Statistics(
    a.mean + delta * (b.count / n), scatter / (n - 1), n, a.features, a.dataset
  )


def distance(a: Statistics, b: Statistics) -> float:
  """Returns the Frechet distance between two sets.

  Raises:
    ValueError: for features of different extractors.
  """
  comparable(a, b)
  if None not in (a.count, b.count) and min(a.count, b.count) <= a.mean.size:
    warn_of_bias(factor(a), factor(b), a.count, b.count)
  return frechet(a.mean, a.cov, b.mean, b.cov)


def save(path: str | os.PathLike, s: Statistics) -> None:
  """Writes an .npz with the published names `mu` and `sigma`, and the rest.

  The file appears whole or not at all.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".partial")
  with open(partial, "wb") as f:
    np.savez(
      f,
      mu=s.mean,
      sigma=s.cov,
      count=-1 if s.count is None else s.count,
      features=s.features,
      dataset=s.dataset,
    )
  partial.replace(path)


def load(path: str | os.PathLike) -> Statistics:
  """Returns the statistics of an .npz with `mu` and `sigma`.

  Published files have these two alone; ours also say of how many samples of
  which data, and in which features.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is of another kind, or damaged.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"there are no statistics at {str(path)!r}")
  f = archives.read(path, "Statistics are written by metrics.statistics.save.")
  if not {"mu", "sigma"} <= set(f):
    raise ValueError(
      f"{str(path)!r} holds {', '.join(f)}; statistics are an .npz with 'mu'"
      " f[d] and 'sigma' f[d, d]"
    )
  mean, cov = np.float64(f["mu"]), f["sigma"]
  count = int(f["count"]) if "count" in f else -1
  said = {n: str(f[n]) for n in ("features", "dataset") if n in f}
  if mean.ndim != 1 or cov.shape != 2 * mean.shape:
    raise ValueError(
      f"{str(path)!r}: mu {mean.shape} and sigma {cov.shape} are not of shapes"
      " [d] and [d, d]"
    )
  if cov.dtype != np.float64:  # rounding leaves eigenvalues of about -1e-7
    values, axes = np.linalg.eigh(np.float64(cov))
    cov = (axes * np.maximum(values, 0.0)) @ axes.T
  return Statistics(mean, cov, None if count < 0 else count, **said)


def factor(s: Statistics) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and root of the covariance, as `frechet.factor` of samples."""
  return s.mean, root(s.cov)


def comparable(a: Statistics, b: Statistics) -> None:
  """Raises a ValueError unless both are of the same features."""
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f"statistics of {a.mean.size} and of {b.mean.size} features cannot be"
      " compared; use the extractor that made the reference"
    )
  if a.features and b.features and a.features != b.features:
    raise ValueError(
      f"statistics in the features {a.features!r} and {b.features!r} cannot be"
      " compared; compute both with one extractor and one weights file"
    )


def _of(batch: PyTree) -> Statistics:
  x = samples.matrix(batch, "features")
  mean = x.mean(0)
  x = x - mean
  return Statistics(mean, x.T @ x / max(len(x) - 1, 1), len(x))

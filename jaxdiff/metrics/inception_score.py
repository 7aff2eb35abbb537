r"""Inception score: exp of the mutual information of sample and class.

  IS = exp(H(mean_i p_i) - mean_i H(p_i)) = exp(mean_i KL(p_i | mean p)),

with the class probabilities p_i of a sample: 1 at worst, the number of classes
at best. It sees no data: samples that were learnt by heart, or one image for
each class, are perfect. Reference: Salimans et al. (2016),
https://arxiv.org/abs/1606.03498.
"""

from typing import Any

import numpy as np
from scipy import special

from jaxdiff import checks
from jaxdiff.metrics import samples
from jaxdiff.types import ArrayLike


@checks.door
def inception_score(p: ArrayLike, weights: np.ndarray | None = None) -> Any:
  """Returns the score of all samples, a float.

  Args:
    p: f[n, classes], probabilities (of torch-fidelity's and the first code's
      logits without bias, where numbers are to be compared).
    weights: f[replicas, n] for `bootstrap`; then f64[replicas] is returned.

  Raises:
    ValueError: for no samples, NaN, or rows that are no probabilities.
  """
  p = samples.probabilities(p)
  if weights is None:
    return float(inception_score(p, np.ones((1, len(p))))[0])
  weights = weights / weights.sum(1, keepdims=True)
  entropy = special.entr(p).sum(1)
  return np.exp(special.entr(weights @ p).sum(1) - weights @ entropy)


@checks.door
def inception_score_splits(
  p: ArrayLike, splits: int = 10
) -> tuple[float, float]:
  """Returns mean and standard deviation over splits, as papers print them.

  Args:
    p: f[n, classes], probabilities, in an order that means nothing.
    splits: number of parts; a score of fewer samples is lower.

  Raises:
    ValueError: for fewer samples than splits, NaN, or no probabilities.
  """
  p = samples.probabilities(p)
  if not 1 <= splits <= len(p):
    raise ValueError(
      f"splits: expected 1..{len(p)}, the number of samples, got {splits}"
    )
  ends = np.arange(splits + 1) * len(p) // splits
  scores = [inception_score(p[i:j]) for i, j in zip(ends[:-1], ends[1:])]
  return float(np.mean(scores)), float(np.std(scores))

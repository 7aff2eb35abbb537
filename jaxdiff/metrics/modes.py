r"""Mode coverage: classes that a classifier finds among samples.

Every sample is given its most probable class. A class is found if a sample of
it is confident. The histogram h of classes is compared with that of the data by

  KL(h | r) = sum_c h_c log(h_c / r_c),

0 for the right shares. Used with the classifier of stacked MNIST by Metz et al.
(2017), https://arxiv.org/abs/1611.02163, section 3.3.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxdiff import checks
from jaxdiff.metrics import samples
from jaxdiff.types import ArrayLike


class ModeCoverage(NamedTuple):
  """What a classifier sees in samples.

  Attributes:
    found: number of classes of which there is a confident sample.
    kl: divergence of the histogram of classes from the reference, in nats.
    confident: share of confident samples.
  """

  found: Any
  kl: Any
  confident: Any


@checks.door
def mode_coverage(
  p: ArrayLike,
  reference: Any | None = None,
  *,
  confidence: float = 0.5,
  weights: np.ndarray | None = None,
) -> ModeCoverage:
  """Returns the classes found, the divergence of shares, and the confident.

  Args:
    p: f[n, classes], class probabilities of samples.
    reference: f[classes], shares of the data; None for equal ones.
    confidence: probability above which a sample is confident.
    weights: f[replicas, n] for `bootstrap`; then each is f64[replicas].

  Raises:
    ValueError: for no samples, NaN, rows that are no probabilities, or a
      reference of another number of classes.
  """
  p = samples.probabilities(p)
  n, classes = p.shape
  if reference is None:
    reference = np.full(classes, 1.0 / classes)
  reference = samples.probabilities(np.asarray(reference)[None])[0]
  if len(reference) != classes:
    raise ValueError(
      f"reference: expected the shares of {classes} classes, got"
      f" {len(reference)}"
    )
  if weights is None:
    one = mode_coverage(
      p, reference, confidence=confidence, weights=np.ones((1, n))
    )
    return ModeCoverage(
      int(one.found[0]), float(one.kl[0]), float(one.confident[0])
    )
  sure = p.max(1) > confidence
  drawn = np.eye(classes)[p.argmax(1)]  # f64[n, classes]
  shares = weights @ drawn / n
  return ModeCoverage(
    found=np.sum(weights @ (drawn * sure[:, None]) > 0, axis=1),
    kl=special.rel_entr(shares, reference).sum(1),
    confident=weights @ sure / n,
  )

"""Exact models: a known distribution as model(x, t) -> Prediction."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.predictions import Prediction
from jaxdiff.processes import GaussianProcess
from jaxdiff.processes import Normal
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exact:
  """The exact model of a distribution under a process; a pytree.

  Attributes:
    distribution: has predict(x, alpha, sigma, label).
    label: i32[batch] or None; the condition of every sample.
    process: the forward process.
  """

  distribution: Any
  label: Array | None = None
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )

  @property
  def num_classes(self) -> int | None:
    """Number of classes, where the distribution says it; None otherwise."""
    return getattr(self.distribution, "num_classes", None)

  def __call__(
    self, x: jax.Array, t: jax.Array, label: ArrayLike | None = None
  ) -> Prediction:
    """Returns (x0, eps) for noisy x [batch, ...] at t, scalar or [batch]."""
    label = self.label if label is None else label
    if label is not None:
      label = jnp.asarray(label)
      if label.shape not in ((), (1,), x.shape[:1]):
        raise ValueError(
          f"there are labels of shape {label.shape}, but the batch has"
          f" {len(x)}; give one for each, or one for all"
        )
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    alpha, sigma = self.process.alpha(t), self.process.sigma(t)
    return self.distribution.predict(x, alpha, sigma, label)


@checks.door
def exact(
  distribution: Any, process: GaussianProcess, label: ArrayLike | None = None
) -> Exact:
  """Returns the exact model of a distribution (mixture, data set, ...).

  Raises:
    ValueError: if the denoiser is not known under the process's noise.

  Example:
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> two = jd.oracles.mixture([[-1.0], [1.0]], [0.01, 0.01])
    >>> model = jd.exact(two, jd.edm())
    >>> x = jnp.asarray([[0.5]])
    >>> for t in 0.1, 1.0, 10.0:  # the nearer mode, then the mean of both
    ...   print(t, round(float(model(x, t).x0[0, 0]), 2))
    0.1 0.75
    1.0 0.46
    10.0 0.01
  """
  if process.noise != Normal():
    if not hasattr(distribution, "noise"):
      raise ValueError(
        f"the denoiser of a {type(distribution).__name__} is known under"
        f" normal noise, but that of this process is {process.noise}; take"
        " draws of it as the data, oracles.Empirical(draws), whose denoiser is"
        " known under both"
      )
    distribution = dataclasses.replace(distribution, noise=process.noise)
  if isinstance(label, (list, tuple)):
    label = np.asarray(label)
  checks.labels(label, getattr(distribution, "num_classes", None))
  return Exact(distribution, label, process=process)

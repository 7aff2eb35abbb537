r"""Low-rank Gaussian fitted to data: its denoiser and its flow, exactly.

With data N(mu, U diag(v) U^T + r (I - U U^T)), U [d, k] orthonormal, everything
is a gain along the basis and one gain g off it:

  G(x) = g x + U ((gain(v) - g) U^T x),
  x0(x)  = mu + G(x - alpha mu),     gain(v) = alpha v / (alpha^2 v + sigma^2),
  flow_s->t(x) = alpha_t mu + G(x - alpha_s mu),
      gain(v) = sqrt((alpha_t^2 v + sigma_t^2) / (alpha_s^2 v + sigma_s^2)),

two thin products for any noise level. The flow is the probability-flow ODE,
exactly, and the optimal transport map between the two marginals. Statistics of
several classes stack along a leading axis; a sample's label picks its own.
"""

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import numerics
from jaxdiff import tree
from jaxdiff.predictions import Prediction
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankGaussian:
  """A Gaussian, or a stack of one for each class; a pytree of arrays.

  Attributes:
    mean: f[d], or f[classes, d].
    basis: f[d, k] orthonormal columns, or f[classes, d, k].
    variances: f[k] along the basis, or f[classes, k].
    residual: f[] variance off the basis, or f[classes].
  """

  mean: Array
  basis: Array
  variances: Array
  residual: Array = 0.0

  @property
  def classes(self) -> int:
    """Number of classes; 0 for a single Gaussian."""
    return np.shape(self.mean)[0] if np.ndim(self.mean) == 2 else 0

  def predict(
    self,
    x: ArrayLike,
    alpha: ArrayLike,
    sigma: ArrayLike,
    label: ArrayLike | None = None,
  ) -> Prediction:
    """Returns the exact (x0, eps) at x, f[batch, ...] of d values a sample.

    Args:
      x: noisy samples.
      alpha: scalar or [batch].
      sigma: scalar or [batch].
      label: i32[batch], the classes; needed if there are any.
    """
    alpha, sigma = _columns(alpha, x), _columns(sigma, x)

    def gains(v):
      total = alpha**2 * v + sigma**2
      return (
        numerics.safe_divide(alpha * v, total),
        numerics.safe_divide(sigma, total),
      )

    def one(own, flat):
      offset = flat - alpha * own.mean
      x0 = own.mean + _apply(own, offset, lambda v: gains(v)[0])
      return jnp.stack([x0, _apply(own, offset, lambda v: gains(v)[1])])

    x0, eps = self._by_class(one, x, label)
    return Prediction(x0.reshape(x.shape), eps.reshape(x.shape))

  def flow(
    self, x: ArrayLike, begin: tuple, end: tuple, label: ArrayLike | None = None
  ) -> Array:
    """Returns where the probability-flow ODE takes x, shaped like x.

    Args:
      x: f[batch, ...] at the begin.
      begin: (alpha, sigma) there, each a scalar or [batch].
      end: (alpha, sigma) at the end.
      label: i32[batch], the classes; needed if there are any.
    """
    (a0, s0), (a1, s1) = (
      tuple(_columns(v, x) for v in place) for place in (begin, end)
    )

    def gain(v):
      square = numerics.safe_divide(a1**2 * v + s1**2, a0**2 * v + s0**2)
      return numerics.namespace(square).sqrt(square)

    def one(own, flat):
      return a1 * own.mean + _apply(own, flat - a0 * own.mean, gain)

    return self._by_class(one, x, label).reshape(x.shape).astype(x.dtype)

  def covariance(self) -> np.ndarray:
    """Returns the covariance f64[d, d] of a single Gaussian."""
    u = np.asarray(self.basis, np.float64)
    v = np.asarray(self.variances, np.float64) - self.residual
    return self.residual * np.eye(len(u)) + (u * v) @ u.T

  def _by_class(self, one, x, label):
    """Runs one(statistics, flat x) with every sample's own class."""
    dtype = tree.compute_dtype(x.dtype)
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)
    d = own.mean.shape[-1]
    if math.prod(x.shape[1:]) != d:
      raise ValueError(
        f"the statistics are those of {d} values a sample, but x has shape"
        f" {x.shape}, {math.prod(x.shape[1:])} values a sample"
      )
    flat = x.reshape(x.shape[0], -1).astype(dtype)
    if not self.classes:
      if label is not None:
        raise ValueError(
          "these statistics know no classes; fit them with labels, or drop the"
          " label"
        )
      return one(own, flat)
    if label is None:
      raise ValueError(
        f"these are the statistics of {self.classes} classes: give every"
        " sample its label"
      )
    label = jnp.broadcast_to(label, x.shape[:1])
    # class by class: a basis for every sample would not fit the memory
    shape = jax.eval_shape(one, jax.tree.map(lambda v: v[0], own), flat)

    def add(out, row):
      place, single = row
      hit = (label == place)[:, None]
      return jnp.where(hit, one(single, flat), out), None

    start = jnp.zeros(shape.shape, shape.dtype)
    return control.scan(add, start, (jnp.arange(self.classes), own))[0]


@checks.door
def fit(
  data: ArrayLike | Iterable[ArrayLike],
  rank: int | None = None,
  *,
  labels: ArrayLike | None = None,
  shrink: float = 0.0,
) -> LowRankGaussian:
  """Returns the mean and covariance of data, in float64 and a thin basis.

  Args:
    data: f[M, ...], or an iterable of such batches, read once.
    rank: directions to keep; all that the data span by default. The variance
      of the others is spread evenly (probabilistic PCA), none if nothing is
      left out.
    labels: i32[M] of an array of data: statistics for each class 0, 1, ...
    shrink: a in (1 - a) C + a tr(C) / d I.

  Raises:
    ValueError: for fewer than two points (in a class), values that are not
      finite, or options outside of their range.
  """
  if not 0.0 <= shrink <= 1.0:
    raise ValueError(f"shrink is a share in [0, 1], got {shrink}")
  if labels is not None:
    labels = np.asarray(labels)
    data = np.asarray(data)
    if labels.shape != data.shape[:1]:
      raise ValueError(
        f"labels number every point, expected shape {data.shape[:1]}, got"
        f" {labels.shape}"
      )
    count = int(labels.max()) + 1
    parts = [data[labels == c] for c in range(count)]
    few = min(range(count), key=lambda c: len(parts[c]))
    if len(parts[few]) < 2:
      raise ValueError(
        f"class {few} has {len(parts[few])} points, and a covariance needs two"
      )
    if rank is None:
      rank = min(parts[0][0].size, len(parts[few]) - 1)
    each = [fit(part, rank, shrink=shrink) for part in parts]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)
  batches = [data] if hasattr(data, "shape") else data
  count, mean, square = 0, 0.0, 0.0
  for batch in batches:
    x = np.asarray(batch, np.float64).reshape(len(batch), -1)
    if not np.isfinite(x).all():
      raise ValueError("the data hold NaN or infinity")
    # merged as Chan et al. (1983) do: no large sum of squares cancels
    own = x.mean(0)
    total = count + len(x)
    off = own - mean
    square = square + (x - own).T @ (x - own)
    square = square + np.outer(off, off) * (count * len(x) / total)
    mean, count = mean + off * (len(x) / total), total
  if count < 2:
    raise ValueError(f"a covariance needs at least two points, got {count}")
  return from_moments(mean, square / (count - 1), rank, shrink, count - 1)


@checks.door
def from_moments(
  mean: ArrayLike,
  covariance: ArrayLike,
  rank: int | None = None,
  shrink: float = 0.0,
  freedom: int | None = None,
) -> LowRankGaussian:
  """Returns the Gaussian of a mean f[d] and a covariance f[d, d].

  Args:
    mean: f[d].
    covariance: f[d, d].
    rank: as in `fit`.
    shrink: as in `fit`.
    freedom: largest rank that the covariance can have; d by default.

  Raises:
    ValueError: for shapes that do not fit, a covariance that is not symmetric
      or has an eigenvalue below -1e-6 of the largest, or a rank outside 1..d.
  """
  mean = np.asarray(mean, np.float64)
  covariance = np.asarray(covariance, np.float64)
  d = mean.size
  if covariance.shape != (d, d) or mean.shape != (d,):
    raise ValueError(
      f"expected a mean [d] and a covariance [d, d], got {mean.shape} and"
      f" {covariance.shape}"
    )
  if abs(covariance - covariance.T).max() > 1e-8 * abs(covariance).max():
    raise ValueError("the covariance is not symmetric")
  values, axes = np.linalg.eigh(covariance)
  values, axes = values[::-1], axes[:, ::-1]
  if values[-1] < -1e-6 * values[0]:
    raise ValueError(
      f"the covariance has the eigenvalue {values[-1]:.3g} < 0, its largest"
      f" is {values[0]:.3g}"
    )
  values = np.maximum(values, 0.0)
  values = (1.0 - shrink) * values + shrink * values.mean()
  spanned = d if shrink else min(d, d if freedom is None else freedom)
  rank = spanned if rank is None else rank
  if not 1 <= rank <= d:
    raise ValueError(f"rank must lie in 1..{d}, got {rank}")
  rest = values[rank:].sum() if rank < spanned else 0.0
  residual = rest / (d - rank) if rank < d else 0.0
  return LowRankGaussian(
    mean, axes[:, :rank].copy(), values[:rank].copy(), np.float64(residual)
  )


def _apply(own, offset, gain):
  """Returns G offset for gains along the basis and off it, f[batch, d]."""
  with jax.default_matmul_precision("highest"):
    along = offset @ own.basis
    off = gain(own.residual[None, None])
    return off * offset + ((gain(own.variances) - off) * along) @ own.basis.T


def _columns(v, x):
  dtype = tree.compute_dtype(x.dtype)
  return jnp.asarray(v, dtype).reshape(-1, 1)

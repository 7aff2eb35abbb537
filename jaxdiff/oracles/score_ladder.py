r"""Score ladder: how much of a model's score simpler scores explain.

  unexplained(t) = E |s - s_ref|^2 / E |s|^2,   x_t = alpha x0 + sigma eps,

with s = -eps / sigma of either model. The references form a ladder: one
isotropic Gaussian, one Gaussian, a few, the training points themselves.
Trained networks follow the Gaussian at moderate and high noise, and leave it
for the mixture, not for the points, at low noise. Reference: Wang and Vastola
(2024), https://arxiv.org/abs/2412.09726.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.oracles import low_rank
from jaxdiff.oracles.empirical import Empirical
from jaxdiff.oracles.mixture import mixture
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike

Model = Callable[[Any, Any], Any]


@checks.door
def unexplained(
  key: jax.Array,
  model: Model,
  reference: Model,
  process: GaussianProcess,
  x0: ArrayLike,
  times: Sequence[float],
) -> np.ndarray:
  """Returns the share of the model's score that the reference misses, f64[n].

  Args:
    key: PRNG key of the noise, the same at all times.
    model: model(x, t) -> Prediction.
    reference: the same, for instance oracles.exact(oracles.fit(data), process).
    process: the forward process.
    x0: data, f[batch, ...].
    times: f[n].
  """
  for asked in (model, reference):
    agreement.check(asked, None, process, "unexplained")
  times = jnp.asarray(np.asarray(times, np.float64))
  arrays, static = tree.partition((model, reference))
  shares = _unexplained(
    key, arrays, jnp.asarray(x0), times, static=static, process=process
  )
  return np.asarray(shares, np.float64)


def _shares(key, arrays, x0, times, *, static, process):
  model, reference = tree.combine(arrays, static)

  def at(t):
    x, _ = process.perturb(key, x0, t)
    own, other = ask(model, x, t).eps, ask(reference, x, t).eps
    return jnp.sum((own - other) ** 2) / jnp.sum(own**2)

  return jax.lax.map(at, times.astype(tree.compute_dtype(x0.dtype)))


_unexplained = jax.jit(_shares, static_argnames=("static", "process"))


@checks.door
def score_ladder(
  data: ArrayLike, clusters: int = 10, seed: int = 0
) -> dict[str, Any]:
  """Returns distributions from coarse to fine; `exact` makes models of them.

  Args:
    data: f[M, ...].
    clusters: Gaussians of the mixture, by k-means, each with the covariance of
      its points and a hundredth of the isotropic one.
    seed: seed of k-means.

  Returns:
    "mean" (isotropic), "gaussian", "mixture" and "points".
  """
  x = np.asarray(data, np.float64).reshape(len(data), -1)
  mean, spread = x.mean(0), np.mean(np.var(x, axis=0))
  place = _k_means(x, clusters, np.random.default_rng(seed))
  floor = 0.01 * spread * np.eye(x.shape[1])
  parts = [x[place == k] for k in range(clusters)]
  parts = [part for part in parts if len(part)]
  cov = lambda v: np.cov(v, rowvar=False, ddof=0).reshape(floor.shape) + floor
  return {
    "mean": mixture(mean[None], [spread]),
    "gaussian": low_rank.fit(x),
    "mixture": mixture(
      [part.mean(0) for part in parts],
      [cov(part) for part in parts],
      [len(part) for part in parts],
    ),
    "points": Empirical(np.asarray(data)),
  }


def _k_means(x, k, rng, rounds=30):
  if not 1 <= k <= len(x):
    raise ValueError(f"clusters must lie in 1..{len(x)}, got {k}")
  centres = x[rng.choice(len(x), k, replace=False)]
  for _ in range(rounds):
    place = np.argmin(np.sum(centres**2, 1) - 2.0 * x @ centres.T, axis=1)
    hit = np.bincount(place, minlength=k) > 0
    for j in np.flatnonzero(hit):
      centres[j] = x[place == j].mean(0)
  return place

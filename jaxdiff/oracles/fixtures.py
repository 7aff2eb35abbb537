"""Named distributions that tests, benchmarks and notebooks share.

| name               | what                                           |
|--------------------|------------------------------------------------|
| `g2`               | 3 Gaussians in 2 dimensions                    |
| `g16`              | 10 Gaussians in 16 dimensions                  |
| `grid25`           | 25 narrow Gaussians on a 5 x 5 grid            |
| `digits_mixture`   | a full-covariance Gaussian for each class of   |
|                    | digits, 64 dimensions                          |
| `digits_empirical` | the 1,797 digits themselves                    |
| `heavy_tails`      | 3 clusters of Student's t, 8 dimensions        |
| `nearly_flat`      | 8 nearly flat Gaussians in 128 dimensions      |
| `random_mixture`   | drawn from a seed: 2 to 128 dimensions, 2 to   |
|                    | 24 Gaussians, widths from 0.4 to 8             |
"""

import numpy as np

from jaxdiff import checks
from jaxdiff.data import digits
from jaxdiff.oracles.empirical import Empirical
from jaxdiff.oracles.mixture import GaussianMixture
from jaxdiff.oracles.mixture import mixture


def g2() -> GaussianMixture:
  """Three isotropic Gaussians of unequal weights in the plane."""
  means = [(2.0, 0.0), (-1.0, 1.5), (-1.0, -1.8)]
  return mixture(means, np.square([0.3, 0.4, 0.5]), [0.5, 0.3, 0.2])


@checks.door
def g16(seed: int = 0) -> GaussianMixture:
  """Ten isotropic Gaussians in 16 dimensions, drawn once from `seed`."""
  rng = np.random.default_rng(seed)
  means = rng.standard_normal((10, 16)) * 2.0 * np.linspace(1.5, 0.2, 16)
  return mixture(means - means.mean(0), rng.uniform(0.1, 0.4, 10) ** 2)


def grid25() -> GaussianMixture:
  """25 equal Gaussians of standard deviation 0.05 on {-1, -.5, 0, .5, 1}^2."""
  side = np.linspace(-1.0, 1.0, 5)
  means = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
  return mixture(means, np.full(25, 0.05**2))


def digits_mixture() -> GaussianMixture:
  """One Gaussian with full covariance for each class of scikit-learn's digits.

  Pixels / 8 - 1 in [-1, 1]; a pixel is an integer, so the variance of its
  rounding, 0.125^2 / 12, is added to every covariance.
  """
  data = digits()
  x = np.asarray(data["image"], np.float64).reshape(-1, 64)
  label = np.asarray(data["label"])
  classes = [x[label == c] for c in range(10)]
  rounding = 0.125**2 / 12.0 * np.eye(64)
  return mixture(
    [rows.mean(0) for rows in classes],
    [np.cov(rows, rowvar=False) + rounding for rows in classes],
    [len(rows) for rows in classes],
  )


def digits_empirical() -> Empirical:
  """The 1,797 digits as point masses, f32[1797, 8, 8, 1]."""
  return Empirical(np.asarray(digits()["image"]))


@checks.door
def heavy_tails(seed: int = 0) -> GaussianMixture:
  """Three clusters in 8 dimensions, each nearly a Student's t with nu = 3.

  Student's t is a Gaussian whose precision is gamma distributed: cut at nine
  probabilities it makes nine concentric Gaussians, the widest of them 8 times
  as wide as the middle one.
  """
  from scipy import special  # a third of the time of `import jaxdiff`

  rng = np.random.default_rng(seed)
  centers = rng.standard_normal((3, 8))
  cuts = np.asarray([0.0, 0.002, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0])
  middles = 0.5 * (cuts[1:] + cuts[:-1])
  variances = 0.15**2 * 1.5 / special.gammaincinv(1.5, middles)
  return mixture(
    np.repeat(centers, 9, 0), np.tile(variances, 3), np.tile(np.diff(cuts), 3)
  )


@checks.door
def nearly_flat(seed: int = 0) -> GaussianMixture:
  """Eight Gaussians of rank 3 in 128 dimensions, and noise of 0.02."""
  rng = np.random.default_rng(seed)
  means = 0.4 * rng.standard_normal((8, 128))
  spread = 0.5 * rng.standard_normal((8, 128, 3))
  covariances = spread @ spread.transpose(0, 2, 1) + 0.02**2 * np.eye(128)
  return mixture(means, covariances)


@checks.door
def random_mixture(seed: int, width: float | None = None) -> GaussianMixture:
  """Gaussians in 2 to 128 dimensions, all drawn from `seed`.

  Their number, the decay of the spectrum (none to that of photographs), how
  narrow they are, and whether they lie across each other differ from seed to
  seed: distributions to fit rules on, or to try them.

  Args:
    seed: what is drawn.
    width: standard deviation along the widest direction; 0.4 to 8 by default.
  """
  rng = np.random.default_rng([seed, 2211])
  d = int(2 ** rng.integers(1, 8))
  k = int(rng.integers(2, 25))
  drawn = np.exp(rng.uniform(np.log(0.4), np.log(8.0)))
  scales = (1.0 + np.arange(d)) ** -rng.uniform(0.0, 1.5)
  means = scales * rng.standard_normal((k, d))
  narrow = rng.uniform(0.05, 0.6)
  covariances = []
  for _ in range(k):
    axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
    spread = np.exp(0.5 * rng.standard_normal(d))
    variances = (scales * spread * narrow) ** 2 + 1e-4
    across = rng.uniform() < 0.5
    covariances.append(
      (axes * variances) @ axes.T if across else np.diag(variances)
    )
  covariances = np.stack(covariances)
  weights = rng.dirichlet(np.full(k, 2.0))
  means -= weights @ means
  whole = np.einsum("k,kij->ij", weights, covariances)
  whole += np.einsum("k,ki,kj->ij", weights, means, means)
  unit = (drawn if width is None else width) / np.sqrt(
    np.linalg.eigvalsh(whole)[-1]
  )
  return mixture(unit * means, unit**2 * covariances, weights)

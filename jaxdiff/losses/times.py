r"""Training times: samplers times(key, n) -> t f[n].

Every sampler pushes uniform numbers u through the inverse of its distribution
function, cut to the range of the process (not clipped: no mass piles up at the
ends). Two ways to draw u:

  plain         u_i independent
  stratified    u_i = (u + i / n) mod 1 with one u for the batch

The second puts exactly one time into each of n equally likely strata, which
lowers the variance of the loss; every u_i by itself is still uniform, so that a
time does not depend on a sample's place in the batch (Kingma et al. 2021,
appendix I.1).

| function          | distribution                                             |
|-------------------|----------------------------------------------------------|
| `uniform`         | t uniform                                                |
| `log_normal`      | log(sigma / alpha) normal (Karras et al. 2022, table 1)  |
| `logit_normal`    | logit(t) normal for flows (Esser et al. 2024, eq. 19)    |
| `uniform_log_snr` | log(alpha / sigma) uniform                               |
| `karras`          | (sigma / alpha)^{1 / rho} uniform (Karras et al. 2022,   |
|                   | eq. 5: the times of an endless grid)                     |
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special

from jaxdiff.processes import GaussianProcess

Times = Callable[[jax.Array, int], jax.Array]

# Of the log-SNR at ends where alpha is 0: t of a flow is 1 up to rounding soon
# beyond it, and nothing is left to learn there.
_CLIP = 10.0


def uniform(
  process: GaussianProcess,
  stratified: bool = True,
  part: tuple[Any, Any] | None = None,
) -> Times:
  """Returns a sampler of t uniform in [t_min, t_max].

  Args:
    process: gives the range.
    stratified: one time in each of n equally likely strata.
    part: from where to where, as shares of the range, (0, 1) by default;
      numbers, or traced f[] or f[n].
  """
  low, high = process.t_min, process.t_max

  def times(key: jax.Array, n: int) -> jax.Array:
    u = _inside(part, _uniform(key, n, stratified))
    return jnp.clip(low + (high - low) * u, low, high)

  return times


def log_normal(
  process: GaussianProcess,
  mean: float = -1.2,
  std: float = 1.2,
  stratified: bool = True,
) -> Times:
  """Returns a sampler of t whose log(sigma / alpha) is normal.

  Args:
    process: gives the range, to which the normal distribution is cut, and t.
    mean: mean of log(sigma / alpha); P_mean of EDM.
    std: standard deviation of log(sigma / alpha); P_std of EDM.
    stratified: one time in each of n equally likely strata.

  Raises:
    ValueError: if std is not positive, or the process's range holds less than
      a thousandth of the distribution.
  """
  if not std > 0:
    raise ValueError(
      f"std must be positive, got {std}; it is the standard deviation of"
      " log(sigma / alpha), 1.2 in EDM"
    )
  low, high = log_noise_range(process)
  edges = [
    0.5 * math.erfc((mean - x) / (std * math.sqrt(2))) for x in (low, high)
  ]
  if edges[1] - edges[0] < 1e-3:
    raise ValueError(
      f"log(sigma / alpha) ~ N({mean}, {std}^2) lies outside of the process's"
      f" range [{low:.3g}, {high:.3g}]; choose a mean inside of it"
    )

  def times(key: jax.Array, n: int) -> jax.Array:
    u = edges[0] + (edges[1] - edges[0]) * _uniform(key, n, stratified)
    log_noise = jnp.clip(mean + std * special.ndtri(u), low, high)
    return _time(process, -log_noise)

  return times


def logit_normal(
  process: GaussianProcess,
  mean: float = 0.0,
  std: float = 1.0,
  stratified: bool = True,
) -> Times:
  """Returns a sampler of t with logit(t) normal on a rectified flow.

  There sigma / alpha = t / (1 - t), hence log(sigma / alpha) = logit(t): this
  is `log_normal` with the defaults of Esser et al. (2024), and carries their
  choice to any process.
  """
  return log_normal(process, mean, std, stratified)


def uniform_log_snr(
  process: GaussianProcess,
  stratified: bool = True,
  part: tuple[Any, Any] | None = None,
) -> Times:
  """Returns a sampler of t whose log-SNR is uniform.

  Args:
    process: gives the range.
    stratified: one time in each of n equally likely strata.
    part: from where to where, as shares of the range of log(sigma / alpha), (0,
      1) by default; numbers, or traced f[] or f[n].
  """
  low, high = log_noise_range(process)

  def times(key: jax.Array, n: int) -> jax.Array:
    u = _inside(part, _uniform(key, n, stratified))
    return _time(process, -low - (high - low) * u)

  return times


def karras(
  process: GaussianProcess, rho: float = 7.0, stratified: bool = True
) -> Times:
  """Returns a sampler of t whose (sigma / alpha)^{1 / rho} is uniform."""
  low, high = (math.exp(end / rho) for end in log_noise_range(process))

  def times(key: jax.Array, n: int) -> jax.Array:
    root = low + (high - low) * _uniform(key, n, stratified)
    return _time(process, -rho * jnp.log(root))

  return times


def _uniform(key: jax.Array, n: int, stratified: bool) -> jax.Array:
  if stratified:
    return jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1.0)
  return jax.random.uniform(key, (n,))


def _inside(part: tuple[Any, Any] | None, u: jax.Array) -> jax.Array:
  if part is None:
    return u
  return part[0] + (part[1] - part[0]) * u


def _time(process: GaussianProcess, lam: jax.Array) -> jax.Array:
  t = process.log_snr_inverse(lam)
  return jnp.clip(t, process.t_min, process.t_max)


def log_noise_range(process: GaussianProcess) -> tuple[float, float]:
  """Returns the range of log(sigma / alpha), cut to [-10, 10]."""
  ends = [-float(process.log_snr(t)) for t in (process.t_min, process.t_max)]
  return max(ends[0], -_CLIP), min(ends[1], _CLIP)

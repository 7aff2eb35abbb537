r"""Gaussian processes: the forward noising x_t = alpha(t) x0 + sigma(t) eps.

As an SDE, with f = d log(alpha) / dt and g^2 = -2 sigma^2 d lambda / dt,

  dx = f(t) x dt + g(t) dw,

whose marginals the probability-flow ODE dx/dt = alpha' x0 + sigma' eps shares.

| function           | alpha          | sigma                   | t        |
|--------------------|----------------|-------------------------|----------|
| `vp_linear`        | exp(-B(t) / 2) | sqrt(1 - alpha^2)       | 1e-3, 1  |
| `vp_cosine`        | cos(pi t / 2)  | sin(pi t / 2)           | 1e-3, 1  |
| `vp_discrete`      | N given steps  | sqrt(1 - alpha^2)       | 1/N, 1   |
| `sub_vp`           | exp(-B(t) / 2) | 1 - alpha^2             | 1e-3, 1  |
| `ve`               | 1              | s_min (s_max / s_min)^t | 0, 1     |
| `edm`              | 1              | t                       | .002, 80 |
| `rectified_flow`   | 1 - t          | t                       | 1e-3, 1  |
| `resshift`         | 1 - t^2        | kappa t                 | .02, 1-  |
| `from_alpha_sigma` | yours          | yours                   | yours    |

All of them are one curve in the coordinates x / alpha, sigma / alpha, which is
why a solver takes any of them.

That ODE is right for any law of eps that does not depend on t: with x0 and eps
held fixed the velocity is alpha' x0 + sigma' eps, and its mean given x moves
the marginals. The law is the process's `noise`: `Normal` here, Student's t in
`pfgmpp`. Only the SDE needs it to be normal.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff import tree
from jaxdiff.processes import schedules
from jaxdiff.processes.noise import check_normal
from jaxdiff.processes.noise import Normal
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianProcess:
  """A schedule and the range of times it is used on; hashable, no arrays.

  Processes of equal fields are equal, and share compiled programs; a NaN equals
  a NaN. Functions of t take scalars or arrays; numpy and Python numbers are
  computed in float64 on the host, jax arrays in their own dtype.

  Attributes:
    schedule: alpha, sigma and what derives from them.
    t_min: smallest time the network is asked at.
    t_max: time of the prior.
    noise: the law of eps.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> process = jd.vp_linear()
    >>> print(round(process.alpha(0.5) ** 2 + process.sigma(0.5) ** 2, 6))
    1.0
    >>> images = jnp.zeros((4, 8, 8, 3))
    >>> noisy, eps = process.perturb(jax.random.key(0), images, 0.5)
    >>> noisy.shape
    (4, 8, 8, 3)
  """

  schedule: Any
  t_min: float
  t_max: float
  noise: Array = dataclasses.field(default=Normal())

  def __post_init__(self):
    for name in ("t_min", "t_max"):
      checks.number(getattr(self, name), name)
    if not hasattr(self.schedule, "log_snr"):
      raise TypeError(
        "a process takes a schedule, such as schedules.NoiseLevel(), got"
        f" {checks.given(self.schedule)}; or make a whole process, as in"
        " jaxdiff.edm()"
      )
    if not self.t_min < self.t_max:
      raise ValueError(
        "a process needs t_min < t_max (t_max is the noisy end), got"
        f" t_min={self.t_min}, t_max={self.t_max}"
      )
    sigma = self.sigma(self.t_min)
    if not sigma > 0:
      raise ValueError(
        f"sigma(t_min) must be positive, got sigma({self.t_min}) ="
        f" {float(sigma)}: the score is infinite there. Raise t_min; grids"
        " reach sigma = 0 by their last step alone (to_zero=True)"
      )
    alpha = self.alpha(self.t_max)
    if not alpha >= 0:
      raise ValueError(
        f"alpha(t_max) must be at least 0, got alpha({self.t_max}) ="
        f" {float(alpha)}; lower t_max"
      )
    low, high = self.log_snr(self.t_min), self.log_snr(self.t_max)
    if not high < low:
      raise ValueError(
        "alpha / sigma must fall from t_min to t_max (t_max is the noisy"
        f" end), but its logarithm is {float(low):.4g} at t_min={self.t_min}"
        f" and {float(high):.4g} at t_max={self.t_max}"
      )

  def __eq__(self, other: PyTree) -> bool:
    if type(other) is not type(self):
      return NotImplemented
    return self is other or schedules.key(self) == schedules.key(other)

  def __hash__(self) -> int:
    return hash(schedules.key(self))

  @property
  def t_zero(self) -> float:
    """The time at which sigma = 0; NaN if the schedule has none."""
    return self.schedule.t_zero

  def alpha(self, t: ArrayLike) -> Array:
    """Returns the scale of the data at t."""
    return self.schedule.alpha(numerics.as_float(t))

  def sigma(self, t: ArrayLike) -> Array:
    """Returns the standard deviation of the noise at t."""
    return self.schedule.sigma(numerics.as_float(t))

  def log_snr(self, t: ArrayLike) -> Array:
    """Returns lambda = log(alpha / sigma), half the logarithm of the SNR."""
    return self.schedule.log_snr(numerics.as_float(t))

  def log_snr_inverse(self, lam: ArrayLike) -> Array:
    """Returns the t at which log_snr(t) = lam."""
    return self.schedule.log_snr_inverse(numerics.as_float(lam))

  def noise_level(self, t: ArrayLike) -> Array:
    """Returns sigma / alpha, the sigma of EDM; inf where alpha = 0."""
    t = numerics.as_float(t)
    return numerics.namespace(t).exp(-self.log_snr(t))

  def time_at(self, noise_level: ArrayLike) -> Array:
    """Returns the t at which sigma / alpha is `noise_level`."""
    return self.log_snr_inverse(-numerics.log(numerics.as_float(noise_level)))

  def rates(self, t: ArrayLike) -> tuple[Array, Array]:
    """Returns (d alpha / dt, d sigma / dt)."""
    return self.schedule.rates(numerics.as_float(t))

  def drift(self, x: ArrayLike, t: ArrayLike) -> Array:
    """Returns f(t) x, the drift of the forward SDE; t scalar or [batch].

    Raises:
      ValueError: if the noise is not normal; there is no such SDE then.
    """
    check_normal(self, "the forward SDE", _NO_SDE)
    alpha_dot, _ = self.rates(t)
    return (tree.expand(alpha_dot / self.alpha(t), x) * x).astype(x.dtype)

  def diffusion(self, t: ArrayLike) -> Array:
    """Returns g(t), the diffusion coefficient of the forward SDE.

    Raises:
      ValueError: if the noise is not normal; there is no such SDE then.
    """
    check_normal(self, "the forward SDE", _NO_SDE)
    alpha_dot, sigma_dot = self.rates(t)
    sigma = self.sigma(t)
    square = 2.0 * sigma * (sigma_dot - sigma * alpha_dot / self.alpha(t))
    return numerics.namespace(square).sqrt(square)

  def perturb(
    self,
    key: jax.Array,
    x0: ArrayLike,
    t: ArrayLike,
    index: ArrayLike | None = None,
  ) -> tuple[Array, Array]:
    """Returns (x_t, eps) with x_t = alpha(t) x0 + sigma(t) eps.

    Args:
      key: PRNG key; each sample folds its index into it.
      x0: clean data, a tree of [batch, ...].
      t: scalar or [batch].
      index: i32[batch], the samples' indices; 0, 1, ... by default.
    """
    checks.key(key, "perturb(key, x0, t)")
    x0 = jax.tree.map(jnp.asarray, x0)
    eps = self.noise.draw(key, x0, index)
    t = jnp.asarray(t, tree.compute_dtype(jax.tree.leaves(x0)[0].dtype))
    alpha, sigma = self.alpha(t), self.sigma(t)

    def mix(x, e):
      mean, noise = tree.expand(alpha, x) * x, tree.expand(sigma, x) * e
      return (mean + noise).astype(x.dtype)

    return jax.tree.map(mix, x0, eps), eps

  def prior(
    self,
    key: jax.Array,
    shape: tuple[int, ...],
    t: float | None = None,
    index: ArrayLike | None = None,
    data_std: float = 0.0,
    dtype: DTypeLike = jnp.float32,
  ) -> jax.Array:
    """Returns where sampling begins: noise of scale sigma(t), [*shape].

    Args:
      key: PRNG key; each sample folds its index into it.
      shape: (batch, ...).
      t: the time it stands for; t_max by default.
      index: i32[batch], the samples' indices; 0, 1, ... by default.
      data_std: standard deviation of the data. Give it when alpha(t) is not
        small against sigma(t): the scale is then sqrt(alpha^2 data_std^2 +
        sigma^2), the law of x_t up to the shape of the data.
      dtype: dtype of the result.
    """
    checks.key(key, "prior(key, shape)")
    if not checks.is_shape(shape):
      raise TypeError(
        f"prior(key, shape) takes a shape (batch, ...), got"
        f" {checks.given(shape)}; write it as a tuple of integers"
      )
    checks.samples(shape)
    t = self.t_max if t is None else t
    sigma = self.sigma(t)
    xp = numerics.namespace(sigma, data_std)
    scale = xp.hypot(sigma, self.alpha(t) * data_std)
    like = jax.ShapeDtypeStruct(shape, tree.compute_dtype(dtype))
    return (scale * self.noise.draw(key, like, index)).astype(dtype)

  def log_kernel(self, x: PyTree, x0: ArrayLike, t: ArrayLike) -> jax.Array:
    """Returns log p(x_t = x | x0), f[batch].

    Args:
      x: noisy samples, a tree of [batch, ...].
      x0: clean data like x.
      t: scalar or [batch].
    """
    dtype = tree.compute_dtype(jax.tree.leaves(x)[0].dtype)
    t = jnp.asarray(t, dtype)
    alpha, sigma = self.alpha(t), self.sigma(t)

    def noise(x, x0):
      x, x0 = jnp.asarray(x, dtype), jnp.asarray(x0, dtype)
      return (x - tree.expand(alpha, x) * x0) / tree.expand(sigma, x)

    eps = jax.tree.map(noise, x, x0)
    log_scale = tree.sample_size(eps) * jnp.log(sigma)
    return self.noise.log_density(eps) - log_scale

  def log_prior(
    self, x: PyTree, t: float | None = None, data_std: float = 0.0
  ) -> jax.Array:
    """Returns the log density of `prior` at x, f[batch].

    Args:
      x: a tree of [batch, ...].
      t: the time it stands for; t_max by default.
      data_std: as in `prior`.
    """
    t = self.t_max if t is None else t
    sigma = self.sigma(t)
    xp = numerics.namespace(sigma, data_std)
    scale = xp.hypot(sigma, self.alpha(t) * data_std)
    x = jax.tree.map(jnp.asarray, x)
    dtype = tree.compute_dtype(jax.tree.leaves(x)[0].dtype)
    eps = jax.tree.map(lambda v: v.astype(dtype) / scale.astype(dtype), x)
    log_scale = tree.sample_size(eps) * xp.log(scale)
    return self.noise.log_density(eps) - log_scale.astype(dtype)

  def prior_log_prob(
    self, x: ArrayLike, t: float | None = None, data_std: float = 0.0
  ) -> Array:
    """Returns `log_prior`; its other name."""
    return self.log_prior(x, t, data_std)


_NO_SDE = (
  "adds a normal step to the noise, which leaves its law: there is no forward"
  " SDE"
)


@checks.door
def vp_linear(
  beta_min: float = 0.1,
  beta_max: float = 20.0,
  t_min: float = 1e-3,
  t_max: float = 1.0,
) -> GaussianProcess:
  """Variance preserving with beta(t) linear in t (Song et al. 2021, eq. 32).

  Args:
    beta_min: beta at t = 0, per unit of time.
    beta_max: beta at t = 1.
    t_min: 1e-3 suits few steps, 1e-4 or 1e-5 many.
    t_max: time of the prior.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.vp_linear()
    >>> print(process.alpha(1.0).round(4), process.sigma(1.0).round(4))
    0.0066 1.0
  """
  return GaussianProcess(schedules.LinearVP(beta_min, beta_max), t_min, t_max)


@checks.door(host=True)
def vp_linear_covering(
  sigma_min: float, sigma_max: float, t_min: float = 1e-3
) -> GaussianProcess:
  """The VP-linear process whose sigma / alpha covers a given range.

  It reaches sigma_min at t_min and sigma_max at t = 1 (Karras et al. 2022,
  table 1, "VP"). Its time makes a good clock for grids of other processes.
  """
  low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
  slope = 2.0 * (low / t_min - high) / (t_min - 1.0)
  beta_min = high - 0.5 * slope
  return vp_linear(beta_min, beta_min + slope, t_min, 1.0)


@checks.door
def vp_discrete(
  betas: ArrayLike | None = None,
  *,
  alphas_cumprod: ArrayLike | None = None,
  interpolation: str = "log_snr",
) -> GaussianProcess:
  """The process of a network trained on N discrete steps, in continuous time.

  t = k / N after k steps, so the step that the network calls i = 0..N - 1 is
  at t = (i + 1) / N: tell it so with `time=lambda t: N * t - 1` (fractions
  between the steps it was trained on), or `time=lambda t: jnp.round(N * t -
  1)` if it takes whole steps alone.

  Args:
    betas: f64[N], variance of the noise added by each step, as in
      `np.linspace(1e-4, 0.02, 1000)` of Ho et al. (2020). The last may be 1: no
      signal is left after it (`zero_terminal_snr`).
    alphas_cumprod: f64[N], alpha^2 after each step, in place of the betas.
    interpolation: what is linear in t between the steps: "log_snr" (log(sigma /
      alpha), as in k-diffusion) or "noise_level" (sigma / alpha itself, as
      diffusers' Euler schedulers have it by default).

  Raises:
    ValueError: for fewer than two steps, a beta outside of (0, 1), an
      alphas_cumprod that does not fall inside (0, 1), or both or none of them.
  """
  checks.one_of(interpolation, ("log_snr", "noise_level"), "interpolation")
  if (betas is None) == (alphas_cumprod is None):
    raise ValueError(
      "vp_discrete takes the betas, or alphas_cumprod in their place; got"
      f" {'neither' if betas is None else 'both'}"
    )
  if betas is None:
    betas = _betas_of(np.asarray(alphas_cumprod, np.float64))
  betas = np.asarray(betas, np.float64)
  if betas.ndim != 1 or len(betas) < 2:
    raise ValueError(
      f"betas needs two steps or more, one number each; got shape {betas.shape}"
    )
  bad = ~((betas > 0) & (betas < 1))
  bad[-1] &= betas[-1] != 1 or len(betas) < 3
  if bad.any():
    raise ValueError(
      f"every beta must be inside (0, 1), got betas[{np.flatnonzero(bad)[0]}]"
      f" = {betas[bad][0]:.6g}; a cosine schedule is capped at 0.999, and 1, no"
      " signal at all, can be the last of three or more alone"
    )
  schedule = schedules.DiscreteVP(
    tuple(betas.tolist()), interpolation=interpolation
  )
  return GaussianProcess(schedule, 1.0 / len(betas), 1.0)


def zero_terminal_snr(betas: ArrayLike) -> np.ndarray:
  """Returns the betas rescaled so that no signal is left after the last step.

  Lin et al. (2024), https://arxiv.org/abs/2305.08891, algorithm 1: alpha is
  shifted to 0 at the last step and scaled to what it was at the first, and the
  last beta is 1. A network under it predicts v or x0: eps says nothing of x0
  where alpha = 0.

  Args:
    betas: f64[N], as in `vp_discrete`.
  """
  root = np.sqrt(np.cumprod(1.0 - np.asarray(betas, np.float64)))
  root = (root - root[-1]) * root[0] / (root[0] - root[-1])
  return _betas_of(root**2)


def _betas_of(square):
  """Returns the betas of alpha^2 after each step, f64[N]."""
  if square.ndim != 1 or len(square) < 2:
    raise ValueError(
      "alphas_cumprod needs two steps or more, one number each; got shape"
      f" {square.shape}"
    )
  bad = ~(np.diff(square, prepend=1.0) < 0) | ~(square >= 0)
  if bad.any():
    i = int(np.flatnonzero(bad)[0])
    raise ValueError(
      "alphas_cumprod falls from below 1 to above 0 (or to 0 at the last"
      f" step), but alphas_cumprod[{i}] = {square[i]:.6g} follows"
      f" {1.0 if i == 0 else square[i - 1]:.6g}; pass alpha^2 after each step,"
      " from the clean end to the noisy one"
    )
  return 1.0 - square / np.append(1.0, square[:-1])


@checks.door(host=True)
def vp_cosine(t_min: float = 1e-3, t_max: float = 1.0) -> GaussianProcess:
  """Variance preserving, alpha = cos(pi t / 2); alpha = 0 at t = 1.

  The continuous form of Nichol and Dhariwal (2021) without their offset.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.vp_cosine()
    >>> print(process.alpha(0.5).round(4), process.sigma(0.5).round(4))
    0.7071 0.7071
  """
  return GaussianProcess(schedules.CosineVP(), t_min, t_max)


@checks.door
def sub_vp(
  beta_min: float = 0.1,
  beta_max: float = 20.0,
  t_min: float = 1e-3,
  t_max: float = 1.0,
) -> GaussianProcess:
  """The sub-VP process of Song et al. (2021), appendix B.

  Example:
    >>> import numpy as np
    >>> import jaxdiff as jd
    >>> process, same = jd.sub_vp(), jd.vp_linear()
    >>> t = np.asarray([0.1, 0.5, 1.0])
    >>> np.allclose(process.sigma(t), same.sigma(t) ** 2)
    True
  """
  return GaussianProcess(schedules.SubVP(beta_min, beta_max), t_min, t_max)


@checks.door(above=dict(sigma_min=0, sigma_max=0))
def ve(
  sigma_min: float = 0.01,
  sigma_max: float = 50.0,
  t_min: float = 0.0,
  t_max: float = 1.0,
) -> GaussianProcess:
  """Variance exploding, sigma geometric in t (Song et al. 2021, eq. 30).

  As in their code the variance is sigma(t)^2, not sigma(t)^2 - sigma(0)^2. It
  has no noise at t = -inf, where a grid's last step may end.

  Example:
    >>> import jaxdiff as jd
    >>> for t in 0.0, 0.5, 1.0:
    ...   print(t, jd.ve().sigma(t).round(3))
    0.0 0.01
    0.5 0.707
    1.0 50.0
  """
  return GaussianProcess(
    schedules.GeometricVE(sigma_min, sigma_max), t_min, t_max
  )


@checks.door
def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> GaussianProcess:
  """Karras et al. (2022): alpha = 1 and t is the noise level itself.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> print(process.alpha(3.0), process.sigma(3.0))
    1.0 3.0
  """
  return GaussianProcess(schedules.NoiseLevel(), sigma_min, sigma_max)


@checks.door
def rectified_flow(t_min: float = 1e-3, t_max: float = 1.0) -> GaussianProcess:
  """Straight paths x_t = (1 - t) x0 + t eps (Liu et al. 2023).

  Time runs as in diffusion: 0 is data, 1 is noise.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.rectified_flow()
    >>> print(process.alpha(0.25), process.sigma(0.25))
    0.75 0.25
  """
  return GaussianProcess(schedules.Linear(), t_min, t_max)


@checks.door
def resshift(
  kappa: float = 2.0, eta_min: float | None = None, eta_max: float = 0.999
) -> GaussianProcess:
  r"""Residual shifting, from an image to its degraded copy y and noise.

  ResShift (Yue et al. 2023, https://arxiv.org/abs/2307.12348, eq. 2) walks by
  x_t = x0 + eta (y - x0) + kappa sqrt(eta) eps. In the residual it is Gaussian,

    x_t - y = (1 - eta) (x0 - y) + kappa sqrt(eta) eps,

  so the data of this process are residuals x0 - y, the model is told y, and y
  is added to the samples. Its clock is t = sqrt(eta); the steps of ResShift are
  `grids.power_log(process, n, to_zero=True)`, and its prior, y with noise of
  scale kappa sqrt(eta_max), is noise alone here.

  Args:
    kappa: scale of the noise, in units of the images.
    eta_min: smallest eta; by default min((0.04 / kappa)^2, 0.001).
    eta_max: largest eta.

  Raises:
    ValueError: unless kappa > 0 and 0 < eta_min < eta_max < 1.
  """
  if not kappa > 0:
    raise ValueError(
      f"kappa is the scale of the noise and must be positive, got {kappa}"
    )
  eta_min = min((0.04 / kappa) ** 2, 0.001) if eta_min is None else eta_min
  if not 0.0 < eta_min < eta_max < 1.0:
    raise ValueError(
      "eta rises from eta_min to eta_max inside (0, 1), got eta_min ="
      f" {eta_min} and eta_max = {eta_max}; ResShift takes"
      " min((0.04 / kappa)^2, 0.001) and 0.999"
    )
  t_min, t_max = math.sqrt(eta_min), math.sqrt(eta_max)
  return GaussianProcess(schedules.ResidualShift(kappa), t_min, t_max)


@checks.door
def from_alpha_sigma(
  alpha: Callable[[ArrayLike], ArrayLike],
  sigma: Callable[[ArrayLike], ArrayLike],
  t_min: float,
  t_max: float,
  t_zero: float = math.nan,
) -> GaussianProcess:
  """A process from any pair of functions of t.

  Args:
    alpha: scale of the data, written with jax.numpy.
    sigma: scale of the noise, written with jax.numpy.
    t_min: smallest time that the network is asked at.
    t_max: time of the prior.
    t_zero: the time at which sigma = 0, if the pair reaches it.

  Raises:
    ValueError: if either is negative or NaN on [t_min, t_max], or alpha /
      sigma does not fall strictly; the time is named.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.from_alpha_sigma(
    ...   alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=0.01, t_max=0.99
    ... )
    >>> print(process.alpha(0.5), process.sigma(0.5))
    0.75 0.5
    >>> jd.dpmpp_2m(process, jd.grids.log_snr(process, 8)).nfe
    8
  """
  low = t_zero if math.isfinite(t_zero) else t_min
  pair = schedules.Pair(alpha, sigma, low, t_max, t_zero)
  probe = np.linspace(t_min, t_max, 257)
  for name, f in (("alpha", alpha), ("sigma", sigma)):
    value = schedules.evaluate(f, probe)
    bad = ~(value >= 0)
    if bad.any():
      raise ValueError(
        f"{name}(t) must be at least 0 on [{t_min}, {t_max}], got"
        f" {name}({probe[bad][0]:.4g}) = {value[bad][0]:.4g}"
      )
  rising = ~(np.diff(pair.log_snr(probe)) < 0)
  if rising.any():
    raise ValueError(
      "alpha / sigma must fall strictly with t (larger t is noisier), but it"
      f" does not between t = {probe[:-1][rising][0]:.4g} and"
      f" {probe[1:][rising][0]:.4g}; if your time runs from noise to data,"
      " pass alpha(1 - t) and sigma(1 - t)"
    )
  return GaussianProcess(pair, t_min, t_max)

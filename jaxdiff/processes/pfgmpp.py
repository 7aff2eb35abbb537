r"""PFGM++: noise with the tails of Student's t, from PFGM (D = 1) to diffusion.

Data is placed in N + D dimensions, as charges at the origin of D further ones,
and follows the lines of their field; by symmetry only the distance r of the D
coordinates is kept. The field of a charge at y gives the kernel

  p_r(x | y) ~ (|x - y|^2 + r^2)^{-(N + D) / 2},

which is the multivariate Student t with D degrees of freedom, location y and
scale sigma = r / sqrt(D):

  x = y + sigma eps,   eps = z sqrt(D / chi2_D),   z ~ N(0, I_N).

So PFGM++ is x_t = alpha x0 + sigma eps with another law of eps: with r = sigma
sqrt(D) its ODE dx/dr = (x - y(x)) / r is EDM's, dx/dsigma = (x - x0(x)) /
sigma, its samplers are the same tables, and EDM's hyper-parameters carry over
unchanged. D -> infinity is EDM (eps -> z); D = None is that limit itself, the
very process `edm()`. For D <= 2 the noise has no variance.

Reference: Xu et al. (2023), https://arxiv.org/abs/2302.04265, eqs. 4 and 5 and
section 4. They draw the radius |x - y| from a beta-prime law and a direction;
the draw here has the same law (|eps|^2 / D is beta-prime(N/2, D/2)) and takes
one gamma variate.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import tree
from jaxdiff.processes import schedules
from jaxdiff.processes.gaussian import GaussianProcess
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

_GAMMA = 0x67616D6D  # tells the gamma variate's key from those of the leaves


@dataclasses.dataclass(frozen=True)
class StudentT:
  """The law of PFGM++'s noise: multivariate t of identity scale.

  Attributes:
    aug_dim: D > 0, the number of augmented dimensions, not necessarily whole.
      It may be traced where the process is built inside a transformed function.
  """

  aug_dim: float

  def draw(
    self, key: jax.Array, like: PyTree, index: ArrayLike | None = None
  ) -> Any:
    """Returns eps shaped like a batch of samples, [batch, ...].

    The normal part z is that of `tree.normal` with this key; every sample
    divides it by the root of one gamma variate, shared by all of its leaves.
    """
    z = tree.normal(key, like, index)
    index = control.numbers(like, index)
    half = 0.5 * self.aug_dim
    if checks.concrete(half):  # beyond, the root is 1 and float32 infinite
      half = min(half, 1e30)
    half = jnp.asarray(half, jnp.result_type(float))

    def one(i):  # log(chi2_D / D): a small D would underflow
      own = jax.random.fold_in(jax.random.fold_in(key, i), _GAMMA)
      return jax.random.loggamma(own, half) - jnp.log(half)

    stretch = jnp.exp(-0.5 * jax.vmap(one)(index))
    return jax.tree.map(
      lambda v: (tree.expand(stretch, v) * v).astype(v.dtype), z
    )

  def log_density(self, eps: ArrayLike) -> jax.Array:
    """Returns log p(eps), f[batch]."""
    n = tree.sample_size(eps)
    return self._log_constant(n) + self.log_radial(tree.squared_norm(eps), n)

  def _log_constant(self, n: int) -> Array:
    """Returns log p(0) of n values; its limit is -n log(2 pi) / 2.

    With a = D / 2 and b = n / 2 it is log(Gamma(a + b) / Gamma(a)) - b log(2 pi
    a). Both parts grow like b log a and a log a and leave a number of order b:
    from a = 1000 on Stirling's series takes the difference by hand,

      (a + b - 1/2) log(1 + b / a) - b + R(a + b) - R(a) - b log(2 pi).
    """
    a, b = 0.5 * self.aug_dim, 0.5 * n
    known = checks.concrete(a)
    xp = np if known else jnp
    rest = lambda u: u * (1.0 / 12.0 - u**2 * (1.0 / 360.0 - u**2 / 1260.0))
    far = (a + b - 0.5) * xp.log1p(b / a) - b
    far = far + rest(1.0 / (a + b)) - rest(1.0 / a)
    far = far - b * math.log(2.0 * math.pi)
    if known and a >= 1e3:
      return far
    log_gamma = math.lgamma if known else special.gammaln
    near = a if known else jnp.minimum(a, 1e3)
    direct = log_gamma(near + b) - log_gamma(near)
    direct = direct - b * xp.log(2.0 * math.pi * near)
    # in float32 the logarithms' own digits go sooner
    return direct if known else jnp.where(a < 8.0, direct, far)

  def log_radial(self, square: ArrayLike, n: int) -> Array:
    """Returns the log density at |eps|^2 = square of n values, but a constant.

    -(n + D) / 2 log(1 + s / D) = -(1 + n / D) s / 2 log(1 + u) / u, u = s / D:
    nothing overflows, and nothing is lost, however large D is.
    """
    u = square / self.aug_dim
    large = u > 1e-4  # below, the derivative of the quotient would cancel
    safe = jnp.where(large, u, 1.0)
    series = 1.0 - u * (1.0 / 2.0 - u * (1.0 / 3.0 - u / 4.0))
    ratio = jnp.where(large, jnp.log1p(safe) / safe, series)
    return -0.5 * (1.0 + n / self.aug_dim) * square * ratio

  def radius(self, sigma: ArrayLike) -> Array:
    """Returns r = sigma sqrt(D), the paper's name for the noise level."""
    return sigma * math.sqrt(self.aug_dim)

  def outside(self, t: float) -> str:
    """Returns what to add when t is outside of the process's times."""
    return (
      f". Times of PFGM++ are noise levels sigma = r / sqrt(D): if {t:.6g} is"
      f" a radius r, pass {t / math.sqrt(self.aug_dim):.6g}"
    )


@checks.door
def pfgmpp(
  aug_dim: float | None, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> GaussianProcess:
  """Returns PFGM++ of D augmented dimensions, in EDM's time t = sigma.

  Args:
    aug_dim: D; None is the limit of infinitely many, `edm`.
    sigma_min: smallest noise level, r_min / sqrt(D).
    sigma_max: noise level of the prior, r_max / sqrt(D).

  Raises:
    ValueError: if D is not positive, or not finite.

  Example:
    >>> import jaxdiff as jd
    >>> process = jd.pfgmpp(128.0)
    >>> print(process.noise)
    StudentT(aug_dim=128.0)
    >>> jd.default(process, 10).nfe  # the ODE is that of EDM
    10
    >>> jd.pfgmpp(None) == jd.edm()
    True
  """
  if aug_dim is None:
    return GaussianProcess(schedules.NoiseLevel(), sigma_min, sigma_max)
  if checks.concrete(aug_dim):
    aug_dim = float(aug_dim)
    if not (aug_dim > 0 and math.isfinite(aug_dim)):
      raise ValueError(
        "D must be a positive number or None (diffusion limit), got"
        f" aug_dim={aug_dim}"
      )
  return GaussianProcess(
    schedules.NoiseLevel(), sigma_min, sigma_max, StudentT(aug_dim)
  )

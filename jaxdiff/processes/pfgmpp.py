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
from jax.scipy import special

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.processes import schedules
from jaxdiff.processes.gaussian import GaussianProcess

Array = Any

_GAMMA = 0x67616D6D  # tells the gamma variate's key from those of the leaves


@dataclasses.dataclass(frozen=True)
class StudentT:
  """The law of PFGM++'s noise: multivariate t of identity scale.

  Attributes:
    aug_dim: D > 0, the number of augmented dimensions, not necessarily whole.
      It may be traced where the process is built inside a transformed function.
  """

  aug_dim: float

  def draw(self, key: jax.Array, like: Any, index: Array | None = None) -> Any:
    """Returns eps shaped like a batch of samples, [batch, ...].

    The normal part z is that of `tree.normal` with this key; every sample
    divides it by the root of one gamma variate, shared by all of its leaves.
    """
    z = tree.normal(key, like, index)
    size = tree.batch_size(like)
    index = jnp.arange(size) if index is None else jnp.asarray(index)
    half = jnp.asarray(0.5 * self.aug_dim, jnp.result_type(float))

    def one(i):  # log(chi2_D / D): a small D would underflow
      own = jax.random.fold_in(jax.random.fold_in(key, i), _GAMMA)
      return jax.random.loggamma(own, half) - jnp.log(half)

    stretch = jnp.exp(-0.5 * jax.vmap(one)(index))
    return jax.tree.map(
      lambda v: (tree.expand(stretch, v) * v).astype(v.dtype), z
    )

  def log_density(self, eps: Any) -> jax.Array:
    """Returns log p(eps), f[batch]."""
    d, n = self.aug_dim, tree.sample_size(eps)
    if checks.concrete(d):  # in float64: the two differ by little at large D
      constant = math.lgamma(0.5 * (n + d)) - math.lgamma(0.5 * d)
      constant -= 0.5 * n * math.log(d * math.pi)
    else:
      constant = special.gammaln(0.5 * (n + d)) - special.gammaln(0.5 * d)
      constant -= 0.5 * n * jnp.log(d * math.pi)
    return constant + self.log_radial(tree.squared_norm(eps), n)

  def log_radial(self, square: Array, n: int) -> Array:
    """Returns the log density at |eps|^2 = square of n values, but a constant.

    log1p keeps what is left of a small |eps|^2 / D when D is large.
    """
    return -0.5 * (n + self.aug_dim) * jnp.log1p(square / self.aug_dim)

  def radius(self, sigma: Array) -> Array:
    """Returns r = sigma sqrt(D), the paper's name for the noise level."""
    return sigma * math.sqrt(self.aug_dim)

  def outside(self, t: float) -> str:
    """Returns what to add when t is outside of the process's times."""
    return (
      f". Times of PFGM++ are noise levels sigma = r / sqrt(D): if {t:.6g} is"
      f" a radius r, pass {t / math.sqrt(self.aug_dim):.6g}"
    )


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

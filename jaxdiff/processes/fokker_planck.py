r"""The Fokker-Planck equation of a log-density, as a residual.

Under dx = f(t) x dt + g(t) dw the logarithm u of the density of x obeys

  d_t u = -f d - f x . grad u + g^2 / 2 (lap u + |grad u|^2),

and what is left over of it for any other function u is the residual

  R = d_t u + f d + f x . grad u - g^2 / 2 (lap u + |grad u|^2).

R of u + c(t) is R + c'(t); its gradient, an equation of s = grad u alone, does
not see c. For alpha = 1 this is the heat equation of exp(u) in sigma^2.
Reference: Lai et al. (2023), https://arxiv.org/abs/2210.04296, for the equation
of s; Deveney et al. (2023), https://arxiv.org/abs/2311.15996, for that of u.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import jacobians
from jaxdiff.processes.gaussian import GaussianProcess
from jaxdiff.processes.noise import check_normal

Potential = Callable[[jax.Array, jax.Array], jax.Array]
Score = Callable[[jax.Array, jax.Array], jax.Array]


def gradient(u: Potential, x: jax.Array, t: jax.Array) -> jax.Array:
  """Returns grad_x u, shaped like x: the score of the log-density u.

  Raises:
    TypeError: if u does not return one number a sample.
  """
  return jax.grad(lambda x: jnp.sum(_scalars(u, x, t)))(x)


def potential_residual(
  u: Potential,
  process: GaussianProcess,
  x: jax.Array,
  t: Any,
  *,
  probes: jax.Array | None = None,
) -> jax.Array:
  """Returns R of the module's docstring, f[batch].

  Args:
    u: u(x, t f[batch]) -> f[batch], a log-density.
    process: the forward process.
    x: f[batch, ...].
    t: scalar or f[batch].
    probes: f[m, batch, ...] of `jacobians.rademacher`, for an unbiased
      estimate of the Laplacian; None is exact.

  Raises:
    TypeError: if u does not return one number a sample.
    ValueError: for a time without noise, or a network whose second derivatives
      are exactly 0 at every point.
  """
  x, t = _checked(process, x, t)
  d = x[0].size
  rate, square = drift_and_diffusion(process, t)
  u_t = jax.jvp(lambda t: _scalars(u, x, t), (t,), (jnp.ones_like(t),))[1]
  score = lambda x: gradient(u, x, t)
  slope = score(x)
  laplacian = jacobians.divergence(score, x, probes)
  if checks.concrete(laplacian) and not np.any(laplacian):
    raise ValueError(
      "the Laplacian of the potential is exactly 0 at every point: a network"
      " of relu (or without activations) is linear almost everywhere and"
      " cannot obey the Fokker-Planck equation; use a smooth activation,"
      " softplus or silu"
    )
  along, length = _dot(x, slope), _dot(slope, slope)
  return u_t + rate * (d + along) - 0.5 * square * (laplacian + length)


def score_residual(
  score: Score,
  process: GaussianProcess,
  x: jax.Array,
  t: Any,
  *,
  probes: jax.Array | None = None,
) -> jax.Array:
  r"""Returns the residual of a vector field, shaped like x: grad_x of R.

    d_t s - grad (g^2 / 2 (div s + |s|^2) - f x . s - f d),

  which needs s alone and is the same for u and u + c(t).

  Args:
    score: score(x, t f[batch]) -> like x.
    process: the forward process.
    x: f[batch, ...].
    t: scalar or f[batch].
    probes: f[m, batch, ...] of `jacobians.rademacher`, for an unbiased
      estimate of the divergence; None is exact.
  """
  x, t = _checked(process, x, t)
  rate, square = drift_and_diffusion(process, t)
  moved = jax.jvp(lambda t: score(x, t), (t,), (jnp.ones_like(t),))[1]

  def source(x):
    s = score(x, t)
    spread = jacobians.divergence(lambda x: score(x, t), x, probes)
    return jnp.sum(0.5 * square * (spread + _dot(s, s)) - rate * _dot(x, s))

  return moved - jax.grad(source)(x)


def drift_and_diffusion(
  process: GaussianProcess, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns (f, g^2) of dx = f(t) x dt + g(t) dw.

  Raises:
    ValueError: if the noise is not normal.
  """
  check_equation(process, "the Fokker-Planck equation")
  alpha, sigma = process.alpha(t), process.sigma(t)
  alpha_dot, sigma_dot = process.rates(t)
  rate = alpha_dot / alpha
  return rate, 2.0 * sigma * (sigma_dot - sigma * rate)


def check_equation(process: GaussianProcess, name: str) -> None:
  """Raises a ValueError unless a process's marginals obey the equation."""
  check_normal(
    process,
    name,
    "is that of an SDE with normal steps, which the marginals of this process"
    " do not obey",
    "take a process of normal noise, pfgmpp(None) is the limit",
  )


def _checked(process, x, t):
  x = jnp.asarray(x)
  t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
  if checks.concrete(t) and not np.all(process.sigma(np.asarray(t)) > 0):
    raise ValueError(
      "the Fokker-Planck residual is singular where there is no noise, but t"
      f" holds {float(t.min()):.4g} with sigma = 0; start from process.t_min ="
      f" {process.t_min:.4g}"
    )
  return x, t


def _scalars(u, x, t):
  value = u(x, t)
  if value.shape != x.shape[:1]:
    raise TypeError(
      "a potential returns one log-density for each sample, shape"
      f" {x.shape[:1]}, got {value.shape} for samples {x.shape}; for a network"
      " that returns the score itself use score_residual"
    )
  return value


def _dot(a, b):
  return jnp.sum((a * b).reshape(len(a), -1), axis=1)

r"""The Fokker-Planck equation of a log-density: its residual, and a loss.

Under dx = f(t) x dt + g(t) dw the logarithm u of the density of x obeys

  d_t u = -f d - f x . grad u + g^2 / 2 (lap u + |grad u|^2),

and what is left over of it for any other function u is the residual

  R = d_t u + f d + f x . grad u - g^2 / 2 (lap u + |grad u|^2).

R of u + c(t) is R + c'(t); its gradient, an equation of s = grad u alone, does
not see c. For alpha = 1 this is the heat equation of exp(u) in sigma^2.

R vanishes for the log-density of x_t alone: only then do the reverse SDE and
the probability-flow ODE with the score grad u have one law. Denoising score
matching does not see how u depends on t. The loss of a network that is a
log-density is

  E |sigma grad u + eps|^2 + w E R^2 + b E exp(2 u) on the faces of a box,

R^2 on points half uniform in box x [t_min, t_max] and half from the forward
process: the residual is enforced where there are points only, and a box alone
lets samples escape through its faces. References: Lai et al. (2023),
https://arxiv.org/abs/2210.04296, for the equation of s; Deveney, Stanczuk,
Kreusser, Budd and Schoenlieb (2023), https://arxiv.org/abs/2311.15996, for that
of u and the loss.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import jacobians
from jaxdiff import tree
from jaxdiff.losses import times as times_lib
from jaxdiff.losses.denoising import images
from jaxdiff.losses.denoising import Loss
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

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
  t: ArrayLike,
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
  d = math.prod(x.shape[1:])
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
  t: ArrayLike,
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


@checks.door
def fokker_planck(
  potential: Callable[[PyTree, jax.Array, jax.Array], jax.Array],
  process: GaussianProcess,
  *,
  box: float,
  weight: float = 0.01,
  collocation: int = 500,
  forward: float = 0.5,
  boundary: float = 0.0,
  probes: int | None = None,
  times: times_lib.Times | None = None,
) -> Loss:
  """Returns loss(key, params, batch) of a network that is a log-density.

  Metrics are "loss", "dsm", "residual" (the mean of R^2), "boundary" and
  "inside", the fraction of the noised batch that lies in the box.

  Args:
    potential: potential(params, x, t f[batch]) -> f[batch], the log-density up
      to a constant; smooth, for its second derivatives are trained.
    process: the forward process.
    box: half the side of the cube that the residual is enforced in.
    weight: weight of the residual; 0 is denoising score matching alone.
    collocation: number of points of the residual a step.
    forward: fraction of them from the forward process, the rest is uniform.
    boundary: weight of exp(2 u) on the faces of the box.
    probes: random probes of the Laplacian; None is exact, by d products.
    times: sampler times(key, n) of the denoising term; uniform by default.

  Raises:
    ValueError: for a box that is not positive, no points, or a fraction outside
      of [0, 1], or noise that is not normal.
  """
  checks.process(process, "fokker_planck(potential, process)")
  check_equation(process, "losses.fokker_planck")
  if not box > 0:
    raise ValueError(
      f"box is half the side of the cube of points, positive; got {box}"
    )
  if collocation < 1 or not 0 <= forward <= 1:
    raise ValueError(
      "the residual needs points: collocation >= 1, of which a fraction"
      f" forward in [0, 1]; got collocation={collocation}, forward={forward}"
    )
  times = times or times_lib.uniform(process)
  followed = round(forward * collocation)

  def loss(key: jax.Array, params: PyTree, batch: dict):
    x0 = images(batch)
    keys = jax.random.split(key, 5)
    u = lambda x, t: potential(params, x, t)
    t = control.own_rows(lambda n: times(keys[0], n), x0)
    x, eps = process.perturb(keys[1], x0, t)
    sigma = tree.expand(process.sigma(t), x)
    square = (sigma * gradient(u, x, t) + eps) ** 2
    dsm = jnp.mean(jnp.sum(square.reshape(len(x), -1), axis=1))
    places, at = _points(keys[2], process, x0, box, collocation, followed)
    signs = (
      None
      if probes is None
      else jacobians.rademacher(keys[3], places, count=probes)
    )
    value = potential_residual(u, process, places, at, probes=signs)
    residual = jnp.mean(value**2)
    faces = jnp.zeros(())
    if boundary:
      faces = jnp.mean(jnp.exp(2.0 * u(*_faces(keys[4], places, at, box))))
    total = dsm + weight * residual + boundary * faces
    within = jnp.all(jnp.abs(x.reshape(len(x), -1)) <= box, axis=1)
    inside = jnp.mean(within.astype(jnp.float32))
    return total, dict(
      loss=total, dsm=dsm, residual=residual, boundary=faces, inside=inside
    )

  return loss


def _points(key, process, x0, box, count, followed):
  """Returns (x, t): `followed` forward samples, the rest uniform in the box."""
  at, pick, noise, place = jax.random.split(key, 4)
  t = times_lib.uniform(process, stratified=False)(at, count)
  shape = (count - followed, *x0.shape[1:])
  uniform = jax.random.uniform(place, shape, x0.dtype, -box, box)
  rows = jax.random.randint(pick, (followed,), 0, len(x0))
  # rows from all over the batch: on every device, whatever holds them
  chosen = lambda x0: (x0[rows],)
  (picked,) = control.automatic(chosen, x0, batch=x0, like=())
  forward, _ = process.perturb(noise, picked, t[:followed])
  return jnp.concatenate([forward, uniform]), t


def _faces(key, x, t, box):
  """Returns as many points on the faces of the box, at the same times."""
  place, which, side = jax.random.split(key, 3)
  flat = jax.random.uniform(
    place, (len(x), math.prod(x.shape[1:])), x.dtype, -box, box
  )
  axis = jax.random.randint(which, (len(x),), 0, flat.shape[1])
  sign = jax.random.rademacher(side, (len(x),), x.dtype)
  flat = flat.at[jnp.arange(len(x)), axis].set(box * sign)
  return flat.reshape(x.shape), t


def _checked(process, x, t):
  x = jnp.asarray(x)
  t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
  t = control.along_batch(t, x)
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

r"""The Fokker-Planck equation as a loss, for networks that are a log-density.

With R the residual of `processes.fokker_planck`, which vanishes for the
log-density of x_t alone: only then do the reverse SDE and the probability-flow
ODE with the score grad u have one law. Denoising score matching does not see
how u depends on t. The loss is

  E |sigma grad u + eps|^2 + w E R^2 + b E exp(2 u) on the faces of a box,

R^2 on points half uniform in box x [t_min, t_max] and half from the forward
process: the residual is enforced where there are points only, and a box alone
lets samples escape through its faces. Reference: Deveney, Stanczuk, Kreusser,
Budd and Schoenlieb (2023), https://arxiv.org/abs/2311.15996.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import jacobians
from jaxdiff import tree
from jaxdiff.losses import times as times_lib
from jaxdiff.losses.denoising import images
from jaxdiff.losses.denoising import Loss
from jaxdiff.processes import GaussianProcess
from jaxdiff.processes.fokker_planck import check_equation
from jaxdiff.processes.fokker_planck import gradient
from jaxdiff.processes.fokker_planck import potential_residual

PyTree = Any


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
    weight: of the residual; 0 is denoising score matching alone.
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
  forward, _ = process.perturb(noise, x0[rows], t[:followed])
  return jnp.concatenate([forward, uniform]), t


def _faces(key, x, t, box):
  """Returns as many points on the faces of the box, at the same times."""
  place, which, side = jax.random.split(key, 3)
  flat = jax.random.uniform(place, (len(x), x[0].size), x.dtype, -box, box)
  axis = jax.random.randint(which, (len(x),), 0, flat.shape[1])
  sign = jax.random.rademacher(side, (len(x),), x.dtype)
  flat = flat.at[jnp.arange(len(x)), axis].set(box * sign)
  return flat.reshape(x.shape), t

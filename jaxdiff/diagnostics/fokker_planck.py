r"""Fokker-Planck residual of a model, and its gap between ODE and SDE.

If a model's score obeys the equation of `losses.fokker_planck` and its law
at t_max is right, the reverse SDE and the probability-flow ODE have one law;
the distance W_2 between the two is bounded by the time integral of the norm of
the residual, times exponentials of the one-sided Lipschitz constant of the
score (Deveney et al. 2023, https://arxiv.org/abs/2311.15996, theorem 3.2). The
bound's constant is of no use in practice; its ingredients are, and the gap
itself can be measured: `profile` and `ode_sde_gap`.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import jacobians
from jaxdiff import metrics
from jaxdiff import sampling
from jaxdiff.diagnostics.fields import score_of
from jaxdiff.losses import times as times_lib
from jaxdiff.losses.fokker_planck import score_residual
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model


class Profile(NamedTuple):
  """The ingredients of the bound over time, f[n] each.

  Attributes:
    t: the times.
    residual: root mean square over samples of |grad R|, the residual of the
      score's own equation.
    score: root mean square over samples of |s|, to compare it with.
    lipschitz: largest eigenvalue over samples of the symmetric part of the
      score's Jacobian, a lower estimate of its one-sided Lipschitz constant.
  """

  t: jax.Array
  residual: jax.Array
  score: jax.Array
  lipschitz: jax.Array


class Gap(NamedTuple):
  """Exact empirical W_2 between samples, all of one size.

  Attributes:
    ode_sde: between the laws of ODE and SDE.
    ode_reference: between that of the ODE and the data.
    sde_reference: between that of the SDE and the data.
    floor: between two halves of the data: what two sets of one law have.
  """

  ode_sde: float
  ode_reference: float
  sde_reference: float
  floor: float


@checks.door
def residual(
  model: Model,
  process: GaussianProcess,
  x: jax.Array,
  t: ArrayLike,
  *,
  probes: jax.Array | None = None,
) -> jax.Array:
  """Returns the Fokker-Planck residual of a model's score, shaped like x.

  Args:
    model: model(x, t) -> Prediction, smooth in both.
    process: the forward process.
    x: f[batch, ...].
    t: scalar or f[batch].
    probes: probes of `jacobians.rademacher`, for more than about 8 dimensions;
      None is exact.
  """
  return score_residual(score_of(model, process), process, x, t, probes=probes)


@checks.door
def profile(
  key: jax.Array,
  model: Model,
  process: GaussianProcess,
  x0: jax.Array,
  times: ArrayLike,
  *,
  probes: int | None = None,
) -> Profile:
  """Returns the residual of a model along the forward process.

  Args:
    key: PRNG key of the noise.
    model: model(x, t) -> Prediction, smooth in both.
    process: the forward process.
    x0: data, f[batch, ...].
    times: f[n].
    probes: random probes of the divergence; None is exact.
  """
  score = score_of(model, process)
  norm = lambda v: jnp.sqrt(
    jnp.mean(jnp.sum(v.reshape(len(x0), -1) ** 2, axis=1))
  )
  signs = (
    None
    if probes is None
    else jacobians.rademacher(jax.random.fold_in(key, 1), x0, count=probes)
  )

  def at(t):
    x, _ = process.perturb(jax.random.fold_in(key, 0), x0, t)
    matrix = jacobians.jacobian(lambda x: score(x, t), x)
    symmetric = 0.5 * (matrix + jnp.swapaxes(matrix, 1, 2))
    return Profile(
      t,
      norm(score_residual(score, process, x, t, probes=signs)),
      norm(score(x, t)),
      jnp.max(jnp.linalg.eigvalsh(symmetric)),
    )

  return jax.lax.map(at, jnp.asarray(times, x0.dtype))


@checks.door
def ode_sde_gap(
  key: jax.Array,
  model: Model,
  ode: Tableau,
  sde: Tableau,
  start: jax.Array,
  data: jax.Array,
) -> Gap:
  """Returns how far the laws of a model's ODE and SDE are apart.

  The two runs start from different halves of `start`: from common noise the
  samples would be paired, and closer than those of one law are.

  Args:
    key: PRNG key.
    model: model(x, t) -> Prediction.
    ode: a table without noise, of a small discretization error.
    sde: a table with noise, of a small discretization error.
    start: f[2 n, ...], draws of the law at the time that both tables begin at.
    data: f[2 n, ...], draws of the law that they should end in.

  Raises:
    ValueError: if one table draws noise, or the other does not; for unequal
      numbers of samples, or n above 4000.
  """
  if ode.stochastic or not sde.stochastic:
    raise ValueError(
      "ode_sde_gap(key, model, ode, sde, ...) takes a table without noise and"
      " one with noise, in this order, got"
      f" {'one with' if ode.stochastic else 'one without'} and"
      f" {'one with' if sde.stochastic else 'one without'}"
    )
  if start.shape != data.shape or len(start) % 2:
    raise ValueError(
      "the gap compares n samples with n: start and data need the same shape"
      f" [2 n, ...], got {start.shape} and {data.shape}"
    )
  n = len(start) // 2
  by_ode = sampling.sample(key, model, ode, start[:n])
  by_sde = sampling.sample(key, model, sde, start[n:])
  return Gap(
    metrics.wasserstein_2(by_ode, by_sde),
    metrics.wasserstein_2(by_ode, data[:n]),
    metrics.wasserstein_2(by_sde, data[:n]),
    metrics.wasserstein_2(data[n:], data[:n]),
  )


@checks.door
def box_coverage(
  key: jax.Array, process: GaussianProcess, x0: jax.Array, box: float
) -> float:
  """Returns the fraction of forward samples in the box; warns below 0.999.

  For `losses.fokker_planck`, whose uniform points lie in such a box.

  Args:
    key: PRNG key.
    process: the forward process.
    x0: data, f[batch, ...].
    box: half the side of the cube.
  """
  keys = jax.random.split(key)
  t = times_lib.uniform(process)(keys[0], len(x0))
  x, _ = process.perturb(keys[1], x0, t)
  within = jnp.all(jnp.abs(x.reshape(len(x), -1)) <= box, axis=1)
  fraction = float(jnp.mean(within))
  if fraction < 0.999:
    warnings.warn(
      f"only {fraction:.2%} of the noised data lies within box={box}: outside"
      " of it the residual is enforced on forward samples alone; a larger box"
      f" would hold them (the largest value is {float(abs(x).max()):.3g})",
      stacklevel=2,
    )
  return fraction

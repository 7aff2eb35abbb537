r"""Analytical teleportation: the first steps of any table, in closed form.

At high noise the score of a trained network is that of one Gaussian with the
mean and covariance of the data, whose probability flow is known: noise is moved
from t_max to t_skip by `LowRankGaussian.flow`, without a call, and any table
goes on from there with an empty history. Two ways to spend what was saved:

  truncate   the same grid without its first steps: fewer calls
  respend    as many steps on [t_skip, t_min]: better at the same calls, by
             grids' own start=, as in karras(process, n, start=t_skip)

Skip to the lowest level down to which the Gaussian explains the score
(`choose_skip`). With guidance use statistics for each class and skip less.
Reference: Wang and Vastola (2024), https://arxiv.org/abs/2412.09726.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import oracles
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.oracles import LowRankGaussian
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


@checks.door
def truncate(grid: ArrayLike, t_skip: float) -> np.ndarray:
  """Returns the grid from t_skip on, f64: t_skip and all later times.

  Args:
    grid: f64[n + 1], falling.
    t_skip: a time on the grid or between two of its times.

  Raises:
    ValueError: if t_skip is not between the grid's ends.
  """
  grid = np.asarray(grid, np.float64)
  if not grid[-1] < t_skip <= grid[0]:
    raise ValueError(
      f"t_skip={t_skip:.6g} must lie on the grid, in ({grid[-1]:.6g},"
      f" {grid[0]:.6g}]"
    )
  return np.append(t_skip, grid[grid < t_skip])


@checks.door
def teleport(
  stats: LowRankGaussian,
  x: jax.Array,
  process: GaussianProcess,
  t_from: float,
  t_to: float,
  label: ArrayLike | None = None,
) -> jax.Array:
  """Returns x at t_to, moved from t_from by the Gaussian's probability flow.

  Args:
    stats: statistics of the data, in the scale the model knows them;
      `oracles.fit`.
    x: f[batch, ...] at t_from.
    process: the forward process.
    t_from: where x is.
    t_to: where to; below or above it. Equal returns x itself.
    label: i32[batch], the classes, of statistics by class.

  Raises:
    ValueError: for a time outside of the process, data of another size than
      the statistics, or noise that is not normal.
  """
  _check_process(process, "teleport")
  for name, t in (("t_from", t_from), ("t_to", t_to)):
    clean = t == process.t_zero
    slack = 1e-9 * process.t_max
    if not (process.t_min - slack <= t <= process.t_max + slack or clean):
      raise ValueError(
        f"{name}={t:.6g} is outside of the process's times"
        f" [{process.t_min:.6g}, {process.t_max:.6g}]"
      )
  if t_from == t_to:
    return x
  place = lambda t: (float(process.alpha(t)), float(process.sigma(t)))
  return stats.flow(jnp.asarray(x), place(t_from), place(t_to), label)


@checks.door
def gaussian_prior(
  key: jax.Array,
  stats: LowRankGaussian,
  shape: tuple[int, ...],
  process: GaussianProcess,
  t: float | None = None,
  *,
  label: ArrayLike | None = None,
  index: ArrayLike | None = None,
) -> jax.Array:
  """Returns draws of N(alpha mu, alpha^2 C + sigma^2 I) at t, [*shape].

  Unlike pure noise it has the mean and covariance of x_t where sigma does not
  exceed the data by far; flowing on, it stays the Gaussian's exact marginal.

  Args:
    key: PRNG key; each sample folds its index into it.
    stats: statistics of the data.
    shape: (batch, ...).
    process: the forward process.
    t: the time; t_max by default.
    label: i32[batch], the classes, of statistics by class.
    index: i32[batch], the samples' indices; 0, 1, ... by default.
  """
  _check_process(process, "gaussian_prior")
  t = process.t_max if t is None else t
  alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
  like = jax.ShapeDtypeStruct(tuple(shape), jnp.result_type(float))
  z = tree.normal(key, like, index)
  # the flow of "data at sigma = 1 without signal" to the marginal at t
  return stats.flow(z, (0.0, 1.0), (alpha, sigma), label)


class TeleportInfo(NamedTuple):
  """What `teleport_sample` tells beside its samples.

  Attributes:
    t: the time that x was moved to, the table's first.
    nfe: network calls for each sample, those of the table.
    unexplained: share of the model's score at t that the Gaussian misses; None
      if it was not looked at (`check`).
    kept: what `collect` kept of the table's steps; None without one.
  """

  t: float
  nfe: int
  unexplained: float | None = None
  kept: PyTree = None


@checks.sampler
def teleport_sample(
  key: jax.Array,
  model: sampling.Model,
  tableau: Tableau,
  x: PyTree,
  *,
  process: GaussianProcess,
  stats: LowRankGaussian,
  t_from: float | None = None,
  prior: str = "isotropic",
  label: ArrayLike | None = None,
  check: Any = None,
  tolerance: float = 1e-3,
  collect: sampling.Collector | None = None,
  **options: Any,
) -> tuple[Any, TeleportInfo]:
  """Returns (x, info): x moved to the table's first time, and through it.

  Args:
    key: PRNG key, as for `sample`.
    model: model(x, t) -> Prediction.
    tableau: any solver's, on `truncate(grid, t_skip)` or on a grid that starts
      at t_skip.
    x: noise [batch, ...] at t_from, or a shape, drawn from the prior.
    process: the forward process.
    stats: statistics of the data; `oracles.fit`.
    t_from: where x is; t_max by default.
    prior: prior of a shape: "isotropic" noise, or "gaussian", the exact
      marginal of the Gaussian.
    label: i32[batch], the classes, of statistics by class.
    check: f[m, ...], data at which to compare model and Gaussian at the
      table's first time; a warning tells if they differ by more than
      `tolerance`.
    tolerance: tolerance of the unexplained share of the score.
    collect: what to keep of the table's steps, as `info.kept`.
    **options: other options of `sample`.

  Raises:
    ValueError: for an unknown prior, a first time beyond t_from, or a table
      that was cut out of a longer one and needs its history.
  """
  checks.one_of(prior, ("isotropic", "gaussian"), "prior")
  _check_process(process, "teleport_sample")
  agreement.check(model, tableau, process, "teleport_sample")
  _no_history(tableau)
  t_from = process.t_max if t_from is None else float(t_from)
  t_skip = float(tableau.t[0])
  if t_skip > t_from * (1.0 + 1e-9):
    raise ValueError(
      f"the table begins at t = {t_skip:.6g}, above t_from = {t_from:.6g}, the"
      " time that x is at; teleportation skips forward to less noise"
    )
  share = None
  if check is not None:
    gauss = oracles.exact(stats, process, label)
    share = float(
      oracles.unexplained(key, model, gauss, process, check, [t_skip])[0]
    )
    if share > tolerance:
      warnings.warn(
        f"at t = {t_skip:.4g} the Gaussian misses {share:.2g} of the model's"
        f" score, more than {tolerance:.2g}; skip less (choose_skip finds how"
        " far)",
        stacklevel=2,
      )
  if isinstance(x, (tuple, list)):
    own = jax.random.fold_in(key, _PRIOR)
    index = options.get("index")
    if prior == "gaussian":
      x = gaussian_prior(
        own, stats, x, process, t_from, label=label, index=index
      )
    else:
      x = process.prior(own, tuple(x), t_from, index=index)
  x = teleport(stats, x, process, t_from, t_skip, label)
  out = sampling.sample(key, model, tableau, x, collect=collect, **options)
  x, kept = (out, None) if collect is None else out
  return x, TeleportInfo(t_skip, tableau.nfe, share, kept)


@checks.door
def choose_skip(
  key: jax.Array,
  model: sampling.Model,
  stats: LowRankGaussian,
  process: GaussianProcess,
  x0: ArrayLike,
  times: Sequence[float],
  tolerance: float = 1e-3,
) -> float:
  """Returns the lowest time down to which the Gaussian explains the score.

  It is the last of the falling `times` before the unexplained share first
  exceeds the tolerance; NaN if it does so at once.

  Args:
    key: PRNG key.
    model: model(x, t) -> Prediction.
    stats: statistics of the data, without classes.
    process: the forward process.
    x0: data, f[batch, ...].
    times: falling times to try, for instance the grid's.
    tolerance: tolerance of the unexplained share.
  """
  times = checks.falling_grid(
    times, process.t_min, process.t_max, process.t_zero
  )
  gauss = oracles.exact(stats, process)
  shares = oracles.unexplained(key, model, gauss, process, x0, times)
  bad = np.flatnonzero(~(shares <= tolerance))
  first = int(bad[0]) if len(bad) else len(times)
  return float(times[first - 1]) if first else math.nan


def _check_process(process, name):
  checks.process(process, f"{name}(..., process)")
  check_normal(
    process,
    name,
    "moves by the flow of Gaussian data, which is known under normal noise"
    " alone",
    "leave the first steps to the solver, or take the limit of normal noise,"
    " pfgmpp(None)",
  )


def _no_history(table):
  """Refuses a table whose first rows weight outputs of rows before them."""
  history = np.asarray(table.history)
  for i in range(min(table.nfe, table.memory - 1)):
    if np.any(history[i, :, i + 1 :] != 0):
      raise ValueError(
        f"row {i} of the table uses outputs of calls before its first: it was"
        " cut out of a longer table, whose history does not pass a teleport;"
        " build the solver on the remaining grid, solver(process,"
        " truncate(grid, t_skip))"
      )


_PRIOR = 0x74656C65

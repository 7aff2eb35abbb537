r"""Tables of a stochastic interpolant: its ODE, and SDEs of any diffusion.

A model of an interpolant returns the pair (v, eta), and every drift is a fixed
combination of it (see `interpolants.bridge`):

  F = v + (gamma' -+ eps / gamma) eta,

with - forwards and + backwards in time, and eps = 0 for the ODE. A rising grid
goes from x0 to x1, a falling one back. Runge-Kutta methods integrate the ODE;
of the SDE dX = F dt + sqrt(2 eps) dW there are

  "euler"   x' = x + h F(x, t) + sqrt(2 eps |h|) z                weak order 1
  "heun"    x <- x + sqrt(eps |h|) z0, Heun's step of the drift,
            x' <- x' + sqrt(eps' |h|) z                           weak order 2

The second splits the step symmetrically (Strang): half of the noise, the drift,
the other half. The grid may touch t = 0 and 1: the model is asked, and gamma
inverted, inside [t_min, 1 - t_min]. There 1 / gamma is large, and a step with
|h| > gamma^2 / eps is stiff; an eps that vanishes at the ends, such as
`lambda t: 4 * t * (1 - t)`, avoids it.

Reference: Albergo et al. (2023), https://arxiv.org/abs/2303.08797, sections 2.3
and 6.
"""

import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.interpolants.bridge import Interpolant
from jaxdiff.solvers.building import runge_kutta
from jaxdiff.tableau import Tableau
from jaxdiff.types import ArrayLike

Diffusion = float | Callable[[Any], Any]

_BUTCHER = {
  "euler": ([], [1.0]),
  "midpoint": ([[0.5]], [0.0, 1.0]),
  "heun": ([[1.0]], [0.5, 0.5]),
  "rk4": ([[0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}


@checks.door(host=True)
def transport(
  interpolant: Interpolant,
  grid: ArrayLike,
  *,
  method: str = "heun",
  diffusion: Diffusion = 0.0,
) -> Tableau:
  """Returns the table from the first time of the grid to the last.

  Args:
    interpolant: the bridge.
    grid: f64[n + 1] in [0, 1], rising (from x0 to x1) or falling (back).
    method: "euler", "midpoint", "heun" or "rk4"; an SDE takes "euler" or
      "heun".
    diffusion: eps >= 0, a number or a function of t (of numpy arrays); 0 is
      the ODE.

  Raises:
    ValueError: for a grid that is not monotone inside [0, 1], a negative eps,
      eps > 0 without latent noise, or another method.
  """
  checks.one_of(method, tuple(_BUTCHER), "method")
  grid = _checked_grid(grid)
  values = diffusion(grid) if callable(diffusion) else diffusion
  eps = np.array(np.broadcast_to(values, grid.shape), np.float64)
  if not (eps >= 0).all():
    raise ValueError(
      f"diffusion is eps >= 0, got {eps.min()} at t ="
      f" {grid[int(np.argmin(eps))]:.4g}; the direction of time is the grid's"
    )
  if not eps.any():
    unweighted = types.SimpleNamespace(rates=lambda t: (1.0, 0.0))
    table = runge_kutta(unweighted, grid, *_BUTCHER[method])
    # the weights of all calls at once: a derivative of gamma is not for free
    table = table._replace(output=np.stack(interpolant.rates(table.t), -1))
  elif not interpolant.has_score:
    raise ValueError(
      "without latent noise there is no score, and the SDE needs one; give the"
      ' interpolant some, gamma="brownian", or set diffusion=0'
    )
  elif method == "euler":
    table = _euler_maruyama(interpolant, grid, eps)
  elif method == "heun":
    table = _strang_heun(interpolant, grid, eps)
  else:
    raise ValueError(
      f'method="{method}" integrates the ODE alone; an SDE takes "euler" or'
      ' "heun"'
    )
  return tables.validate(table._replace(t=interpolant.inside(table.t)))


def _euler_maruyama(interpolant, grid, eps):
  h = np.diff(grid)
  return tables.multistep(
    t=grid[:-1],
    output=_drift(interpolant, grid[:-1], eps[:-1], np.sign(h)),
    carry=np.ones_like(h),
    history=h[:, None],
    noise=np.sqrt(2.0 * eps[:-1] * abs(h)),
  )


def _strang_heun(interpolant, grid, eps):
  drift = _drift(interpolant, grid, eps, np.sign(grid[1] - grid[0]))
  rows = []
  for i, h in enumerate(np.diff(grid)):
    before, after = (math.sqrt(e * abs(h)) for e in eps[i : i + 2])
    rows.append(
      tables.row(
        grid[i], drift[i], (1.0, 0.0, h), (1.0, 0.0), noise=(before, 0.0, 0.0)
      )
    )
    rows.append(
      tables.row(
        grid[i + 1],
        drift[i + 1],
        (0.0, 1.0, h / 2, h / 2),
        noise=(0.0, after, after),
      )
    )
  return tables.concat(*rows)


def _drift(interpolant, t, eps, direction):
  """Returns the weights of (v, eta) in the drift, f64[n, 2]."""
  t = interpolant.inside(t)
  weight = interpolant.gamma_dot(t) - direction * eps / interpolant.gamma(t)
  return np.stack([np.ones_like(weight), weight], axis=-1)


def _checked_grid(grid):
  if not checks.concrete(grid):
    raise TypeError(
      "the grid is a traced array, but tables are computed on the host; build"
      " the table outside of jit and pass it as an argument"
    )
  grid = np.array(grid, np.float64)
  if grid.ndim != 1 or len(grid) < 2:
    raise ValueError(
      f"a grid is a 1-D array of at least two times, got shape {grid.shape}"
    )
  steps = np.diff(grid)
  if not ((steps > 0).all() or (steps < 0).all()):
    raise ValueError(
      "the grid must rise (from x0 to x1) or fall (back) strictly, got"
      f" {np.array2string(grid, threshold=8)}"
    )
  if not (grid.min() >= 0 and grid.max() <= 1):
    raise ValueError(
      f"the times of an interpolant are [0, 1], got a grid from {grid[0]:.4g}"
      f" to {grid[-1]:.4g}"
    )
  return grid

r"""Exact inversion: the table that undoes another one, to rounding.

A table maps its two states u = (y, a). Over a block of rows, the stages of one
answer to the next y that is accepted, it is linear in y, a and the answers k:

  u' = P y + Q a + W k,     k a function of y alone.

If Q and all columns of W have one direction d, then y and after it a follow
from u' by the same calls: with l . d = 0 and l . P = 1

  y = l . u',     a = (d . u' - (d . P) y - w . k) / q,   Q = q d, W = d w^T,

|d| = 1. So the inverse is a table of as many calls, at the same places and
times, in the opposite order. It holds for leapfrogs (`belm`, `bdia`), coupled
samples (`edict`) and coupled Runge-Kutta steps (`rex`); for no method that ends
its steps at one sample, which has nothing to solve for (`encoder` walks those
backwards to their order).

The code of a sample is two states, `sampling.Pair`: what goes from a pair to a
pair is undone, one sample alone is not. References: Wang et al. (2024),
https://arxiv.org/abs/2410.07273, section 4.1, for the condition on multistep
methods; Blasingame and Liu (2025), https://arxiv.org/abs/2502.08834.
"""

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers.building import Solver
from jaxdiff.tableau import Tableau


class Inversion(NamedTuple):
  """Two tables that undo each other, from pairs to pairs.

  Attributes:
    encode: from `Pair(data, data)` to the code, a pair near the prior.
    decode: from the code to a pair whose anchor is the data.
  """

  encode: Tableau
  decode: Tableau


@checks.door(host=True)
def exact_inversion(
  build: Solver, process: GaussianProcess, grid: np.ndarray, **options: Any
) -> Inversion:
  """Returns the tables that encode data and decode it again, exactly.

  A leapfrog needs two samples to go on from: its encoder begins with a step of
  DDIM, one call that its decoder does not make.

  Args:
    build: `belm`, `bdia`, `edict` or `rex`.
    process: the forward process.
    grid: f64[n + 1], falling, as for sampling; sigma > 0 and alpha > 0.
    **options: options of the solver.

  Raises:
    ValueError: for a grid that touches sigma = 0 or alpha = 0, too few steps,
      or a solver with options that no table undoes (`gamma=0`).
    TypeError: for a solver that does not end at a pair.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> process = jd.vp_linear()
    >>> model = jd.exact(jd.oracles.g2(), process)
    >>> grid = jd.grids.log_snr(process, 20)
    >>> belm = jd.solvers.belm
    >>> encode, decode = jd.solvers.exact_inversion(belm, process, grid)
    >>> data, key = jnp.asarray([[0.5, 0.2], [-1.0, 0.3]]), jax.random.key(0)
    >>> code = jd.sample(key, model, encode, jd.sampling.Pair(data, data))
    >>> back = jd.sample(key, model, decode, code)
    >>> bool(abs(back.a - data).max() < 1e-3)
    True
  """
  while isinstance(build, functools.partial):
    options = {**build.keywords, **options}
    build = build.func
  if "pair" not in inspect.signature(build).parameters:
    name = getattr(build, "__name__", repr(build))
    raise TypeError(
      f"{name} does not end at a pair, so that no table undoes it; take"
      " solvers.belm, bdia, edict or rex, with options by name:"
      " exact_inversion(solvers.rex, process, grid, method='rk4')"
    )
  checks.process(process, "exact_inversion(solver, process, grid)")
  grid = grids.from_times(process, grid)
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  if sigma[-1] == 0 or alpha[0] == 0:
    raise ValueError(
      "steps into sigma = 0 and out of alpha = 0 forget where they came from,"
      f" but this grid has sigma = {sigma[-1]:.3g} at its last time and alpha ="
      f" {alpha[0]:.3g} at its first; use a grid without to_zero, and start="
      " below t_max where alpha(t_max) = 0"
    )
  table = build(process, grid, pair=True, **options)
  single = not table.state[0, :, 1].any()  # begins at one sample
  if single and table.nfe == 1:
    raise ValueError(
      f"a leapfrog is undone from its second step on, but this grid has"
      f" {len(grid) - 1}; take more steps"
    )
  decode = tables.take(table, slice(1, None)) if single else table
  entry, encode = inverted(decode)
  if single:
    ratio = alpha[-2] / alpha[-1]
    before = (ratio, 0.0, sigma[-2] - sigma[-1] * ratio)  # x_{n-1} by DDIM
    y, a = entry @ np.asarray([before, (1.0, 0.0, 0.0)])
    encode = tables.concat(tables.row(grid[-1], "eps", y, a), encode)
  return Inversion(
    tables.under(tables.validate(encode), process),
    tables.under(decode, process),
  )


@checks.door(host=True)
def inverted(tableau: Tableau) -> tuple[np.ndarray, Tableau]:
  """Returns (entry, table): the table that goes back from where another ends.

  If a run from the pair u ends at u', a run of the table from entry @ u' ends
  at u. Where both states are equal, so are those of entry @ u'.

  Args:
    tableau: deterministic, without data dimensions; see `exact_inversion`.

  Returns:
    entry, f64[2, 2], which acts on (y, a), and the table.

  Raises:
    ValueError: for a table that no table undoes; the row is named.
  """
  tables.validate(tableau)
  if np.any(tableau.noise):
    raise ValueError(
      "a table that draws noise cannot be undone; build it with eta=0, churn=0"
    )
  if np.ndim(tableau.history) > 3:
    raise ValueError(
      "a table with coefficients for each dimension has an inverse in each of"
      f" them, and here history has shape {np.shape(tableau.history)}; take"
      " one dimension of its leaves"
    )
  blocks = _blocks(tableau)
  made = []
  leave = np.eye(2)  # of the first block: the pair itself
  for rows in blocks:
    enter, undone = _undone(tableau, rows, leave)
    made.append(undone)
    leave = enter
  return leave, tables.under(tables.concat(*made[::-1]), tableau.process)


def _blocks(tableau):
  """Returns the rows of each block, slices; a block ends where a may change."""
  state, history = tableau.state, tableau.history
  stage = (state[:, 1] == [0.0, 1.0]).all(1) & (state[:, 0, 1] == 0)
  stage &= ~history[:, 1].any(1)
  if stage[-1]:
    raise ValueError(
      "the table ends within a step: its last row leaves the accepted sample"
      " alone; a table is undone from the end of a step"
    )
  ends = np.flatnonzero(~stage) + 1
  return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _undone(tableau, rows, leave):
  """Returns (enter, table): what undoes one block.

  Args:
    tableau: the table.
    rows: slice of the block.
    leave: f64[2, 2], the pair that is left at, from the block's own (y, a).
  """
  block = tables.take(tableau, rows)
  s = block.nfe
  place, ends = _linear(block, rows.start)  # of y, a and the answers
  p, moved = ends[:, 0], ends[:, 1:]
  size = np.hypot(*moved)
  d = moved[:, np.argmax(size)] / size.max() if size.any() else np.zeros(2)
  across = np.asarray([-d[1], d[0]])
  fits = (abs(across @ moved) <= _ROUNDING * size.max()).all()
  q, w = d @ moved[:, 0], d @ moved[:, 1:]
  depth = across @ p
  lost = abs(depth) <= _ROUNDING * np.hypot(*p) or place[0] == 0
  if not fits or lost or abs(q) <= _ROUNDING * np.hypot(*d):
    raise ValueError(
      f"row {rows.stop - 1} cannot be undone: where its step began does not"
      " follow from its two states, so that it has no exact inverse; take belm,"
      " bdia, edict or rex with pair=True, or solvers.encoder, which goes back"
      " to the order of the method"
    )
  asks = across / depth  # l
  other = [1.0, 0.0] if asks[1] else [0.0, 1.0]
  enter = np.stack([asks, other])
  # (y, a) of the block's start by y, the second state and the answers
  inverse = d @ np.linalg.inv(enter)
  anchor = np.concatenate([[inverse[0] - d @ p, inverse[1]], -w]) / q
  back = leave @ np.stack([np.eye(s + 2)[0], anchor])
  # and y by the place of the last stage
  state = back[:, :2] / np.asarray([place[0], 1.0])
  answers = back[:, 2:] - back[:, :1] * place[2:] / place[0]
  history = np.zeros((1, 2, max(s, block.memory)))
  history[0, :, :s] = answers[:, ::-1]
  end = tables.take(block, slice(s - 1, s))
  end = end._replace(state=state[None], history=history)
  stages = [tables.take(block, slice(0, s - 1))] if s > 1 else []
  return enter, tables.concat(*stages, end)


def _linear(block, first):
  """Returns a block as a linear map of y, a and its answers, oldest first.

  Returns:
    (place, ends): where the last answer is asked, f64[s + 2], and both states
    after it, f64[2, s + 2].
  """
  s = block.nfe
  basis = np.eye(s + 2)
  y, a = basis[:2]
  for j in range(s):
    if block.history[j, :, j + 1 :].any():
      raise ValueError(
        f"row {first + j} looks back at calls of the step before, which a table"
        " that goes back has not made yet; it has no exact inverse"
      )
    answers = basis[2 : j + 3][::-1]
    place = y
    y, a = (
      block.state[j] @ np.stack([y, a]) + block.history[j, :, : j + 1] @ answers
    )
  return place, np.stack([y, a])


_ROUNDING = 1e-12

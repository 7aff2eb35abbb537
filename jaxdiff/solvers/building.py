r"""Building blocks of solvers: coefficients, `@solver`, both ends of a grid.

`@solver` is the door: it checks the grid, and it defines, once for all of them,
the two steps that no formula in log(alpha / sigma) survives:

  into sigma = 0:   x' = alpha' x0             (the answer itself)
  out of alpha = 0: x' = (sigma' / sigma) x + alpha' x0    (one DDIM step)

A solver function sees the grid between them only, where lambda is finite.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import numerics
from jaxdiff import tableau as tables
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import forms
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

Solver = Callable[..., tables.Tableau]


class Coefficients(NamedTuple):
  """alpha, sigma and lambda = log(alpha / sigma) on a grid, f64[n + 1] each."""

  alpha: np.ndarray
  sigma: np.ndarray
  lam: np.ndarray


def coefficients(process: GaussianProcess, t: np.ndarray) -> Coefficients:
  """Returns alpha, sigma and lambda at the times t."""
  return Coefficients(process.alpha(t), process.sigma(t), process.log_snr(t))


@checks.door(host=True)
def solver(
  build: Solver | None = None,
  *,
  starts_at_zero_alpha: bool = False,
  ends_at_zero_sigma: bool = False,
  least: Mapping[str, float] | None = None,
) -> Solver:
  """Turns build(process, grid, **options) -> Tableau into a solver.

  Args:
    build: makes the table of a grid between the two ends.
    starts_at_zero_alpha: whether `build` can leave alpha = 0 by itself.
    ends_at_zero_sigma: whether `build` can reach sigma = 0 by itself.
    least: smallest values of some options, as `checks.door` takes them.

  Returns:
    The checked solver. It raises TypeError for options that `build` does not
    take, or of another type than its annotations say, and ValueError for a grid
    that does not fall, has a NaN, or leaves the process's times.

  Example:
    >>> import numpy as np
    >>> import jaxdiff as jd
    >>> @jd.solver
    ... def mine(process, grid):
    ...   alpha, sigma = process.alpha(grid), process.sigma(grid)
    ...   carry = sigma[1:] / sigma[:-1]
    ...   weights = alpha[1:] - alpha[:-1] * carry
    ...   return jd.tableau.multistep(grid[:-1], "x0", carry, weights[:, None])
    >>> process = jd.vp_cosine()
    >>> grid = jd.grids.log_snr(process, 8)
    >>> all(map(np.allclose, mine(process, grid), jd.ddim(process, grid)))
    True
  """
  if build is None:
    return functools.partial(
      solver,
      starts_at_zero_alpha=starts_at_zero_alpha,
      ends_at_zero_sigma=ends_at_zero_sigma,
      least=least,
    )
  if not callable(build):
    raise TypeError(
      "@solver decorates a function build(process, grid, **options) ->"
      f" Tableau, got {checks.given(build)}; write @solver above its def"
    )

  taken = functools.cache(lambda: checks.contract(build))

  @functools.wraps(build)
  def checked(*args: Any, **options: Any) -> tables.Tableau:
    checks.arguments(taken(), args, options, least or {}, host=True)
    return table(*args, **options)

  def table(
    process: GaussianProcess, grid: ArrayLike, *args: Any, **options: Any
  ) -> tables.Tableau:
    name = getattr(build, "__name__", "solver")
    grid = grids.from_times(process, grid)
    parts = []
    if not starts_at_zero_alpha:
      parts, grid = leave(process, grid)
    last = None
    if process.sigma(grid[-1]) == 0 and not ends_at_zero_sigma:
      if len(grid) > 1:
        last = denoise(process, grid[-2], grid[-1])
      grid = grid[:-1]
    if len(grid) > 1:
      parts.append(build(process, grid, *args, **options))
    if last is not None:
      parts.append(last)
    table = tables.validate(tables.concat(*parts))
    if table.stochastic:
      check_normal(process, name)
    return tables.under(table, process)

  checked.build = build
  return checked


def check_options(
  build: Solver,
  process: GaussianProcess,
  grid: ArrayLike,
  options: Mapping[str, Any],
) -> None:
  """Raises a TypeError or ValueError for options that a solver won't take."""
  if inspect.isfunction(build.build) and hasattr(build, "__wrapped__"):
    taken = checks.contract(build.build)
    checks.arguments(taken, (process, grid), options, host=True)


def inner_steps(process: GaussianProcess, grid: np.ndarray) -> int:
  """Returns how many of the grid's steps a solver takes itself.

  The steps out of alpha = 0 and into sigma = 0 are not among them.
  """
  out_of, into = process.alpha(grid[0]) == 0, process.sigma(grid[-1]) == 0
  return max(0, len(grid) - 1 - int(out_of) - int(into))


def check_eta(eta: ArrayLike) -> None:
  """Raises a ValueError unless eta >= 0, the variance of an SDE's noise."""
  if not np.all(np.asarray(eta) >= 0):
    raise ValueError(
      "eta is the variance of the noise in units of the forward SDE's: 0 is"
      f" the deterministic ODE, 1 the usual reverse SDE; got eta={eta}"
    )


def renewal(eta: ArrayLike, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns what a step of the reverse SDE keeps of the noise, and renews.

  In units of sigma': e^{-eta h} and sqrt(1 - e^{-2 eta h}), whose squares add
  up to 1. At eta = 0 they are exactly 1 and 0.

  Args:
    eta: variance of the noise in units of the forward SDE's, one or for each.
    h: steps in lambda.

  Raises:
    ValueError: if eta is negative.
  """
  check_eta(eta)
  return np.exp(-eta * h), np.sqrt(-np.expm1(-2.0 * eta * h))


def denoise(process: GaussianProcess, t: float, t_end: float) -> tables.Tableau:
  """Returns the row that accepts alpha' x0, the step from t into sigma = 0."""
  row = tables.row(t, "x0", y=(0.0, 0.0, float(process.alpha(t_end))))
  return tables.under(row, process)


def leave(
  process: GaussianProcess, grid: np.ndarray
) -> tuple[list[tables.Tableau], np.ndarray]:
  """Returns the row of a step out of alpha = 0, if any, and the grid after it.

  x' = (sigma' / sigma) x + alpha' x0, a step of DDIM.
  """
  if process.alpha(grid[0]) != 0:
    return [], grid
  alpha, sigma, _ = coefficients(process, grid[:2])
  y = (sigma[1] / sigma[0], 0.0, alpha[1])
  return [tables.row(grid[0], "x0", y)], grid[1:]


@checks.door(host=True)
def encoder(
  build: Solver, process: GaussianProcess, grid: np.ndarray, **options: Any
) -> tables.Tableau:
  """Returns the solver's table walked from data to noise, on the same grid.

  `sample(key, model, encoder(dpmpp_2m, process, grid), x)` encodes x at time
  grid[-1] to noise at grid[0]; the same grid's solver decodes it up to both
  discretization errors (explicit solvers are not exactly reversible).

  Args:
    build: a deterministic solver.
    process: the forward process.
    grid: f64[n + 1], falling, as for sampling; sigma > 0 and alpha > 0.
    **options: options of the solver.

  Raises:
    ValueError: for a grid that touches sigma = 0 or alpha = 0, or a solver
      that draws noise.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> model = jd.exact(jd.oracles.gaussian([0.0], 0.25), process)
    >>> grid = jd.grids.karras(process, 40)
    >>> data, key = jnp.asarray([[0.5], [-1.0]]), jax.random.key(0)
    >>> code = jd.sample(key, model, jd.encoder(jd.heun, process, grid), data)
    >>> back = jd.sample(key, model, jd.heun(process, grid), code)
    >>> print(back.round(1).ravel())
    [ 0.5 -1. ]
  """
  while isinstance(build, functools.partial):
    options = {**build.keywords, **options}
    build = build.func
  if not hasattr(build, "build"):
    raise TypeError(
      "encoder(solver, process, grid) takes a solver made by @solver, got"
      f" {checks.given(build)}; decorate your function with @jaxdiff.solver"
    )
  checks.process(process, "encoder(solver, process, grid)")
  check_options(build, process, grid, options)
  grid = grids.from_times(process, grid)
  alpha, sigma, _ = coefficients(process, grid)
  if sigma[-1] == 0 or alpha[0] == 0:
    raise ValueError(
      "encoding starts from data with a little noise and ends where some"
      f" signal is left, but this grid has sigma = {sigma[-1]:.3g} at its"
      f" last time and alpha = {alpha[0]:.3g} at its first; use a grid"
      " without to_zero, and start= below t_max where alpha(t_max) = 0"
    )
  with np.errstate(invalid="ignore"):  # noise scales have no meaning backwards
    table = build.build(process, grid[::-1], **options)
  if table.stochastic:
    raise ValueError(
      f"{getattr(build.build, '__name__', 'the solver')} draws noise with"
      " these options, so its path cannot be walked backwards; encode with a"
      " deterministic solver (eta=0, churn=0)"
    )
  return tables.under(tables.validate(table), process)


def step_orders(
  order: int | Sequence[int] | None,
  steps: int,
  highest: int,
  name: str,
  default: int | None = None,
  *,
  lower_final: bool = False,
) -> list[int]:
  """Returns the order of each step of a multistep method, cold start included.

  Args:
    order: one for all, or one for each step; None is `default`, or what fewer
      steps allow.
    steps: number of steps.
    highest: the highest order that the method is defined for.
    name: name of the solver, for messages.
    default: `highest` by default.
    lower_final: whether the orders fall to 1 towards the end.

  Raises:
    ValueError: for an order outside of 1..highest, one that exceeds the steps
      or the calls made so far, or a wrong number of them.
  """
  if np.ndim(order) == 0:
    if order is None:
      order = min(highest if default is None else default, steps)
    top = checks.order(order, steps, highest, name)
    orders = [min(top, i + 1) for i in range(steps)]
  else:
    orders = [int(p) for p in order]
    if len(orders) != steps:
      raise ValueError(
        f"{name} was given {len(orders)} orders for {steps} steps; give one"
        " order for all, or one for each step that is not the step into sigma"
        " = 0 or out of alpha = 0"
      )
    for i, p in enumerate(orders):
      if not 1 <= p <= min(i + 1, highest):
        raise ValueError(
          f"{name}: step {i} can have the orders 1..{min(i + 1, highest)} (one"
          f" for each call that was made), got {p}"
        )
  if lower_final:
    orders = [min(p, steps - i) for i, p in enumerate(orders)]
  return orders


def runge_kutta(
  process: GaussianProcess,
  grid: np.ndarray,
  stages: Sequence[Sequence[float]],
  weights: Sequence[float],
  output: str = "velocity",
) -> tables.Tableau:
  """Returns an explicit Runge-Kutta method on d(x / c) / du = F.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    stages: the strictly lower triangle of the Butcher array, row by row; the
      places c are its row sums.
    weights: b, one for each stage.
    output: the form of the ODE, one of `forms.FORMS`; dx/dt = alpha' x0 +
      sigma' eps by default.
  """
  form = forms.FORMS[output]
  places = np.asarray([sum(row) for row in stages] + [1.0])
  rows = []
  for t, t_next in zip(grid[:-1], grid[1:], strict=True):
    u, end = form.clock(process, np.asarray([t, t_next]))
    h = end - u
    at = np.append(t, form.time(process, u + places * h))
    at[1:][places == 1.0] = t_next
    at[1:][places == 0.0] = t
    keep = form.scale(process, at) / form.scale(process, at[0])
    gain = form.scale(process, at) * h
    for i, to in enumerate([*stages, weights]):  # outputs are newest first
      y = (0.0, keep[i + 1], *(gain[i + 1] * w for w in reversed(to)))
      a = y if to is weights else (0.0, 1.0)
      rows.append(tables.row(at[i], form.output(process, at[i]), y, a))
  return tables.concat(*rows)


def multistep_weights(
  process: GaussianProcess,
  grid: np.ndarray,
  output: np.ndarray,
  carry: np.ndarray,
  candidates: Callable[[int], Iterable[np.ndarray]],
) -> np.ndarray:
  r"""Returns the history of a multistep table, of steps that can be trusted.

  An extrapolation over steps that grow has weights far above the step itself:
  a rounding, or the error of a network, comes out that many times larger, and
  the next calls see it. For data at one point, where the answer to x + dx is
  eps + dx / sigma and the same x0, an error e_j of the answer j reaches

    dx_{i+1} = c_i dx_i + sum_k w_ik (output_eps / sigma dx + e)_{i-k},

  for all steps of the table before the first sample is drawn. A step takes the
  first candidate that lets no error of one, in x0 and eps, grow beyond 1000
  times the size of the sample, hypot(alpha, sigma): float32 then is good to
  1e-4, whatever the data. On usual grids the growth is 1 to 200; polynomials in
  t on steps that grow from alpha = 0 have 10^6 at order 4.

  Args:
    process: the forward process.
    grid: f64[n + 1]; one that rises (`encoder`) takes every first candidate,
      since there errors grow as the flow does.
    output: f64[n, 2], weights of (x0, eps) in F.
    carry: f64[n].
    candidates: i -> weights of the last calls in step i, newest first, the
      best first; the last of them is taken if none will do.

  Returns:
    f64[n, K].
  """
  n = len(grid) - 1
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  most = _GROWTH * np.hypot(alpha, sigma)
  if grid[0] < grid[-1]:
    most[:] = np.inf
  answer = output[:, 1] / sigma[:-1]
  unit = np.hypot(output[:, 0], output[:, 1])
  errors, seen, rows = np.zeros(n), [], []
  for i in range(n):
    seen.insert(0, answer[i] * errors)
    seen[0][i] += unit[i]
    for weights in candidates(i):
      reached = carry[i] * errors
      for w, error in zip(weights, seen, strict=False):
        reached = reached + w * error
      if abs(reached).max() <= most[i + 1]:
        break
    rows.append(weights)
    errors = reached
    del seen[_MOST_MEMORY:]
  history = np.zeros((n, max(map(len, rows))))
  for i, weights in enumerate(rows):
    history[i, : len(weights)] = weights
  return history


def adams(
  process: GaussianProcess,
  grid: np.ndarray,
  orders: Sequence[int],
  *,
  clock: np.ndarray,
  scale: np.ndarray,
  output: np.ndarray,
  corrector: bool,
) -> tables.Tableau:
  r"""Returns Adams' method for d(x / scale) / d clock = F.

  The predictor is a polynomial in the clock through the last p values of F;
  after the call at the predicted point the step is taken once more with that
  value, which costs no further call:

    a' = (R' / R) a + R' int_u^u' (L_1 F(y', t') + sum_k L_{-k} F_{i-k}).

  In the table the two are one step of the predicted samples (`corrected`). No
  corrector follows the last step, whose end is never asked. A step whose
  weights would enlarge errors has a lower order (`multistep_weights`).

  Args:
    process: the forward process.
    grid: f64[n + 1].
    orders: p of each step.
    clock: u of the grid, f64[n + 1].
    scale: R, f64[n + 1].
    output: weights of (x0, eps) in F, f64[n + 1, 2].
    corrector: whether the free corrector follows each call but the first.
  """

  def integral(nodes, i):
    """Of the Lagrange polynomials over step i; nodes are newest first."""
    basis = lambda u: numerics.lagrange(clock[nodes], u)
    return scale[i + 1] * numerics.gauss_legendre(basis, clock[i], clock[i + 1])

  carry = scale[1:] / scale[:-1]
  before = None  # weights of the step that led to the call i

  def candidates(i):
    nonlocal before
    last = before
    most = 0 if last is None or not corrector else len(last)
    for used in range(most, -1, -1):  # older calls of the corrector
      again = integral(i - np.arange(used + 1), i - 1) if used else None
      for p in range(orders[i], 0, -1):
        before = step = integral(i - np.arange(p), i)
        yield corrected(carry[i], step, last, again) if used else step

  history = multistep_weights(process, grid, output[:-1], carry, candidates)
  memory = max(orders) + int(corrector)
  return tables.multistep(
    t=grid[:-1],
    output=output[:-1],
    carry=carry,
    history=np.pad(history, ((0, 0), (0, memory - history.shape[1]))),
  )


def corrected(
  carry: float, predicts: np.ndarray, before: np.ndarray, corrects: np.ndarray
) -> np.ndarray:
  r"""Returns the weights of a step that begins with a free corrector.

  The state is the predicted sample y_i = c a_{i-1} + before . (F_{i-1}, ...).
  With the call at it the step before is taken once more, a_i = c a_{i-1} +
  corrects . (F_i, F_{i-1}, ...), and the next one starts from there:

    y_{i+1} = c' a_i + predicts . (F_i, ...),
    a_i = y_i + corrects . (F_i, ...) - before . (F_{i-1}, ...).

  So nothing but y is carried on, and what is drawn with y stays in a_i.

  Args:
    carry: c' of this step.
    predicts: weights of F_i, F_{i-1}, ... in it.
    before: weights of F_{i-1}, F_{i-2}, ... in the step before.
    corrects: weights of F_i, F_{i-1}, ... in that step, taken once more.

  Returns:
    Weights of F_i, F_{i-1}, ...; arrays may have trailing data dimensions.
  """
  size = max(len(predicts), len(before) + 1, len(corrects))
  weights = np.zeros((size, *np.shape(predicts)[1:]))
  weights[: len(corrects)] += corrects
  weights[1 : 1 + len(before)] -= before
  weights *= carry
  weights[: len(predicts)] += predicts
  return weights


def parameters(
  value: PyTree, default: Any, shape: tuple[int, ...], name: str
) -> np.ndarray:
  """Returns the parameters of a table as f64[shape].

  Args:
    value: those given, or None.
    default: what None is, broadcast to the shape.
    shape: of all steps that a solver takes itself.
    name: of the option, for messages.

  Raises:
    ValueError: for another shape, or numbers that are not finite.
  """
  if value is None:
    return np.broadcast_to(np.asarray(default, np.float64), shape).copy()
  value = np.array(value, np.float64)
  if value.shape != shape:
    raise ValueError(
      f"{name} must have the shape {shape} on this grid, whose steps into sigma"
      f" = 0 and out of alpha = 0 have none; got {value.shape}"
    )
  if not np.isfinite(value).all():
    raise ValueError(f"{name} holds NaN or infinity; give finite numbers")
  return value


_GROWTH = 1e3
_MOST_MEMORY = 20  # calls that any step looks back at


def velocity(process: GaussianProcess, t: ArrayLike) -> Any:
  """Returns the weights of (x0, eps) in dx/dt, f64[..., 2]."""
  return np.stack(process.rates(t), axis=-1)


def adams_bashforth(order: int) -> np.ndarray:
  """Returns the Adams-Bashforth weights for equal steps, newest first."""
  table = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
  }
  return np.asarray(table[order])


@checks.door(host=True)
def for_budget(
  build: Callable[[np.ndarray], tables.Tableau],
  grid: Callable[[int], np.ndarray],
  calls: int,
) -> tables.Tableau | None:
  """Returns the table with the most steps that costs at most `calls`.

  Args:
    build: from a grid to a table.
    grid: from a number of steps to a grid.
    calls: the budget of network calls.

  Returns:
    None if not even one step fits.
  """
  best = None
  fewest, most = 1, calls
  while fewest <= most:  # more steps never cost less
    steps = (fewest + most) // 2
    table = build(grid(steps))
    if table.nfe <= calls:
      best, fewest = table, steps + 1
    else:
      most = steps - 1
  return best

r"""Transfer: the table of a method under another process, or in another form.

All Gaussian processes are one curve in v = x / alpha against rho = sigma /
alpha. So a table of process A does under process B exactly what it did if each
call is made at the same rho and each state is rescaled by

  s = alpha_B / alpha_A = sigma_B / sigma_A     at the rho of the state:

  y'_B = s' (state / s) y_B + s' history . F,

since the network's answers (x0, eps) are the same on both. What was built,
searched or learned for one process thereby serves them all.

`normal_form` removes the rest of the freedom. In a deterministic table each
place that is asked is a fixed combination of the start and of the answers so
far, y_i = c_i x + sum_j b_ij x0_j; the one multistep table with full memory
that visits the same places is

  y_{i+1} = r y_i + sum_{j <= i} (b_{i+1,j} - r b_ij) x0_j,   r = c_{i+1} / c_i.

Two tables with the same normal form are the same method. It is the family of
"non-stationary" solvers of Shaul et al. (2024), https://arxiv.org/abs/2403.01329
(theorem 3.2), and where `jaxdiff.learning` starts from.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import agreement
from jaxdiff.processes import describe
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau


@checks.door(host=True)
def transfer(
  tableau: Tableau,
  source: GaussianProcess,
  target: GaussianProcess,
  t_end: float | None = None,
) -> Tableau:
  """Returns the table that does under `target` what `tableau` does now.

  Start it from the same noise in the target's scale: x_B = s x_A at the first
  call, which is what `sample` with a shape does. Samples that a multistage
  table accepts within a step come in the scale of its next call.

  Args:
    tableau: built for `source`, with or without noise.
    source: the process that it was built for.
    target: the process to use it with.
    t_end: the time of `source` that the table ends at; t_min by default. Give
      `source.t_zero` for a table that ends without noise.

  Returns:
    A table of the same shape; its last sample is at the noise level of t_end.

  Raises:
    ValueError: if `target` does not have one of the noise levels, or has noise
      of another law than the table draws, or the table is not of `source`.
  """
  checks.process(source, "transfer(tableau, source, target)")
  checks.process(target, "transfer(tableau, source, target)")
  if tableau.process is not None and not agreement.same(
    tableau.process, source
  ):
    raise ValueError(
      f"transfer moves a table from {describe(source)}, but this one was built"
      f" for {describe(tableau.process)}; pass its own process as source"
    )
  if source.noise != target.noise and tableau.stochastic:
    raise ValueError(
      f"a table that draws the noise of {describe(source)}, {source.noise},"
      f" cannot be moved to {describe(target)}, whose noise is {target.noise};"
      " transfer a deterministic one (eta=0, churn=0)"
    )
  t = np.asarray(tableau.t, np.float64)
  t_end = source.t_min if t_end is None else float(t_end)
  moved = _same_level(source, target, t)
  end = _same_level(source, target, np.asarray([t_end]), may_be_zero=True)
  scale = np.append(
    _scale(source, target, t, moved),
    _scale(source, target, np.asarray([t_end]), end),
  )
  here, there = scale[:-1], scale[1:]

  def times(leaf, factor):
    return leaf * factor.reshape(factor.shape + (1,) * (leaf.ndim - 1))

  made = Tableau(
    t=moved,
    output=tableau.output,
    state=times(tableau.state, there / here),
    history=times(tableau.history, there),
    noise=np.concatenate(
      [
        times(tableau.noise[:, :1], here),
        times(tableau.noise[:, 1:], there),
      ],
      axis=1,
    ),
  )
  return tables.under(made, target)


@checks.door(host=True)
def normal_form(tableau: Tableau, process: GaussianProcess) -> Tableau:
  """Returns the multistep table with memory n that visits the same places.

  Every F is x0, row i remembers i + 1 answers, and y = a throughout.

  Args:
    tableau: deterministic, without data dimensions, of n calls.
    process: the process that it was built for.

  Raises:
    ValueError: if the table draws noise, has coefficients for each dimension,
      or asks at a place that holds nothing of the start.
  """
  tables.validate(tableau)
  if np.any(tableau.noise):
    raise ValueError(
      "only deterministic tables have a normal form and this one draws noise;"
      " build the solver with eta=0 or churn=0"
    )
  if np.ndim(tableau.history) > 3:
    raise ValueError(
      "a table with coefficients for each dimension has a normal form in each"
      f" of them, and here history has shape {np.shape(tableau.history)}; take"
      " one dimension of its leaves"
    )
  n, memory = tableau.nfe, tableau.memory
  alpha, sigma = process.alpha(tableau.t), process.sigma(tableau.t)
  basis = np.eye(n + 1)  # of the start, x0_0, ..., x0_{n-1}
  y = a = basis[0]
  ring = np.zeros((memory, n + 1))
  places = [y]
  for i in range(n):
    x0 = basis[i + 1]
    eps = (y - alpha[i] * x0) / sigma[i]
    new = tableau.output[i, 0] * x0 + tableau.output[i, 1] * eps
    ring = np.concatenate([new[None], ring[:-1]])
    held = np.concatenate([np.stack([y, a]), ring])
    rows = np.concatenate([tableau.state[i], tableau.history[i]], axis=-1)
    y, a = rows @ held
    places.append(y if i < n - 1 else a)
  places = np.stack(places)
  lost = np.flatnonzero(places[:-1, 0] == 0)
  if len(lost):
    raise ValueError(
      f"call {int(lost[0])} asks at a place that holds nothing of the start,"
      " which no table with y = a can write; drop the calls before it"
    )
  carry = places[1:, 0] / places[:-1, 0]
  weights = (places[1:] - carry[:, None] * places[:-1])[:, 1:]
  history = np.zeros((n, n))
  for i in range(n):
    history[i, : i + 1] = weights[i, i::-1]  # newest first
  form = tables.multistep(tableau.t, "x0", carry, history)
  return tables.under(form, process)


def _same_level(source, target, t, may_be_zero=False):
  """Returns the times of `target` with the noise levels of source's t."""
  if may_be_zero and t[0] == source.t_zero:
    if np.isnan(target.t_zero):
      raise ValueError(
        "the table ends without noise, at a time that the target process does"
        " not have; give from_alpha_sigma its t_zero"
      )
    return np.asarray([target.t_zero])
  lam = np.asarray(source.log_snr(t), np.float64)
  low, high = target.log_snr(np.asarray([target.t_max, target.t_min]))
  slack = 1e-9 * np.maximum(1.0, abs(lam))
  outside = (lam < low - slack) | (lam > high + slack)
  if outside.any():
    level = lambda v: float(np.exp(-v))
    raise ValueError(
      f"the table is at the noise level sigma / alpha ="
      f" {level(lam[outside][0]):.6g}, which is outside of the target's"
      f" [{level(high):.6g}, {level(low):.6g}]; give the target a wider range"
      " of times, as in dataclasses.replace(target, t_max=...)"
    )
  moved = np.asarray(target.log_snr_inverse(np.clip(lam, low, high)))
  return np.clip(moved, target.t_min, target.t_max)


def _scale(source, target, t, moved):
  """Returns alpha_B / alpha_A by whichever of alpha and sigma is not 0."""
  with np.errstate(divide="ignore", invalid="ignore"):
    by_alpha = target.alpha(moved) / source.alpha(t)
    by_sigma = target.sigma(moved) / source.sigma(t)
  return np.where(source.log_snr(t) > 0, by_alpha, by_sigma)

r"""UniC: a corrector for any multistep solver, without further calls.

After the call at the predicted point the step that led there is taken once
more, with that call among its values: the polynomial through F at the step's
end and at the p calls that the predictor used is integrated exactly,

  a' = (c' / c) a + c' int_u^u' (L_1 F(y', t') + sum_k L_{-k} F_{i-k}) du,

and the next step starts from a'. The call itself is not repeated: a row
corrects with its fresh output and predicts from there, the two as one step of
the predicted samples (`building.corrected`). With a
predictor of order p the order is p + 1, from an exact history. For
`exponential_ab` in x0 or eps it is `unipc` with `exact=True`: B(h) cancels
where the systems are solved.

No corrector follows the last step, whose end is never asked, and a corrector
that would enlarge errors has fewer values, or is left out. Reference: Zhao
et al. (2023), https://arxiv.org/abs/2302.04867, section 3.1, for any predictor.
"""

import functools
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import building
from jaxdiff.solvers import forms
from jaxdiff.solvers.building import corrected
from jaxdiff.solvers.building import multistep_weights
from jaxdiff.solvers.building import Solver
from jaxdiff.solvers.building import solver
from jaxdiff.solvers.dpmpp_2m import dpmpp_2m
from jaxdiff.tableau import Tableau


@solver
def unic(
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  predictor: Solver = dpmpp_2m,
  **options: Any,
) -> Tableau:
  """Returns a multistep solver's table with UniC: n calls, K one more.

  Args:
    process: the forward process.
    grid: f64[n + 1].
    predictor: a deterministic multistep solver (`dpmpp_2m`, `deis`, ...).
    **options: options of the predictor.

  Raises:
    ValueError: for a solver whose table is not multistep, draws noise, or
      extrapolates something that is none of `forms.FORMS`.
  """
  while isinstance(predictor, functools.partial):
    options = {**predictor.keywords, **options}
    predictor = predictor.func
  if not hasattr(predictor, "build"):
    raise TypeError(
      "unic takes a predictor made by @solver, got"
      f" {checks.given(predictor)}; decorate your function with"
      " @jaxdiff.solver"
    )
  building.check_options(predictor, process, grid, options)
  return correct(predictor.build(process, grid, **options), process, grid)


def correct(
  table: Tableau, process: GaussianProcess, grid: np.ndarray
) -> Tableau:
  """Returns a multistep table with the corrector after each call but the first.

  Args:
    table: n rows, each of which ends a step.
    process: the forward process.
    grid: f64[n + 1], the times of the steps; sigma > 0 and alpha > 0.

  Raises:
    ValueError: as `unic`.
  """
  form = _form(table, process, grid)
  variable = "own" if form == "velocity" else "log_snr"
  carry = table.state[:, 0, 0]
  past = [row[: np.flatnonzero(row)[-1] + 1] for row in table.history[:, 0]]

  def candidates(i):
    if i > 0:
      step = (grid[i - 1], grid[i])
      for used in range(len(past[i - 1]), 0, -1):  # calls of its predictor
        nodes = grid[i - np.arange(used + 1)]
        again = forms.weights(form, process, nodes, step, variable)
        yield corrected(carry[i], past[i], past[i - 1], again)
    yield past[i]

  history = multistep_weights(process, grid, table.output, carry, candidates)
  deeper = table.memory + 1 - history.shape[1]
  return tables.multistep(
    t=grid[:-1],
    output=table.output,
    carry=carry,
    history=np.pad(history, ((0, 0), (0, deeper))),
  )


def _form(table, process, grid):
  """Returns the name of what the table extrapolates."""
  mend = "give unic a deterministic multistep solver, such as dpmpp_2m or deis"
  apart = np.any(table.state[:, 0] != table.state[:, 1]) or np.any(
    table.history[:, 0] != table.history[:, 1]
  )
  if apart or np.any(table.state[:, :, 1]) or np.any(table.noise):
    raise ValueError(
      "UniC corrects tables whose every call ends a step without noise, but"
      f" this one has stages, a corrector or noise; {mend}"
    )
  if table.nfe != len(grid) - 1 or np.any(table.t != grid[:-1]):
    raise ValueError(
      f"the table makes {table.nfe} calls, which are not those at the first"
      f" {len(grid) - 1} times of the grid; {mend}"
    )
  for name, form in forms.FORMS.items():
    if np.allclose(table.output, form.output(process, table.t), rtol=1e-12):
      return name
  raise ValueError(
    "the table extrapolates none of"
    f" {', '.join(forms.FORMS)}, so the corrector cannot tell its integral;"
    f" {mend}"
  )

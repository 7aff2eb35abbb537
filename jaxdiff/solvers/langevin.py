r"""Langevin steps of given sizes as rows, alone or in front of another table's.

  x <- x + e score + sqrt(2 e) z = x - (e / sigma) eps + sqrt(2 e) z

at a fixed time leaves the marginal of that time unchanged but for an error of
order e. With sizes known in advance the step is a row like any other: the law
of a whole predictor-corrector chain then propagates exactly
(`oracles.propagate`). Sizes that depend on norms of the state are no table:
`samplers.predictor_corrector`. Reference: Song et al. (2021), algorithms 4 and
5, https://arxiv.org/abs/2011.13456.
"""

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau
from jaxdiff.types import ArrayLike


@checks.door(host=True)
def langevin(
  process: GaussianProcess, t: ArrayLike, step: ArrayLike
) -> Tableau:
  """Returns the table of n Langevin steps.

  Args:
    process: the forward process.
    t: f64[n] or a scalar, the time of each step.
    step: f64[n] or a scalar, its size e > 0.

  Raises:
    ValueError: if a size is negative, a time has no noise, or the noise is not
      normal.
  """
  checks.process(process, "langevin(process, t, step)")
  check_normal(process, "a Langevin step", "score")
  t, step = np.broadcast_arrays(
    np.atleast_1d(np.asarray(t, np.float64)), np.asarray(step, np.float64)
  )
  sigma = process.sigma(t)
  if not ((step >= 0).all() and (sigma > 0).all()):
    raise ValueError(
      "a Langevin step needs a size of at least 0 and a time with noise, got"
      f" step = {step.min():.4g} and sigma(t) = {sigma.min():.4g} at the least"
    )
  table = tables.multistep(
    t=t,
    output="eps",
    carry=np.ones(len(t)),
    history=(-step / sigma)[:, None],
    noise=np.sqrt(2.0 * step),
  )
  return tables.under(table, process)


@checks.door(host=True)
def with_langevin(
  process: GaussianProcess, tableau: Tableau, step: np.ndarray
) -> Tableau:
  """Returns the table with Langevin steps before each of its rows.

  Args:
    process: the forward process.
    tableau: tableau of a one-step method, each of whose rows ends a step.
    step: f64[n, m], the sizes of the m steps before row i.

  Raises:
    ValueError: for a multistep or multistage table, whose memory the steps in
      between would overwrite, or sizes for another number of rows.
  """
  if not tableau.one_step:
    raise ValueError(
      "with_langevin puts steps between the rows of a one-step table, such as"
      " reverse_diffusion's or ddim's; a row of this one remembers outputs, or"
      " is a stage within a step. samplers.predictor_corrector takes any table"
      " whose steps end with a = y"
    )
  step = np.asarray(step, np.float64)
  if step.ndim != 2 or len(step) != tableau.nfe:
    raise ValueError(
      f"step must hold sizes for each of the {tableau.nfe} rows, shape"
      f" ({tableau.nfe}, m), got {step.shape}"
    )
  parts = []
  for i in range(tableau.nfe):
    if step.shape[1]:
      parts.append(langevin(process, tableau.t[i], step[i]))
    parts.append(tables.take(tableau, slice(i, i + 1)))
  return tables.concat(*parts)

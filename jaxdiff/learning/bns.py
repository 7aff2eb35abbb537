r"""Non-stationary solvers: every number of a table is learned.

The place of call i + 1 is any combination of the start and of all answers so
far, which in normal form (`solvers.normal_form`) is

  y_{i+1} = c_i y_i + sum_{j <= i} b_ij F_{i-j},   F = w . (x0, eps),

so n calls have n numbers c, n (n + 1) / 2 numbers b and n - 1 times; the first
call stays at the start, where the noise is. This is the family of Bespoke
Non-Stationary solvers (Shaul et al. 2024, https://arxiv.org/abs/2403.01329), in
which every deterministic table lies: the descent starts from the best one
known. With `memory` K a row uses its last K answers only, as in S4S (Frankel et
al. 2025, https://arxiv.org/abs/2502.17423).

Times are learned as log(alpha / sigma), inside the process's range. With
`consistent=True` every row stays exact for a constant answer (x0, eps), which
takes two of its numbers:

  c_i alpha_i + sum_j b_ij w_x0 = alpha_{i+1},
  c_i sigma_i + sum_j b_ij w_eps = sigma_{i+1}.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff.learning import clipping
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau
from jaxdiff.types import PyTree


@checks.door
def bns(
  tableau: Tableau,
  process: GaussianProcess,
  *,
  memory: int | None = None,
  consistent: bool = False,
  t_end: float | None = None,
) -> tuple[np.ndarray, Callable[[jax.Array], Tableau]]:
  """Returns (theta, build): where to start, and theta -> Tableau.

  Args:
    tableau: the deterministic table to start from, n calls.
    process: the process that it was built for.
    memory: answers that a row may use; all by default, in normal form. With a
      number the table must be a multistep one (y = a) of no more memory, and
      keeps its outputs.
    consistent: whether rows stay exact for constant answers.
    t_end: the time that the table ends at, t_min by default; `consistent`
      needs it.

  Raises:
    ValueError: if the table draws noise, or is no multistep table of `memory`.
  """
  checks.process(process, "bns(tableau, process)")
  form = (
    solvers.normal_form(tableau, process)
    if memory is None
    else _multistep(tableau, memory)
  )
  n, memory = form.nfe, form.memory
  rows, ago = np.nonzero(np.tril(np.ones((n, memory))))
  if consistent:
    rows, ago = rows[ago > 0], ago[ago > 0]
  parts = [process.log_snr(form.t[1:]), form.history[:, 0][rows, ago]]
  parts += [] if consistent else [form.state[:, 0, 0]]
  t_end = process.t_min if t_end is None else t_end
  ends = (process.alpha(t_end), process.sigma(t_end))
  # outputs by row and age; ages before the first call meet weights of 0
  before = np.maximum(np.arange(n)[:, None] - np.arange(memory), 0)
  aged = form.output[before]  # f64[n, K, 2]

  def build(theta: PyTree) -> Tableau:
    later, older, carry = jnp.split(theta, [n - 1, n - 1 + len(rows)])
    t = jnp.append(
      jnp.asarray(form.t[:1], theta.dtype), clipping.time_at(process, later)
    )
    history = jnp.zeros((n, memory), theta.dtype).at[rows, ago].set(older)
    if consistent:
      alpha = jnp.append(process.alpha(t), ends[0])
      sigma = jnp.append(process.sigma(t), ends[1])
      known = jnp.einsum("nk,nkw->nw", history, aged.astype(theta.dtype))
      left = jnp.stack([alpha[1:], sigma[1:]], axis=1) - known
      w = aged[:, 0].astype(theta.dtype)
      det = alpha[:-1] * w[:, 1] - sigma[:-1] * w[:, 0]
      carry = (left[:, 0] * w[:, 1] - left[:, 1] * w[:, 0]) / det
      newest = (alpha[:-1] * left[:, 1] - sigma[:-1] * left[:, 0]) / det
      history = history.at[:, 0].set(newest)
    state = jnp.zeros((n, 2, 2), theta.dtype).at[:, :, 0].set(carry[:, None])
    learned = Tableau(
      t=t,
      output=jnp.asarray(form.output, theta.dtype),
      state=state,
      history=jnp.stack([history, history], axis=1),
      noise=jnp.zeros((n, 3), theta.dtype),
    )
    return tables.under(learned, process)

  return np.concatenate(parts), build


def _multistep(tableau, memory):
  """Returns the table with memory K, if it is a multistep one."""
  n = tableau.nfe
  if not 1 <= memory <= n:
    raise ValueError(
      f"memory counts answers, 1 to n = {n}; got memory={memory}"
    )
  same = np.array_equal(tableau.history[:, 0], tableau.history[:, 1])
  same &= np.array_equal(tableau.state[:, 0], tableau.state[:, 1])
  if tableau.stochastic or not same or np.any(tableau.state[:, :, 1]):
    raise ValueError(
      "memory needs a deterministic multistep table to start from, every call"
      " of which ends a step (ddim, dpmpp_2m, ipndm, deis); leave memory out"
      " and any deterministic table is brought to this form"
    )
  older = np.flatnonzero(np.any(tableau.history[:, 0, memory:], axis=0))
  if len(older):
    raise ValueError(
      f"the table to start from uses {memory + int(older[-1]) + 1} answers, but"
      f" memory={memory}; start from a solver of lower order"
    )
  tableau = tables.pad(tableau, memory=max(memory, tableau.memory))
  return tableau._replace(history=tableau.history[:, :, :memory])

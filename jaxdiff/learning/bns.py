r"""Non-stationary solvers: every number of a table is learned.

The place of call i + 1 is any combination of the start and of all answers so
far, which in normal form (`solvers.normal_form`) is

  y_{i+1} = c_i y_i + sum_{j <= i} b_ij F_{i-j},

so n calls have n numbers c, n (n + 1) / 2 numbers b and n - 1 times; the first
call stays at the start, where the noise is. This is the family of Bespoke
Non-Stationary solvers (Shaul et al. 2024, https://arxiv.org/abs/2403.01329), in
which every deterministic table lies: the descent starts from the best one
known. `memory` less than n keeps the last answers only, which with the relaxed
objective of `descent` is S4S (Frankel et al. 2025,
https://arxiv.org/abs/2502.17423).

Times are learned as log(alpha / sigma), inside the process's range. With
`consistent=True` every row stays exact for a constant answer (x0, eps):

  c_i = sigma_{i+1} / sigma_i,   sum_j b_ij = alpha_{i+1} - c_i alpha_i.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import solvers
from jaxdiff.learning import clipping
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau


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
    memory: answers that a row may use; all by default.
    consistent: whether rows stay exact for constant answers.
    t_end: the time that the table ends at, t_min by default; `consistent`
      needs it.

  Raises:
    ValueError: if the table draws noise, or uses older answers than `memory`.
  """
  checks.process(process, "bns(tableau, process)")
  form = solvers.normal_form(tableau, process)
  n = form.nfe
  memory = n if memory is None else memory
  if not 1 <= memory <= n:
    raise ValueError(
      f"memory counts answers, 1 to n = {n}; got memory={memory}"
    )
  weights = form.history[:, 0]
  dropped = abs(weights[:, memory:]).max(initial=0.0)
  if dropped > 1e-9 * abs(weights).max():
    raise ValueError(
      f"the table to start from uses answers older than memory={memory}, with"
      f" weights up to {dropped:.3g}; leave memory out, or start from a"
      " multistep solver of that order"
    )
  rows, ago = np.nonzero(np.tril(np.ones((n, memory))))
  if consistent:
    rows, ago = rows[ago > 0], ago[ago > 0]
  lam = process.log_snr(form.t[1:])
  theta = [lam, weights[rows, ago]]
  theta += [] if consistent else [form.state[:, 0, 0]]
  t_end = process.t_min if t_end is None else t_end
  alpha_end, sigma_end = (
    float(process.alpha(t_end)),
    float(process.sigma(t_end)),
  )

  def build(theta: Any) -> Tableau:
    later = clipping.time_at(process, theta[: n - 1])
    t = jnp.append(jnp.asarray(form.t[:1], theta.dtype), later)
    history = jnp.zeros((n, memory), theta.dtype)
    history = history.at[rows, ago].set(theta[n - 1 : n - 1 + len(rows)])
    if consistent:
      alpha = jnp.append(process.alpha(t), alpha_end)
      sigma = jnp.append(process.sigma(t), sigma_end)
      carry = sigma[1:] / sigma[:-1]
      newest = alpha[1:] - carry * alpha[:-1] - history.sum(axis=1)
      history = history.at[:, 0].set(newest)
    else:
      carry = theta[n - 1 + len(rows) :]
    state = jnp.zeros((n, 2, 2), theta.dtype).at[:, :, 0].set(carry[:, None])
    return Tableau(
      t=t,
      output=jnp.broadcast_to(jnp.asarray([1.0, 0.0], theta.dtype), (n, 2)),
      state=state,
      history=jnp.stack([history, history], axis=1),
      noise=jnp.zeros((n, 3), theta.dtype),
    )

  return np.concatenate(theta), build

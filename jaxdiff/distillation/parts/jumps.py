r"""Jumps along the probability-flow ODE, as one DDIM step of a network.

A network that jumps answers (x, t, s) with a pair (x0, eps) on the line alpha
x0 + sigma eps = x, and goes to

  G(x, t, s) = alpha_s x0 + sigma_s eps
             = (sigma_s / sigma) x + (alpha_s - alpha sigma_s / sigma) x0,

which is x itself at s = t, whatever the network answers. Every parametrization
of a flow map is this one: g of CTM (x0 = g), the mean velocity of MeanFlow and
of shortcut models (prediction "flow": u = eps - x0), and consistency models,
which know one s alone.

`along` binds such a network to the jumps that a table makes: an ordinary model,
which any table of one step runs, `ddim` and `gamma_sampling` above all.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import jump_times
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree
from jaxdiff.types import Times


@checks.door
def jump(
  process: GaussianProcess,
  predicted: Prediction,
  x: PyTree,
  t: ArrayLike,
  s: ArrayLike,
) -> jax.Array:
  """Returns where a prediction at x takes it: G(x, t, s), like x.

  Args:
    process: the forward process.
    predicted: what the network answered at (x, t, s).
    x: [batch, ...].
    t: scalar or f[batch], where x is; sigma(t) > 0.
    s: scalar or f[batch], where to jump.
  """
  alpha, sigma = (tree.expand(f(t), x) for f in (process.alpha, process.sigma))
  alpha_s, sigma_s = (
    tree.expand(f(s), x) for f in (process.alpha, process.sigma)
  )
  ratio = sigma_s / sigma
  return ratio * x + (alpha_s - alpha * ratio) * predicted.x0


@checks.door
def flow_map(
  model: Model,
  x: jax.Array,
  t: ArrayLike,
  s: ArrayLike,
  *label: Any,
  **options: Any,
) -> jax.Array:
  """Returns G(x, t, s), where a student's jump from t to s takes x.

  Args:
    model: a Denoiser that jumps.
    x: [batch, ...].
    t: scalar or f[batch].
    s: scalar or f[batch], at most t.
    *label: the labels, if there are any.
    **options: options of the model's call.

  Raises:
    ValueError: if s > t, where the times are concrete.
  """
  if checks.concrete(t) and checks.concrete(s):
    pairs = np.stack(np.broadcast_arrays(t, s), -1).reshape(-1, 2)
    for here, there in pairs[pairs[:, 1] > pairs[:, 0]]:
      raise ValueError(
        f"a jump goes toward the data, from t to s <= t, but t={here:.6g} and"
        f" s={there:.6g}; swap them, or encode by the model's ODE"
        " (solvers.encoder)"
      )
  t, s = (jnp.asarray(v, tree.compute_dtype(x.dtype)) for v in (t, s))
  answer = ask(model, x, t, *label, until=s, **options)
  return jump(model.process, answer, x, t, s)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Along:
  """A network that jumps, with the jumps that a table makes; a model.

  Attributes:
    model: called as model(x, t, label, until=s).
    times: f[n], where the table calls it.
    until: f[n], where it jumps from there.
    label: i32[batch] or None; the condition of every sample.
  """

  model: Model
  times: Times
  until: Array
  label: Array | None = None

  @property
  def process(self) -> GaussianProcess:
    """The forward process."""
    return self.model.process

  def __call__(
    self, x: jax.Array, t: jax.Array, label: ArrayLike | None = None
  ) -> Prediction:
    """Returns (x0, eps) of the jump that begins next to t, a scalar."""
    label = self.label if label is None else label
    t = jnp.asarray(t)
    times = jnp.asarray(self.times, t.dtype)
    until = jnp.asarray(self.until, t.dtype)
    there = jnp.argmin(abs(times - t))
    return self.model(x, t, label, until=until[there])


@checks.door
def along(
  model: Model,
  process: GaussianProcess,
  grid: np.ndarray,
  *,
  gamma: float = 0.0,
) -> Along:
  """Returns the model whose calls on `grid` jump as `gamma_sampling` does.

  With gamma = 0, as for `ddim`, they jump from time to time.

  Args:
    model: a Denoiser that jumps; guidance goes around what is returned.
    process: the forward process.
    grid: f64[n + 1], the grid of the table.
    gamma: as in `solvers.gamma_sampling`.

  Raises:
    ValueError: for a model that does not jump, or a gamma outside of [0, 1].
  """
  if not getattr(model, "jumps", True):
    raise ValueError(
      "this network is told one time alone and cannot jump; run the table on"
      " the model itself, or make a student with distillation.student_of(key,"
      " teacher, shape, jumps=True)"
    )
  grid = np.asarray(grid, np.float64)
  until = jump_times(process, grid, gamma)
  return Along(model, grid[:-1], until)

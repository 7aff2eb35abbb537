r"""Log-density along an ODE, carried by the table of the ODE itself.

Along dX/dt = w . (v, eta) the log density obeys d log p = -w . (div v, div eta)
dt, which is linear in the outputs as dX is: the table of x, run on the pair (x,
log p), moves both. (For a Gaussian process the pair is (x0, eps), and its w are
the rates of alpha and sigma, if the table is one of plain time: euler, heun,
midpoint, rk4.)
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff.predictions import Prediction
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithDivergence:
  """A model of (x, log density along the path), a pytree.

  Attributes:
    model: model(x, t) -> pair, on arrays [batch, ...].
    probe: like x: Hutchinson's estimate p . J p with this probe all along the
      path; None takes the trace exactly, by d derivatives.
  """

  model: Model
  probe: Array | None = None

  def __call__(self, state: tuple, t: jax.Array) -> Prediction:
    """Returns the pair for state (x [batch, ...], log density [batch])."""
    x, _ = state

    def along(direction):
      pair, change = jax.jvp(lambda x: self.model(x, t), (x,), (direction,))
      dot = lambda c: jnp.sum((c * direction).reshape(len(x), -1), axis=1)
      return pair, [dot(c) for c in change]

    if self.probe is not None:
      (first, second), traces = along(jnp.asarray(self.probe, x.dtype))
    else:
      size = math.prod(x.shape[1:])
      basis = jnp.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])
      basis = jnp.broadcast_to(basis[:, None], (size, *x.shape))
      pairs, traces = jax.vmap(along)(basis)
      first, second = (half[0] for half in pairs)
      traces = [v.sum(0) for v in traces]
    return Prediction((first, -traces[0]), (second, -traces[1]))


@checks.door
def with_divergence(
  model: Model, probe: ArrayLike | None = None
) -> WithDivergence:
  """Returns the model that carries the log density along an ODE's path."""
  return WithDivergence(model, probe)

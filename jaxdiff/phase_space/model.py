r"""From a network to the model of phase space: model(state, t) -> eps_w.

The network sees x and w = v / sqrt(M) side by side on the last axis; of its
answer the second half counts. It corrects what is right for normal data of
standard deviation d (the "mixed score" of Dockhorn et al. 2022, section 3.2,
for any d): with e = (mean_x, mean_w) and C = d^2 e e^T + L L^T

  eps_w = L_ww [C^{-1} (x, w)]_w + network(x, w, t).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.phase_space.process import CriticallyDamped
from jaxdiff.phase_space.process import Phase
from jaxdiff.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PhaseField:
  """A network, its parameters, and how to read it; a pytree.

  Attributes:
    params: parameters, a tree of arrays.
    apply: the network as apply(params, inputs [batch, ..., 2 c], t f[batch]).
    process: the forward process.
    sigma_data: standard deviation of the data.
  """

  params: PyTree
  apply: Any = dataclasses.field(default=None, metadata={"static": True})
  process: CriticallyDamped = dataclasses.field(
    default=None, metadata={"static": True}
  )
  sigma_data: float = dataclasses.field(default=1.0, metadata={"static": True})

  def __call__(self, state: Phase, t: jax.Array) -> jax.Array:
    """Returns eps_w, shaped like x, at t, scalar or [batch].

    Raises:
      ValueError: if the network's output is not shaped like its input.
    """
    x, w = state.x, state.v / math.sqrt(self.process.mass)
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    inputs = jnp.concatenate([x, w], axis=-1)
    output = self.apply(self.params, inputs, jnp.broadcast_to(t, x.shape[:1]))
    if output.shape != inputs.shape:
      raise ValueError(
        f"the network returned shape {output.shape} for an input of shape"
        f" {inputs.shape}, which is x and v side by side"
      )
    return self._normal(x, w, t) + jnp.split(output, 2, axis=-1)[1]

  def _normal(self, x, w, t):
    """Returns eps_w for normal data."""
    k = self.process.kernel(t)
    c_xx = self.sigma_data**2 * k.mean_x**2 + k.l_xx**2
    c_xw = self.sigma_data**2 * k.mean_x * k.mean_w + k.l_xx * k.l_wx
    c_ww = self.sigma_data**2 * k.mean_w**2 + k.l_wx**2 + k.l_ww**2
    scale = k.l_ww / (c_xx * c_ww - c_xw**2)
    of_x, of_w = (tree.expand(c, x) for c in (-scale * c_xw, scale * c_xx))
    return of_x * x + of_w * w


@checks.door
def phase_field(
  apply: Any, params: PyTree, process: CriticallyDamped, sigma_data: float = 1.0
) -> PhaseField:
  """Returns a model from any function apply(params, inputs, t)."""
  return PhaseField(params, apply, process, sigma_data)

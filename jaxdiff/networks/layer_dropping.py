"""Layer-dropping networks: the time condition sets how many blocks run.

With L blocks and a budget of m skipped ones, it runs blocks 0..L - m - 2 and
then the last, L - 1: the last block changes the scale of the stream most, and
the output layers know the scale that it leaves (Presto-L). Without `keep_last`
it runs blocks 0..L - m - 1: early exit. m is piecewise constant in c,

  m = budgets[j],   j = number of edges below c,

and the network is told m / L beside c, by the matrix of zeros through which
`Condition` learns of a second number. Parameters are named as in the network
without dropping.

Reference: Novack et al. (2024), https://arxiv.org/abs/2410.05167, section 3.2.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from jaxdiff import checks
from jaxdiff.networks import dit
from jaxdiff.networks import mlp
from jaxdiff.networks import skipping
from jaxdiff.types import ArrayLike

# the network, what it calls its depth, and its blocks
_NETWORKS = {
  "dit": (dit.DiT, "depth", "block{}"),
  "residual_mlp": (mlp.ResidualMLP, "blocks", "block{}_out"),
}


class LayerDropped(nn.Module):
  """A `ResidualMLP` or `DiT` whose depth depends on c.

  Attributes:
    network: "residual_mlp" or "dit".
    options: its attributes.
    num_classes: number of classes, 0 for none; label `num_classes` is null.
    edges: f[q], values of c at which the budget changes, rising.
    budgets: i[q + 1], how many blocks are skipped between them.
    budget: how many are skipped at every c; they cost nothing then. None
      follows `budgets`, sample by sample, and computes all blocks.
    keep_last: whether the last block is always run.
    told: whether the network is told its budget; a `DiT` cannot be.
  """

  network: str = "residual_mlp"
  options: Mapping[str, Any] = FrozenDict()
  num_classes: int = 0
  edges: tuple[float, ...] = ()
  budgets: tuple[int, ...] = (0,)
  budget: int | None = None
  keep_last: bool = True
  told: bool = True

  def setup(self) -> None:
    checks.one_of(self.network, tuple(_NETWORKS), "network")
    make, depth, block = _NETWORKS[self.network]
    self.inner = make(num_classes=self.num_classes, **self.options)
    nn.share_scope(self, self.inner)
    self.names = [block.format(i) for i in range(getattr(self.inner, depth))]
    given = self.budgets if self.budget is None else (self.budget,)
    edges = self.edges if self.budget is None else ()
    check_budgets(len(self.names), edges, given, self.keep_last)

  def __call__(
    self, x: jax.Array, c: jax.Array, label: ArrayLike | None = None
  ) -> jax.Array:
    """Returns an array like x [batch, ...] for c f[batch], label i32[batch].

    Raises:
      ValueError: for edges and budgets that do not fit one another.
    """
    depth = len(self.names)
    keep, left_out = np.ones(depth, bool), ()
    if self.budget is None:
      m = jnp.asarray(self.budgets)[place(c, self.edges)]
      rows = np.ones((depth, depth), bool)  # of every budget
      for budget in self.budgets:
        rows[budget, _skipped(depth, budget, self.keep_last)] = False
      keep = jnp.asarray(rows)[m].T
    else:
      m = jnp.full(c.shape, self.budget)
      skipped = _skipped(depth, self.budget, self.keep_last)
      left_out = [self.names[i] for i in skipped]
    if self.told:
      c = jnp.stack([c, (m / depth).astype(c.dtype)], axis=-1)
    with skipping.skipping(self.names, keep, left_out):
      return self.inner(x, c, label)


def place(c: jax.Array, edges: tuple[float, ...]) -> jax.Array:
  """Returns how many edges lie below c, i32 like c."""
  return jnp.sum(c[..., None] > jnp.asarray(edges, c.dtype), axis=-1)


def name_of(module: Any) -> str | None:
  """Returns what a network is called in `LayerDropped`, None if it is not."""
  names = [n for n, (make, *_) in _NETWORKS.items() if type(module) is make]
  return names[0] if names else None


def check_budgets(
  depth: int,
  edges: tuple[float, ...],
  budgets: tuple[int, ...],
  keep_last: bool = True,
) -> None:
  """Refuses budgets that do not fit the depth, or the edges.

  Raises:
    ValueError: for them.
  """
  if len(budgets) != len(edges) + 1 or np.any(np.diff(edges) <= 0):
    raise ValueError(
      f"{len(budgets)} budgets {tuple(budgets)} need {len(budgets) - 1} edges"
      f" between them, rising with c, got {tuple(edges)}"
    )
  most = depth - 2 if keep_last else depth - 1
  wrong = [m for m in budgets if not 0 <= m <= most]
  if wrong:
    raise ValueError(
      f"a budget of {wrong[0]} skipped blocks of {depth}: need 0 <= m <="
      f" {'L - 2' if keep_last else 'L - 1'} = {most}, since the first block"
      f"{' and the last are' if keep_last else ' is'} always run"
    )


def _skipped(depth, budget, keep_last):
  """Returns the numbers of the blocks that a budget skips."""
  end = depth - 1 if keep_last else depth
  return list(range(end - budget, end))

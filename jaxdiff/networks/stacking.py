"""Stacks of equal blocks, unrolled or scanned.

Unrolled, their parameters are called `block0`, `block1`, ... Scanned, one block
is compiled, whatever the depth, and the parameters under `blocks` have a
leading axis for the depth. `stack_blocks` and `unstack_blocks` turn one form
into the other.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.types import PyTree


def repeat(
  block: Callable[..., nn.Module],
  depth: int,
  h: jax.Array,
  emb: Any,
  *,
  scan: bool,
  remat: bool,
) -> jax.Array:
  """Returns h after `depth` blocks; called inside a compact module.

  Args:
    block: a module class, called as block(name=...)(h, emb) -> (h, None).
    depth: number of blocks.
    h: [batch, length, width].
    emb: what all blocks are told.
    scan: whether one block is compiled for all.
    remat: whether the inside of a block is computed again for the gradient.
  """
  if not scan:
    block = rematerialized(block, remat)
    for i in range(depth):
      h, _ = block(name=f"block{i}")(h, emb)
    return h
  # inside a loop nothing is shared between the passes: no barrier is needed
  block = rematerialized(block, remat, prevent_cse=False)
  blocks = scanned(block, depth, in_axes=nn.broadcast)
  return blocks(name="blocks")(h, emb)[0]


def rematerialized(block: Any, remat: bool, **options: Any) -> Any:
  """Returns the module class (or partial of one) under `nn.remat`."""
  if not remat:
    return block
  return functools.partial(nn.remat(block.func, **options), **block.keywords)


def scanned(block: Any, depth: int, in_axes: Any) -> Any:
  """Returns the module class (or partial of one) as a loop of `depth`."""
  lifted = nn.scan(
    block.func,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=in_axes,
    length=depth,
  )
  return functools.partial(lifted, **block.keywords)


def stack_blocks(
  params: dict[str, Any], one: str = "block", many: str = "blocks"
) -> dict[str, Any]:
  """Returns the parameters of a network with scan=True from those without.

  Args:
    params: with the entries `one`0, `one`1, ...
    one: what the blocks are called.
    many: what their stack is called.
  """
  numbered = [k for k in params if re.fullmatch(rf"{one}\d+", k)]
  numbered.sort(key=lambda k: int(k.removeprefix(one)))
  rest = {k: v for k, v in params.items() if k not in numbered}
  xp = np if _on_host(params) else jnp
  stacked = jax.tree.map(lambda *v: xp.stack(v), *(params[k] for k in numbered))
  return rest | {many: stacked}


def unstack_blocks(
  params: dict[str, Any], one: str = "block", many: str = "blocks"
) -> dict[str, Any]:
  """Returns the parameters of a network with scan=False; see `stack_blocks`."""
  rest = {k: v for k, v in params.items() if k != many}
  depth = len(jax.tree.leaves(params[many])[0])
  take = lambda i: jax.tree.map(lambda v: v[i], params[many])
  return rest | {f"{one}{i}": take(i) for i in range(depth)}


def _on_host(params: PyTree) -> bool:
  return all(isinstance(v, np.ndarray) for v in jax.tree.leaves(params))

"""Skippable residual blocks: a call of a Linen network may leave some out.

A skipped block is the identity. No network is written for it: Flax lets calls
of submodules be intercepted, so residual *branches* (modules whose output is
added to the stream, `block0_out` of `ResidualMLP`) are made zero, and whole
*blocks* (modules from h, or from h and more, to something like h or to (h,
None): `middle` of the U-Net, `block0` of a transformer) are passed by.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff import tree

BRANCH = re.compile(r"block\d+_out")


def branches(params: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the residual branches of a `ResidualMLP`, in their order."""
  names = [name for name in params if BRANCH.fullmatch(name)]
  return tuple(sorted(names, key=lambda n: int(re.findall(r"\d+", n)[0])))


def skipping(
  names: Iterable[str], keep: Any, left_out: Iterable[str] = ()
) -> AbstractContextManager:
  """Returns a context in which calls of a network skip blocks.

  Args:
    names: paths of the modules that may be skipped.
    keep: b[blocks] or b[blocks, batch], which of them are computed and count;
      all are computed.
    left_out: names of those that never count: they cost nothing.

  Raises:
    ValueError: in the call, if a block's output is not shaped as its input.
  """
  index = {name: i for i, name in enumerate(names)}
  left_out = frozenset(left_out)

  def gate(call, inputs, options, context):
    name = "/".join(context.module.path)
    if context.method_name != "__call__" or name not in index:
      return call(*inputs, **options)
    output = call(*inputs, **options)
    h = output[0] if isinstance(output, tuple) else output
    branch = BRANCH.fullmatch(name.rpartition("/")[2]) is not None
    other = jnp.zeros_like(h) if branch else inputs[0]
    if h.shape != other.shape:
      raise ValueError(
        f"{name} cannot be skipped: it turns {other.shape} into {h.shape};"
        " only blocks of equal input and output can be passed by"
      )
    if name in left_out:  # what was computed is dead code to the compiler
      h = other
    else:
      mask = jnp.asarray(keep)[index[name]]
      h = jnp.where(tree.expand(mask, h), h, other)
    return (h, *output[1:]) if isinstance(output, tuple) else h

  return nn.intercept_methods(gate)

r"""Networks whose residual blocks can be skipped, call by call.

A skipped block is the identity: residual branches are made zero, whole blocks
are passed by, as `networks.skipping` says.

`gated` makes a model whose mask is data: masks of all candidates share one
compiled program, in which every block is computed. `without` is for use: blocks
that are left out of the program, and cost nothing.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxdiff import checks
from jaxdiff import denoisers
from jaxdiff import modules
from jaxdiff.networks import skipping
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


@dataclasses.dataclass(frozen=True)
class Gate:
  """The call of a Linen network as a function of (params, mask).

  Attributes:
    module: the network.
    names: names of the branches and blocks that the mask lists, in its order.
    skipped: names that are left out for good.
  """

  module: nn.Module
  names: tuple[str, ...]
  skipped: frozenset[str] = frozenset()

  def __call__(self, params: PyTree, *args: Any) -> jax.Array:
    params, mask = params
    with skipping.skipping(self.names, mask, self.skipped):
      return self.module.apply({"params": params}, *args)


@checks.door
def gated(
  denoiser: denoisers.Denoiser, names: Iterable[str] | None = None
) -> denoisers.Denoiser:
  """Returns the model with a mask beside its parameters, all blocks kept.

  Args:
    denoiser: denoiser of a Linen network (`from_linen`).
    names: paths of the modules that may be skipped; by default the residual
      branches of a `ResidualMLP`, in order.

  Raises:
    TypeError: for another kind of network.
    ValueError: for a name that the network lacks, or none at all.
  """
  if not isinstance(denoiser.apply, denoisers.LinenApply):
    raise TypeError(
      "blocks are skipped in Linen networks, made into models by from_linen;"
      f" this one is applied by {type(denoiser.apply).__name__}"
    )
  modules.without_state(denoiser, "gated")
  held = denoiser.params
  if names is None:
    names = skipping.branches(held)
  names = tuple(names)
  for name in names:
    at = held
    for part in name.split("/"):
      at = at.get(part) if hasattr(at, "get") else None
    if at is None:
      raise ValueError(
        f"the network has no module {name!r}; its modules are {', '.join(held)}"
      )
    _check_branch(name, held)
  if not names:
    raise ValueError(
      "no residual branch block<i>_out was found; name the modules that may be"
      f" skipped, among {', '.join(held)}"
    )
  return dataclasses.replace(
    denoiser,
    params=(held, np.ones(len(names), bool)),
    apply=Gate(denoiser.apply.module, names),
  )


@checks.door
def blocks(denoiser: denoisers.Denoiser) -> int:
  """Returns the number of blocks that a gated model can skip."""
  return len(denoiser.apply.names)


@checks.door
def with_mask(
  denoiser: denoisers.Denoiser, mask: ArrayLike
) -> denoisers.Denoiser:
  """Returns a gated model with another mask, b[blocks]: the `bind` of a search.

  Args:
    denoiser: as `gated` makes it.
    mask: which blocks are kept.
  """
  params, _ = denoiser.params
  return dataclasses.replace(denoiser, params=(params, mask))


@checks.door
def without(
  denoiser: denoisers.Denoiser, skips: Iterable[int]
) -> denoisers.Denoiser:
  """Returns a gated model whose blocks `skips` are left out for good.

  Raises:
    ValueError: for a number that is no block's.
  """
  names = denoiser.apply.names
  wrong = [i for i in skips if not 0 <= i < len(names)]
  if wrong:
    raise ValueError(
      f"blocks are numbered 0..{len(names) - 1}, got {sorted(wrong)}"
    )
  gate = dataclasses.replace(
    denoiser.apply, skipped=frozenset(names[i] for i in skips)
  )
  return dataclasses.replace(denoiser, apply=gate)


def _check_branch(name, params):
  """Refuses a perceptron's branch that is not as wide as it is fed."""
  head, _, leaf = name.rpartition("/")
  if head or not skipping.BRANCH.fullmatch(leaf):
    return
  feeds = params.get(leaf.replace("_out", "_in"))
  if feeds is None:
    return
  wide, out = feeds["kernel"].shape[0], params[name]["kernel"].shape[-1]
  if wide != out:
    raise ValueError(
      f"{name} cannot be skipped: its block takes {wide} features and adds"
      f" {out}; only blocks of equal input and output are the identity without"
      " their branch"
    )

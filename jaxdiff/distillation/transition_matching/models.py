"""Chains of transition matching, and their states as tokens."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff.networks.transitions import TransitionNetwork
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

VARIANTS = ("dtm", "artm", "fhtm")
PROCESSES = ("linear", "independent")

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transitions:
  """A chain X_0 (noise), ..., X_T (data) whose kernels are a network's.

  A pytree; make it with `transitions`. tau = t / T runs from 0, noise, to 1,
  data, the other way round than time elsewhere in this library.

  Attributes:
    params: parameters of the backbone and its head.
    network: a `TransitionNetwork`.
    variant: one of `VARIANTS`.
    process: one of `PROCESSES`.
    steps: T of the training.
    shape: shape of a sample.
    token: shape of a token.
    data_std: standard deviation of the data; what the network sees and returns
      has standard deviation 1.
    continuous: whether tau is any number in training, so that T is free.
  """

  params: PyTree
  network: TransitionNetwork = dataclasses.field(default=None, metadata=_STATIC)
  variant: str = dataclasses.field(default=None, metadata=_STATIC)
  process: str = dataclasses.field(default=None, metadata=_STATIC)
  steps: int = dataclasses.field(default=None, metadata=_STATIC)
  shape: tuple[int, ...] = dataclasses.field(default=None, metadata=_STATIC)
  token: tuple[int, ...] = dataclasses.field(default=None, metadata=_STATIC)
  data_std: float = dataclasses.field(default=None, metadata=_STATIC)
  continuous: bool = dataclasses.field(default=None, metadata=_STATIC)

  @property
  def tokens(self) -> int:
    """How many tokens a state has."""
    return math.prod(self.shape) // math.prod(self.token)

  def apply(self, method: str, *args: Any) -> Any:
    """Returns what a method of the network does with these parameters."""
    return self.network.apply({"params": self.params}, *args, method=method)

  def std(self, tau: ArrayLike) -> jax.Array:
    """Returns the standard deviation of X_t at tau."""
    return jnp.hypot(1.0 - tau, tau * self.data_std)

  def split(self, x: jax.Array) -> jax.Array:
    """Returns the tokens f[batch, n, c] of states, in raster order."""
    counts = [a // b for a, b in zip(self.shape, self.token, strict=True)]
    cut = np.stack([counts, self.token], axis=1).reshape(-1)
    x = x.reshape(len(x), *cut)
    k = len(counts)
    order = (0, *range(1, 2 * k, 2), *range(2, 2 * k + 1, 2))
    return x.transpose(order).reshape(len(x), self.tokens, -1)

  def join(self, tokens: jax.Array) -> jax.Array:
    """Returns the states of tokens: the inverse of `split`."""
    counts = [a // b for a, b in zip(self.shape, self.token, strict=True)]
    k = len(counts)
    x = tokens.reshape(len(tokens), *counts, *self.token)
    order = (0, *(i for j in range(k) for i in (1 + j, 1 + k + j)))
    return x.transpose(order).reshape(len(x), *self.shape)


@checks.door
def transitions(
  key: jax.Array,
  shape: tuple[int, ...],
  variant: str = "dtm",
  *,
  steps: int = 32,
  token: tuple[int, ...] | None = None,
  process: str | None = None,
  continuous: bool = True,
  data_std: float = 1.0,
  **network: Any,
) -> Transitions:
  """Returns an untrained chain.

  Args:
    key: PRNG key of the parameters.
    shape: shape of a sample.
    variant: "dtm", "artm" or "fhtm"; see `transition_matching`.
    steps: T, the number of transitions.
    token: shape of a token, which divides `shape`: (2, 2, 1) are patches of
      grey images. None makes one token of the state: its kernel is then a joint
      one.
    process: "linear" or "independent"; by default the one of the paper.
    continuous: DTM alone: train on every tau, for any T in sampling.
    data_std: standard deviation of the data.
    **network: further fields of `networks.TransitionNetwork`.

  Raises:
    ValueError: for an unknown variant or process or a pair of them that does
      not go together, T < 1, tokens that do not divide the state, or a
      perceptron for a causal variant.
  """
  checks.one_of(variant, VARIANTS, "variant")
  default = "linear" if variant == "dtm" else "independent"
  process = default if process is None else process
  checks.one_of(process, PROCESSES, "process")
  shape = tuple(shape)
  token = shape if token is None else tuple(token)
  _check(variant, process, steps, shape, token, network.get("heads"))
  n = math.prod(shape) // math.prod(token)
  length, prefix = {
    "dtm": (n, n),
    "artm": (2 * n, n),
    "fhtm": (steps * n, 0),
  }[variant]
  module = TransitionNetwork(length=length, prefix=prefix, **network)
  x = jnp.zeros((1, length, math.prod(token)))
  params = jax.jit(module.init)(key, x, jnp.zeros(1))["params"]
  return Transitions(
    params,
    network=module,
    variant=variant,
    process=process,
    steps=steps,
    shape=shape,
    token=token,
    data_std=data_std,
    continuous=continuous and variant == "dtm",
  )


def _check(variant, process, steps, shape, token, heads):
  if variant == "dtm" and process == "independent":
    raise ValueError(
      "DTM predicts Y = X_T - X_0, but the independent process has a noise of"
      ' its own at every t, and no X_0; choose process="linear", or the variant'
      ' "artm" or "fhtm"'
    )
  if variant == "fhtm" and process == "linear":
    raise ValueError(
      "FHTM looks at the whole history, and two states of the linear process"
      " are enough to know X_T: nothing would be left to learn; choose"
      ' process="independent"'
    )
  if steps < 1:
    raise ValueError(f"a chain has at least one transition, got steps={steps}")
  if len(token) != len(shape) or any(
    b < 1 or a % b for a, b in zip(shape, token, strict=False)
  ):
    raise ValueError(
      f"tokens of shape {token} do not fill a state of shape {shape}; every"
      " side of a token must divide that of the state, e.g. (2, 2, 1) for"
      " images (8, 8, 1)"
    )
  if variant != "dtm" and heads == 0:
    raise ValueError(
      f"{variant.upper()} writes token by token, which a perceptron (heads=0)"
      " cannot; give the transformer heads"
    )

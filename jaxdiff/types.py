"""What arguments may be, in one place, for readers and for type checkers.

| name        | what                                                           |
|-------------|----------------------------------------------------------------|
| `Array`     | an array of JAX or of NumPy                                    |
| `ArrayLike` | an array, or a number that stands for one                      |
| `DTypeLike` | what NumPy takes for a dtype                                   |
| `PyTree`    | a tree whose leaves are arrays: dicts, lists, dataclasses that |
|             | JAX knows. No type of Python says that, so a checker takes     |
|             | every object for one, and lets none be used as anything else   |
| `Model`     | model(x, t) -> (x0, eps), such as `Prediction`                 |
| `Times`     | times(key, n) -> f[n], a law of times                          |
"""

from typing import Any, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray
ArrayLike = jax.typing.ArrayLike
DTypeLike = jax.typing.DTypeLike
PyTree = object


class Model(Protocol):
  """A denoiser as a function; jaxdiff asks it nothing else."""

  def __call__(self, x: Any, t: Any, /) -> tuple[Any, Any]:
    """Returns the clean data and the noise that x at time t is made of."""
    ...


class Times(Protocol):
  """A law that times are drawn from, such as those of `losses.times`."""

  def __call__(self, key: jax.Array, n: int, /) -> jax.Array:
    """Returns n times, f[n]."""
    ...

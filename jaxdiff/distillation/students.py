"""Students: networks that begin as their teacher."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import denoisers

PyTree = Any


def student_of(
  key: jax.Array,
  teacher: denoisers.Denoiser,
  shape: tuple[int, ...],
  *,
  jumps: bool = False,
) -> denoisers.Denoiser:
  """Returns a student with the teacher's network and its parameters.

  Args:
    key: of parameters that the teacher does not have.
    teacher: a Denoiser of a Linen module.
    shape: of one sample.
    jumps: whether it is also told where to jump. The second time enters by a
      matrix of zeros: before training the student answers as its teacher.

  Raises:
    TypeError: if the teacher is no Denoiser of a Linen module.
    ValueError: if its network cannot be told two times.
  """
  module = getattr(getattr(teacher, "apply", None), "module", None)
  if module is None:
    raise TypeError(
      "a student is a copy of its teacher's network, so the teacher must be a"
      f" Denoiser of a Linen module, got {type(teacher).__name__}; make the"
      " student with training.make_denoiser, and let it imitate the teacher"
      " first (distillation.imitation)"
    )
  copy = jax.tree.map(jnp.copy, teacher.params)
  if not jumps or teacher.jumps:
    return dataclasses.replace(teacher, params=copy)
  x, c = jnp.zeros((1, *shape)), jnp.zeros((1, 2))
  try:
    fresh = jax.jit(module.init)(key, x, c)["params"]
  except Exception as e:  # whatever a network does with two times
    raise ValueError(
      f"{type(module).__name__} cannot be told two times, where it is and where"
      " to jump; MLP, ResidualMLP and UNet can, and every network that embeds"
      " its time by networks.Condition"
    ) from e
  params = grafted(fresh, copy)
  return dataclasses.replace(teacher, params=params, jumps=True)


def with_params(model: Any, params: PyTree) -> Any:
  """Returns the model with other parameters."""
  return dataclasses.replace(model, params=params)


def must_jump(student: Any, method: str) -> None:
  """Raises a ValueError unless the student is told where to jump."""
  if not getattr(student, "jumps", False):
    raise ValueError(
      f"{method} trains jumps, but this student is told one time alone; make it"
      " with distillation.student_of(key, teacher, shape, jumps=True)"
    )


def grafted(fresh: PyTree, old: PyTree) -> PyTree:
  """Returns `fresh` with every leaf that `old` has taken from there."""
  if not isinstance(fresh, dict):
    return old
  return {
    name: grafted(leaf, old[name]) if name in old else leaf
    for name, leaf in fresh.items()
  }

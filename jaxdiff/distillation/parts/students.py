"""Students: networks that begin as their teacher."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import denoisers
from jaxdiff import modules
from jaxdiff.denoisers import Denoiser
from jaxdiff.types import PyTree

with_params = modules.with_params


@checks.door
def student_of(
  key: jax.Array,
  teacher: denoisers.Denoiser,
  shape: tuple[int, ...],
  *,
  jumps: bool = False,
) -> denoisers.Denoiser:
  """Returns a student with the teacher's network and its parameters.

  Args:
    key: PRNG key of parameters that the teacher does not have.
    teacher: a Denoiser; one of a Linen module if the student is to jump and the
      teacher does not.
    shape: shape of one sample.
    jumps: whether it is also told where to jump. The second time enters by a
      matrix of zeros: before training the student answers as its teacher.

  Raises:
    TypeError: if the teacher is no Denoiser, or its network cannot be made anew
      with another input.
    ValueError: if its network cannot be told two times.
  """
  if not isinstance(teacher, denoisers.Denoiser):
    raise TypeError(
      "a student is a copy of its teacher's network, so the teacher must be a"
      f" Denoiser, got {type(teacher).__name__}; make the student with"
      " models.make_denoiser, and let it imitate the teacher first"
      " (distillation.imitation)"
    )
  copy, state = jax.tree.map(jnp.copy, (teacher.params, teacher.state))
  if not jumps or teacher.jumps:
    return dataclasses.replace(teacher, params=copy, state=state)
  module = getattr(teacher.apply, "module", None)
  if module is None:
    raise TypeError(
      "a student that jumps is told one more number than its teacher, so its"
      " network is made anew, with inputs of another shape: a Linen module can"
      " be, but this teacher's network is called by"
      f" {type(teacher.apply).__name__}: an NNX module or a function has the"
      " shapes that it was made with. Make a module whose c is f[batch, 2],"
      " denoisers.from_nnx(module, process, jumps=True), copy the teacher's"
      " parameters into it or let it imitate the teacher first"
      " (distillation.imitation)"
    )
  modules.without_state(teacher, "student_of(..., jumps=True)")
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


def must_jump(student: Denoiser, method: str) -> None:
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

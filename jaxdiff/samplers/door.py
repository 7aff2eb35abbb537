"""What every sampler checks at its door."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import sampling
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess

PyTree = Any


def begin(
  key: jax.Array | None,
  x: Any,
  process: GaussianProcess,
  t: Any,
  index: Any,
) -> tuple[PyTree, jax.Array]:
  """Returns where a sampler starts and the samples' indices.

  Args:
    key: PRNG key of the initial noise; None if x cannot be a shape.
    x: a tree of [batch, ...], or a shape for which noise of the process is
      drawn, the same that `sampling.sample` draws.
    process: the forward process.
    t: where the sampler starts.
    index: i32[batch] or None, the samples' indices.

  Raises:
    TypeError: for integer samples or indices that are no integers.
    ValueError: for indices of another shape, a shape where the signal exceeds
      the noise, or an x without batch.
  """
  checks.samples(x)
  if checks.is_shape(x) and key is not None:
    if process.log_snr(t) > 0:
      raise ValueError(
        f"sampling begins at t = {float(t):.4g}, where the signal exceeds the"
        " noise; pure noise is no place to start from there: pass x ="
        " process.perturb(key, data, t)[0]"
      )
    like = jax.ShapeDtypeStruct(tuple(x), jnp.result_type(float))
  else:
    like = x = jax.tree.map(jnp.asarray, x)
  for path, leaf in jax.tree_util.tree_leaves_with_path(like):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise TypeError(
        f"leaf {jax.tree_util.keystr(path) or 'x'} has dtype {leaf.dtype};"
        " samples are floating point: convert integer pixels with"
        " likelihood.dequantize, or x / 127.5 - 1"
      )
  index = sampling.checked_index(index, like)
  agreement.check_start(x, process, t)
  if like is not x:
    noise = sampling.initial_noise(key, process.noise, like, index)
    x = float(process.sigma(t)) * noise
  return x, index


def concrete(value: Any, name: str) -> None:
  """Raises a TypeError if any array in value is traced."""
  if not all(map(checks.concrete, jax.tree.leaves(value))):
    raise TypeError(
      f"{name} is traced, but it is read on the host; build it outside of jit"
      " and close over it"
    )

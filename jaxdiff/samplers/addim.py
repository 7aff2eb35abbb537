r"""Adjusted DDIM (aDDIM): DDIM with its lost variance restored, deterministic.

Given x at t, the data are not the answer x0 but spread about it, with variance
v_t a value. A DDIM step that knew them would end at

  (alpha' - alpha sigma' / sigma) data + (sigma' / sigma) x,

on the average longer than DDIM's own x' by

  E |x'_data|^2 = |x'|^2 + d g,     g = (alpha' - alpha sigma' / sigma)^2 v_t.

aDDIM lengthens the noise half of the step: x' = alpha' x0 + c eps with

  match "noise":   c^2 = sigma'^2 + d g / |eps|^2,
  match "sample":  c such that |x'|^2 grows by d g exactly,
                   c = sqrt((b + sigma')^2 + d g / |eps|^2) - b,
                   b = alpha' <x0, eps> / |eps|^2.

"noise" is the paper's, which neglects that x0 and eps are not orthogonal and so
adds too much where the signal is strong; "sample" keeps the mean square of
Gaussian data N(0, v I) exact at any number of steps, with strength 1 and
data_variance v. The paper guesses v_t = 0.1 / (2 + alpha^2 / sigma^2), the
posterior variance of data of variance 1/2, a tenth of it.

|eps|^2 makes it no table. Reference: Heek et al. (2024), "Multistep
Consistency Models", https://arxiv.org/abs/2403.06807, section 3.2.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


class Row(NamedTuple):
  """A step: f[n] each."""

  step: jax.Array
  t: jax.Array
  alpha: jax.Array  # at the end of the step, as the next one
  sigma: jax.Array
  gain: jax.Array  # g, the variance to give back


@checks.sampler
def addim(
  key: jax.Array | None,
  model: sampling.Model,
  grid: np.ndarray,
  x: PyTree,
  *,
  process: GaussianProcess,
  strength: float = 0.1,
  data_variance: float = 0.5,
  match: str = "noise",
  index: ArrayLike | None = None,
  collect: sampling.Collector | None = None,
) -> tuple[PyTree, sampling.WalkInfo]:
  """Returns (x, info): samples, [batch, ...], at the price of n calls.

  Args:
    key: PRNG key of the noise that a shape x stands for; None will do for an
      array, as the method itself draws nothing.
    model: model(x, t) -> Prediction; its arrays are arguments of the program.
    grid: f64[n + 1], falling.
    x: where to start: a tree of [batch, ...] at time grid[0], or a shape.
    process: the forward process.
    strength: share of the posterior variance that is given back; 0 is DDIM.
    data_variance: variance of the data, a value; it sets the posterior variance
      1 / (1 / data_variance + alpha^2 / sigma^2).
    match: "noise" or "sample", see above.
    index: i32[batch], indices of the samples that a shape x stands for; 0, 1,
      ... by default.
    collect: what to keep of the steps, as `info.kept`.

  Raises:
    ValueError: for a bad grid, a negative strength, a variance that is not
      positive, another match, a model of another process, or noise that is
      not normal.
  """
  checks.process(process, "addim(..., process=...)")
  agreement.check(model, None, process, "addim")
  check_normal(
    process,
    "addim",
    "gives back the posterior variance of Gaussian data, which is this under"
    " normal noise alone",
  )
  grid = checks.falling_grid(grid, process.t_min, process.t_max, process.t_zero)
  checks.one_of(match, ("noise", "sample"), "match")
  if strength < 0 or data_variance <= 0:
    raise ValueError(
      "addim gives back a share of the data's variance: strength >= 0 and"
      f" data_variance > 0, got {strength} and {data_variance}"
    )
  alpha, sigma = process.alpha(grid), process.sigma(grid)
  snr = (alpha[:-1] / sigma[:-1]) ** 2
  lost = alpha[1:] - alpha[:-1] * sigma[1:] / sigma[:-1]
  rows = Row(
    step=np.arange(len(grid) - 1, dtype=np.int32),
    t=grid[:-1],
    alpha=alpha[1:],
    sigma=sigma[1:],
    gain=lost**2 * strength / (1.0 / data_variance + snr),
  )
  x, _ = sampling.begin(key, x, process, grid[0], index)
  dtype = tree.compute_dtype(jnp.result_type(*jax.tree.leaves(x)))
  cast = lambda leaf: leaf if leaf.dtype == np.int32 else leaf.astype(dtype)
  arrays, static = tree.partition((model, collect))
  samples, kept = _program(
    arrays,
    jax.tree.map(cast, rows),
    x,
    static=static,
    match=match,
  )
  return samples, sampling.WalkInfo(len(grid) - 1, kept)


@functools.partial(jax.jit, static_argnames=("static", "match"))
def _program(arrays, rows, x, *, static, match):
  model, collect = tree.combine(arrays, static)
  wide = jax.tree.map(lambda v: v.astype(tree.compute_dtype(v.dtype)), x)
  state, kept = sampling.run(
    jax.random.key(0), _advance(model, match), rows, wide, collect=collect
  )
  return jax.tree.map(lambda v, o: v.astype(o.dtype), state, x), kept


def _advance(model, match):
  """Returns the step (key, row, x) -> (x', info)."""

  def advance(key, row, x):
    del key  # deterministic
    answer = ask(model, x, row.t)
    square = _dot(answer.eps, answer.eps)
    overlap = _dot(answer.x0, answer.eps) if match == "sample" else 0.0
    square = jnp.maximum(square, jnp.finfo(square.dtype).tiny)
    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(x))
    b = row.alpha * overlap / square
    c = jnp.sqrt((b + row.sigma) ** 2 + size * row.gain / square) - b
    # sigma' = 0: the answer itself, all of which is known
    c = jnp.where(row.sigma > 0, c, 0.0)
    new = jax.tree.map(
      lambda v, x0, eps: (
        row.alpha * x0.astype(v.dtype)
        + tree.expand(c, v).astype(v.dtype) * eps.astype(v.dtype)
      ).astype(v.dtype),
      x,
      answer.x0,
      answer.eps,
    )
    return new, sampling.StepInfo(row.step, row.t, x, new, answer)

  return advance


def _dot(a: PyTree, b: PyTree) -> jax.Array:
  """Returns the inner product of each sample, [batch]."""
  products = jax.tree.map(
    lambda u, v: jnp.sum(
      (u * v).reshape(u.shape[0], -1), axis=1, dtype=tree.compute_dtype(u.dtype)
    ),
    a,
    b,
  )
  return sum(jax.tree.leaves(products))

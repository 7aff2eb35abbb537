r"""Thresholding: a model made from a model, whose x0 stays in the data's range.

A strong guidance scale drives x0 out of the range of the data, and a sampler
goes on from there. `clip_x0` cuts it off,

  x0' = min(max(x0, low), high),

and `dynamic_threshold` first finds each sample's own range, the q-quantile s of
|x0| over all of its values but at least `limit`, and scales it back:

  x0' = clip(x0, -s, s) limit / s.

The noise that belongs to x0' is what is left of x, eps' = (x - alpha x0') /
sigma. It is computed as

  eps' = eps + (alpha / sigma) (x0 - x0'),

so that a value that was not touched keeps the model's own eps exactly: at small
sigma (x - alpha x0') / sigma is mostly rounding. Where sigma = 0 eps cannot be
told and stays as it is; where alpha = 0 it does not depend on x0.

Reference: Saharia et al. (2022), https://arxiv.org/abs/2205.11487, section 2.3,
whose static thresholding is low, high = -1, 1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clipped:
  """A model whose x0 is clipped; its fields are arguments of programs."""

  model: Model
  low: Array
  high: Array
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, x: PyTree, t: jax.Array, *label: Any) -> Prediction:
    """Returns the (x0, eps) for x [batch, ...], t scalar or [batch]."""
    pair = ask(self.model, x, t, *label)
    low, high = (jnp.asarray(v) for v in (self.low, self.high))
    clip = lambda v: jnp.clip(v, low.astype(v.dtype), high.astype(v.dtype))
    return _with_x0(self.process, t, pair, jax.tree.map(clip, _wide(pair.x0)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Thresholded:
  """A model with dynamic thresholding; its fields are arguments of programs."""

  model: Model
  quantile: Array
  limit: Array
  most: Array
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, x: PyTree, t: jax.Array, *label: Any) -> Prediction:
    """Returns the (x0, eps) for x [batch, ...], t scalar or [batch]."""
    pair = ask(self.model, x, t, *label)
    wide = _wide(pair.x0)
    flat = [abs(v).reshape(v.shape[0], -1) for v in jax.tree.leaves(wide)]
    every = jnp.concatenate(flat, axis=1)
    q, limit, most = (
      jnp.asarray(v, every.dtype)
      for v in (self.quantile, self.limit, self.most)
    )
    s = jnp.clip(jnp.quantile(every, q, axis=1), limit, most)

    def scaled(v):
      own = tree.expand(s, v)
      # limit / s is 1 where nothing is out of range: the value stays as it is
      return jnp.clip(v, -own, own) * (limit / own)

    return _with_x0(self.process, t, pair, jax.tree.map(scaled, wide))


def _wide(x0):
  return jax.tree.map(lambda v: v.astype(tree.compute_dtype(v.dtype)), x0)


def _with_x0(process, t, pair, x0):
  """Returns the pair with another x0, and the eps that belongs to it."""
  leaf = jax.tree.leaves(x0)[0]
  t = jnp.asarray(t, leaf.dtype)
  ratio = numerics.safe_divide(process.alpha(t), process.sigma(t))
  eps = jax.tree.map(
    lambda e, old, new: (
      e.astype(new.dtype)
      + tree.expand(ratio, new).astype(new.dtype) * (old - new)
    ),
    pair.eps,
    _wide(pair.x0),
    x0,
  )
  return Prediction(x0, eps)


def clip_x0(
  model: Model,
  process: GaussianProcess,
  *,
  low: ArrayLike = -1.0,
  high: ArrayLike = 1.0,
) -> Clipped:
  """Returns `model` with its x0 clipped to [low, high].

  Args:
    model: model(x, t[, label]) -> Prediction.
    process: the forward process.
    low: smallest value of the data: a number, or an array that broadcasts
      against the samples, such as one for each channel.
    high: largest value.

  Raises:
    TypeError: for something that is no model or no process.
    ValueError: unless low < high.
  """
  _check_door(model, process, "clip_x0(model, process)")
  known = checks.concrete(low) and checks.concrete(high)
  if known and not np.all(np.asarray(low) < np.asarray(high)):
    raise ValueError(
      f"x0 is clipped to [low, high] with low < high, got low={low} and"
      f" high={high}; images scaled by x / 127.5 - 1 lie in [-1, 1]"
    )
  low, high = (jnp.asarray(v, jnp.result_type(float)) for v in (low, high))
  return Clipped(model, low, high, process=process)


def dynamic_threshold(
  model: Model,
  process: GaussianProcess,
  *,
  quantile: ArrayLike = 0.995,
  limit: ArrayLike = 1.0,
  most: ArrayLike = np.inf,
) -> Thresholded:
  """Returns `model` with the dynamic thresholding of Imagen.

  Args:
    model: model(x, t[, label]) -> Prediction.
    process: the forward process.
    quantile: share of a sample's values that keep their order, in (0, 1].
    limit: largest |x0| of the data.
    most: largest s; `most=limit` is `clip_x0`.

  Raises:
    TypeError: for something that is no model or no process.
    ValueError: for a quantile outside of (0, 1], a limit that is not positive,
      or a `most` below it.
  """
  _check_door(model, process, "dynamic_threshold(model, process)")
  if checks.concrete(quantile) and not 0.0 < quantile <= 1.0:
    raise ValueError(
      f"quantile is the share of a sample's values that keep their order, in"
      f" (0, 1]; got {quantile}; 0.995 is usual"
    )
  if checks.concrete(limit) and not limit > 0:
    raise ValueError(
      f"limit is the largest |x0| of the data, positive; got {limit}"
    )
  if checks.concrete(most) and checks.concrete(limit) and not most >= limit:
    raise ValueError(
      f"most is the largest threshold and at least limit={limit}; got {most}"
    )
  quantile, limit, most = (
    jnp.asarray(v, jnp.result_type(float)) for v in (quantile, limit, most)
  )
  return Thresholded(model, quantile, limit, most, process=process)


def _check_door(model, process, call):
  checks.process(process, call)
  agreement.check(model, None, process, call)
  if not callable(model):
    raise TypeError(
      f"{call} takes a model first, a function model(x, t) -> (x0, eps), got"
      f" {type(model).__name__}"
    )

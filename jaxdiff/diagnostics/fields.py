"""Scores and velocities of a model, as functions that diagnostics evaluate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model

NO_SCORE = (
  "look at the model's own answers, x0 and eps, or at a model of normal noise,"
  " pfgmpp(None)"
)
Score = Callable[[jax.Array, Any], jax.Array]


@checks.door
def score_of(model: Model, process: GaussianProcess) -> Score:
  """Returns score(x, t) = -eps / sigma of a model; t scalar or f[batch].

  Args:
    model: model(x, t) -> Prediction that takes t f[batch], as a `Denoiser` and
      the exact models do.
    process: the forward process.

  Raises:
    ValueError: if its noise is not normal.
  """
  check_normal(process, "the score of a model", "score", NO_SCORE)
  agreement.check(model, None, process, "score_of")

  def score(x: jax.Array, t: ArrayLike) -> jax.Array:
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    return -ask(model, x, t).eps / tree.expand(process.sigma(t), x)

  return score

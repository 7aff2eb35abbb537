r"""Classifier guidance: a model made from a model and a log-likelihood.

The score of p_t(x | y) is that of p_t(x) plus the gradient of log p_t(y | x):

  eps -> eps - scale sigma grad,   x0 -> x0 + scale (sigma^2 / alpha) grad,

with p_t(y | x) that of the noisy x, as a classifier trained on noisy data
estimates it. scale = 1 is Bayes' rule, more sharpens. Reference: Song et al.
(2021), eq. 14, https://arxiv.org/abs/2011.13456; Dhariwal and Nichol (2021),
https://arxiv.org/abs/2105.05233.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import agreement
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassifierGuided:
  """A guided model; its fields are arguments of compiled programs."""

  model: Model
  log_prob: Any
  scale: Array
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, x: PyTree, t: jax.Array) -> Prediction:
    """Returns the guided (x0, eps) for x [batch, ...], t scalar or [batch]."""
    pair = ask(self.model, x, t)
    # a sample's log-probability depends on that sample alone, so the gradient
    # of the sum holds all of theirs
    slope = jax.grad(lambda v: jnp.sum(_one_each(self.log_prob(v, t), v)))(x)
    dtype = tree.compute_dtype(jax.tree.leaves(x)[0].dtype)
    t = jnp.asarray(t, dtype)
    alpha, sigma = self.process.alpha(t), self.process.sigma(t)
    gain = jnp.asarray(self.scale, dtype) * sigma
    ratio = gain * numerics.safe_divide(sigma, alpha)
    push = lambda half, weight: jax.tree.map(
      lambda h, g: h + tree.expand(weight, h) * g, half, slope
    )
    return Prediction(push(pair.x0, ratio), push(pair.eps, -gain))


def _one_each(value, x):
  size = tree.batch_size(x)
  if jnp.shape(value) != (size,):
    raise ValueError(
      "log_prob returns log p(y | x) of the one y that is wanted, a number for"
      f" each sample, shape ({size},), got {jnp.shape(value)}; of logits"
      " take jax.nn.log_softmax(logits)[:, y]"
    )
  return value


@checks.door
def classifier_guided(
  model: Model,
  log_prob: Any,
  process: GaussianProcess,
  *,
  scale: ArrayLike = 1.0,
) -> ClassifierGuided:
  """Returns `model` guided by the gradient of a log-likelihood.

  Args:
    model: model(x, t) -> Prediction.
    log_prob: (x, t) -> f[batch], log p_t(y | x) of each noisy sample for what
      it shall be; a function or a pytree that can be called.
    process: the forward process.
    scale: scalar or [batch]; 1.0 is Bayes' rule.

  Raises:
    TypeError: if log_prob cannot be called.
    ValueError: if the noise of the process is not normal, or the model of
      another process.
  """
  checks.process(process, "classifier_guided(model, log_prob, process)")
  check_normal(
    process,
    "classifier_guided",
    "moves eps by the gradient of log p(y | x_t), which Bayes' rule says of"
    " scores; eps is a score under normal noise alone",
    "use a conditional model with cfg, which is right for any noise, or the"
    " limit of normal noise, pfgmpp(None)",
  )
  agreement.check(model, None, process, "classifier_guided")
  if not callable(log_prob):
    raise TypeError(
      "classifier_guided(model, log_prob, process) takes a function (x, t) ->"
      f" log p(y | x) second, got {type(log_prob).__name__}"
    )
  checks.scale(scale)
  scale = jnp.asarray(scale, jnp.result_type(float))
  return ClassifierGuided(model, log_prob, scale, process=process)

r"""Implicit score matching: the score of the data itself, without noise.

  J(theta) = E [ tr(grad s_theta(x)) + |s_theta(x)|^2 / 2 ]
           = E |s_theta - grad log p|^2 / 2 - E |grad log p|^2 / 2

by parts (Hyvarinen 2005). The trace is exact, or estimated by v^T (grad s) v
with signs v = +-1 and one product (the variance-reduced form of Song et al.
2019, https://arxiv.org/abs/1905.07088). Its minimum, -E |grad log p|^2 / 2, is
unknown: only differences mean something. On few points it is unbounded below,
for wells around each of them; stop early on the loss of held-out data, decay
weights, or add a little noise to the input (which makes it denoising at one
level).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import jacobians
from jaxdiff import tree
from jaxdiff.types import PyTree

TRACES = ("hutchinson", "exact")
_KINKED = ("relu", "relu6", "leaky_relu", "hard_tanh", "hard_sigmoid")


@checks.door
def implicit_score(
  apply: Callable[[PyTree, jax.Array], jax.Array],
  *,
  trace: str = "hutchinson",
  probes: int = 1,
  input_noise: float = 0.0,
) -> Callable[[jax.Array, PyTree, Any], tuple[jax.Array, dict]]:
  """Returns loss(key, params, batch) -> (scalar, metrics).

  The batch is f[batch, ...] or a dict with "image". Metrics are "loss",
  "trace" and "square", the means of the two terms.

  Args:
    apply: apply(params, x) -> score, shaped like x; smooth in x.
    trace: "hutchinson" or "exact", d forward passes.
    probes: sign vectors for each sample.
    input_noise: standard deviation of noise added to the data.

  Raises:
    ValueError: for an unknown trace, probes < 1, and, when the loss is first
      called, for a network of piecewise linear activations.
  """
  checks.one_of(trace, TRACES, "trace")
  if probes < 1:
    raise ValueError(f"probes must be at least 1, got {probes}")
  if input_noise < 0:
    raise ValueError(f"input_noise must be at least 0, got {input_noise}")

  def loss(key: jax.Array, params: PyTree, batch: PyTree):
    x = jnp.asarray(batch["image"] if isinstance(batch, dict) else batch)
    field = lambda v: apply(params, v)
    _check_smooth(field, x)
    noise_key, probe_key = jax.random.split(key)
    if input_noise:
      x = x + input_noise * tree.normal(noise_key, x)
    signs = None
    if trace == "hutchinson":
      signs = jacobians.rademacher(probe_key, x, probes)
    traces = jacobians.divergence(field, x, signs)
    s = field(x)  # the compiler finds it in the linearization
    square = 0.5 * jnp.sum(jnp.square(s).reshape(x.shape[0], -1), axis=1)
    value = jnp.mean(traces + square)
    return value, dict(
      loss=value, trace=jnp.mean(traces), square=jnp.mean(square)
    )

  return loss


def _check_smooth(field, x):
  """Refuses relu networks.

  Their trace is piecewise constant in x, and its expectation depends on the
  parameters through the places of the kinks, which automatic differentiation
  does not see: the gradient of the loss is biased.
  """
  kinked = control.called(field, x) & set(_KINKED)
  if kinked:
    raise ValueError(
      f"the score network uses {', '.join(sorted(kinked))}: the trace of a"
      " piecewise linear network is constant between kinks, and the gradient"
      " of its mean misses that the kinks move; use silu, softplus or tanh"
    )

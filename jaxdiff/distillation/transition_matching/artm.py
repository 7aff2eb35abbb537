r"""Autoregressive transition matching (ARTM): X_{t+1}, token by token.

  p(X_{t+1} | X_t) = prod_i p(X_{t+1}^i | t, X_t, X_{t+1}^{<i})

with every factor a flow of one token: the kernel is a joint one, and few
transitions are enough (T = 2 or 3). The backbone reads X_t as a whole and then
the tokens that are written, of which each sees those before it. T = 1 is
autoregression alone, from noise that says nothing.

The supervising process is the independent one, X_t = (1 - tau) X_{0,t} + tau
X_T with fresh noise for every t: X_{t+1} and X_t have X_T in common alone,
which makes the factors smooth. Both are divided by their standard deviation.

Reference: Shaul et al. (2025), https://arxiv.org/abs/2506.23589, section 2.
"""

import jax
import jax.numpy as jnp

from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.distillation.transition_matching import kernels
from jaxdiff.distillation.transition_matching.models import Transitions
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree


def learn(
  key: jax.Array,
  model: Transitions,
  x: jax.Array,
  label: ArrayLike,
  index: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
  """Returns features and what the head is to draw from them, at random t."""
  time_key, noise_key = jax.random.split(key)
  t = jnp.floor(model.steps * kernels.stratified(time_key, len(x)))
  tau = jnp.stack([t, t + 1.0]).astype(x.dtype) / model.steps
  here, there = kernels.states(noise_key, model.process, x, tau, index)
  read = model.split(here) / model.std(tau[0])[:, None, None]
  written = model.split(there) / model.std(tau[1])[:, None, None]
  sequence = jnp.concatenate([read, kernels.shifted(written)], axis=1)
  h = model.apply("features", sequence, tau[0], label)
  return h[:, model.tokens :], written


def draw(
  key: jax.Array,
  model: Transitions,
  like: PyTree,
  label: ArrayLike,
  *,
  steps: int,
  head_steps: int,
  guidance: ArrayLike | None = None,
) -> jax.Array:
  """Returns samples like `like`; see `sample` of this package."""

  def advance(key, t, x):
    tau = jnp.full(len(x), t, x.dtype) / steps
    read = model.split(x) / model.std(tau)[:, None, None]
    told = kernels.both(tau, guidance)
    cache = model.network.empty_cache(len(told), x.dtype)
    _, cache = model.apply(
      "extend", kernels.both(read, guidance), told, label, 0, cache
    )
    tokens = kernels.write(
      key, model, cache, model.tokens, read, told, label, head_steps, guidance
    )
    return model.join(tokens) * model.std((t + 1) / steps).astype(x.dtype), None

  start_key, walk_key = jax.random.split(key)
  x = tree.normal(start_key, like)
  return sampling.run(walk_key, advance, jnp.arange(steps), x)[0]

r"""Full history transition matching (FHTM): a causal model of the whole chain.

  p(X_1, ..., X_T) = prod_{t, i} p(X_{t+1}^i | X_1, ..., X_t, X_{t+1}^{<i})

The states are one text, whose last part is the sample. A causal backbone needs
no time, since a token's place tells it, and one pass with teacher forcing
trains all transitions at once; sampling writes on, with one cache. X_0, noise
that is independent of everything, is left out for a token that says "begin".

The process must be the independent one: two states of the linear process are
enough to know X_T.

Reference: Shaul et al. (2025), https://arxiv.org/abs/2506.23589, section 2.
"""

import jax
import jax.numpy as jnp

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
  """Returns features and what the head is to draw from them, of all t."""
  tau = jnp.arange(1, model.steps + 1, dtype=x.dtype) / model.steps
  chain = kernels.states(key, model.process, x, tau, index)
  chain = [model.split(v) / model.std(s) for v, s in zip(chain, tau)]
  text = jnp.concatenate(chain, axis=1)
  timeless = jnp.zeros(len(x), x.dtype)
  return model.apply("features", kernels.shifted(text), timeless, label), text


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
  n, _, c = jax.eval_shape(model.split, like).shape
  text = jax.ShapeDtypeStruct((n, steps * model.tokens, c), like.dtype)
  timeless = kernels.both(jnp.zeros(n, like.dtype), guidance)
  cache = model.network.empty_cache(len(timeless), like.dtype)
  written = kernels.write(
    key, model, cache, 0, text, timeless, label, head_steps, guidance
  )
  return model.join(written[:, -model.tokens :]) * model.data_std

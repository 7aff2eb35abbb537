r"""Difference transition matching (DTM): the kernel of X_T - X_0.

On the linear process X_t = (1 - tau) X_0 + tau X_T, tau = t / T,

  Y = X_T - X_0 ~ p(Y | t, X_t),   X_{t+1} = X_t + Y / T.

E[Y | X_t] is the velocity of flow matching: with its mean alone a transition is
a step of Euler's method. With the whole law of Y, of all tokens together, X_t
has the right marginal for every T, T = 1 included: q(X_{t+1} | X_t) is what is
drawn. T draws of size 1 / T add a variance of O(1 / T): with many transitions
the path tends to that of the ODE.

The head draws every token by itself, given X_t. This factorised kernel is exact
if one token is the whole state, and in the limit of many transitions.

Y has standard deviation sqrt(1 + data_std^2); the head learns Y divided by it.

Reference: Shaul et al. (2025), https://arxiv.org/abs/2506.23589, section 2 and
appendices "Training and sampling algorithms" and "Convergence of DTM".
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.distillation.transition_matching import kernels
from jaxdiff.distillation.transition_matching.models import Transitions
from jaxdiff.oracles import GaussianMixture
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def learn(
  key: jax.Array,
  model: Transitions,
  x: jax.Array,
  label: ArrayLike,
  index: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
  """Returns features and what the head is to draw from them, at random t."""
  time_key, noise_key = jax.random.split(key)
  tau = kernels.stratified(time_key, len(x)).astype(x.dtype)
  if not model.continuous:
    tau = jnp.floor(model.steps * tau) / model.steps
  start = tree.normal(noise_key, x, index)
  here = tree.expand(tau, x)
  h = _features(model, (1.0 - here) * start + here * x, tau, label)
  return h, model.split(x - start) / math.hypot(1.0, model.data_std)


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
  tokens = jax.eval_shape(model.split, like)

  def kernel(key, x, tau):
    tau = jnp.broadcast_to(tau, x.shape[:1])
    double = lambda v: kernels.both(v, guidance)
    h = _features(model, double(x), double(tau), label)
    velocity = kernels.velocity(model, h, guidance)
    y = kernels.flow_sample(key, velocity, tokens, head_steps)
    return model.join(y) * math.hypot(1.0, model.data_std)

  start_key, walk_key = jax.random.split(key)
  return walk(walk_key, kernel, tree.normal(start_key, like), steps)


def _features(model, x, tau, label):
  x = model.split(x) / model.std(tau)[:, None, None]
  return model.apply("features", x, tau, label)


def walk(
  key: jax.Array,
  kernel: Kernel,
  x: jax.Array,
  steps: int,
  *,
  collect: sampling.Collector | None = None,
) -> Any:
  """Returns X_T from X_0 = x, or (X_T, collected) with a collector.

  Args:
    key: PRNG key of the kernels; transition t is given fold_in(key, t).
    kernel: (key, X_t, tau) -> Y.
    x: noise f[batch, ...].
    steps: T.
    collect: what to keep of the transitions, as in `sampling.run`.
  """

  def advance(key, row, x):
    step, tau = row
    there = x + kernel(key, x, tau) / steps
    return there, sampling.StepInfo(step, tau, x, there, None)

  t = jnp.arange(steps)
  rows = (t, t.astype(x.dtype) / steps)
  x, kept = sampling.run(key, advance, rows, x, collect=collect)
  return x if collect is None else (x, kept)


def exact_kernel(law: GaussianMixture, factorised: bool = False) -> Kernel:
  """Returns the exact kernel of data that are a mixture.

  Args:
    law: law of the data.
    factorised: draw every value of Y by itself, from its exact marginal: what
      a head whose tokens are single values can learn at best.
  """

  def kernel(key, x, tau):
    end = law.posterior_sample(key, x, tau, 1.0 - tau, factorised=factorised)
    return (end - x) / (1.0 - tau)

  return kernel


def mean_kernel(law: GaussianMixture) -> Kernel:
  """Returns E[Y | X_t], no law at all: `walk` is Euler's flow matching."""

  def kernel(key, x, tau):
    del key  # deterministic
    x0, eps = law.predict(x, tau, 1.0 - tau)
    return x0 - eps

  return kernel

r"""Kernels: what the three variants share: supervision and the flow of a token.

A kernel p(B | A) is itself a flow, with an inner time s from 0 to 1:

  B_s = (1 - s) B_0 + s B,   B_0 ~ N(0, I),   loss |u(h, s, B_s) - (B - B_0)|^2

where h are the features that the backbone makes of A. They are made once, and
serve several draws of (s, B_0) in training and all inner steps in sampling.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.distillation.transition_matching.models import Transitions
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

Velocity = Callable[[jax.Array, jax.Array], jax.Array]


def states(
  key: jax.Array,
  process: str,
  x: jax.Array,
  tau: jax.Array,
  index: ArrayLike | None = None,
) -> jax.Array:
  """Returns the supervising process X_t at times tau, f[k, batch, ...].

  X_t = (1 - tau) X_0 + tau X_T with one noise X_0 ("linear") or one of its own
  for every time, of fold_in(key, j) ("independent"): the same marginals.

  Args:
    key: PRNG key of the noise.
    process: "linear" or "independent".
    x: X_T, data [batch, ...].
    tau: f[k] or f[k, batch].
    index: i32[batch], the samples' numbers.
  """
  own = jnp.arange(len(tau)) * (process == "independent")
  noise = jax.vmap(lambda j: tree.normal(jax.random.fold_in(key, j), x, index))(
    own
  )
  tau = tau.reshape(tau.shape + (1,) * (noise.ndim - tau.ndim)).astype(x.dtype)
  return (1.0 - tau) * noise + tau * x


def stratified(key: jax.Array, n: int) -> jax.Array:
  """Returns n uniform numbers in [0, 1), one in each of n equal strata."""
  return jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1.0)


def flow_loss(
  key: jax.Array,
  model: Transitions,
  h: jax.Array,
  target: jax.Array,
  repeat: int,
  index: ArrayLike | None = None,
) -> jax.Array:
  """Returns the loss of the head for features h of a single backbone pass.

  Args:
    key: PRNG key of s and B_0.
    model: whose head it is.
    h: f[batch, n, width].
    target: B f[batch, n, c].
    repeat: draws of (s, B_0) for every token.
    index: i32[batch], the samples' numbers.
  """

  def once(key):
    time_key, noise_key = jax.random.split(key)
    s = jax.random.uniform(time_key, target.shape[:2], target.dtype)
    start = tree.normal(noise_key, target, index)
    between = (1.0 - s[..., None]) * start + s[..., None] * target
    error = model.apply("velocity", h, s, between) - (target - start)
    return jnp.mean(jnp.square(error))

  return jnp.mean(jax.vmap(once)(jax.random.split(key, repeat)))


def velocity(
  model: Transitions, h: jax.Array, guidance: ArrayLike | None = None
) -> Velocity:
  """Returns (s, B) -> u of the head, guided if `guidance` is given.

  Args:
    model: whose head it is.
    h: f[batch, n, width]; with guidance w those under the label, then those
      under the null label, f[2 batch, n, width]: u = u_null + w (u_label -
      u_null).
    guidance: w, or None.
  """

  def plain(s, y):
    return model.apply("velocity", h, jnp.broadcast_to(s, y.shape[:2]), y)

  if guidance is None:
    return plain

  def guided(s, y):
    with_label, null = jnp.split(plain(s, jnp.concatenate([y, y])), 2)
    return null + guidance * (with_label - null)

  return guided


def flow_sample(
  key: jax.Array, velocity: Velocity, like: PyTree, steps: int
) -> jax.Array:
  """Returns B by Euler's method on s, f[batch, n, c].

  Args:
    key: PRNG key of B_0.
    velocity: (s, B) -> u.
    like: array or ShapeDtypeStruct of the tokens.
    steps: number of calls of the head.
  """
  start = tree.normal(key, like)
  advance = lambda key, s, y: (y + velocity(s, y) / steps, None)
  s = jnp.arange(steps, dtype=start.dtype) / steps
  return sampling.run(key, advance, s, start)[0]


def both(x: jax.Array, guidance: ArrayLike) -> jax.Array:
  """Returns x twice if there is guidance: for the label, for its absence."""
  return x if guidance is None else jnp.concatenate([x, x])


def shifted(tokens: jax.Array) -> jax.Array:
  """Returns the tokens a place later; a zero says where to begin."""
  return jnp.pad(tokens, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def write(
  key: jax.Array,
  model: Transitions,
  cache: PyTree,
  first: int,
  like: PyTree,
  c: jax.Array,
  label: ArrayLike,
  head_steps: int,
  guidance: ArrayLike | None = None,
) -> jax.Array:
  """Returns tokens written one after another, f[batch, k, c].

  Args:
    key: PRNG key of all tokens.
    model: a causal one.
    cache: cache of the places before `first`.
    first: place of the first token.
    like: array or ShapeDtypeStruct of what is to be written.
    c: f[batch], the time condition; twice as long with guidance, as the cache
      and the label.
    label: i32[batch] or None.
    head_steps: calls of the head for a token.
    guidance: as in `velocity`.
  """
  one = jax.ShapeDtypeStruct((like.shape[0], 1, like.shape[2]), like.dtype)

  def advance(key, i, state):
    cache, last, written = state
    h, cache = model.apply(
      "extend", both(last, guidance), c, label, first + i, cache
    )
    last = flow_sample(key, velocity(model, h, guidance), one, head_steps)
    written = jax.lax.dynamic_update_slice_in_dim(written, last, i, axis=1)
    return (cache, last, written), None

  blank = lambda s: jnp.zeros(s.shape, s.dtype)
  state = (cache, blank(one), blank(like))
  places = jnp.arange(like.shape[1])
  return sampling.run(key, advance, places, state)[0][2]

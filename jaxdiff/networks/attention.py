r"""Attention with an exact forward mode, in memory linear in the length.

With S = Q K^T / sqrt(d), P = softmax S, O = P V, a direction (dQ, dK, dV) has

  dS = (dQ K^T + Q dK^T) / sqrt(d),
  dO = P dV + (P * dS) V - rowsum(P * dS) * O,

three sums over keys. Given L = logsumexp S, P = exp(S - L) is known block by
block of keys, and no matrix [length, length] is ever whole. Fused kernels have
a reverse mode alone (`jax.custom_vjp`), and `jax.jvp`, on which sCM and
MeanFlow stand, refuses them: here the kernel computes O, and the sums above its
derivative. The rule is linear in the direction, hence transposed by JAX for the
reverse mode, with the blocks of P computed again.

Reference: Zheng et al. (2025), https://arxiv.org/abs/2510.08431, section 3.1;
running softmax: Rabe and Staats (2021), https://arxiv.org/abs/2112.05682.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import tree
from jaxdiff.types import ArrayLike

IMPLEMENTATIONS = ("xla", "cudnn", "blocks", "cudnn_jvp")


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "xla"
) -> jax.Array:
  """Returns attention [batch, length, heads, d] by an implementation.

  | implementation | what                                  | modes            |
  |----------------|---------------------------------------|------------------|
  | "xla"          | plain, matrices of length x length    | forward, reverse |
  | "cudnn"        | fused kernel of GPUs, bfloat16 alone  | reverse          |
  | "blocks"       | `attention_with_jvp`, on every device | forward, reverse |
  | "cudnn_jvp"    | the same above the fused kernel       | forward, reverse |

  Raises:
    ValueError: for an unknown implementation.
  """
  checks.one_of(implementation, IMPLEMENTATIONS, "implementation")
  # JAX's own softmax is float32 at the most
  double = q.dtype == jnp.float64
  if implementation in ("xla", "cudnn") and not double:
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
  return attention_with_jvp(
    q, k, v, kernel="cudnn" if implementation == "cudnn_jvp" else None
  )


def attention_with_jvp(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  kernel: str | None = None,
  block: int = 512,
) -> jax.Array:
  """Returns softmax(q k^T / sqrt(d)) v, like q.

  Args:
    q: [batch, length, heads, d].
    k: [batch, keys, heads, d].
    v: [batch, keys, heads, d].
    kernel: implementation of `jax.nn.dot_product_attention` that computes it,
      "cudnn"; None computes it by blocks too.
    block: number of keys in one.
  """
  return _attention(q, k, v, kernel, min(block, k.shape[1]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _attention(q, k, v, kernel, block):
  if kernel is None:
    return _forward(q, k, v, block)[0]
  return jax.nn.dot_product_attention(q, k, v, implementation=kernel)


@_attention.defjvp
def _tangent(kernel, block, primals, tangents):
  q, k, v = primals
  out, log_sum = _forward(q, k, v, block)
  if kernel is not None:
    out = _attention(q, k, v, kernel, block)
  dq, dk, dv = tangents

  @jax.checkpoint
  def add(carry, keys):
    near, total = carry
    k, v, dk, dv, valid = keys
    p = jnp.exp(_logits(q, k, valid) - log_sum[..., None])
    moved = p * (_product(dq, k) + _product(q, dk))
    near += _sum(p, dv) + _sum(moved, v)
    return (near, total + moved.sum(-1)), None

  wide = tree.compute_dtype(q.dtype)
  carry = jnp.zeros(out.shape, wide), jnp.zeros(log_sum.shape, wide)
  blocks = _blocks(block, k, v, dk, dv)
  (near, total), _ = control.scan(add, carry, blocks)
  total = jnp.swapaxes(total, 1, 2)[..., None]
  return out, (near - total * out.astype(wide)).astype(out.dtype)


def _forward(q, k, v, block):
  """Returns (O, L f[batch, heads, length]) by a running softmax."""

  def add(carry, keys):
    out, top, total = carry
    k, v, valid = keys
    s = _logits(q, k, valid)
    higher = jnp.maximum(top, s.max(-1))
    p = jnp.exp(s - higher[..., None])
    less = jnp.exp(top - higher)
    out = out * jnp.swapaxes(less, 1, 2)[..., None] + _sum(p, v)
    return (out, higher, total * less + p.sum(-1)), None

  wide = tree.compute_dtype(q.dtype)
  batch, length, heads, _ = q.shape
  rows = (batch, heads, length)
  carry = (
    jnp.zeros((batch, length, heads, v.shape[-1]), wide),
    jnp.full(rows, -jnp.inf, wide),
    jnp.zeros(rows, wide),
  )
  (out, top, total), _ = control.scan(add, carry, _blocks(block, k, v))
  out = out / jnp.swapaxes(total, 1, 2)[..., None]
  return out.astype(q.dtype), top + jnp.log(total)


def _blocks(block, *arrays):
  """Returns arrays [n, batch, block, ...] of keys, and bool[n, block]."""
  length = arrays[0].shape[1]
  n = math.ceil(length / block)

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, n * block - length), (0, 0), (0, 0)])
    return jnp.moveaxis(x.reshape(x.shape[0], n, block, *x.shape[2:]), 1, 0)

  valid = (jnp.arange(n * block) < length).reshape(n, block)
  return (*map(cut, arrays), valid)


def _logits(q, k, valid):
  return jnp.where(valid, _product(q, k), -jnp.inf)


def _product(q, k):
  """Returns q k^T / sqrt(d), f[batch, heads, length, keys]."""
  wide = tree.compute_dtype(q.dtype)
  s = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
  return s / math.sqrt(q.shape[-1])


def _sum(p: ArrayLike, v: ArrayLike):
  """Returns p v, f[batch, length, heads, d]."""
  return jnp.einsum(
    "bhqk,bkhd->bqhd", p.astype(v.dtype), v, preferred_element_type=p.dtype
  )

"""Attention by blocks and through forward mode."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import networks
from jaxdiff.networks import attention
from jaxdiff.networks import transformer
from jaxdiff.networks import unet


def _plain(q, k, v):
  return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def test_attention_by_blocks_has_the_values_tangents_and_gradients():
  keys = jax.random.split(jax.random.key(0), 7)
  draw = lambda key, n: jax.random.normal(key, (2, n, 3, 4))
  lengths = (5, 7, 7)  # seven keys do not divide into blocks of three
  args = tuple(map(draw, keys[:3], lengths))
  push = tuple(map(draw, keys[3:6], lengths))
  pull = draw(keys[6], 5)
  blocks = lambda *a: networks.attention_with_jvp(*a, block=3)

  @functools.partial(jax.jit, static_argnums=0)
  def both(f, args, push, pull):
    return jax.jvp(f, args, push), jax.vjp(f, *args)[1](pull)

  found, expected = (both(f, args, push, pull) for f in (blocks, _plain))
  chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="'cudnn_jvp'; got 'flash'"):
    attention.attend(*args, "flash")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["xla", "blocks", "unet"])
def test_attention_layers_go_through_jvp(which, x64):
  """Against central differences, in float64."""
  if which == "unet":
    module, shape = unet._Attention(4, jnp.float64), (2, 2, 3, 8)
  else:
    module = transformer.Attention(2, dtype=jnp.float64, implementation=which)
    shape = (2, 6, 8)
  x, dx = jax.random.normal(jax.random.key(0), (2, *shape), jnp.float64)
  params = module.init(jax.random.key(1), x)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: jnp.asarray(0.5 * rng.standard_normal(p.shape)), params
  )
  f = lambda x: module.apply(params, x)
  _, found = jax.jvp(f, (x,), (dx,))
  h = 1e-5
  expected = (f(x + h * dx) - f(x - h * dx)) / (2 * h)
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)

r"""Learned rounding of weights: up or down, by the layer's output.

Rounding to the nearest is not best for the layer. With n = floor(w / s) + h(V),
h = clip(1.2 sigmoid(V) - 0.1, 0, 1), V is learned on the layer's own inputs by

  |x (s n) - x w|^2 / E_0 + weight mean(1 - |2 h - 1|^beta),   beta 20 -> 2,

with E_0 the error of rounding to the nearest (the papers' sum without it makes
the weight depend on the units of the layer), whose second term, after a
warm-up, drives every h to 0 or 1. As in QDrop, at random half of the inputs is
quantized in training. Reference: Nagel et al. (2020), "AdaRound",
https://arxiv.org/abs/2004.10568; Wei et al. (2022), QDrop,
https://arxiv.org/abs/2203.05740.
"""

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff.quantization import quantizer
from jaxdiff.quantization.quantizer import Quantizer

_STRETCH = (1.2, -0.1)


@checks.door
def learn_rounding(
  key: jax.Array,
  inputs: jax.Array,
  kernel: jax.Array,
  weight: Quantizer,
  entering: Quantizer | None = None,
  *,
  steps: int = 1000,
  batch_size: int = 256,
  learning_rate: float = 0.1,
  regularization: float = 2.0,
  drop: float = 0.5,
) -> jax.Array:
  """Returns the integers of a kernel, i8[inputs, outputs].

  Args:
    key: PRNG key.
    inputs: what enters the layer, f[n, inputs].
    kernel: f[inputs, outputs] of a Dense layer.
    weight: grids of the output channels, of at most 8 bits.
    entering: the grid of the inputs; None leaves them float.
    steps: steps of Adam.
    batch_size: inputs a step.
    learning_rate: learning rate of Adam.
    regularization: weight of the term that decides every h.
    drop: probability that an input is left float in training.

  Raises:
    ValueError: if the inputs do not fit the kernel.
  """
  if kernel.ndim != 2 or inputs.shape[1:] != kernel.shape[:1]:
    raise ValueError(
      "learned rounding takes inputs [n, inputs] and the kernel [inputs,"
      f" outputs] of a Dense layer, got {inputs.shape} and {kernel.shape}"
    )
  inputs, kernel = jnp.asarray(inputs), jnp.asarray(kernel)
  floor = jnp.floor(kernel / weight.scale)
  rest = kernel / weight.scale - floor
  start = jax.scipy.special.logit((rest - _STRETCH[1]) / _STRETCH[0])
  optimizer = optax.adam(learning_rate)

  change = quantizer.fake_quant(kernel, weight) - kernel
  nearest = jnp.mean(jnp.sum((inputs @ change) ** 2, axis=1)) + 1e-30

  def loss(v, x, dropped, progress):
    h = _gate(v)
    rounded = jnp.clip(floor + h, weight.low, weight.high) * weight.scale
    shown = x
    if entering is not None:
      shown = jnp.where(dropped, x, quantizer.fake_quant(x, entering))
    error = jnp.mean(jnp.sum((shown @ rounded - x @ kernel) ** 2, axis=1))
    beta = 2.0 + 18.0 * (1.0 - progress)
    undecided = jnp.mean(1.0 - jnp.abs(2.0 * h - 1.0) ** beta)
    return (
      error / nearest
      + jnp.where(progress > 0.2, regularization, 0.0) * undecided
    )

  @jax.jit
  def learn(v):
    def step(carry, i):
      v, state = carry
      own = jax.random.fold_in(key, i)
      rows = jax.random.randint(own, (batch_size,), 0, len(inputs))
      x = inputs[rows]
      dropped = jax.random.bernoulli(jax.random.fold_in(own, 1), drop, x.shape)
      grad = jax.grad(loss)(v, x, dropped, i / steps)
      changes, state = optimizer.update(grad, state)
      return (optax.apply_updates(v, changes), state), None

    carry = (v, optimizer.init(v))
    return control.scan(step, carry, jnp.arange(steps))[0][0]

  up = _gate(learn(start)) > 0.5
  return jnp.clip(floor + up, weight.low, weight.high).astype(jnp.int8)


def _gate(v):
  return jnp.clip(_STRETCH[0] * jax.nn.sigmoid(v) + _STRETCH[1], 0.0, 1.0)

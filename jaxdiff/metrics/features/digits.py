"""A small classifier of scikit-learn's 8 x 8 digits, shipped with its weights.

Two convolutions, a layer of 64 features, ten logits: 13,706 numbers in
digits.npz, trained in seconds by

  python -m experiments.pages.digits_features

on 1,437 of the 1,797 digits. Distances in its features are called FD-digits.
"""

import pathlib
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import archives
from jaxdiff.types import PyTree

WEIGHTS = pathlib.Path(__file__).with_name("digits.npz")
SHAPE = (8, 8, 1)


class DigitsClassifier(nn.Module):
  """Features and logits of images f[batch, 8, 8, 1] in [-1, 1]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (features f[batch, 64], logits f[batch, 10])."""
    for i, width in enumerate((16, 32)):
      x = nn.gelu(nn.Conv(width, (3, 3), name=f"conv{i}")(x))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    features = nn.gelu(nn.Dense(64, name="features")(x))
    return features, nn.Dense(10, name="logits")(features)


def train(
  key: jax.Array,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  steps: int = 1000,
  batch: int = 128,
) -> Any:
  """Returns params fitted by AdamW to smoothed labels of noisy images.

  Args:
    key: PRNG key of the initial params, the batches and the noise.
    images: f32[n, 8, 8, 1] in [-1, 1].
    labels: i32[n].
    steps: number of updates.
    batch: images in each.
  """
  network = DigitsClassifier()
  images = jnp.asarray(images)
  targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)
  rates = optax.cosine_decay_schedule(3e-3, steps)
  optimiser = optax.adamw(rates, weight_decay=0.02)

  def loss(params, key):
    choice, noise = jax.random.split(key)
    chosen = jax.random.randint(choice, (batch,), 0, len(images))
    x = images[chosen]
    x += 0.2 * jax.random.normal(noise, x.shape)
    _, logits = network.apply({"params": params}, x)
    return optax.softmax_cross_entropy(logits, targets[chosen]).mean()

  @jax.jit  # one step, no scan over them: XLA's CPU convolutions are slow there
  def step(params, slots, key):
    gradient = jax.grad(loss)(params, key)
    updates, slots = optimiser.update(gradient, slots, params)
    return optax.apply_updates(params, updates), slots

  start, order = jax.random.split(key)
  params = network.init(start, images[:1])["params"]
  slots = optimiser.init(params)
  for one in jax.random.split(order, steps):
    params, slots = step(params, slots, one)
  return params


def save(params: PyTree, path: pathlib.Path = WEIGHTS) -> None:
  """Writes params as an .npz of arrays named `layer/leaf`."""
  np.savez_compressed(path, **flax.traverse_util.flatten_dict(params, sep="/"))


def load(path: pathlib.Path = WEIGHTS) -> Any:
  """Returns the params of a file that `save` wrote.

  Raises:
    ValueError: it holds something else.
  """
  mend = "It is made by: python -m experiments.pages.digits_features."
  arrays = archives.read(path, mend)
  params = flax.traverse_util.unflatten_dict(arrays, sep="/")
  image = jax.ShapeDtypeStruct((1, *SHAPE), np.float32)
  init = DigitsClassifier().init
  expected = jax.eval_shape(init, jax.random.key(0), image)["params"]
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  if shapes(params) != shapes(expected):
    raise ValueError(
      f"weights: {str(path)!r} does not hold the classifier of digits; make one"
      " with: python -m experiments.pages.digits_features"
    )
  return params

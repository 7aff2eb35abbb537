"""The trained network that several systems share: a residual MLP of digits.

Digits 8 x 8, shifted to mean 0 and scaled to standard deviation 0.5, without
labels; a residual MLP 3 x 256, the loss of EDM, Adam 1e-3 with a cosine
schedule, batches of 128, an average of the parameters: 90 s on one core
for 6000 updates. `denoiser` keeps what it trained on disk, in $JAXDIFF_CACHE or
~/.cache/jaxdiff, so that systems share a seed's network.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import optax
from flax import serialization

from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import training

SIGMA_DATA = 0.5
SHAPE = (8, 8, 1)
_RECIPE = 1  # raise it when the training below changes


@functools.cache
def images() -> np.ndarray:
  """Returns the digits with mean 0 and standard deviation 0.5, f32[1797, ...].

  Both are those of all pixels together.
  """
  x = data.digits()["image"]
  scaled = SIGMA_DATA * (x - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
  return scaled.astype(np.float32)


@functools.cache
def labels() -> np.ndarray:
  """Returns the classes of `images`, i32[1797]."""
  return data.digits()["label"]


def fresh(
  seed: int,
  process: processes.GaussianProcess | None = None,
  *,
  prediction: str = "edm",
  width: int = 256,
  blocks: int = 3,
) -> denoisers.Denoiser:
  """Returns the untrained network under a process, EDM's by default."""
  network = networks.digits_mlp(
    num_classes=0, width=width, blocks=blocks, hidden=1
  )
  x, c = np.zeros((1, *SHAPE), np.float32), np.zeros(1, np.float32)
  params = jax.jit(network.init)(jax.random.key(seed), x, c)["params"]
  return denoisers.from_linen(
    network,
    params,
    processes.edm() if process is None else process,
    prediction=prediction,
    sigma_data=SIGMA_DATA,
  )


def train(
  model: denoisers.Denoiser,
  seed: int,
  *,
  loss: Any = None,
  steps: int = 6000,
  batch_size: int = 128,
  learning_rate: float = 1e-3,
) -> denoisers.Denoiser:
  """Returns the model trained on the digits, with averaged parameters.

  Args:
    model: as `fresh` makes it, or any other with `params`.
    seed: seed of noise and order of the data; give `fresh` the same.
    loss: loss(key, params, batch) -> (scalar, metrics); `losses.denoising` of
      the model by default.
    steps: number of updates.
    batch_size: samples per update.
    learning_rate: peak of the cosine schedule.
  """
  optimizer = optax.adam(
    optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, min(100, steps // 10), steps
    )
  )
  key = jax.random.fold_in(jax.random.key(seed), 1)
  state = training.train(
    training.init_state(key, model.params, optimizer),
    training.make_update(
      losses.denoising(model) if loss is None else loss, optimizer, ema=0.995
    ),
    data.batches({"image": images()}, batch_size, seed=seed),
    steps=steps,
    progress=False,
  )
  return dataclasses.replace(model, params=state.ema_params)


def denoiser(
  seed: int,
  process: processes.GaussianProcess | None = None,
  *,
  steps: int = 6000,
  prediction: str = "edm",
) -> denoisers.Denoiser:
  """Returns the trained network; trains it on the first call for a recipe."""
  model = fresh(seed, process, prediction=prediction)
  recipe = f"{_RECIPE} {seed} {model.process} {steps} {prediction}"
  name = hashlib.sha256(recipe.encode()).hexdigest()[:16]
  folder = os.environ.get("JAXDIFF_CACHE") or "~/.cache/jaxdiff"
  path = pathlib.Path(folder).expanduser() / f"evidence-digits-{name}.msgpack"
  if not path.exists():
    params = train(model, seed, steps=steps).params
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
      f.write(serialization.to_bytes(jax.device_get(params)))
    os.replace(f.name, path)  # others see all of it or nothing
  params = serialization.from_bytes(model.params, path.read_bytes())
  return dataclasses.replace(model, params=params)

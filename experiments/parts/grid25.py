"""The 25-mode grid, which distillation and the evidence of its systems share.

The teacher is exact (`oracles.grid25`), the process is EDM's from 0.02 to 20 or
another one, the network an MLP 3 x 128. x enters the network beside 64 features
of time, which its weights are drawn as one of: it is nearly constant in x, and
after 4000 steps of imitation 43 % of what its ODE draws is in a mode. With x
eight times stronger it is 99 %. Runs of experiments.distill have the factor in
the network (`config`), since a stored network is data; the systems have it in
the weights that it begins with (`fresh`).

`warm` returns a network after it has imitated the teacher, which begins every
training of a system; it is kept on disk, in $JAXDIFF_CACHE or ~/.cache/jaxdiff,
so that systems share a seed's network.
"""

import dataclasses
import hashlib
import os
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import models
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import training

LAW = oracles.grid25()
_RANGE = dict(sigma_min=0.02, sigma_max=20.0)
PROCESS = processes.edm(**_RANGE)
SIGMA_DATA = 0.71  # of either coordinate
SHAPE = (2,)
BATCH = 512
SAMPLES = 4096  # that a student is measured by
_FEATURES = (128, 128, 128)
_GAIN = 8.0  # of x beside the features of time
_POOL = 65536  # draws of the law that training batches are taken from
_RECIPE = 2  # raise it when the training below changes


def config() -> models.ModelConfig:
  """Returns the network as a run of experiments.distill stores it."""
  return models.ModelConfig(
    shape=SHAPE,
    network="mlp",
    network_options=dict(features=_FEATURES, gain=_GAIN),
    process_options=_RANGE,
    sigma_data=SIGMA_DATA,
  )


def fresh(
  seed: int,
  process: processes.GaussianProcess = PROCESS,
  *,
  features: tuple[int, ...] = _FEATURES,
  jumps: bool = False,
  prediction: str = "edm",
) -> denoisers.Denoiser:
  """Returns the untrained network of a system."""
  module = networks.MLP(features=features)
  x, c = jnp.zeros((1, 2)), jnp.zeros((1, 2) if jumps else 1)
  params = jax.jit(module.init)(jax.random.key(seed), x, c)["params"]
  first = params["Dense_0"]
  first["kernel"] = first["kernel"].at[:2].multiply(_GAIN)
  return denoisers.from_linen(
    module,
    params,
    process,
    prediction=prediction,
    sigma_data=SIGMA_DATA,
    jumps=jumps,
  )


def teacher(process: processes.GaussianProcess = PROCESS) -> oracles.Exact:
  """Returns the exact denoiser."""
  return oracles.exact(LAW, process)


def batches(seed: int, size: int = BATCH) -> Any:
  """Returns an iterator of batches of the law."""
  key = jax.random.fold_in(jax.random.key(seed), 2)
  return data.batches(pool(key), size, seed=seed)


def pool(key: jax.Array) -> dict[str, np.ndarray]:
  """Returns draws of the law as a data set, "image" f32[65536, 2]."""
  x, _ = LAW.sample(key, _POOL)
  return {"image": np.asarray(x, np.float32)}


def imitation(
  exact: Any, student: denoisers.Denoiser, steps: int
) -> distillation.Method:
  """Returns the method by which a fresh network learns an exact teacher."""
  return distillation.imitation(
    exact,
    student,
    optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
    times=losses.times.uniform_log_snr(student.process),
  )


def train(
  method: distillation.Method,
  seed: int,
  steps: int,
  *,
  batch: int = BATCH,
  ema: bool = True,
) -> denoisers.Denoiser:
  """Returns the student after `steps` updates."""
  key = jax.random.fold_in(jax.random.key(seed), 1)
  state = training.train(
    distillation.init_state(key, method),
    distillation.make_update(method),
    batches(seed, batch),
    steps=steps,
    progress=False,
  )
  return method.finished(state, ema=ema)


def warm(
  seed: int,
  process: processes.GaussianProcess = PROCESS,
  *,
  steps: int = 4000,
  **options: Any,
) -> denoisers.Denoiser:
  """Returns the network after imitating the exact teacher; `fresh` says which.

  Trained on the first call for a recipe, half a minute on one core.
  """
  model = fresh(seed, process, **options)
  recipe = f"{_RECIPE} {seed} {process} {steps} {sorted(options.items())}"
  name = hashlib.sha256(recipe.encode()).hexdigest()[:16]
  folder = os.environ.get("JAXDIFF_CACHE") or "~/.cache/jaxdiff"
  path = pathlib.Path(folder).expanduser() / f"evidence-grid-{name}.msgpack"
  if not path.exists():
    method = imitation(teacher(process), model, steps)
    params = train(method, seed, steps).params
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
      f.write(serialization.to_bytes(jax.device_get(params)))
    os.replace(f.name, path)  # others see all of it or nothing
  params = serialization.from_bytes(model.params, path.read_bytes())
  params = jax.tree.map(jnp.asarray, params)
  return dataclasses.replace(model, params=params)


def draw(
  student: Any, seed: int, grid: np.ndarray, *, gamma: float = 1.0
) -> jax.Array:
  """Returns samples f32[SAMPLES, 2] of a student's own sampler on a grid."""
  model, table = distillation.sampler(student, grid, gamma=gamma)
  key = jax.random.fold_in(jax.random.key(seed), 3)
  process = student.process
  x = process.prior(
    jax.random.fold_in(key, 0), (SAMPLES, *SHAPE), float(grid[0])
  )
  return sampling.sample(jax.random.fold_in(key, 1), model, table, x)


def quality(x: Any, seed: int) -> dict[str, float]:
  """Returns "sw2", "modes" and "share" of samples f[SAMPLES, 2].

  sw2 is the sliced Wasserstein distance to fresh data (the same number of
  them: two samples of the law are 0.03 apart), modes how many of the 25 hold a
  fifth of their due or more, share that of samples within 4 standard deviations
  of a mode.
  """
  x = np.asarray(x)
  key = jax.random.fold_in(jax.random.key(seed), 4)
  truth, _ = LAW.sample(jax.random.fold_in(key, 0), len(x))
  sw2 = metrics.sliced_wasserstein(jax.random.fold_in(key, 1), x, truth, 256)
  held, share = modes(x)
  return dict(sw2=float(sw2), modes=held, share=share)


def modes(x: np.ndarray) -> tuple[float, float]:
  """Returns how many modes are held, and the share of samples in a mode."""
  distance = np.linalg.norm(x[:, None] - np.asarray(LAW.means), axis=-1)
  inside = distance.min(1) < 4 * 0.05
  count = np.bincount(distance.argmin(1)[inside], minlength=25)
  held = np.sum(count >= 0.2 * len(x) / 25)
  return float(held), float(inside.mean())

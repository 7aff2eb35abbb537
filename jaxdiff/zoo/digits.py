"""A small trained model of the digits, for tests, examples and miniatures.

It is trained once, with this library's own update, and kept on disk: in
$JAXDIFF_CACHE, or else in ~/.cache/jaxdiff.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

import jax
import optax

from jaxdiff import checkpoints
from jaxdiff import checks
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import models
from jaxdiff.training import loading
from jaxdiff.training import loop
from jaxdiff.training import state as states
from jaxdiff.training import update as updates

_RECIPE = 1  # raise it when the training below changes


@checks.door(least=dict(steps=1, batch_size=1))
def digits_denoiser(
  *,
  steps: int = 4000,
  batch_size: int = 256,
  learning_rate: float = 1e-3,
  width: int = 256,
  blocks: int = 3,
  seed: int = 0,
  cache: str | os.PathLike | None = None,
) -> denoisers.Denoiser:
  """Returns a class-conditional EDM model of 8x8 digits, a residual MLP.

  Labels are 0..9, 10 is the null label (dropped in a tenth of the samples, so
  that classifier-free guidance works). The first call trains for half a minute
  on two CPU cores, later ones read the parameters.

  Args:
    steps: number of updates.
    batch_size: samples per update.
    learning_rate: peak of a cosine schedule with warm-up.
    width: width of the network.
    blocks: number of residual blocks.
    seed: seed of parameters, noise and order of the data.
    cache: directory; by default $JAXDIFF_CACHE or ~/.cache/jaxdiff.
  """
  model = models.ModelConfig(
    shape=(8, 8, 1),
    network="digits_mlp",
    network_options=dict(width=width, blocks=blocks),
    num_classes=10,
    sigma_data=0.75,
    dataset="digits",
    data_width=1.672,
  )
  fields = dataclasses.asdict(model)
  for name in ("dataset", "dataset_options"):  # no part of the recipe
    del fields[name]
  recipe = dict(
    version=_RECIPE,
    steps=steps,
    batch_size=batch_size,
    learning_rate=learning_rate,
    seed=seed,
    model=fields,
  )
  text = json.dumps(recipe, sort_keys=True).encode()
  cache = cache or os.environ.get("JAXDIFF_CACHE") or "~/.cache/jaxdiff"
  cache = pathlib.Path(cache).expanduser()
  folder = cache / f"digits-{hashlib.sha256(text).hexdigest()[:16]}"
  if not folder.is_dir():
    cache.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: others see all of it or nothing, and of two
    # that train at once the second throws its (equal) result away.
    aside = pathlib.Path(tempfile.mkdtemp(dir=cache, prefix=".training-"))
    try:
      _train(aside, model, steps, batch_size, learning_rate, seed)
      os.rename(aside, folder)
    except OSError:
      if not folder.is_dir():
        raise
    finally:
      shutil.rmtree(aside, ignore_errors=True)
  return loading.load_denoiser(folder)


def _train(
  folder: pathlib.Path,
  model: models.ModelConfig,
  steps: int,
  batch_size: int,
  learning_rate: float,
  seed: int,
) -> None:
  """Trains and leaves one checkpoint and the configuration in `folder`."""
  init_key, run_key = jax.random.split(jax.random.key(seed))
  denoiser = models.make_denoiser(model, init_key)
  loss = losses.denoising(denoiser, num_classes=model.num_classes)
  optimizer = optax.adam(
    optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, min(100, steps // 10), steps
    )
  )
  state = loop.train(
    states.init_state(run_key, denoiser.params, optimizer),
    updates.make_update(loss, optimizer, ema=0.995),
    data.batches(data.digits(), batch_size, seed=seed),
    steps=steps,
    progress=False,
  )
  models.save_config(folder, model)
  opened = checkpoints.open(folder)
  opened.save(steps, {"ema_params": state.ema_params})
  opened.close()

"""Reads the denoiser of a training run, and its fingerprint."""

import dataclasses
import hashlib
import json
import os

import jax

from jaxdiff import checkpoints
from jaxdiff import checks
from jaxdiff import denoisers
from jaxdiff import models
from jaxdiff import parallel
from jaxdiff.training import snapshots


@checks.door
def fingerprint(workdir: str | os.PathLike) -> str:
  """Returns a name of the latest checkpoint that changes with the network.

  It is the step and a hash of config.json and of the sizes and times of the
  checkpoint's files: other parameters under the same step have another name.

  Args:
    workdir: the run's working directory, or its folder of checkpoints.

  Raises:
    FileNotFoundError: if there is no config.json.
  """
  directory = models.existing_directory(workdir)
  text = [json.dumps(checkpoints.read_config(directory), sort_keys=True)]
  steps = [int(p.name) for p in directory.iterdir() if p.name.isdigit()]
  step = max(steps, default=0)
  for path in sorted((directory / str(step)).rglob("*")):
    if path.is_file():
      stat = path.stat()
      name = path.relative_to(directory)
      text.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
  code = hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]
  return f"{step}-{code}"


@checks.door
def load_denoiser(
  workdir: str | os.PathLike,
  *,
  step: int | None = None,
  ema: bool = True,
  sigma_rel: float | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> denoisers.Denoiser:
  """Returns the denoiser of a finished or running training.

  Args:
    workdir: the run's working directory, or its folder of checkpoints.
    step: which checkpoint; the latest by default.
    ema: the averaged parameters rather than the last ones.
    sigma_rel: width of an average that is put together now, from the snapshots
      of a run that kept them (see `ema`); `step` is then one of theirs.
    mesh: devices to read the parameters onto, fully sharded: each reads its
      part, and none ever holds them all.

  Raises:
    FileNotFoundError: if there is no such run, or no checkpoint in it yet.
    ValueError: if the checkpoint does not fit config.json.
  """
  directory = models.existing_directory(workdir)
  denoiser = models.make_denoiser(models.load_config(directory))
  params = denoiser.params
  if mesh is not None:
    params = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      params,
      parallel.fully_sharded(params, mesh),
    )
  if sigma_rel is not None:
    params = snapshots.reconstruct(workdir, params, sigma_rel, step)
    return dataclasses.replace(denoiser, params=params)
  opened = checkpoints.open(directory, create=False)
  name = "ema_params" if ema else "params"
  try:
    state, _ = opened.restore({name: params}, step)
  finally:
    opened.close()
  return dataclasses.replace(denoiser, params=state[name])

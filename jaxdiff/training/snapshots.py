"""Snapshots of power-function averages, and any average made of them.

  workdir/averages/<step>/       all of `TrainState.averages` at that step
  workdir/averages/config.json   their widths sigma_rel

See `ema` for the mathematics.
"""

import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from jaxdiff import checkpoints
from jaxdiff import checks
from jaxdiff.training import ema
from jaxdiff.types import PyTree

_FOLDER = "averages"


@checks.door
def open_snapshots(
  workdir: str | os.PathLike, sigma_rel: Sequence[float]
) -> checkpoints.Checkpoints:
  """Opens the folder for a run's snapshots, of which none is removed.

  Args:
    workdir: the run's working directory.
    sigma_rel: widths of `TrainState.averages`, in their order.

  Raises:
    ValueError: if there are snapshots of other widths.
  """
  folder = pathlib.Path(workdir).expanduser().absolute() / _FOLDER
  widths = [float(s) for s in sigma_rel]
  if folder.is_dir() and (folder / "config.json").is_file():
    held = _widths(folder)
    if held != widths:
      raise ValueError(
        f"{folder} holds averages of the widths {held}, but {widths} were"
        " asked for; go on with those, or train in another directory"
      )
  checkpoints.write_config(folder, {"sigma_rel": widths})
  return checkpoints.open(folder, keep=1_000_000)


@checks.door
def reconstruct(
  workdir: str | os.PathLike,
  params: PyTree,
  sigma_rel: float,
  step: int | None = None,
) -> PyTree:
  """Returns the average of the width sigma_rel, as if it had been kept.

  Args:
    workdir: the run's working directory.
    params: a tree like the parameters, of arrays or ShapeDtypeStructs.
    sigma_rel: width, a share of the updates; between and somewhat around the
      widths of the snapshots it is accurate.
    step: at which update; by default the last snapshot.

  Raises:
    FileNotFoundError: if the run kept no snapshots.
    ValueError: for a sigma_rel outside (0, 0.288], or a step without a
      snapshot.
  """
  folder = pathlib.Path(workdir).expanduser().absolute() / _FOLDER
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(
      f"there are no snapshots in {folder}, of which an average could be put"
      ' together; train with --config.averages="(0.05, 0.1)"'
    )
  widths = _widths(folder)
  opened = checkpoints.open(folder, create=False)
  try:
    steps = opened.steps()
    if not steps or (step is not None and step not in steps):
      raise ValueError(
        f"{folder} has no snapshot at step {step}; it has"
        f" {', '.join(map(str, steps)) or 'none yet'}"
      )
    last = steps[-1] if step is None else step
    steps = [s for s in steps if s <= last]
    stored = [(width, s) for s in steps for width in widths]
    weights = ema.weights(stored, sigma_rel, last).reshape(len(steps), -1)
    template = dict(averages=tuple(ema.start(params) for _ in widths))
    total = jax.tree.map(lambda p: np.zeros(p.shape, np.float64), params)
    for row, s in zip(weights, steps):
      held = opened.restore(template, s)[0]["averages"]
      for weight, mean in zip(row, held):
        total = jax.tree.map(
          lambda t, p, w=weight: t + w * np.asarray(p, np.float64), total, mean
        )
  finally:
    opened.close()
  return jax.tree.map(lambda t, p: jax.numpy.asarray(t, p.dtype), total, params)


def _widths(folder: pathlib.Path) -> list[float]:
  return [float(s) for s in checkpoints.read_config(folder)["sigma_rel"]]

"""What the scripts ask of data and weights that somebody else made."""

import dataclasses
import os
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import numpy as np

from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import models
from jaxdiff import weights

_VALUES = 32_000_000  # numbers held at once, at most
_DECODED = 2_000  # examples read one by one, at most
_THREADS = 8


def subset(source: Any, limit: int = 10_000) -> dict[str, np.ndarray]:
  """Returns images, and labels if any, spread evenly over a source.

  Images that are bytes come in the units of training, f32 in [-1, 1].

  Args:
    source: a dict of arrays, or a sequence of examples.
    limit: number of samples; fewer where images are large, or are read one by
      one.

  Raises:
    ValueError: if the source is empty or has no "image".
  """
  mapping = isinstance(source, Mapping)
  fields = source if mapping else source[0] if len(source) else {}
  if not len(fields.get("image", ())):
    raise ValueError(
      'the data set needs samples under the name "image", but has'
      f" {', '.join(map(repr, fields)) or 'nothing'}; name them by the option"
      " keys, --config.dataset_options=\"{'keys': {'image': 'x_train'}}\""
    )
  size = len(source["image"] if mapping else source)
  first = source["image"][0] if mapping else source[0]["image"]
  values = int(np.prod(np.shape(first)))
  limit = limit if mapping else min(limit, _DECODED)
  limit = max(1, min(limit, size, _VALUES // max(values, 1)))
  chosen = (np.arange(limit) * size) // limit
  if mapping:
    names = [name for name in ("image", "label") if name in source]
    fields = {name: np.asarray(source[name])[chosen] for name in names}
    return data.scaled(fields)
  with futures.ThreadPoolExecutor(_THREADS) as threads:
    examples = list(threads.map(source.__getitem__, map(int, chosen)))
  names = [name for name in ("image", "label") if name in examples[0]]
  fields = {name: np.stack([e[name] for e in examples]) for name in names}
  return data.scaled(fields)


def images(source: Any) -> np.ndarray:
  """Returns the images: all of an array, a subset of what is on disk."""
  if isinstance(source, Mapping):
    return data.scaled(np.asarray(source["image"]))
  return subset(source)["image"]


def labels(source: Any, sample: Mapping[str, np.ndarray]) -> np.ndarray | None:
  """Returns the labels: all of an array, else those of `subset`; or None."""
  held = source if isinstance(source, Mapping) else sample
  return held.get("label")


def pretrained(path: str | os.PathLike) -> denoisers.Denoiser:
  """Returns the denoiser of the public DDPM U-Net on MNIST, from an npz.

  Raises:
    ValueError: if the file holds the weights of another network.
  """
  config, params = weights.ddpm_mnist.load(path)
  return dataclasses.replace(models.make_denoiser(config), params=params)

"""Data sets as dicts of arrays: reading them from files, scaling of pixels.

What every reader of this package returns has the same conventions: `image` is
f32[..., height, width, channels] in [-1, 1] where it was stored as uint8,
whole numbers are i32, other numbers f32. With `scale=False` a reader leaves
pixels as uint8, a quarter of the memory and of what travels to the device;
`scaled(batch)` then brings a batch to these units, on the host or inside a
jitted function.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff import archives
from jaxdiff import checks
from jaxdiff.types import PyTree

_CHANNELS = (1, 3, 4)
IMAGE_AND_LABEL: Mapping[str, str] = {"image": "image", "label": "label"}


def scale(image: np.ndarray) -> np.ndarray:
  """Maps u8 pixels, 0..255, to f32 in [-1, 1]."""
  # In place after the cast: a data set held twice in float32 may not fit.
  scaled = image.astype(np.float32)
  scaled *= np.float32(2 / 255)
  scaled -= np.float32(1)
  return scaled


@checks.door
def scaled(batch: PyTree) -> Any:
  """Returns the batch with u8 pixels under `image` as f32 in [-1, 1].

  Images that are floats already stay as they are, so that an update may begin
  with it whatever the data.

  Args:
    batch: a mapping with an `image`, or images themselves; of NumPy or of JAX,
      also while it is traced.
  """
  if isinstance(batch, Mapping):
    return {**batch, "image": scaled(batch["image"])}
  if batch.dtype != np.uint8:
    return batch
  if isinstance(batch, np.ndarray):
    return scale(batch)
  return batch.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def look(batch: PyTree) -> None:
  """Warns of images in units or an order that nothing here is made for.

  Networks take f[batch, height, width, channels] of about unit size, centred:
  pixels as x / 127.5 - 1. What was seen and what to set is said; nothing is
  changed. A traced batch, and whatever is no image, passes.

  Args:
    batch: a mapping with an `image`, or images themselves, u8 or floats.
  """
  image = batch.get("image") if isinstance(batch, Mapping) else batch
  if not checks.concrete(image) or np.ndim(image) < 3:
    return
  shards = getattr(image, "addressable_shards", None)
  image = np.asarray((shards[0].data if shards else image)[:64])
  shape, said = image.shape, []
  if len(shape) == 4 and shape[1] in _CHANNELS and min(shape[2:]) > 4:
    said.append(
      f"of shape {shape}, which is [batch, channels, height, width]: the"
      " channels come last here, np.transpose(image, (0, 2, 3, 1))"
    )
  low, high = float(image.min()), float(image.max())
  span = f"in {low:.4g}..{high:.4g} of dtype {image.dtype}"
  if np.issubdtype(image.dtype, np.floating):
    if high > 16.0 and low >= 0.0:
      said.append(
        f"{span}, as pixels of 8 bits are: give them as uint8, which is"
        " scaled, or as image / 127.5 - 1"
      )
    elif 0.5 < high <= 1.0 and low >= 0.0:
      said.append(
        f"{span}, not centred: give them as 2 * image - 1, or set sigma_data ="
        f" {float(np.std(image)):.2g} and mind the mean of"
        f" {float(np.mean(image)):.2g}"
      )
  elif image.dtype != np.uint8:
    said.append(
      f"{span}, which is not scaled: give pixels of 8 bits as uint8, others as"
      " floats in [-1, 1]"
    )
  for what in said:
    warnings.warn(f"the first batch has images {what}", stacklevel=3)


def check_finite(images: np.ndarray, name: str) -> None:
  """Refuses images that hold NaN or infinity.

  Args:
    images: f[n, ...] or whole numbers, which are finite.
    name: name of the images, to open the message with.

  Raises:
    ValueError: the first image that is not finite is named by its index.
  """
  if not np.issubdtype(images.dtype, np.floating):
    return
  finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
  if not finite.all():
    bad = np.flatnonzero(~finite)
    which = f", the first is number {bad[0]}" if len(images) > 1 else ""
    raise ValueError(
      f"{name}: {len(bad)} of {len(images)} images hold NaN or infinity{which}."
      " Mend them or leave them out: one such image spoils every parameter."
    )


def standard(
  name: str, value: np.ndarray, *, rank: int, pixels: bool = False
) -> np.ndarray:
  """Brings one field to the conventions of this package.

  Args:
    name: the field's name; `image` is treated as pixels.
    value: the stored array.
    rank: dimensions of a complete image array, 3 for one image and 4 for a
      stack; an image with one fewer has its channel axis added.
    pixels: whether u8 pixels stay what they are.

  Returns:
    f32, i32, or what was stored where it is neither (strings, booleans, and
    whole numbers that do not fit 32 bits).
  """
  value = np.asarray(value)
  if name == "image":
    if value.ndim == rank - 1:
      value = value[..., None]
    if value.dtype == np.uint8:
      return value if pixels else scale(value)
    return _narrow(value)
  return _narrow(value)


def _narrow(value: np.ndarray) -> np.ndarray:
  if np.issubdtype(value.dtype, np.floating):
    return value.astype(np.float32, copy=False)
  if np.issubdtype(value.dtype, np.integer):
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    fits = not value.size or (value.min() >= low and value.max() <= high)
    return value.astype(np.int32, copy=False) if fits else value
  return value


@checks.door
def from_npz(
  path: str | os.PathLike[str],
  *,
  keys: Mapping[str, str] | None = None,
  scale: bool = True,
) -> dict[str, np.ndarray]:
  """Reads a data set from an .npz file.

  Args:
    path: the file, as written by `np.savez`.
    keys: names in the result to names in the file, for instance
      `{"image": "x_train", "label": "y_train"}`; by default `image` and
      `label` under their own names, where a file without labels is taken
      as it is.
    scale: False leaves u8 images as they are, for `scaled`.

  Returns:
    Dict of arrays of one length n: u8 images become f32[n, h, w, c] in
    [-1, 1] (u8[n, h, w] is given one channel), floats f32 as they are, whole
    numbers i32.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no .npz archive, lacks a key, its arrays have different
      lengths, or an image holds NaN or infinity.
  """
  optional = {"label"} if keys is None else set()
  keys = dict(IMAGE_AND_LABEL if keys is None else keys)
  mend = "Such a file is written by np.savez(path, image=..., label=...)."
  there = archives.names(path, mend)
  for name in optional - set(there):
    del keys[name]
  missing = sorted(set(keys.values()) - set(there))
  if missing:
    raise ValueError(
      f"keys: {os.fspath(path)!r} has no {', '.join(map(repr, missing))}; "
      f"it has {', '.join(map(repr, sorted(there)))}. Name what to "
      'read, for instance keys={"image": "x_train", "label": "y_train"}.'
    )
  held = archives.read(path, mend, tuple(keys.values()))
  fields = {
    name: standard(name, held.pop(stored), rank=4, pixels=not scale)
    for name, stored in keys.items()
  }
  check_lengths(fields)
  if "image" in fields:
    check_finite(fields["image"], f"path: {os.fspath(path)!r}")
  return fields


def check_lengths(fields: Mapping[str, np.ndarray]) -> int:
  """Returns the one length of all arrays of `fields`.

  Raises:
    ValueError: there are no arrays, one has no axis, or lengths differ.
  """
  shapes = {name: np.shape(value) for name, value in fields.items()}
  lengths = {shape[0] if shape else None for shape in shapes.values()}
  if len(lengths) != 1 or None in lengths:
    raise ValueError(
      "source: every array needs the same first axis, the examples; got "
      f"shapes {shapes}. Cut or stack them to one length."
    )
  return lengths.pop()

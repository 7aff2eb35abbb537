"""Reads one image file: orientation, channels, crop and size."""

import os
from typing import Any

import numpy as np

from jaxdiff.data import optional
from jaxdiff.types import ArrayLike

_PURPOSE = "Reading pictures"


def decode(
  path: str | os.PathLike[str],
  size: int | None = None,
  *,
  channels: int = 3,
  crop: int | None = None,
) -> np.ndarray:
  """Returns a picture as u8[height, width, channels].

  The camera's orientation (EXIF) is applied. Grey becomes colour and colour
  grey where the other is asked for; what is transparent lies over white; 16
  bits are cut to 8. Then `square`.

  Args:
    path: a file of any format that Pillow reads.
    size: side of the result; None leaves the picture as it is.
    channels: 1, 3 or 4 (with opacity).
    crop: as in `square`.

  Raises:
    ImportError: Pillow is not installed.
    ValueError: the file is no picture, or is cut short; it is named.
  """
  Image = optional.require("PIL.Image", _PURPOSE)
  ImageOps = optional.require("PIL.ImageOps", _PURPOSE)
  try:
    with Image.open(path) as stored:
      stored.load()
      picture = ImageOps.exif_transpose(stored)
  except Exception as error:  # Pillow's decoders raise many kinds of it
    if isinstance(error, OSError) and error.errno is not None:
      raise  # it is not there, or may not be read: the system says it best
    raise ValueError(
      f"path: {os.fspath(path)!r} cannot be read as a picture ({error}): it is"
      " none, or was cut short. Mend or remove it, or pass skip_bad=True to"
      " leave out every such file."
    ) from error
  picture = _channels(picture, channels)
  if size is not None:
    picture = square(picture, size, crop)
  pixels = np.array(picture)
  return pixels if pixels.ndim == 3 else pixels[..., None]


def square(picture: ArrayLike, size: int, crop: int | None = None) -> Any:
  """Returns the centre of a picture, resized; antialiased (bicubic).

  Args:
    picture: an image of Pillow.
    size: side of the result in pixels.
    crop: side of the central square that is kept, in pixels of the original;
      None keeps the largest.
  """
  Image = optional.require("PIL.Image", _PURPOSE)
  width, height = picture.size
  side = min(width, height, crop or max(width, height))
  left, top = (width - side) // 2, (height - side) // 2
  # Not resize(box=...), whose filter reaches beyond the box.
  picture = picture.crop((left, top, left + side, top + side))
  if side == size:
    return picture
  return picture.resize((size, size), Image.Resampling.BICUBIC)


def square_array(pixels: np.ndarray, size: int, crop: int | None) -> np.ndarray:
  """Returns `square` of u8[height, width, 3]."""
  Image = optional.require("PIL.Image", _PURPOSE)
  return np.array(square(Image.fromarray(pixels), size, crop))


def _channels(picture: ArrayLike, channels: int) -> Any:
  """Returns the picture in the mode of so many channels."""
  Image = optional.require("PIL.Image", _PURPOSE)
  if picture.mode.startswith("I"):  # 16 bits, which convert() would clip
    wide = np.asarray(picture).astype(np.int64)
    picture = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
  if channels == 4:
    return picture.convert("RGBA")
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return picture.convert("L" if channels == 1 else "RGB")

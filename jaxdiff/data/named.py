"""Public data sets by name: CIFAR-10, MNIST, CelebA, ImageNet-32 and -64.

Each is read from where TensorFlow Datasets prepared it or, with `path`, from
the files that its authors published. Nothing is downloaded; where a set is not
there, the error has the command that prepares it.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from jaxdiff import checks
from jaxdiff.data import arrays
from jaxdiff.data import folder
from jaxdiff.data import images
from jaxdiff.data import published
from jaxdiff.data.tfds import from_tfds

# First and last + 1 picture of CelebA's splits, from list_eval_partition.txt.
_CELEBA = {
  "train": (0, 162_770),
  "validation": (162_770, 182_637),
  "test": (182_637, 202_599),
}
_CELEBA_CROP = 140  # the face, of 178 x 218 pixels; as in score_sde


@dataclasses.dataclass(frozen=True)
class Named:
  """Where a data set is found.

  Attributes:
    tfds: its name in TensorFlow Datasets.
    files: reads what its authors published: files(path, split, scale=...).
    described: what `path` must be, in words.
    options: options of `from_tfds`.
  """

  tfds: str
  files: Callable[..., Any]
  described: str
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load(
  name: str,
  *,
  split: str = "train",
  path: str | os.PathLike[str] | None = None,
  data_dir: str | os.PathLike[str] | None = None,
  scale: bool = True,
) -> Any:
  """Opens one of the data sets of `SETS`.

  Args:
    name: `"cifar10"`, `"mnist"`, `"celeba"` (the central 140 x 140 pixels at
      64 x 64, without labels), `"imagenet32"` or `"imagenet64"`.
    split: `"train"` or `"test"`; for ImageNet `"train"` or `"validation"`, for
      CelebA all three. With TensorFlow Datasets also a slice of one.
    path: published files, instead of what TensorFlow Datasets prepared.
    data_dir: where TensorFlow Datasets lie, as in `from_tfds`.
    scale: False leaves pixels u8, for `scaled`.

  Returns:
    A source for `batches`. From TensorFlow Datasets and folders it decodes one
    example at a time: `in_memory(source)` decodes all of it once.

  Raises:
    ImportError: an optional package is not installed.
    FileNotFoundError: the data set is not there.
    ValueError: an unknown split, or a broken file.
  """
  known = SETS[name]
  if path is not None:
    return known.files(path, split, scale=scale)
  try:
    return from_tfds(
      known.tfds, split=split, data_dir=data_dir, scale=scale, **known.options
    )
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"{error}\nOr give the published files: data.load({name!r}, path=...), "
      f"{known.described}."
    ) from error


def _arrays(read: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
  """Makes a reader of u8 arrays scale them where that is asked for."""

  def files(path: Any, split: str, *, scale: bool) -> Any:
    fields = read(path, split, *arguments)
    return arrays.scaled(fields) if scale else fields

  return files


def _celeba(path: Any, split: str, *, scale: bool) -> folder.Folder:
  checks.one_of(split, tuple(_CELEBA), "split")
  whole = folder.from_folder(
    path, size=64, crop=_CELEBA_CROP, labels=False, scale=scale
  )
  if len(whole) != _CELEBA["test"][1]:
    raise ValueError(
      f"path: {os.fspath(path)!r} holds {len(whole):,} pictures, but CelebA "
      f"has {_CELEBA['test'][1]:,}, and its splits go by their numbers. Give "
      "the folder that img_align_celeba.zip unpacks to, or read these as "
      "load('folder:/path', size=64, crop=140)."
    )
  first, end = _CELEBA[split]
  return dataclasses.replace(whole, paths=whole.paths[first:end])


SETS: Mapping[str, Named] = {
  "cifar10": Named(
    "cifar10",
    _arrays(published.cifar10),
    "the folder cifar-10-batches-py or cifar-10-batches-bin",
  ),
  "mnist": Named(
    "mnist",
    _arrays(published.mnist),
    "Keras's mnist.npz or the folder of the idx files",
  ),
  "celeba": Named(
    "celeb_a",
    _celeba,
    "the folder img_align_celeba of 202,599 pictures",
    dict(
      keys={"image": "image"},
      resize=functools.partial(images.square_array, size=64, crop=_CELEBA_CROP),
    ),
  ),
  **{
    f"imagenet{size}": Named(
      f"downsampled_imagenet/{size}x{size}",
      _arrays(published.imagenet, size),
      "the folder of train_data_batch_1.npz, ..., which have labels too",
    )
    for size in (32, 64)
  },
}

"""Public data sets in the files that their authors published.

Read as they are, once downloaded and unpacked: CIFAR-10's "python version" and
"binary version", MNIST's idx files and Keras's mnist.npz, and the npz batches
of downsampled ImageNet (Chrabaszcz et al. 2017). Pixels stay u8 here.
"""

import gzip
import os
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from jaxdiff import archives
from jaxdiff import checks
from jaxdiff import pickles

Fields = dict[str, np.ndarray]
Path = str | os.PathLike[str]

_IDX = {  # of MNIST
  "train": ("train-images", "train-labels"),
  "test": ("t10k-images", "t10k-labels"),
}


def cifar10(path: Path, split: str) -> Fields:
  """Reads cifar-10-batches-py or cifar-10-batches-bin, or a folder above it.

  Returns:
    `image` u8[n, 32, 32, 3] and `label` i32[n]; n is 50,000 or 10,000.

  Raises:
    FileNotFoundError: a file is not there.
    ValueError: an unknown split, or a file is not what it should be.
  """
  checks.one_of(split, ("train", "test"), "split")
  numbers = [f"data_batch_{i}" for i in range(1, 6)]
  names = numbers if split == "train" else ["test_batch"]
  folder = pathlib.Path(path).expanduser()
  below = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
  for home in (folder / name for name in below):
    for suffix, read in (("", _cifar_pickle), (".bin", _cifar_binary)):
      files = [home / f"{name}{suffix}" for name in names]
      if all(file.is_file() for file in files):
        rows, labels = zip(*map(read, files))
        return _channels_last(np.concatenate(rows), np.concatenate(labels))
  raise FileNotFoundError(
    f"path: {os.fspath(path)!r} does not hold {', '.join(names)}, nor the same "
    "with .bin. Give the folder that cifar-10-python.tar.gz or "
    "cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html "
    "unpacks to."
  )


def mnist(path: Path, split: str) -> Fields:
  """Reads Keras's mnist.npz, or a folder with the idx files (.gz or not).

  Returns:
    `image` u8[n, 28, 28, 1] and `label` i32[n]; n is 60,000 or 10,000.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: an unknown split, or a file is not what it should be.
  """
  checks.one_of(split, tuple(_IDX), "split")
  path = pathlib.Path(path).expanduser()
  if path.is_file():
    (images, labels) = _archive(path, (f"x_{split}", f"y_{split}"))
  else:
    images, labels = (_idx(path, name) for name in _IDX[split])
  return {"image": images[..., None], "label": labels.astype(np.int32)}


def imagenet(path: Path, split: str, size: int) -> Fields:
  """Reads the npz batches of ImageNet at size x size, all into memory.

  Args:
    path: the folder of train_data_batch_1.npz, ... or of val_data.npz.
    split: "train" or "validation".
    size: 32 or 64.

  Returns:
    `image` u8[n, size, size, 3] and `label` i32[n], 0..999 (1 less than in the
    files); 1,281,167 or 50,000.

  Raises:
    FileNotFoundError: the files are not there.
    ValueError: an unknown split, or a file is not what it should be.
  """
  checks.one_of(split, ("train", "validation"), "split")
  folder = pathlib.Path(path).expanduser()
  pattern = "train_data_batch_*.npz" if split == "train" else "val_data.npz"
  files = sorted(
    folder.glob(pattern), key=lambda file: (len(file.name), file.name)
  )
  if not files:
    raise FileNotFoundError(
      f"path: {os.fspath(path)!r} holds no {pattern}. Give the folder of the "
      f"npz batches of https://image-net.org/download (downsampled, {size}x"
      f"{size}), unpacked."
    )
  # Labels first: they tell how many images there are, which are then read into
  # place. Two copies of ImageNet at once may not fit.
  labels = [_archive(file, ("labels",))[0].astype(np.int32) for file in files]
  image = np.empty((sum(map(len, labels)), size, size, 3), np.uint8)
  first = 0
  for file, label in zip(files, labels):
    (rows,) = _archive(file, ("data",))
    if rows.shape != (len(label), 3 * size * size):
      raise ValueError(
        f"path: {str(file)!r} holds data of shape {rows.shape} and "
        f"{len(label)} labels, but [{len(label)}, {3 * size * size}] was "
        f"expected of images of {size}x{size}."
      )
    planes = rows.reshape(-1, 3, size, size)
    image[first : first + len(label)] = np.moveaxis(planes, 1, -1)
    first += len(label)
  return {"image": image, "label": np.concatenate(labels) - 1}


def _cifar_pickle(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  try:
    stored = pickles.loads(file.read_bytes())
    named = {
      k.decode() if isinstance(k, bytes) else k: v for k, v in stored.items()
    }
    rows, labels = np.asarray(named["data"]), np.asarray(named["labels"])
    if rows.shape != (len(labels), 3072) or rows.dtype != np.uint8:
      raise ValueError(f"data of shape {rows.shape}, {len(labels)} labels")
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f"path: {str(file)!r} is no batch of CIFAR-10 ({error}), or was cut "
      "short. Unpack cifar-10-python.tar.gz again."
    ) from error
  return rows, labels


def _cifar_binary(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  stored = np.fromfile(file, np.uint8)
  if not stored.size or stored.size % 3073:
    raise ValueError(
      f"path: {str(file)!r} has {stored.size} bytes, no multiple of 3,073, the "
      "bytes of an example of CIFAR-10. Unpack cifar-10-binary.tar.gz again."
    )
  stored = stored.reshape(-1, 3073)
  return stored[:, 1:], stored[:, 0]


def _channels_last(rows: np.ndarray, labels: np.ndarray) -> Fields:
  image = np.moveaxis(rows.reshape(-1, 3, 32, 32), 1, -1)
  return {
    "image": np.ascontiguousarray(image),
    "label": labels.astype(np.int32),
  }


def _archive(file: pathlib.Path, names: Sequence[str]) -> list[np.ndarray]:
  """Returns arrays of an .npz file."""
  mend = "Download it again."
  there = archives.names(file, mend)
  missing = [name for name in names if name not in there]
  if missing:
    raise ValueError(
      f"path: {str(file)!r} has no {', '.join(missing)}; it has "
      f"{', '.join(there)}."
    )
  held = archives.read(file, mend, names)
  return [held[name] for name in names]


def _idx(folder: pathlib.Path, name: str) -> np.ndarray:
  """Reads an idx file of bytes: 0, 0, 8, rank, sizes as big-endian i32."""
  kind = "idx3" if "images" in name else "idx1"
  names = [f"{name}{dot}{kind}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
  file = next((folder / n for n in names if (folder / n).is_file()), None)
  if file is None:
    raise FileNotFoundError(
      f"path: {str(folder)!r} is no file, and as a folder it holds none of "
      f"{', '.join(names)}. Give mnist.npz as Keras has it (x_train, y_train, "
      "x_test, y_test), or the folder of the idx files."
    )
  try:
    read = gzip.open if file.suffix == ".gz" else open
    with read(file, "rb") as f:
      stored = f.read()
    rank = 3 if kind == "idx3" else 1
    if stored[:4] != bytes((0, 0, 8, rank)):
      raise ValueError("it begins otherwise")
    shape = np.frombuffer(stored, ">i4", rank, 4)
    return np.frombuffer(stored, np.uint8, offset=4 + 4 * rank).reshape(shape)
  except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f"path: {str(file)!r} is no idx file of MNIST ({error}), or was cut "
      "short. Download it again."
    ) from error

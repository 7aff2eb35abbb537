"""Sets too large for one file: shards, written one at a time and read back.

A folder of shards holds

  shard-00000.npz   image u8 or f32 [m, ...], label i32[m], range i64[2]
  shard-00001.npz   ...
  setting.json      what made them; "num" and "shard_size" tell how many

where range is (first, past the last) of the samples' indices. A shard gets its
name once it is complete and on disk: a job that is killed at any moment leaves
whole shards alone, and beside them at most hidden files that `clean` removes.
"""

import errno
import json
import os
import pathlib
import re
import secrets
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from jaxdiff import archives
from jaxdiff import checks
from jaxdiff.data import arrays

SETTING = "setting.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


def path_of(folder: str | os.PathLike, number: int) -> pathlib.Path:
  """Returns where a shard lies."""
  return pathlib.Path(folder) / f"shard-{number:05d}.npz"


def numbers(folder: str | os.PathLike) -> list[int]:
  """Returns the numbers of the shards that are there, rising."""
  names = (path.name for path in pathlib.Path(folder).glob("shard-*.npz"))
  found = (re.fullmatch(r"shard-(\d{5,})\.npz", name) for name in names)
  return sorted(int(match[1]) for match in found if match)


def write(
  folder: str | os.PathLike,
  number: int,
  *,
  image: np.ndarray,
  label: np.ndarray,
  first: int,
) -> pathlib.Path:
  """Writes one shard, whole or not at all, and returns its path.

  Args:
    folder: folder of the shards.
    number: number of this one.
    image: u8[m, ...] or f32[m, ...].
    label: i32[m].
    first: index of the first sample.

  Raises:
    OSError: if it cannot be written; a full disk is named as such.
  """
  fields = dict(image=image, label=label)
  span = np.array([first, first + arrays.check_lengths(fields)], np.int64)
  path = path_of(folder, number)
  write_file(path, lambda f: np.savez(f, **fields, range=span))
  return path


def write_file(
  path: str | os.PathLike, fill: Callable[[BinaryIO], Any]
) -> None:
  """Writes a file that appears under its name only once it is on disk.

  Args:
    path: path of the file; another of that name is replaced.
    fill: writes the contents to the file object that it is given.

  Raises:
    OSError: if it cannot be written; nothing is left of it then.
  """
  path = pathlib.Path(path)
  mine = secrets.token_hex(4)  # hosts may share the folder, and process numbers
  partial = path.with_name(f".{path.stem}-{mine}.partial")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as f:
      fill(f)
      f.flush()
      os.fsync(f.fileno())
    partial.replace(path)
    _sync(path.parent)  # the new name is to survive a power cut as well
  except BaseException as e:
    partial.unlink(missing_ok=True)
    if isinstance(e, OSError) and e.errno in _FULL:
      raise OSError(
        e.errno,
        f"the disk is full: {path} could not be written ({e.strerror})."
        " Whatever was complete is kept: make room and run the same command"
        " again, which goes on there",
      ) from e
    raise


def _sync(folder: pathlib.Path) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def clean(folder: str | os.PathLike, wanted: list[int]) -> None:
  """Removes what a killed job left of the shards `wanted` while writing them.

  Only those: other processes may be writing others.
  """
  for path in pathlib.Path(folder).glob(".shard-*.partial"):
    match = re.match(r"\.shard-(\d+)-", path.name)
    if match and int(match[1]) in wanted:
      path.unlink(missing_ok=True)


def holds(
  folder: str | os.PathLike, number: int, first: int, stop: int
) -> bool:
  """Returns whether a shard is there, readable, and of samples first..stop."""
  try:
    with np.load(path_of(folder, number), allow_pickle=False) as held:
      return held["range"].tolist() == [first, stop]
  except _DAMAGED:
    return False


def read(folder: str | os.PathLike, number: int) -> dict[str, np.ndarray]:
  """Returns the arrays of one shard as they are stored.

  Raises:
    FileNotFoundError: if there is no such shard.
    ValueError: if it is damaged or lacks an array.
  """
  path = path_of(folder, number)
  if not path.is_file():
    raise FileNotFoundError(
      f"there is no {path}; run the command that wrote the other shards again,"
      " which draws what is missing"
    )
  mend = (
    "It was changed after it was written: delete it and run the command that"
    " wrote it again, which draws what is missing."
  )
  return archives.read(path, mend, ("image", "label", "range"))


def expected(folder: str | os.PathLike) -> list[tuple[int, int, int]]:
  """Returns (number, first, stop) of every shard of a complete folder.

  They follow from setting.json. Without one, shards reach from 0 to the highest
  that is there, and the first two tell how many samples each holds.

  Raises:
    FileNotFoundError: if there is no such folder, or no shard in it.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(
      f"there is no folder {str(folder)!r}; it is looked for from"
      f" {os.getcwd()!r}"
    )
  there = numbers(folder)
  if not there:
    raise FileNotFoundError(
      f"there is no shard in {str(folder)!r}, no file shard-00000.npz;"
      " experiments.sample writes shards into a folder `samples`"
    )
  if (folder / SETTING).is_file():
    made = json.loads((folder / SETTING).read_text())
    num, size = made["num"], made["shard_size"]
  else:
    last, stop = read(folder, there[-1])["range"].tolist()
    num, size = stop, last // there[-1] if there[-1] else stop
  firsts = range(0, num, size)
  return [(k, a, min(a + size, num)) for k, a in enumerate(firsts)]


def each(
  folder: str | os.PathLike, *, scale: bool = True
) -> Iterator[dict[str, np.ndarray]]:
  """Yields complete shards one by one, in the order of their samples.

  Holds one shard at a time: for statistics over sets that fit no memory.

  Args:
    folder: folder of the shards.
    scale: False leaves u8 images as they are, for `scaled`.

  Yields:
    `image` f32[m, ...] (u8 is mapped to [-1, 1]) and `label` i32[m].

  Raises:
    FileNotFoundError: if a shard is missing; it is named, before any is read.
    ValueError: if one is damaged.
  """
  wanted = expected(folder)
  missing = [span for span in wanted if not holds(folder, *span)]
  if missing:
    number, first, stop = missing[0]
    if path_of(folder, number).is_file():
      read(folder, number)  # says so if it is damaged
    raise FileNotFoundError(
      f"{len(missing)} of {len(wanted)} shards are not complete, the first"
      f" {path_of(folder, number)} with samples {first} to {stop - 1}; run the"
      " command that wrote the others again, which goes on there (with several"
      " processes: each of them)"
    )
  for number, _, _ in wanted:
    shard = read(folder, number)
    rank = shard["image"].ndim  # points of the plane are no grey images
    yield {
      name: arrays.standard(name, shard[name], rank=rank, pixels=not scale)
      for name in ("image", "label")
    }


@checks.door
def from_shards(
  folder: str | os.PathLike, *, scale: bool = True
) -> dict[str, np.ndarray]:
  """Reads a folder of shards as one data set, in the order of the samples.

  Args:
    folder: folder of the shards.
    scale: False leaves u8 images as they are, for `scaled`.

  Returns:
    `image` f32[n, ...], where u8 is mapped to [-1, 1], and `label` i32[n].

  Raises:
    FileNotFoundError: if there is no such folder, or a shard is missing.
    ValueError: if a shard is damaged.
  """
  parts = list(each(folder, scale=scale))
  return {
    name: np.concatenate([part.pop(name) for part in parts])
    for name in ("image", "label")
  }

"""A folder of image files as a data set; files are decoded when read.

Nothing but names is read at first, so that a million pictures are ready in
seconds. Their order is that of their relative paths, code point by code point:
the same on every machine.
"""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence
from concurrent import futures

import numpy as np

from jaxdiff import checks
from jaxdiff.data import arrays
from jaxdiff.data import images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_NAMED = 3  # files that a message names


@dataclasses.dataclass(frozen=True)
class Folder:
  """A source for `batches`: `folder[i]` is {"image": ..., "label": ...}.

  Attributes:
    root: the folder.
    paths: paths of the pictures, relative to it, in order.
    labels: i32[len(paths)], the number of every picture's class, or None.
    classes: names of the classes.
    size: side of the pictures, or None for that of the files.
    channels: 1, 3 or 4.
    crop: side of the central square that is kept, or None.
    scale: whether pixels become f32 in [-1, 1]; otherwise they are u8.
  """

  root: str
  paths: Sequence[str]
  labels: np.ndarray | None
  classes: tuple[str, ...]
  size: int | None
  channels: int
  crop: int | None
  scale: bool

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    path = os.path.join(self.root, self.paths[index])
    image = images.decode(
      path, self.size, channels=self.channels, crop=self.crop
    )
    example = {"image": arrays.scale(image) if self.scale else image}
    if self.labels is not None:
      example["label"] = self.labels[index]
    return example


@checks.door
def from_folder(
  path: str | os.PathLike[str],
  *,
  size: int | None = None,
  channels: int = 3,
  crop: int | None = None,
  labels: bool | None = None,
  scale: bool = True,
  skip_bad: bool = False,
) -> Folder:
  """Opens a folder of PNG, JPEG and WebP pictures, with all its sub-folders.

  Args:
    path: the folder. Its sub-folders of the first level are the classes, in
      the order of their names. Hidden files are passed over.
    size: the largest central square of every picture is resized to this side;
      None takes pictures as they are, which must then be of one size.
    channels: 1 for grey, 3 for colour, 4 with opacity.
    crop: side of a smaller central square, in pixels of the original.
    labels: whether sub-folders are classes; by default they are, if there are
      at least two and no picture lies beside them.
    scale: False leaves pixels u8, for `scaled`.
    skip_bad: leaves out what is no picture or is cut short, with one warning.
      To know them every file is decoded once, by as many threads as there are
      cores. Otherwise such a file is an error: at once, if its name tells, or
      when it is decoded.

  Returns:
    A source for `batches`: examples with `image` f32[size, size, channels] in
    [-1, 1] and, with classes, `label` i32. It holds `classes`, their names.

  Raises:
    ImportError: Pillow is not installed.
    FileNotFoundError: there is no such folder.
    ValueError: it has no pictures, or other files too.
  """
  checks.one_of(channels, (1, 3, 4), "channels")
  for name, side in (("size", size), ("crop", crop)):
    if side is not None and side < 1:
      raise ValueError(f"{name}: got {side}, expected 1 pixel or more.")
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(
      f"path: there is no folder {os.fspath(path)!r}; it is looked for from "
      f"{os.getcwd()!r}."
    )
  found, others = _list(root)
  if others and not skip_bad:
    raise ValueError(
      f"path: {os.fspath(path)!r} holds {len(others)} file(s) that are no "
      f"{', '.join(s[1:] for s in SUFFIXES)}: {_names(others)}. Remove them, "
      "or pass skip_bad=True to leave out every such file."
    )
  if skip_bad:
    broken = _broken(root, found)
    bad = sorted(others + broken)
    if bad:
      warnings.warn(
        f"path: left out {len(bad)} of {len(found) + len(others)} files in "
        f"{os.fspath(path)!r} that are no pictures or are cut short: "
        f"{_names(bad)}.",
        stacklevel=2,
      )
    found = sorted(set(found) - set(broken))
  if not found:
    raise ValueError(
      f"path: {os.fspath(path)!r} holds no pictures; expected files named "
      f"*{', *'.join(SUFFIXES)} in it or in its sub-folders."
    )
  numbers, classes = _classes(path, found, labels)
  return Folder(
    root=str(root),
    paths=found,
    labels=numbers,
    classes=classes,
    size=size,
    channels=channels,
    crop=crop,
    scale=scale,
  )


def _classes(
  path: str | os.PathLike[str], found: Sequence[str], labels: bool | None
) -> tuple[np.ndarray | None, tuple[str, ...]]:
  """Returns (class numbers or None, names of the classes) of the pictures."""
  first = [p.split(os.sep, 1)[0] if os.sep in p else None for p in found]
  names = tuple(sorted(set(first) - {None}))
  if labels is None:
    labels = len(names) > 1 and None not in first
  if not labels:
    return None, ()
  if None in first or not names:
    loose = [p for p, name in zip(found, first) if name is None]
    raise ValueError(
      f"labels: {len(loose)} pictures lie in {os.fspath(path)!r} itself, in no "
      f"class: {_names(loose)}. Move each into the sub-folder of its class, or "
      "pass labels=False."
    )
  number = {name: i for i, name in enumerate(names)}
  return np.array([number[n] for n in first], np.int32), names


def _list(root: pathlib.Path) -> tuple[list[str], list[str]]:
  """Returns the pictures below a folder, and what else there is; sorted."""
  found, others = [], []
  above = {str(root): (root.resolve(),)}
  for folder, inside, files in os.walk(root, followlinks=True):
    inside[:] = [name for name in inside if not name.startswith(".")]
    below = os.path.relpath(folder, root)
    for name in inside:
      path = os.path.join(folder, name)
      place = pathlib.Path(path).resolve()
      if place in above[folder]:
        raise ValueError(
          f"path: {path!r} is a link to {str(place)!r}, a folder that it lies"
          " in: its pictures would be counted without end. Remove the link."
        )
      above[path] = (*above[folder], place)
    for name in files:
      if name.startswith("."):
        continue
      kind = found if name.lower().endswith(SUFFIXES) else others
      kind.append(name if below == "." else os.path.join(below, name))
  return sorted(found), sorted(others)


def _broken(root: pathlib.Path, paths: Sequence[str]) -> list[str]:
  """Returns the files that cannot be decoded."""

  def fails(path: str) -> bool:
    try:
      images.decode(root / path)
    except ValueError:
      return True
    return False

  with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    return [p for p, bad in zip(paths, threads.map(fails, paths)) if bad]


def _names(paths: Sequence[str]) -> str:
  more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
  return ", ".join(map(repr, paths[:_NAMED])) + more

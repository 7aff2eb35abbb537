"""Reads .npz files of others, or refuses them with the reason.

Nothing in a file is run: an archive with pickled objects is refused.
"""

import os
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

_DAMAGED = (
  OSError,
  EOFError,
  KeyError,
  NotImplementedError,
  RuntimeError,
  ValueError,
  pickle.UnpicklingError,
  zipfile.BadZipFile,
  zlib.error,
)


def check(path: str | os.PathLike, mend: str) -> pathlib.Path:
  """Returns the path of a file that is there and is an .npz archive.

  Args:
    path: path of the file.
    mend: how such a file is made, for the messages.

  Raises:
    FileNotFoundError: there is no such file, or its links lead in a circle.
    IsADirectoryError: it is a folder.
    ValueError: it is of another kind, empty or cut short.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    raise IsADirectoryError(
      f"{str(path)!r} is a folder, but an .npz file was expected; name the file"
      f" in it. {mend}"
    )
  if not path.is_file():
    broken = path.is_symlink()
    raise FileNotFoundError(
      f"there is no file {str(path)!r}"
      + (
        ": it is a link that leads nowhere or back to itself" if broken else ""
      )
      + f"; it is looked for from {os.getcwd()!r}. {mend}"
    )
  if not zipfile.is_zipfile(path):
    size = path.stat().st_size
    raise ValueError(
      f"{str(path)!r} is not an .npz archive, or was cut short"
      + ("; it is empty" if not size else "")
      + f". Copy it again. {mend}"
    )
  return path


def names(path: str | os.PathLike, mend: str) -> tuple[str, ...]:
  """Returns the names of the arrays; see `check`."""
  path = check(path, mend)
  try:
    with np.load(path, allow_pickle=False) as held:
      return tuple(held.files)
  except _DAMAGED as error:
    raise _refusal(path, error, mend) from error


def read(
  path: str | os.PathLike, mend: str, wanted: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz file.

  Args:
    path: path of the file.
    mend: how such a file is made, for the messages.
    wanted: names of those that are read; all by default.

  Raises:
    FileNotFoundError: there is no such file.
    IsADirectoryError: it is a folder.
    ValueError: it is of another kind, damaged, or holds Python objects.
  """
  path = check(path, mend)
  try:
    with np.load(path, allow_pickle=False) as held:
      return {n: held[n] for n in (held.files if wanted is None else wanted)}
  except _DAMAGED as error:
    raise _refusal(path, error, mend) from error


def _refusal(path: pathlib.Path, error: Exception, mend: str) -> ValueError:
  if "allow_pickle" in str(error):
    return ValueError(
      f"{str(path)!r} holds pickled Python objects, which could run code when"
      " they are read; write plain arrays of numbers, without dtype=object."
      f" {mend}"
    )
  return ValueError(
    f"{str(path)!r} was cut short or is damaged ({error}); copy it again, or"
    f" make it anew. {mend}"
  )

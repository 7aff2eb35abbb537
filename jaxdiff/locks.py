"""Locks: one job in a folder at a time; a second one is told who holds it.

A job holds a lock of the operating system on a file of the folder, which says
who holds it. The system drops the lock when the process ends, however it ends,
so that a job which was killed can be started again at once. Where the file
system has no such locks, the file itself is the lock, and one whose process is
gone is taken over on the same host.
"""

import contextlib
import errno
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

_TAKEN = (errno.EAGAIN, errno.EACCES)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def hold(
  folder: str | os.PathLike, job: str, *, only: bool = True
) -> Iterator[None]:
  """Holds a folder for a job while the block runs.

  Args:
    folder: made if it does not exist.
    job: what runs there, in a word: jobs of other words do not disturb it.
    only: whether this process holds it; False for all but the first of several
      processes that share one job.

  Raises:
    BlockingIOError: if another process holds it, or another part of this one;
      who, and since when.
    OSError: if the folder cannot be made or written to.
  """
  if not only:
    yield
    return
  folder = pathlib.Path(folder).expanduser().absolute()
  path = folder / f".{job}.lock"
  handle = None
  try:
    folder.mkdir(parents=True, exist_ok=True)
    handle = _acquire(path, job)
    text = json.dumps(_myself()) + "\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)
  except OSError as e:
    if handle is not None:
      os.close(handle)
    if e.errno is None or e.errno in _FULL:  # said already, or the disk is full
      raise
    reason = e.strerror
    if isinstance(e, FileExistsError | NotADirectoryError):
      reason = "a file is in the way"
    raise type(e)(
      f"{folder} cannot be written to ({reason}: {e.filename or path}); give"
      " a folder that can"
    ) from e
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      path.unlink()
    os.close(handle)  # and with it the lock


class _Taken(Exception):
  """Another process has the system's lock."""


def _myself() -> dict[str, Any]:
  return dict(
    host=socket.gethostname(),
    process=os.getpid(),
    since=time.strftime("%Y-%m-%d %H:%M:%S"),
    command=" ".join(
      [pathlib.Path(sys.argv[0] or "python").name, *sys.argv[1:]]
    ),
  )


def _acquire(path: pathlib.Path, job: str) -> int:
  """Returns the open file that is the lock."""
  create = os.O_RDWR | os.O_CREAT | os.O_EXCL
  while True:
    try:
      handle, new = os.open(path, create, 0o666), True
    except FileExistsError:
      try:
        handle, new = os.open(path, os.O_RDWR), False
      except FileNotFoundError:  # it was given back in between
        continue
    try:
      if not _lock(handle):
        return handle if new else _taken_over(handle, path, job)
      # whoever held it may have removed the file since it was opened
      if _same(handle, path):
        return handle
    except _Taken:
      holder = _read(handle)
      os.close(handle)
      raise BlockingIOError(_said(path, job, holder)) from None
    os.close(handle)


def _lock(handle: int) -> bool:
  """Takes the system's lock; returns False where there is none to take."""
  if fcntl is None:
    return False
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    if e.errno in _TAKEN:
      raise _Taken from e
    if e.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
      return False
    raise
  return True


def _taken_over(handle: int, path: pathlib.Path, job: str) -> int:
  """Returns the file of a process that is gone, a lock by itself."""
  holder = _read(handle)
  here = holder.get("host") == socket.gethostname()
  if here and not _alive(holder.get("process")):
    return handle
  os.close(handle)
  raise BlockingIOError(
    f"{_said(path, job, holder)}; this file system has no locks: if that"
    f" process is gone, delete {path}"
  )


def _same(handle: int, path: pathlib.Path) -> bool:
  try:
    there = os.stat(path)
  except FileNotFoundError:
    return False
  return os.path.samestat(os.fstat(handle), there)


def _read(handle: int) -> dict[str, Any]:
  try:
    found = json.loads(os.pread(handle, 65536, 0))
  except ValueError:  # it is being written
    return {}
  return found if isinstance(found, dict) else {}


def _alive(process: Any) -> bool:
  if not isinstance(process, int):
    return True
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True


def _said(path: pathlib.Path, job: str, holder: dict[str, Any]) -> str:
  who = "another process"
  if holder:
    who = (
      f"process {holder.get('process')} on {holder.get('host')}, since"
      f" {holder.get('since')} ({holder.get('command')})"
    )
  return (
    f"{path.parent} is in use: {job} by {who}; wait for it or end it, or give"
    " another folder"
  )

"""Checksums of weights files."""

import hashlib
import os
import pathlib
import re


def of(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file, compared with the one that its name gives.

  PyTorch's convention: `inception-6726825d.pth` names the first eight digits.

  Raises:
    ValueError: the name gives other digits.
  """
  path = pathlib.Path(path)
  with open(path, "rb") as f:
    digest = hashlib.file_digest(f, "sha256").hexdigest()
  named = re.search(r"-([0-9a-f]{8,64})$", path.stem)
  if named and not digest.startswith(named[1]):
    raise ValueError(
      f"weights: {str(path)!r} should have the SHA-256 {named[1]}..., but has"
      f" {digest[:16]}...; it was changed or cut short: download it again, or"
      " rename it if it is a file of your own"
    )
  return digest

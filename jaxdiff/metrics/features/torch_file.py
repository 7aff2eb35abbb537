"""Weights files of PyTorch: their tensors, and their checksum."""

import hashlib
import os
import pathlib
import re

import numpy as np

from jaxdiff import pickles


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the tensors of a state dict saved by torch.save, by name.

  A file {"state_dict": {...}} is read as its state dict; what is no tensor is
  left out.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is of another kind, was cut short, or asks to run
      code, which it does not.
  """
  tree = pickles.load(path)
  if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
    tree = tree["state_dict"]
  tensors = {
    str(name): value
    for name, value in (tree.items() if isinstance(tree, dict) else ())
    if isinstance(value, np.ndarray)
  }
  if not tensors:
    raise ValueError(
      f"weights: {os.fspath(path)!r} is no state dict: it holds no tensors by"
      " name; save one with torch.save(model.state_dict(), path), or give an"
      " .npz of the arrays"
    )
  return tensors


def checksum(path: str | os.PathLike) -> str:
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

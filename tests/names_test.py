"""Texts name what there is: messages, docstrings, pages, after every move."""

import ast
import importlib.util
import re

import pytest

import jaxdiff
from tests import layers_test
from tests import ROOT

ROOMS = sorted(
  {layers_test.unit(name) for name in layers_test.modules(ROOT)}
  - {"jaxdiff", "experiments"}
)
# `room.name`, but no part of a path, of a longer name or of a quoted word.
_NAME = re.compile(
  rf'(?<![\w./\-"])(?:(?:jaxdiff|jd)\.)?({"|".join(ROOMS)})'
  r"\.([A-Za-z_]\w*)(?![\w/])"
)
_SCRIPT = re.compile(r"(?:python -m |`)(experiments(?:\.[a-z]\w*)+)")
# Variables and files that are called as a room is.
_OTHERS = {"tableau.t", "weights.sum", "data.pkl", "sampling.py"}


def texts():
  """Yields (place, text) of all strings of the code and lines of the pages."""
  for folder in ("jaxdiff", "experiments"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
          yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value
  for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
    if path.name != "changelog.md":  # which tells of names that were
      for i, line in enumerate(path.read_text("utf-8").splitlines()):
        yield f"{path.relative_to(ROOT)}:{i + 1}", line


def stale(text):
  """Returns the names in a text that are nowhere."""
  found = []
  for match in _NAME.finditer(text):
    room, name = match.groups()
    said = f"{room}.{name}"
    is_file = name in ("py", "md", "npz", "json", "csv", "png")
    if not is_file and said not in _OTHERS and not _there(room, name):
      found.append(said)
  for match in _SCRIPT.finditer(text):
    path = ROOT / match[1].replace(".", "/")
    owner = path.parent.with_suffix(".py").is_file()  # a function of a script
    if not (path.is_dir() or path.with_suffix(".py").is_file() or owner):
      found.append(match[1])
  return found


def _there(room, name):
  module = getattr(jaxdiff, room, None) or importlib.import_module(
    f"jaxdiff.{room}"
  )
  if hasattr(module, name):
    return True
  is_package = hasattr(module, "__path__")
  return is_package and bool(importlib.util.find_spec(f"jaxdiff.{room}.{name}"))


def test_every_name_in_a_text_is_there():
  wrong = [f"{place}: {name}" for place, t in texts() for name in stale(t)]
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("make one with training.ModelConfig()", ["training.ModelConfig"]),
    ("make one with models.ModelConfig()", []),
    ("as `jd.oracles.exact_fields` has", ["oracles.exact_fields"]),
    ("python -m experiments.bench_train", ["experiments.bench_train"]),
    ("python -m experiments.bench.train", []),
    ("see models.py and data/models.bin", []),
  ],
)
def test_a_stale_name_is_seen(text, found):
  assert stale(text) == found

"""What `make docs` shows: every public name, readable, with links that lead."""

import importlib
import inspect
import re
import sys

import pytest

from tests import ROOT

sys.path.append(str(ROOT / "docs" / "site"))

import check
import docstrings
import notebooks
import rooms


def found(target):
  """Returns what a dotted name of the reference means to Python."""
  if target in rooms.modules():
    return sys.modules.get(target) or importlib.import_module(target)
  module, _, name = target.rpartition(".")
  return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("room", rooms.rooms())
def test_a_page_shows_every_public_name_as_what_it_is(room):
  module = importlib.import_module(room)
  entries = rooms.entries(room)
  names = {entry.name for entry in entries}
  assert names >= set(getattr(module, "__all__", ()))
  for entry in entries:
    thing = getattr(module, entry.name, found(entry.target))
    assert found(entry.target) is thing
    home = rooms.files(entry.home)
    file, _, name = entry.target.rpartition(".")
    assert entry.target in (entry.home, *home) or name in home[file], (
      f"{entry.home} does not show {entry.target}"
    )


def test_every_package_is_a_room_and_every_name_has_a_line():
  packages = {
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "jaxdiff").rglob("__init__.py")
  }
  assert packages - {"jaxdiff.experiments"} <= set(rooms.rooms())
  for room in rooms.rooms():
    for entry in rooms.entries(room):
      if inspect.isroutine(found(entry.target)):
        assert entry.line, f"{entry.target} says nothing of itself"


def test_an_indented_formula_keeps_its_lines():
  text = """A title.

With h = 1

  x' = a * x
     + b,
  c = 2

and then

Args:
  x: a number.

    of two lines
"""
  lines = docstrings.formulas(text).splitlines()
  start = lines.index("``` { .text .formula }")
  assert lines[start + 1 : start + 5] == [
    "x' = a * x",
    "   + b,",
    "c = 2",
    "```",
  ]
  assert lines[-4:] == ["Args:", "  x: a number.", "", "    of two lines"]


def test_a_name_is_a_link_to_what_it_means_there():
  link = lambda text, module: docstrings.links(text, module, "")
  deis = "[`deis`][jaxdiff.solvers.deis.deis]"
  assert link("as `deis` does", "jaxdiff.solvers.unipc") == f"as {deis} does"
  assert "[jaxdiff.sampling.sample]" in link("`jd.sample`", "jaxdiff.zoo")
  assert "[jaxdiff.sampling.sample]" in link("`sampling.sample`", "jaxdiff.zoo")
  for plain in ("`no_such_name`", "`x + 1`", ">>> `deis`"):
    assert link(plain, "jaxdiff.solvers.unipc") == plain
  assert link("n\n> 2. Then", "jaxdiff") == "n\n\\> 2. Then"
  assert link("2 * a and *one* b*", "jaxdiff") == r"2 \* a and *one* b\*"
  for argument in ("  *args: arrays.", "  **options (dict): the rest."):
    assert link(argument, "jaxdiff") == argument


def test_the_build_counts_its_warnings():
  """Quiet, mkdocs drops the warnings that a strict build fails on."""
  lines = (ROOT / "Makefile").read_text("utf-8").splitlines()
  (build,) = (line.split() for line in lines if "mkdocs build" in line)
  assert not {"-q", "--quiet", "--no-strict"} & set(build)
  settings = (ROOT / "docs" / "site" / "mkdocs.yml").read_text("utf-8")
  assert "\nstrict: true\n" in settings


def test_a_notebook_comes_with_what_it_stored():
  cell = dict(cell_type="code", source=["x = 1\n", "x"])
  cell["outputs"] = [
    dict(output_type="stream", name="stdout", text=["\x1b[31mone\x1b[0m\n"]),
    dict(output_type="display_data", data={"image/png": "aGVsbG8="}),
    dict(output_type="execute_result", data={"text/plain": ["```"]}),
  ]
  title = dict(cell_type="markdown", source=["# Title"])
  text, pictures = notebooks.markdown({"cells": [title, cell]}, "book")
  assert text.startswith("# Title\n\n``` python\nx = 1\nx\n```\n")
  assert "\none\n" in text and "](book_0.png)" in text and "````" in text
  assert pictures == {"book_0.png": b"hello"}


@pytest.mark.parametrize(
  "link, fault",
  [
    ("other.html", None),
    ("other.html#here", None),
    ("#top", None),
    ("https://example.org/#x", None),
    ("missing.html", "leads nowhere"),
    ("/other.html", "leads nowhere"),
    ("other.html#there", "has no such anchor"),
    ("#nowhere", "has no such anchor"),
  ],
)
def test_a_broken_link_is_found(tmp_path, link, fault):
  page = f'<h1 id="top">x</h1><a href="{link}">x</a>'
  (tmp_path / "index.html").write_text(page)
  (tmp_path / "other.html").write_text('<a name="here"></a><img src="i.png">')
  (tmp_path / "i.png").write_bytes(b"")
  assert check.faults(tmp_path) == (
    [f"index.html: {link} {fault}"] if fault else []
  )


def test_a_doubled_anchor_is_found(tmp_path):
  (tmp_path / "index.html").write_text('<p id="a"></p><p id="a"></p>')
  assert check.faults(tmp_path) == ["index.html: id 'a' twice"]


@pytest.mark.parametrize(
  "path",
  [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
  ids=lambda path: path.name,
)
def test_a_page_of_the_repository_links_to_what_is_there(path):
  text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S)
  links = re.findall(r"\]\(([^)\s#]+)", text)
  assert not [
    link
    for link in links
    if ":" not in link and not (path.parent / link).exists()
  ]

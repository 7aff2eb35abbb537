"""What setup.py says of the project, and who else says it."""

import re
import runpy
import sys
import types

import pytest

import jaxdiff
from tests import ROOT


@pytest.fixture(scope="module")
def said():
  """The arguments that setup.py hands to setuptools."""
  given = {}
  stub = types.ModuleType("setuptools")
  stub.find_packages = lambda *args, **options: []
  stub.setup = given.update
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "setuptools", stub)
    runpy.run_path(str(ROOT / "setup.py"))
  return given


def test_the_version_is_one(said):
  assert said["version"] == jaxdiff.__version__
  citation = (ROOT / "CITATION.cff").read_text("utf-8")
  assert f"\nversion: {jaxdiff.__version__}\n" in citation
  changes = (ROOT / "docs" / "changelog.md").read_text("utf-8")
  assert f"\n## {jaxdiff.__version__}\n" in changes


def test_the_address_is_one(said):
  """Badges, install cells and the citation name the address of setup.py."""
  files = [ROOT / "README.md", ROOT / "CITATION.cff"]
  files += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "colabs").glob("*.ipynb")]
  host, path = re.fullmatch(r"https://([^/]+)/(.+)", said["url"]).groups()
  name = path.rpartition("/")[2]
  # github.com/x/jaxdiff, and Colab's colab.../github/x/jaxdiff/blob/...
  form = rf"(?:{re.escape(host)}|/github)/([\w.-]+/{name})\b"
  named = {}
  for file in files:
    named[file.name] = set(re.findall(form, file.read_text("utf-8")))
    assert named[file.name] <= {path}, f"{file.name} has another address"
  assert named["CITATION.cff"] == {path}


def test_the_wheel_says_that_it_is_typed(said):
  assert "py.typed" in said["package_data"]["jaxdiff"]
  assert (ROOT / "jaxdiff" / "py.typed").is_file()


def test_links_and_authors_are_said(said):
  assert said["author"] and said["keywords"] and said["classifiers"]
  assert all(x.startswith(said["url"]) for x in said["project_urls"].values())
  page = said["project_urls"]["Changelog"].partition("/blob/main/")[2]
  assert (ROOT / page).is_file()

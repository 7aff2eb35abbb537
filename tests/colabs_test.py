"""Every notebook runs from its first cell to its last, and shows what it did.

That all of them run takes minutes: in the fast suite it is first_steps alone.
Of the others it is checked there that their names exist and that the stored
outputs are those of their code.
"""

import ast
import copy
import inspect
import os
import re

import nbclient
import nbformat
import pytest

import jaxdiff
from experiments.pages import notebooks
from tests import ROOT

URL = notebooks.url(ROOT)
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
LONG = (
  "bring_your_own_checkpoint",
  "distil_a_mixture",
  "learn_your_own_solver",
  "one_step_digits",
  "pfgmpp",
  "sharded_sampling",
  "stochastic_interpolants",
  "train_on_your_own_data",
  "which_solver",
)
SOLVERS = ("ddim", "dpmpp_2m", "default")  # of bring_your_own_checkpoint


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(
      path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG)
    )
    for path in NOTEBOOKS
  ],
)
def test_notebook_runs(path, monkeypatch):
  if path.stem == "bring_your_own_checkpoint":
    pytest.importorskip("safetensors")
  monkeypatch.setenv(
    "PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
  )
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  notebook = nbformat.read(path, as_version=4)
  ran = nbclient.NotebookClient(
    notebook, timeout=900, kernel_name="python3"
  ).execute()
  text = "".join(
    output.get("text", "")
    for cell in ran.cells
    if cell.cell_type == "code"
    for output in cell.outputs
  )
  if path.stem == "first_steps":
    assert "compiled programs: 1" in text
    order = float(text.split("measured order: ")[1].split()[0])
    assert abs(order - 2.0) < 0.2
  if path.stem == "bring_your_own_checkpoint":
    assert "better everywhere: True" in text
    found = [float(text.split(f"\n{name}: ")[1].split()[0]) for name in SOLVERS]
    assert found == sorted(found, reverse=True)
    assert found[0] < 0.2
  if path.stem == "distil_a_mixture":
    found = [
      float(p[:5]) for p in text.split("\nbefore")[1].split("distance ")[1:]
    ]
    assert len(found) == 5  # a copy of the teacher, four students
    assert max(found[1:]) < 0.25 * found[0]
  if path.stem == "one_step_digits":
    assert "the same samples: True" in text
    ratio = float(text.split("teacher's eighteen: ")[1].split()[0])
    assert ratio < 2.0
  if path.stem == "pfgmpp":
    assert "same table: True" in text
    slope = float(text.split("slope at large D: ")[1].split()[0])
    assert abs(slope + 1.0) < 0.1
  if path.stem == "which_solver":
    assert "compiled programs: 1" in text
    # the default against the best other: where it was fitted, and elsewhere
    fitted, unseen, network = (
      [float(p.split()[0]) for p in part.split(" calls: ")[1:]]
      for part in text.split("the best of all")[1].split("\n\n")[1:4]
    )
    assert len(fitted) == len(unseen) == len(network) == 7
    assert max(fitted) < 1
    assert max(unseen) > 1
    assert min(network) > 1.2
  if path.stem == "sharded_sampling":
    assert "same images: True" in text
    assert "1 of 4 shards are not complete" in text
    found = [float(p.split()[0]) for p in text.split("one device: ")[1:]]
    assert len(found) == 2 and max(found) < 1e-5
  if path.stem == "train_on_your_own_data":
    assert "1797 pictures, classes: 0, 1," in text
    measured = text.split("Frechet in ")[1:]
    assert len(measured) == 2
    for line in measured:  # far nearer to the data than noise is
      found, floor, noise = (
        float(part.split(",")[0])
        for part in (
          line.split("samples ")[1],
          line.split("floor ")[1],
          line.split("noise ")[1].split()[0],
        )
      )
      assert floor < found < 0.1 * noise
  if path.stem == "stochastic_interpolants":
    found = [float(part.split()[0]) for part in text.split("distance ")[1:]]
    assert found == sorted(found, reverse=True)  # more noise, less error


@pytest.fixture(scope="module")
def stored():
  return {path.stem: notebooks.read(path) for path in NOTEBOOKS}


EACH = pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])


@EACH
def test_stored_outputs_belong_to_the_code(name, stored):
  assert not notebooks.faults(stored[name], name, URL)


@EACH
def test_begins_with_what_one_sees_and_ends_with_what_to_change(name, stored):
  first, install, *_, last = stored[name]["cells"]
  assert f"/blob/main/colabs/{name}.ipynb)\n\n" in first["source"]
  assert install["cell_type"] == "code"
  title, _, rest = first["source"].partition("\n")
  assert title.startswith("# ")
  assert "**You will see** " in rest
  assert re.search(r"\*\*It takes\*\* about .* on a CPU", rest)
  assert "## What to change first\n" in last["source"]


@EACH
def test_names_of_the_library_exist(name, stored):
  cells = stored[name]["cells"]
  code = [c for c in cells if c["cell_type"] == "code" and c["id"] != "install"]
  tree = ast.parse("\n".join(c["source"] for c in code))
  names = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      line = ast.unparse(node)
      if "jaxdiff" in line:
        exec(line, names)
  assigned = {
    node.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
  }
  modules = dir(jaxdiff)
  for node in ast.walk(tree):
    dotted = ast.unparse(node)
    parts = dotted.split(".")
    if not re.fullmatch(r"\w+(\.\w+)+", dotted) or parts[0] in assigned:
      continue
    # a module that is used and not imported, or a name that it lacks
    assert parts[0] in names or parts[0] not in modules, dotted
    value = names.get(parts[0])
    for part in parts[1:]:
      if not inspect.ismodule(value):
        break
      assert hasattr(value, part), dotted
      value = getattr(value, part)


def test_all_of_them_stay_small():
  assert sum(path.stat().st_size for path in NOTEBOOKS) < 4e6


def changed(cell, **changes):
  """Returns a change of a notebook: of its first cell of code with pictures."""

  def change(notebook):
    found = next(c for c in notebook["cells"] if cell(c))
    found |= changes

  return change


def output(text, name="stdout"):
  return [dict(output_type="stream", name=name, text=text)]


def has_picture(cell):
  return any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))


def without_pictures(notebook):
  for cell in filter(has_picture, notebook["cells"]):
    cell["outputs"] = []


ERROR = dict(output_type="error", ename="NameError", evalue="", traceback=[])


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (changed(has_picture, source="1 + 1"), "those of other code"),
    (changed(has_picture, outputs=[ERROR]), "with an error: NameError"),
    (changed(has_picture, outputs=output("in /tmp/a")), "machine: /tmp/..."),
    (changed(has_picture, outputs=output("<f at 0x7f5a10>")), "in memory: 0x"),
    (changed(has_picture, outputs=output("", "stderr")), "warnings or logs"),
    (changed(lambda c: c["id"] == "install", source=""), "install cell"),
    (without_pictures, "no picture"),
  ],
)
def test_a_fault_of_a_stored_notebook_is_told(change, said, stored):
  notebook = copy.deepcopy(stored["first_steps"])
  change(notebook)
  found = notebooks.faults(notebook, "first_steps", URL)
  assert len(found) == 1, found
  assert said in found[0]


def test_another_address_changes_badge_and_install_and_no_output(stored):
  notebook = stored["first_steps"]
  moved = notebooks.with_head(notebook, "first_steps", "https://github.com/a/b")
  first, install, *rest = moved["cells"]
  assert "/github/a/b/blob/main/colabs/first_steps.ipynb" in first["source"]
  assert URL not in first["source"]
  assert "git+https://github.com/a/b" in install["source"]
  assert rest == notebook["cells"][2:]
  assert notebooks.code(moved) == notebooks.code(notebook)


def test_a_notebook_without_extras_is_refused():
  with pytest.raises(ValueError, match=r"x\.ipynb does not say which extras"):
    notebooks.with_head({"metadata": {}, "cells": []}, "x", URL)


def test_every_extra_is_one_of_setup(stored):
  text = (ROOT / "setup.py").read_text("utf-8")
  for notebook in stored.values():
    for extra in notebook["metadata"]["jaxdiff"]["extras"]:
      assert f'\n  "{extra}": ' in text


def test_a_run_is_stored_without_what_is_of_the_machine():
  cells = [
    nbformat.v4.new_code_cell("import sys; print('told', file=sys.stderr)"),
    nbformat.v4.new_code_cell(
      "print(6, end='', flush=True); print('told', file=sys.stderr)\n"
      "print(7, flush=True)\nobject()"
    ),
  ]
  notebook = nbformat.v4.new_notebook(cells=cells)
  ran = notebooks.tidied(notebooks.execute(notebook, ROOT))
  first, second = ran["cells"]
  assert first["outputs"] == []
  assert second["execution_count"] is None
  assert "execution" not in second["metadata"]
  printed, shown = second["outputs"]
  assert printed["text"] == "67\n"
  assert shown["data"] == {"text/plain": "<object at 0x...>"}
  assert "outputs" in notebook["cells"][0]  # what was given stays as it was
  assert not notebook["cells"][0]["outputs"]


def test_a_notebook_that_is_not_there_is_told():
  assert list(notebooks.chosen([], ROOT)) == [p.stem for p in NOTEBOOKS]
  with pytest.raises(ValueError, match=r"no notebook 'x'; there are bring_you"):
    notebooks.chosen(["first_steps", "x"], ROOT)


def test_a_run_of_another_library_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"jaxdiff is imported from .*, not"):
    notebooks.execute({}, tmp_path)


def test_an_address_that_is_missing_is_told(tmp_path):
  (tmp_path / "setup.py").write_text("x = 1\n")
  with pytest.raises(ValueError, match=r"no line URL"):
    notebooks.url(tmp_path)

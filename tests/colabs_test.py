"""Every notebook runs from its first cell to its last."""

import os

import nbclient
import nbformat
import pytest

from tests import ROOT

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
    notebook, timeout=300, kernel_name="python3"
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
    assert text.count(" calls: default") == 8  # the exact network: every budget
    assert "poor network, best at 10 calls: ipndm(order=3)" in text
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
  for cell in nbformat.read(path, as_version=4).cells:
    assert not cell.get("outputs"), "clear the outputs before committing"

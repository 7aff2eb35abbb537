"""Generated pages are what their commands make of the committed results."""

import json

import jax
import numpy as np
import pytest

from experiments.evidence import documents
from experiments.evidence import report
from experiments.pages import frontier_table
from experiments.pages import held_out
from experiments.pages import learned
from experiments.pages import students
from jaxdiff import choosing
from tests import ROOT


def page(name):
  return (ROOT / "docs" / name).read_text("utf-8")


def results(name):
  path = ROOT / "experiments" / "results" / name
  return json.loads(path.read_text("utf-8"))


def test_the_frontier():
  stored = results("frontier.json")
  assert page("frontier.md") == frontier_table.document(stored)
  assert frontier_table.summary(stored) in page("choosing-a-solver.md")


def test_choose_and_the_default_where_nothing_was_fitted():
  text = held_out.summary(results("held_out.json"))
  assert f"{held_out.MARK}{text}<!-- end -->" in page("choosing-a-solver.md")


def test_every_model_that_is_named_was_measured():
  found = {model["model"]: model for model in results("held_out.json")}
  named = {n for names in held_out.KINDS.values() for n in names}
  assert set(found) | {held_out.MNIST} == named
  for name, model in found.items():
    assert tuple(c["calls"] for c in model["cells"]) == held_out.CALLS, name
    assert model["width"] > 0


def test_the_width_of_a_mixture_is_that_of_its_samples():
  law = held_out.low_rank()
  x, _ = law.sample(jax.random.key(0), 4000)
  ratio = choosing.width(np.asarray(x)) / held_out.width_of(law)
  assert 0.95 < ratio < 1.05
  assert 5.0 < held_out.width_of(law) < 5.2


@pytest.mark.slow
def test_a_model_is_measured_cell_by_cell(monkeypatch):
  """Few calls of one law: each number is an error, the best are the least."""
  monkeypatch.setattr(held_out, "CALLS", (3, 5))
  x64 = jax.config.jax_enable_x64
  try:
    found = held_out.measure("narrow_edm")
  finally:
    jax.config.update("jax_enable_x64", x64)
  for cell in found["cells"]:
    assert cell["ours"] <= min(cell["choose"], cell["default"])
    assert 0 < cell["published"] < 1
    assert cell["default"] != cell["bare"]


def test_learned_solvers():
  assert page("learned.md") == learned.document(results("learned.json"))


def test_rows_of_earlier_runs_are_kept(tmp_path):
  rows = results("learned.json")
  assert learned.gather(tmp_path, rows) == rows


def test_students_side_by_side():
  assert students.text(results("students.json")) in page("distillation.md")


def test_systems():
  stored = [report.read(slug) for slug in report.systems()]
  shown = documents.systems_page([r for r in stored if r is not None])
  assert page("systems.md") == shown

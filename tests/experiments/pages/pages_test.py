"""Generated pages are what their commands make of the committed results."""

import json

from experiments.evidence import documents
from experiments.evidence import report
from experiments.pages import frontier_table
from experiments.pages import learned
from experiments.pages import overview
from experiments.pages import students
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


def test_the_default_on_networks():
  table = overview.table(results("overview.json"))
  assert f"{overview.MARK}{table}<!-- end -->" in page("choosing-a-solver.md")


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

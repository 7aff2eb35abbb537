"""The document of one rule against the best of each cell."""

import numpy as np
import pytest

import jaxdiff as jd
from experiments import frontier
from experiments.configs import frontier_table as base
from experiments.pages import frontier_table


def results(rule=0.5, best=0.4):
  """Returns a cell of each kind, with these parts of the figures."""

  def row(calls, figure):
    kept = lambda part: dict(
      solver="s", grid="karras", rmse=part * figure, median=part * figure
    )
    return dict(calls=calls, rule=kept(rule), best=kept(best))

  figures = frontier_table.FIGURES["grid25_vp"]
  judged = [
    row(calls, figure) | dict(figure=figure, seeds=[1.5 * figure])
    for calls, figure in zip(frontier_table.CALLS, figures, strict=True)
  ]
  network = [
    dict(solver=s, grid="karras", calls=5, rmse=e, median=e)
    for s, e in (("default", 2.0), ("ddim", 1.0))
  ]
  return dict(
    cells={"grid25_vp": judged, "g2_edm": [row(5, 1.0)]}, mnist=network
  )


def test_the_document_says_what_met_its_bar_and_what_did_not():
  page = frontier_table.document(results())
  assert "| rule: at most 1.0 of the figure | 8 of 8 | 0.50" in page
  assert "| choice: at most 0.8 of the figure | 8 of 8 | 0.40" in page
  assert "| rule on other noises | 0 of 8 | 1.50 |" in page
  assert "**1.25** (1.25)" in page  # the held-out oracle: 0.5 against 0.4
  assert "**1.0000 / 1.0000 k**" in page  # the network's best is ddim
  missed = frontier_table.document(results(rule=1.2, best=0.9))
  assert "0 of 8 | 1.20" in missed and "0 of 8 | 0.90" in missed


def test_the_advice_holds_the_table_between_its_marks():
  table = frontier_table.summary(results())
  assert "| 5 | 0.50 .. 0.50 | 0.40 .. 0.40 | 1.25 .. 1.25 | ddim" in table
  page = "a\n<!-- generated -->\nold\n<!-- end -->\nb\n"
  once = frontier_table.insert(page, table)
  assert "old" not in once and once.endswith("b\n")
  assert frontier_table.insert(once, table) == once
  with pytest.raises(ValueError, match="lacks the marks"):
    frontier_table.insert("a", table)


def test_a_cell_is_measured_and_read_again(tmp_path):
  config = base.get_config()
  config.out = str(tmp_path)
  config.noises, config.choice.held_out_noises = 16, 16
  config.choice.reference_steps = 10
  config.choice.held_out_calls = (5,)
  config.solvers, config.choice.held_out_grids = ("dpmpp_2m",), ("karras",)
  frontier_table.measure("g2_edm", config)
  (row,) = frontier_table.gather(config, {})["cells"]["g2_edm"]
  assert row["rule"]["solver"] == "default"
  assert row["best"]["solver"] == "dpmpp_2m"
  with pytest.raises(ValueError, match="none of the cells"):
    frontier_table.measure("g2_nowhere", config)


def test_the_rule_alone_is_measured_anew(tmp_path):
  """What it was before keeps its number, under the name of its version."""
  config = base.get_config()
  config.out = str(tmp_path)
  config.choice.held_out_noises = 16
  config.choice.reference_steps = 10
  config.choice.held_out_calls = (5,)
  frontier_table.measure_rule("g2_edm", config)
  old = dict(solver="default", grid="angular", rmse=9.0, median=9.0)
  before = dict(cells={"g2_edm": [dict(calls=5, rule=old, best=old)]}, mnist=[])
  before["mnist"] = [dict(old, calls=5)]
  found = frontier_table.gather(config, before, rule=True)
  (row,) = found["cells"]["g2_edm"]
  assert 0 < row["rule"]["rmse"] < 9.0
  assert row["best"] == dict(old, solver="default of 0.1.0")
  assert found["mnist"][0]["solver"] == "default of 0.1.0"
  again = frontier_table.gather(config, found)
  assert again == found


def test_a_sweep_takes_grids_of_its_own():
  config = base.get_config()
  config.solvers, config.calls = (
    ("angular_adams(order=3, corrector=False)",),
    (8,),
  )
  named = frontier_table.angular_grids(config.choice)
  config.grids = tuple(named)
  process = jd.edm()
  found = list(frontier.cells(config, process, named))
  assert len(found) == len(named) == 8
  starts = {float(np.asarray(table.t)[1]) for *_, table in found}
  assert len(starts) == len(named)

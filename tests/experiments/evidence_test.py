"""The runner of the evidence, and that committed results are the modules'."""

import json
import types

import pytest

from experiments.evidence import documents
from experiments.evidence import report
from experiments.evidence import runner
from tests import ROOT


def module(**parts):
  base = dict(
    TITLE="A system",
    CLAIM="It is better.",
    PAPER="https://arxiv.org/abs/0",
    SEEDS=(0, 1),
    BARS=(report.at_most("ratio", 0.5, "error against the baseline's"),),
    REPORTED=(report.reported("floor", "two-sample floor"),),
    LIMITS="",
  )
  return types.SimpleNamespace(**(base | parts))


@pytest.mark.parametrize(
  ("values", "verdict"), [((0.4, 0.6), "shown"), ((0.4, 0.61), "missed")]
)
def test_a_bar_is_met_by_the_mean_and_not_rounded(values, verdict):
  measured = {i: dict(ratio=v, floor=1.0) for i, v in enumerate(values)}
  result = report.summarise(module(), "a", measured)
  assert result["verdict"] == verdict
  assert result["bars"][0]["per_seed"] == list(values)
  assert result["bars"][1]["met"] is None
  low, high = result["bars"][0]["interval"]
  # Student's quantile for one degree of freedom is 12.706
  half = 12.7062 * (values[1] - values[0]) / 2
  assert (high - low) / 2 == pytest.approx(half, rel=1e-4)


def test_at_least_is_a_lower_bound():
  low = module(BARS=(report.at_least("ratio", 0.5, "x"),))
  measured = {0: dict(ratio=0.49, floor=0.0)}
  assert report.summarise(low, "a", measured)["verdict"] == "missed"


def test_a_number_without_a_bar_is_refused():
  with pytest.raises(ValueError, match="BARS and REPORTED name"):
    report.summarise(module(), "a", {0: dict(ratio=0.1)})


def test_an_unknown_system_is_refused():
  with pytest.raises(ValueError, match="none of the systems"):
    report.load("nonesuch")


def test_an_interrupted_run_goes_on_with_the_next_seed(tmp_path, monkeypatch):
  asked = []

  def measure(seed):
    if seed == 1 and not asked.count(1):
      asked.append(1)
      raise KeyboardInterrupt
    asked.append(seed)
    return dict(ratio=0.1 * seed, floor=0.0)

  own = module(measure=measure, __file__=__file__)
  monkeypatch.setattr(report, "load", lambda slug: own)
  with pytest.raises(KeyboardInterrupt):
    runner.run("a", tmp_path)
  result = runner.run("a", tmp_path)
  assert asked == [0, 1, 1]
  assert result["bars"][0]["per_seed"] == [0.0, 0.1]


def test_the_page_shows_what_was_missed():
  measured = {0: dict(ratio=0.9, floor=0.0)}
  result = report.summarise(module(), "a", measured) | dict(
    seconds=1.0, device="cpu", versions=dict(jax="0"), command="x"
  )
  page = documents.systems_page([result])
  assert "| 0 of 1 |" in page
  assert "**missed**" in page


@pytest.mark.parametrize("slug", report.systems())
def test_a_committed_result_is_that_of_its_module(slug):
  own, result = report.load(slug), report.read(slug)
  assert result is not None, f"run python -m experiments.evidence {slug}"
  assert [(b["name"], b["sense"], b["bound"]) for b in result["bars"]] == [
    (b.name, b.sense, b.bound) for b in (*own.BARS, *own.REPORTED)
  ]
  assert result["seeds"] == list(own.SEEDS)
  again = report.summarise(
    own,
    slug,
    {
      seed: {b["name"]: b["per_seed"][i] for b in result["bars"]}
      for i, seed in enumerate(result["seeds"])
    },
  )
  assert json.dumps(again["bars"]) == json.dumps(result["bars"])
  assert again["verdict"] == result["verdict"]


def test_the_page_of_systems_is_that_of_the_results():
  results = [report.read(slug) for slug in report.systems()]
  expected = documents.systems_page([r for r in results if r is not None])
  assert (ROOT / documents.PAGE).read_text() == expected

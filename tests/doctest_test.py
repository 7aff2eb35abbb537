"""The examples in the docstrings of `jaxdiff`'s own names run as they stand."""

import doctest
import inspect

import jax
import pytest

import jaxdiff as jd

NAMES = [x for x in jd.__all__ if not inspect.ismodule(getattr(jd, x))]


def example(name, doc):
  """Returns the example of a docstring as a test; refuses one without."""
  assert "\nExample:\n" in inspect.cleandoc(doc), f"{name} has no example"
  test = doctest.DocTestParser().get_doctest(doc, {}, name, None, None)
  assert any(step.want for step in test.examples), f"{name} shows no result"
  return test


@pytest.mark.parametrize("name", NAMES)
def test_example_prints_what_it_says(name):
  report = []
  runner = doctest.DocTestRunner(verbose=False)
  runner.run(example(name, getattr(jd, name).__doc__), out=report.append)
  assert not report, "".join(report)


def test_every_name_of_jaxdiff_is_tried():
  assert len(NAMES) > 35
  assert {"sample", "Tableau", "unipc", "edm"} < set(NAMES)


@pytest.mark.parametrize(
  "doc",
  ["Text alone.", "Text.\n\nExample:\n  >>> x = 1\n", "Text.\n\n>>> 1\n1\n"],
)
def test_a_docstring_without_an_example_is_refused(doc):
  with pytest.raises(AssertionError, match="has no example|shows no result"):
    example("f", doc)


def test_tables_are_built_without_compiling(compiled):
  runner = doctest.DocTestRunner(verbose=False)
  jax.clear_caches()
  runner.run(example("unipc", jd.unipc.__doc__))
  assert not compiled

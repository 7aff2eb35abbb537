"""Runs the miniature of a system's central claim and writes its result.

  python -m experiments.evidence --system=dpm-solver
  python -m experiments.evidence --system=all
  python -m experiments.evidence --docs      # docs/systems.md from the results

Prints every metric, its bar and the verdict. Interrupted, it goes on with the
next seed. The result goes to OUT/results or, with --publish, to the place of
the committed one. With --seeds it only looks, and writes no result.
"""

import pathlib

from absl import flags

from ..parts import console

_SYSTEM = flags.DEFINE_string(
  "system", None, "A system of docs/systems.md, several by commas, or 'all'."
)
_SEEDS = flags.DEFINE_list(
  "seeds", None, "Seeds to look at instead of the system's own; not written."
)
_OUT = flags.DEFINE_string(
  "out", "runs/evidence", "Folder for what each seed measured."
)
_AGAIN = flags.DEFINE_bool("again", False, "Measure anew what is there.")
console.define_publish()
_DOCS = flags.DEFINE_bool(
  "docs", False, "Write docs/systems.md from the committed results."
)


def main() -> None:
  # after the flags, so that --help answers at once
  from . import documents
  from . import report
  from . import runner

  results = pathlib.Path(_OUT.value) / "results"
  if flags.FLAGS.publish:
    console.checkout("experiments/evidence/results")
    results = report.RESULTS
  if _DOCS.value:
    page = console.checkout(documents.PAGE) / documents.PAGE
  if not (_SYSTEM.value or _DOCS.value):
    raise ValueError(
      "name a system with --system, one of: "
      + ", ".join(report.systems())
      + "; or --docs for the page of all results"
    )
  seeds = None if _SEEDS.value is None else [int(s) for s in _SEEDS.value]
  wanted = (_SYSTEM.value or "").split(",") if _SYSTEM.value else []
  for slug in report.systems() if wanted == ["all"] else wanted:
    result = runner.run(slug, pathlib.Path(_OUT.value), seeds, _AGAIN.value)
    print(report.text(result), flush=True)
    if seeds is None:
      report.write(result, results)
  if _DOCS.value:
    print(f"Wrote {documents.write(page)}")


if __name__ == "__main__":
  console.run(main)

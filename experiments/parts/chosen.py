"""Measured choices that are kept beside the model they were made for."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdiff import choosing
from jaxdiff import tableau as tables
from jaxdiff.tableau import Tableau

from . import plots

Choice = tuple[Mapping[int, Tableau], choosing.Report]


class Kept(NamedTuple):
  """A choice that was kept.

  Attributes:
    tables: the tables by number of calls.
    names: what they are called.
    report: what was measured, as text.
  """

  tables: dict[int, Tableau]
  names: dict[int, str]
  report: str


def keep(
  folder: pathlib.Path,
  told: Mapping[str, Any],
  choose: Callable[[], Choice],
  *,
  write: bool = True,
) -> Kept:
  """Returns the choice that is kept, or makes it.

  Args:
    folder: where choices are kept; FOLDER/CODE-N.npz is the table of N calls.
    told: everything that the choice depends on, as JSON can store it: the
      weights, guidance, number of calls.
    choose: makes the choice, where none of the kind is kept.
    write: whether this process keeps it.
  """
  text = json.dumps(dict(told), sort_keys=True, default=str)
  code = hashlib.sha256(text.encode()).hexdigest()[:16]
  path = folder / f"{code}.json"
  if path.is_file():
    kept = json.loads(path.read_text())
    names = {int(n): name for n, name in kept["chosen"].items()}
    read = {n: tables.load(folder / f"{code}-{n}.npz") for n in names}
    return Kept(read, names, kept["report"])
  found, report = choose()
  if write:
    folder.mkdir(parents=True, exist_ok=True)
    print(plots.choice(report, folder / f"{code}.png"))
    for n, table in found.items():
      about = dict(solver=report.chosen[n], rmse=report.best(n).rmse)
      tables.save(folder / f"{code}-{n}.npz", table, about)
    kept = dict(told=dict(told), chosen=report.chosen, report=str(report))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(kept, indent=1, default=str) + "\n")
    partial.replace(path)  # last, so that a choice broken off is made anew
  return Kept(dict(found), dict(report.chosen), str(report))

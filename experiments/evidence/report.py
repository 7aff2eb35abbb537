"""Bars, verdicts, and the files that hold them.

A bar is met if the mean over the seeds meets its bound. The interval is
Student's, of 95 %. A system is "shown" if every bar is met, and "missed"
otherwise; nothing is rounded in its favour.
"""

import importlib
import json
import math
import pathlib
import pkgutil
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from .. import evidence

RESULTS = pathlib.Path(__file__).parent / "results"
_PARTS = ("TITLE", "CLAIM", "PAPER", "SEEDS", "BARS", "REPORTED", "LIMITS")


class Bar(NamedTuple):
  """One number of a system and what it must reach.

  Attributes:
    name: key of the number in what `measure` returns.
    what: the sentence that the documents print.
    sense: "at most", "at least", or "reported", which has no bound.
    bound: the bar.
  """

  name: str
  what: str
  sense: str
  bound: float | None


def at_most(name: str, bound: float, what: str) -> Bar:
  """Returns a bar that is met by a mean <= bound."""
  return Bar(name, what, "at most", float(bound))


def at_least(name: str, bound: float, what: str) -> Bar:
  """Returns a bar that is met by a mean >= bound."""
  return Bar(name, what, "at least", float(bound))


def reported(name: str, what: str) -> Bar:
  """Returns a number that is shown beside the bars and decides nothing."""
  return Bar(name, what, "reported", None)


def systems() -> tuple[str, ...]:
  """Returns the slugs of all systems that have a module."""
  names = [m.name for m in pkgutil.iter_modules(evidence.__path__)]
  skip = ("report", "runner", "documents", "__main__")
  return tuple(
    sorted(
      n.replace("_", "-")
      for n in names
      if n not in skip and not n.startswith("_")
    )
  )


def load(slug: str) -> Any:
  """Returns a system's module.

  Raises:
    ValueError: for an unknown system, or a module that lacks a part.
  """
  if slug not in systems():
    raise ValueError(
      f"--system={slug!r} is none of the systems: {', '.join(systems())}"
    )
  module = importlib.import_module(f".{slug.replace('-', '_')}", __package__)
  missing = [p for p in (*_PARTS, "measure") if not hasattr(module, p)]
  if missing:
    raise ValueError(
      f"{module.__name__} lacks {', '.join(missing)}; see experiments/evidence"
    )
  return module


def summarise(
  module: Any, slug: str, measured: dict[int, dict[str, float]]
) -> dict[str, Any]:
  """Returns the result of a system from {seed: {name: value}}.

  Raises:
    ValueError: if `measure` left out a number, or returned one without a bar.
  """
  bars = (*module.BARS, *module.REPORTED)
  names = {bar.name for bar in bars}
  for seed, values in measured.items():
    if set(values) != names:
      raise ValueError(
        f"measure({seed}) of {slug} returned {sorted(values)}, but BARS and"
        f" REPORTED name {sorted(names)}"
      )
  lines = [_line(bar, [v[bar.name] for v in measured.values()]) for bar in bars]
  return dict(
    system=slug,
    title=module.TITLE,
    claim=module.CLAIM,
    paper=module.PAPER,
    verdict="shown" if all(b["met"] is not False for b in lines) else "missed",
    limits=module.LIMITS,
    seeds=list(measured),
    bars=lines,
  )


def _line(bar, values):
  mean = float(np.mean(values))
  met = None
  if bar.sense == "at most":
    met = bool(mean <= bar.bound)
  elif bar.sense == "at least":
    met = bool(mean >= bar.bound)
  return dict(
    name=bar.name,
    what=bar.what,
    sense=bar.sense,
    bound=bar.bound,
    value=mean,
    interval=_interval(values),
    per_seed=[float(v) for v in values],
    met=met,
  )


def _interval(values):
  if len(values) < 2:
    return None
  spread = np.std(values, ddof=1) / math.sqrt(len(values))
  reach = float(stats.t.ppf(0.975, len(values) - 1) * spread)
  return [float(np.mean(values)) - reach, float(np.mean(values)) + reach]


def text(result: dict[str, Any]) -> str:
  """Returns a result for the terminal."""
  lines = [f"{result['title']}: {result['verdict'].upper()}", result["claim"]]
  for bar in result["bars"]:
    mark = {True: "met   ", False: "MISSED", None: "      "}[bar["met"]]
    bound = (
      "" if bar["bound"] is None else f"  ({bar['sense']} {bar['bound']:g})"
    )
    lines.append(f"  {mark} {bar['value']:.4g}{spread(bar)}{bound}")
    lines.append(f"         {bar['what']}")
  if result["limits"]:
    lines.append(f"  Not shown at this size: {result['limits']}")
  return "\n".join(lines)


def spread(bar: dict[str, Any]) -> str:
  """Returns the interval of a bar as text, empty for a single seed."""
  if bar["interval"] is None:
    return ""
  low, high = bar["interval"]
  return f" [{low:.4g}, {high:.4g}]"


def write(result: dict[str, Any], folder: pathlib.Path = RESULTS) -> None:
  """Writes <folder>/<slug>.json whole or not at all."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{result['system']}.json"
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(result, indent=1, allow_nan=True) + "\n")
  partial.replace(path)


def read(slug: str, folder: pathlib.Path = RESULTS) -> dict[str, Any] | None:
  """Returns the committed result of a system, None if it was never run."""
  path = folder / f"{slug}.json"
  return json.loads(path.read_text()) if path.exists() else None

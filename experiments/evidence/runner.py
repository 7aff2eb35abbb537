"""Runs systems seed by seed; what was measured is kept, and not done again."""

import hashlib
import json
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from . import report


def run(
  slug: str,
  out: pathlib.Path,
  seeds: Sequence[int] | None = None,
  again: bool = False,
) -> dict[str, Any]:
  """Measures a system on its seeds and returns its result.

  Each seed's numbers are kept under `out` with a stamp of the module's source:
  an interrupted run goes on with the next seed, an edited module starts anew.

  Args:
    slug: the system.
    out: folder for what was measured.
    seeds: the system's own by default; others are for looking only.
    again: whether to measure anew what is there.
  """
  module = report.load(slug)
  seeds = module.SEEDS if seeds is None else seeds
  source = pathlib.Path(module.__file__).read_bytes()
  stamp = hashlib.sha256(source).hexdigest()[:16]
  folder = out / slug
  folder.mkdir(parents=True, exist_ok=True)
  measured, seconds = {}, 0.0
  for seed in seeds:
    path = folder / f"seed_{seed}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if again or kept.get("stamp") != stamp:
      print(f"{slug}: seed {seed} of {list(seeds)}", flush=True)
      begin = time.perf_counter()
      values = {k: float(v) for k, v in module.measure(seed).items()}
      kept = dict(
        stamp=stamp, values=values, seconds=time.perf_counter() - begin
      )
      partial = path.with_suffix(".partial")
      partial.write_text(json.dumps(kept))
      partial.replace(path)
    measured[seed] = kept["values"]
    seconds += kept["seconds"]
  result = report.summarise(module, slug, measured)
  return result | dict(
    seconds=round(seconds, 1),
    device=jax.devices()[0].device_kind,
    versions=dict(
      python=platform.python_version(),
      jax=jax.__version__,
      numpy=np.__version__,
    ),
    command=f"python -m experiments.evidence --system={slug}",
  )

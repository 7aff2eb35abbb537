r"""Measures samples against data: a table with intervals, a file, a picture.

  python -m experiments.evaluate --samples=runs/digits --reference=digits \
      --features=digits
  python -m experiments.evaluate --samples=samples.npz --reference=cifar10 \
      --features=effnet --metrics=fd,kid,precision,recall
  python -m experiments.evaluate --samples=runs/cifar/samples \
      --reference=cifar10-32x32.npz --features=inception \
      --weights=pt_inception-2015-12-05-6726825d.pth

--samples is an .npz with `image`, a folder of shards, or a run folder that
experiments.sample wrote to. --reference is a data set as jaxdiff.data.load
takes it, an .npz of one, or an .npz of statistics with `mu` and `sigma` (for
the Frechet distance alone). Features of the reference are kept beside the
results and used again.

Beside every number stands what one half of the reference gets against the
other, at the size that is printed: the distance that finite numbers alone make.
Numbers are comparable with each other at equal counts of samples only.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from scipy import special
from tqdm import auto as tqdm

from jaxdiff import data
from jaxdiff import metrics
from jaxdiff import parallel
from jaxdiff.data import loader
from jaxdiff.metrics import features
from jaxdiff.metrics import neighbors

from .parts import console
from .parts import measures
from .parts import plots

FLAGS = flags.FLAGS
_SHOWN = 6  # rows of the picture, most and least typical; neighbours beside


def samples_source(path: str) -> tuple[Any, pathlib.Path]:
  """Returns a source of `data`, and the folder that it lies in.

  Args:
    path: an .npz file, a folder of shards, or a run folder.

  Raises:
    FileNotFoundError: there are no samples.
  """
  given = pathlib.Path(path)
  if given.is_file():
    return data.load(f"npz:{given}"), given.parent
  for folder in (given, given / "samples"):
    if any(folder.glob("shard-*.npz")):
      return data.load(f"shards:{folder}"), given
  if (given / "samples.npz").is_file():
    return data.load(f"npz:{given / 'samples.npz'}"), given
  raise FileNotFoundError(
    f"samples: {path!r} is no .npz file, and no folder with shard-*.npz or"
    " samples.npz; draw some with: python -m experiments.sample"
  )


def images_of(source: Any, rows: np.ndarray) -> np.ndarray:
  """Returns images of a source by their numbers.

  Raises:
    ValueError: if the source has no images.
  """
  fields = source if isinstance(source, Mapping) else source[0]
  if "image" not in fields:
    raise ValueError(
      f'expected images under the name "image", found {", ".join(fields)}'
    )
  if isinstance(source, Mapping):
    return np.asarray(source["image"][rows])
  return loader.take(source, rows)["image"]


def size_of(source: Any) -> int:
  """Returns the number of images in a source."""
  return len(source.get("image", ()) if isinstance(source, Mapping) else source)


def extract(
  extractor: features.Extractor,
  source: Any,
  rows: np.ndarray,
  batch: int,
  what: str,
) -> measures.Features:
  """Returns the features of some images of a source, read in batches."""
  sharding = None
  if jax.device_count() > 1:
    sharding = parallel.batch_sharding(parallel.data_mesh())
    batch *= jax.device_count()
  batch = min(batch, len(rows))
  blocks = np.split(rows, range(batch, len(rows), batch))
  with tqdm.tqdm(total=len(rows), desc=what, unit="image") as bar:
    values, logits = features.extract(
      extractor,
      (images_of(source, block) for block in blocks),
      batch=batch,
      numbers=rows,
      sharding=sharding,
      show=bar.update,
    )
  if logits is None:
    return measures.Features(values)
  return measures.Features(values, special.softmax(np.float64(logits), axis=1))


def reference_features(
  extractor: features.Extractor,
  source: Any,
  rows: np.ndarray,
  batch: int,
  name: str,
  folder: pathlib.Path,
) -> measures.Features:
  """Returns the reference's features, from the folder if they are kept there.

  Beside them goes an .npz of their statistics, which may serve as --reference.
  """
  print_ = hashlib.sha256(repr((name, extractor.weights, len(rows))).encode())
  few = rows[measures.spread(len(rows), 16)]
  print_.update(np.ascontiguousarray(images_of(source, few)))
  stem = f"reference-{extractor.name}-{print_.hexdigest()[:12]}"
  path = folder / f"{stem}-features.npz"
  if path.is_file():
    with np.load(path) as kept:
      return measures.Features(**dict(kept))
  found = extract(extractor, source, rows, batch, "reference")
  s = metrics.statistics.of(
    found.values, extractor=kind(extractor), dataset=name
  )
  metrics.statistics.save(folder / f"{stem}.npz", s)
  partial = path.with_suffix(".partial")
  with open(partial, "wb") as f:
    fields = dataclasses.asdict(found)
    np.savez(f, **{n: v for n, v in fields.items() if v is not None})
  partial.replace(path)
  return found


def kind(extractor: features.Extractor) -> str:
  """Returns what statistics in these features are kept as."""
  return f"{extractor.name}, {extractor.weights}".rstrip(", ")


def titles(extractor: features.Extractor) -> dict[str, str]:
  """Returns the names of rows: FID, KID and IS are those of Inception alone."""
  official = extractor.distance == "FID"
  suffix = "" if official else extractor.distance.removeprefix("FD")
  return {
    "fd": extractor.distance,
    "kid": "KID" if official else f"KD{suffix}",
    "is": f"IS{suffix}",
    "swd": "sliced W2",
    "classes": "classes found",
    "classes_kl": "KL of classes",
    "confident": "share confident",
  }


def chosen_metrics(
  asked: Sequence[str] | None, has_classes: bool, name: str
) -> list[str]:
  """Returns the metrics to measure: those asked for, or all that there are.

  Raises:
    ValueError: for an unknown one, or one that needs a classifier.
  """
  if not asked:
    return [
      m for m, v in measures.MEASURES.items() if has_classes or not v.classes
    ]
  for metric in asked:
    if metric not in measures.MEASURES:
      raise ValueError(
        f"metrics: got {metric!r}, expected some of"
        f" {','.join(measures.MEASURES)}"
      )
    if measures.MEASURES[metric].classes and not has_classes:
      raise ValueError(
        f"metrics: {metric!r} needs a classifier, which the features {name!r}"
        " have not; use inception, effnet or digits"
      )
  return list(dict.fromkeys(asked))


def remarks(n: int, m: int | None, d: int, half: int | None) -> list[str]:
  """Returns what a reader of the numbers should know, a line each."""
  said = []
  counts = [("samples", n)] + ([("reference images", m)] if m else [])
  for what, count in counts:
    if count <= d:
      said.append(
        f"{count} {what} are too few for a covariance of {d} features: its rank"
        f" is {count - 1}. The Frechet distance is mostly their number; use at"
        f" least {2 * d}, or read the kernel distance (kid), which has no bias."
      )
  if half is not None and half < n:
    said.append(
      f"The halves of the reference have {half} images each, fewer than the"
      f" {n} samples: a distance between them is larger than at equal sizes."
    )
  if n > measures.PAIRS or (m or 0) > measures.PAIRS:
    said.append(
      f"kid and energy look at {measures.PAIRS} of either set, evenly spread."
    )
  return said


def table(rows: list[measures.Row], half: int | None) -> str:
  """Returns the table that is printed."""
  head = f"two halves of {half}" if half else ""
  lines = [f"{'':18}{'value':>12}  {'95 % interval':^25}  {head:>20}"]
  for row in rows:
    v = row.interval
    span = f"[{_short(v.low)}, {_short(v.high)}]"
    other = "" if row.halves is None else _short(row.halves)
    lines.append(
      f"{row.name:18}{_short(v.value):>12}  {span:^25}  {other:>20}"
      f"  {row.better} is better"
    )
  return "\n".join(lines)


def _short(value: Any) -> str:
  return f"{float(value):.4g}"


def picture(
  x: measures.Features,
  y: measures.Features,
  samples: tuple[Any, np.ndarray],
  reference: tuple[Any, np.ndarray],
  path: pathlib.Path,
) -> str:
  """Draws the most and least typical samples with their nearest data."""
  scores = metrics.realism(x.values, y.values, k=min(3, len(y) - 1))
  order = np.argsort(-scores)
  shown = min(_SHOWN, len(order) // 2)
  picked = np.concatenate([order[:shown], order[len(order) - shown :]])
  k = min(8, len(y))
  _, nearest = neighbors.nearest(x.values[picked], y.values, k)
  source, rows = samples
  left = plots.in_range(images_of(source, rows[picked]))
  if left.ndim != 4 or left.shape[-1] not in (1, 3):
    return "No picture: samples are no images of 1 or 3 channels."
  source, rows = reference
  right = plots.in_range(images_of(source, rows[nearest.ravel()]))
  if left.shape[1:] != right.shape[1:]:
    return (
      f"No picture: samples of shape {left.shape[1:]} and a reference of shape"
      f" {right.shape[1:]}. Part of every distance is the resizing."
    )
  right = right.reshape(*nearest.shape, *right.shape[1:])
  names = [f"typical {i + 1}" for i in range(shown)]
  names += [f"untypical {i + 1}" for i in range(shown)][::-1]
  gap = np.ones_like(left[:1])
  said = plots.image_rows(
    {
      f"{name}: {scores[i]:.2f}": np.concatenate([one[None], gap, beside])
      for name, i, one, beside in zip(names, picked, left, right)
    },
    path,
  )
  if not path.is_file():
    return said
  return f"{said[:-1]}: samples, and their {k} nearest reference images."


def open_reference(
  reference: str, options: Mapping[str, Any]
) -> tuple[Any, metrics.statistics.Statistics | None]:
  """Returns a source of `data`, or the statistics that a file holds.

  Raises:
    FileNotFoundError: there is no such file or data set.
    ValueError: an unknown name, or a file of another kind.
  """
  path = pathlib.Path(reference)
  if path.suffix != ".npz" or reference.startswith("npz:"):
    return data.load(reference, **options), None
  if path.is_file() and zipfile.is_zipfile(path):
    with np.load(path, allow_pickle=False) as f:
      if "mu" not in f.files:
        return data.load(f"npz:{reference}", **options), None
  return None, metrics.statistics.load(path)


def evaluate(
  samples: str,
  reference: str,
  *,
  name: str = "effnet",
  chosen: Sequence[str] | None = None,
  weights: str | None = None,
  reference_options: Mapping[str, Any] | None = None,
  num: int | None = None,
  batch: int = 32,
  out: str | None = None,
) -> dict[str, Any]:
  """Measures, prints, writes, and returns what was written as JSON.

  Args:
    samples: as --samples.
    reference: as --reference.
    name: name of the features.
    chosen: names of metrics, None for all.
    weights: file of the extractor's weights.
    reference_options: options of `data.load`.
    num: images of either set, at most, evenly spread.
    batch: images at a time, on every device.
    out: folder of the results.
  """
  began = time.perf_counter()
  options = dict(reference_options or {})
  extractor = features.load(name, weights)
  source, folder = samples_source(samples)
  folder = pathlib.Path(out) if out else folder / f"evaluation-{name}"
  data_source, kept = open_reference(reference, options)
  if kept is None:
    chosen = chosen_metrics(chosen, name != "pixels", name)
  else:
    _check_statistics(kept, reference, chosen, extractor)
  rows_x = _rows(source, num, "samples", samples)
  folder.mkdir(parents=True, exist_ok=True)
  x = extract(extractor, source, rows_x, batch, "samples")
  count, half, drawn = kept and kept.count, None, ""
  called = titles(extractor)
  if kept is not None:
    rows = [measures.frechet_to(x, kept, called["fd"])]
  else:
    rows_y = _rows(data_source, num, "reference images", reference)
    full = reference + (json.dumps(options, sort_keys=True) if options else "")
    y = reference_features(extractor, data_source, rows_y, batch, full, folder)
    count = len(y)
    with tqdm.tqdm(chosen, desc="measuring", unit="metric") as bar:
      rows, half = measures.measure(bar, x, y, called)
    drawn = picture(
      x, y, (source, rows_x), (data_source, rows_y), folder / "neighbours.png"
    )
  notes = remarks(len(x), count, x.dimension, half)
  if min(len(x), count or np.inf) > x.dimension:
    notes += _without_bias(row for row in rows if row.name == called["fd"])
  print(
    f"{len(x)} samples of {samples} against {count or 'an unknown number of'}"
    f" images of {reference}, in the features {kind(extractor)}:"
  )
  print("\n".join([table(rows, half), *(f"Note: {note}" for note in notes)]))
  result = {
    "samples": {"path": samples, "count": len(x)},
    "reference": {"name": reference, "options": options, "count": count},
    "half": half,
    "features": kind(extractor),
    "metrics": {row.name: _entry(row) for row in rows},
    "notes": notes,
    "seconds": round(time.perf_counter() - began, 1),
    "device": jax.devices()[0].device_kind,
  }
  print(_written(result, folder / "metrics.json", drawn))
  return result


def _written(result, path, drawn) -> str:
  """Writes the result as JSON; returns what was written."""
  path.write_text(json.dumps(result, indent=2) + "\n")
  return f"Wrote {path}." + (f"\n{drawn}" if drawn else "")


def _rows(source, num, what, name):
  """Returns the numbers of the images that are measured, evenly spread."""
  rows = measures.spread(size_of(source), num)
  measures.check_size(len(rows), what, name)
  return rows


def _without_bias(rows) -> list[str]:
  """Returns what to say of distances whose bias the jackknife found."""
  return [
    f"Without the bias of finite samples, as the jackknife finds it,"
    f" {row.name} is {_short(row.interval.corrected)}."
    for row in rows
  ]


def _check_statistics(
  kept: metrics.statistics.Statistics,
  reference: str,
  chosen: Sequence[str] | None,
  extractor: features.Extractor,
) -> None:
  """Raises a ValueError unless statistics are enough for what is asked."""
  if chosen and list(chosen) != ["fd"]:
    raise ValueError(
      f"reference: {reference!r} holds statistics, which are enough for"
      f" --metrics=fd alone, not for {','.join(chosen)}; name the data set"
    )
  mine = kind(extractor)
  if kept.features and kept.features != mine:
    raise ValueError(
      f"reference: {reference!r} holds statistics in the features"
      f" {kept.features!r}, which cannot be compared with {mine!r}"
    )


def _entry(row: measures.Row) -> dict[str, Any]:
  """Returns a row as JSON, which knows no NaN and no infinity."""
  values = {**row.interval._asdict(), "between_halves": row.halves}
  finite = lambda v: float(v) if v is not None and np.isfinite(v) else None
  return {**{n: finite(v) for n, v in values.items()}, "better": row.better}


def main() -> None:
  try:
    options = json.loads(FLAGS.reference_options)
  except json.JSONDecodeError as e:
    raise ValueError(
      f'reference_options: expected JSON, for instance \'{{"split": "test"}}\','
      f" got {FLAGS.reference_options!r} ({e})"
    ) from e
  evaluate(
    FLAGS.samples,
    FLAGS.reference,
    name=FLAGS.features,
    chosen=FLAGS.metrics,
    weights=FLAGS.weights,
    reference_options=options,
    num=FLAGS.num,
    batch=FLAGS.batch,
    out=FLAGS.out,
  )


def define_flags() -> None:
  """Defines the command line."""
  flags.DEFINE_string(
    "samples", None, "An .npz, a folder of shards, or a run folder."
  )
  flags.DEFINE_string(
    "reference", None, "A data set by name, or an .npz of statistics."
  )
  flags.DEFINE_string(
    "reference_options", "{}", "Options of the data set, as JSON."
  )
  flags.DEFINE_enum(
    "features", "effnet", list(features.EXTRACTORS), "Feature extractor."
  )
  flags.DEFINE_list(
    "metrics", None, f"Some of {','.join(measures.MEASURES)}; all by default."
  )
  flags.DEFINE_string("weights", None, "File of the extractor's weights.")
  flags.DEFINE_integer(
    "num", None, "Images of either set, at most.", lower_bound=1
  )
  flags.DEFINE_integer(
    "batch", 32, "Images at a time, per device.", lower_bound=1
  )
  flags.DEFINE_string("out", None, "Folder of the results, beside the samples.")
  flags.mark_flags_as_required(["samples", "reference"])


if __name__ == "__main__":
  define_flags()
  console.run(main)

"""What `experiments.evaluate` measures, each with its kind of interval."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import metrics
from jaxdiff.metrics.frechet import between
from jaxdiff.metrics.frechet import factor

# Pairs of all samples are looked at: at most so many of either set.
PAIRS = 10_000
_GROUPS = 10  # of the jackknife
_FEWEST = 12  # samples of a set


@dataclasses.dataclass(frozen=True)
class Features:
  """What an extractor made of a set of images.

  Attributes:
    values: f32[n, d].
    probabilities: f64[n, classes], or None without a classifier.
  """

  values: np.ndarray
  probabilities: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.values)

  @property
  def dimension(self) -> int:
    return self.values.shape[1]

  def take(self, rows: np.ndarray) -> "Features":
    p = self.probabilities
    return Features(self.values[rows], None if p is None else p[rows])


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    name: name of what was measured.
    better: "lower" or "higher".
    interval: the measurement.
    halves: the same of one half of the reference against the other: what
      perfect samples would get against as few data; None if not known.
  """

  name: str
  better: str
  interval: metrics.Interval
  halves: float | None = None


Found = Mapping[str, metrics.Interval]


def _fd(x: Features, y: Features, jackknife: Callable) -> Found:
  return {"fd": jackknife(between, x.values, y.values, summary=factor)}


def _kid(x: Features, y: Features, jackknife: Callable) -> Found:
  return {"kid": metrics.mmd(*_pairs(x, y))}


def _energy(x: Features, y: Features, jackknife: Callable) -> Found:
  return {"energy": metrics.energy_distance(*_pairs(x, y))}


def _swd(x: Features, y: Features, jackknife: Callable) -> Found:
  distance = jax.jit(
    lambda a, b: metrics.sliced_wasserstein(jax.random.key(0), a, b)
  )
  return {"swd": jackknife(distance, x.values, y.values, summary=jnp.asarray)}


def _precision_recall(x: Features, y: Features, jackknife: Callable) -> Found:
  both = lambda a, b: np.array(metrics.precision_recall(a, b))
  found = jackknife(both, x.values, y.values)
  return _columns(found, ("precision", "recall"), (1.0, 1.0))


def _density_coverage(x: Features, y: Features, jackknife: Callable) -> Found:
  both = lambda a, b: np.array(metrics.density_coverage(a, b))
  found = jackknife(both, x.values, y.values)
  return _columns(found, ("density", "coverage"), (np.inf, 1.0))


def _is(x: Features, y: Features, jackknife: Callable) -> Found:
  p = x.probabilities
  score = lambda w: metrics.inception_score(p, w)
  return {"is": metrics.bootstrap(score, len(x))}


def _modes(x: Features, y: Features, jackknife: Callable) -> Found:
  p, classes = x.probabilities, x.probabilities.shape[1]
  # Half a count for every class: one that the reference lacks is not infinite.
  counts = np.bincount(y.probabilities.argmax(1), minlength=classes) + 0.5
  shares = counts / counts.sum()
  coverage = lambda w: np.stack(
    metrics.mode_coverage(p, shares, weights=w), axis=-1
  )
  found = metrics.bootstrap(coverage, len(x))
  return _columns(found, tuple(_MODES), (classes, np.inf, 1.0))


def _pairs(x: Features, y: Features) -> tuple[np.ndarray, np.ndarray]:
  return tuple(v.values[spread(len(v), PAIRS)] for v in (x, y))


def _columns(
  found: metrics.Interval, names: Sequence[str], largest: Sequence[float]
) -> Found:
  """Returns the interval of each column, within what it can be."""
  columns = {}
  for i, (name, most) in enumerate(zip(names, largest, strict=True)):
    one = metrics.Interval(*(np.asarray(v)[..., i] for v in found))
    columns[name] = one._replace(
      low=np.clip(one.low, 0.0, most), high=np.clip(one.high, 0.0, most)
    )
  return columns


@dataclasses.dataclass(frozen=True)
class Measure:
  """A metric of the command line.

  Attributes:
    run: function of (samples, reference, jackknife) -> intervals by name.
    names: what it finds, and what is better.
    classes: whether it needs a classifier.
  """

  run: Callable[[Features, Features, Callable], Found]
  names: Mapping[str, str]
  classes: bool = False


_MODES = {"classes": "higher", "classes_kl": "lower", "confident": "higher"}
_PR = {"precision": "higher", "recall": "higher"}
_DC = {"density": "higher", "coverage": "higher"}
MEASURES = {
  "fd": Measure(_fd, {"fd": "lower"}),
  "kid": Measure(_kid, {"kid": "lower"}),
  "precision": Measure(_precision_recall, _PR),
  "recall": Measure(_precision_recall, _PR),
  "density": Measure(_density_coverage, _DC),
  "coverage": Measure(_density_coverage, _DC),
  "energy": Measure(_energy, {"energy": "lower"}),
  "swd": Measure(_swd, {"swd": "lower"}),
  "is": Measure(_is, {"is": "higher"}, classes=True),
  "modes": Measure(_modes, _MODES, classes=True),
}


def measure(
  chosen: Iterable[str],
  x: Features,
  y: Features,
  titles: Mapping[str, str],
) -> tuple[list[Row], int]:
  """Returns the rows of the table, and the size of the reference's halves.

  Args:
    chosen: names of MEASURES.
    x: features of samples.
    y: features of the reference.
    titles: names of rows, where they are called otherwise in these features.
  """
  order = np.random.default_rng(0).permutation(len(y))
  size = min(len(x), len(y) // 2)
  parts = y.take(order[:size]), y.take(order[size : 2 * size])
  found, halves, rows = {}, {}, []
  for name in chosen:
    run, better = MEASURES[name].run, MEASURES[name].names
    if not set(better) <= set(found):  # recall comes with precision
      found.update(run(x, y, _jackknife))
      halves.update(run(*parts, _value))
    # it may be asked for alone, too; modes stand for three numbers
    rows += [
      Row(titles.get(n, n), better[n], found[n], float(halves[n].value))
      for n in ([name] if name in better else better)
    ]
  return rows, size


def frechet_to(
  x: Features, reference: metrics.statistics.Statistics, title: str
) -> Row:
  """Returns the Frechet distance to the statistics of a file."""
  y = metrics.statistics.factor(reference)
  found = metrics.jackknife(
    lambda a: between(a, y), x.values, summary=factor, groups=_groups(len(x))
  )
  return Row(title, "lower", found)


def spread(n: int, most: int | None) -> np.ndarray:
  """Returns at most `most` of the numbers 0..n - 1, evenly spread, i64[...].

  Raises:
    ValueError: if n is 0.
  """
  if not n:
    raise ValueError("there are no images: got an empty set")
  size = n if most is None else min(n, most)
  return np.arange(size) * n // size


def check_size(count: int, what: str, where: str) -> None:
  """Raises a ValueError for a set that is too small for an interval.

  The jackknife leaves out a third of a small set, halves of the reference are
  compared, and coverage looks for five neighbours in what is left.

  Args:
    count: number of the set.
    what: what it is of, for the message.
    where: where it comes from.
  """
  if count < _FEWEST:
    raise ValueError(
      f"{count} {what} of {where} are too few: the distances and their"
      f" intervals need {_FEWEST}, and mean something from 1,000 on; draw or"
      " name more, and give --num at least as many"
    )


def _jackknife(statistic: Callable, *sets: Any, **options: Any) -> Any:
  groups = _groups(min(len(v) for v in sets))
  sets = [np.asarray(v, np.float64) for v in sets]
  return metrics.jackknife(statistic, *sets, groups=groups, **options)


def _value(
  statistic: Callable, *sets: Any, summary: Callable = lambda v: v
) -> metrics.Interval:
  """Stands for the jackknife where no interval is wanted."""
  value = statistic(*(summary(np.asarray(v, np.float64)) for v in sets))
  nothing = np.full(np.shape(value), np.nan)
  return metrics.Interval(np.asarray(value), *3 * [nothing], nothing)


def _groups(n: int) -> int:
  return max(2, min(_GROUPS, n // 4))
